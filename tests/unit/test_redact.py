"""Secrets vanish from what is written and shown; everything else stays byte for byte."""

import subprocess
import sys

import pytest

from ftlab.redact import names_secret, redact, redact_message, redact_tree, secrets

HEX40 = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plantedwandbvalue")
    monkeypatch.setenv("MY_DB_PASSWORD", "correct horse")
    monkeypatch.setenv("PGPASSWORD", "correct-elephant")
    monkeypatch.setenv("SHORT_TOKEN", "none")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false_false")


def test_secrets_are_the_values_of_variables_that_say_so() -> None:
    found = secrets()
    assert {"plantedwandbvalue", "correct horse"} <= found
    assert not {"none", "false_false"} & found


def test_a_secret_that_contains_another_vanishes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONG_TOKEN", "plantedwandbvalue-and-more")
    assert redact("x plantedwandbvalue-and-more y") == "x *** y"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("see plantedwandbvalue!", "see ***!"),
        ("hf_" + "aB3" * 10, "***"),
        ("export OPENAI=sk-proj-4f" + "x" * 20, "export OPENAI=***"),
        (f"key={HEX40}", "key=***"),
        (f"WANDB_API_KEY: '{HEX40}'", "WANDB_API_KEY: '***'"),
        (f"wandb login {HEX40}", "wandb login ***"),
        ("Authorization: Bearer abc123def456ghi789", "Authorization: Bearer ***"),
        ("https://me:hunter2@db.example.org/x", "https://me:***@db.example.org/x"),
        ("postgresql://me:p%40ss@localhost", "postgresql://me:***@localhost"),
        ("postgresql+psycopg://me:p@s/s:w@localhost/db", "postgresql+psycopg://me:***@localhost/db"),
        ("postgresql://me@localhost/db?password=hunter2&x=1", "postgresql://me@localhost/db?password=***&x=1"),
        ("PGPASSWORD=hunter2", "PGPASSWORD=***"),
        ("PGPASSWORD was correct-elephant", "PGPASSWORD was ***"),
        ("https://h.org/f.csv?a=1&token=s3&b=2", "https://h.org/f.csv?a=1&token=***&b=2"),
        ("https://h.org/f?access_token=abc", "https://h.org/f?access_token=***"),
        ("+hub.token=hunter2", "+hub.token=***"),
        ("- tracker.api_key=hunter2\n- lora.r=8", "- tracker.api_key=***\n- lora.r=8"),
        ("password: hunter2", "password: ***"),
        ("+hub.token=aHVudGVyMg==", "+hub.token=***"),
        ("s3://AKEY:p/w+1@bucket/x", "s3://AKEY:***@bucket/x"),
        ("s3:/AKEY:p/w+1@bucket/x", "s3:/AKEY:***@bucket/x"),
        ("redis://:p/w@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql://me:p?w@host/db", "postgresql://me:***@host/db"),
        ("https://deploytoken@github.com/x", "https://***@github.com/x"),
        ("https://h.org/f?X-Amz-Signature=abc&a=1", "https://h.org/f?X-Amz-Signature=***&a=1"),
        ("id AKIAIOSFODNN7EXAMPLE here", "id *** here"),
        ("xoxb-123456789012-abcdefGHIJ", "***"),
        ("github_pat_" + "a1B2" * 8, "***"),
        ("glpat-" + "a1B2" * 5, "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijkl", "***"),
        ("AIza" + "a1B2c" * 7, "***"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END", "a\n-----BEGIN RSA PRIVATE KEY-----***-----END"),
    ],
)
def test_a_secret_is_masked(text: str, clean: str) -> None:
    assert redact(text) == clean


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("tracker.api_key=hunter2 is not a key", "tracker.api_key=*** is not a key"),
        ("--api-key=hunter2 is not an option", "--api-key=*** is not an option"),
        ("call it with --api-key hunter2", "call it with --api-key ***"),
        ("run 'sweep.password=\"hunter2\"' now", "run 'sweep.password=\"***\"' now"),
        ("lora.r=8 and eval.max_new_tokens=128", "lora.r=8 and eval.max_new_tokens=128"),
        ("set eos_token=x in tokenizer_config.json", "set eos_token=x in tokenizer_config.json"),
        ("not YAML (password: hunter2)", "not YAML (password: ***)"),
    ],
)
def test_a_message_hides_assignments_inside_of_lines(text: str, clean: str) -> None:
    assert redact_message(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "SELECT password FROM users WHERE password = 'abcdefghijk' AND token = 5",
        "SELECT a.password FROM a JOIN b ON a.password=b.password",
        f"SELECT x FROM commits WHERE key = '{HEX40}'",
        "CREATE TABLE users (api_key VARCHAR(40), token TEXT, [secret] INT, password CHAR)",
        "SELECT bearer documents FROM shares",
        f"revision: {HEX40}",
        "data.columns.answer=answer",
        "eval.max_new_tokens=128",
        "tokenizer: mistralai/Mistral-7B-v0.3",
        "eos_token: </s>",
        "perf/tokens_per_second: 1234.5",
        "### Schema:\n{context}\n\n### Question:\n{question}\n\n### SQL:\n",
        "task-2024-completion-and-more-of-it",
        "https://example.org:8080/path@2x.png",
        "postgresql://me@localhost:5432/db?options=x@y",
        "s3://bucket/train.jsonl?versionId=abc",
    ],
)
def test_an_ordinary_value_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "key", ["token", "api_key", "apikey", "secret", "password", "hub_token", "db.password", "WANDB_API_KEY"]
)
def test_keys_that_name_a_secret(key: str) -> None:
    assert names_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        "tokenizer",
        "max_new_tokens",
        "perf/tokens_per_second",
        "eos_token_id",
        "eos_token",
        "pad_token",
        "key",
        "keys",
    ],
)
def test_keys_that_do_not(key: str) -> None:
    assert not names_secret(key)


def test_a_tree_is_masked_by_key_and_by_value_and_keeps_its_shape() -> None:
    tree = {
        "hub": {"token": "abc", "api_key": None, "password": "", "secret": 12345, "use_token": True},
        "tags": ["plain", "plantedwandbvalue"],
        "lora": {"r": 16, "alpha": 32.0, "targets": ("q_proj", "v_proj")},
        "eval/tokens_per_second": 12.5,
    }
    assert redact_tree(tree) == {
        "hub": {"token": "***", "api_key": None, "password": "", "secret": "***", "use_token": True},
        "tags": ["plain", "***"],
        "lora": {"r": 16, "alpha": 32.0, "targets": ("q_proj", "v_proj")},
        "eval/tokens_per_second": 12.5,
    }
    assert tree["tags"] == ["plain", "plantedwandbvalue"]


def test_the_module_needs_nothing_heavy() -> None:
    code = "import sys, ftlab.redact; print(sorted({'torch', 'wandb', 'rich', 'omegaconf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
