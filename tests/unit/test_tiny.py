"""The embedded base model: small, loadable, silent about which query a question asks for; and its pretraining data."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.data import sql_synth
from ftlab.tiny import pretrain

TINY = Path(pretrain.__file__).parent
PROMPT = "### Schema:\n{context}\n\n### Question:\n{question}\n\n### SQL:\n"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def wikisql() -> list[dict[str, str]]:
    """Rows in the form of the real file: real ones are not in the repository."""
    rng = Random(0)
    names = ("away_team", "score", "date", "home_team", "attendance", "constructor", "driver", "laps", "grid", "venue")
    rows = []
    for i in range(300):
        a, b = rng.sample(names, 2)
        value = f"{rng.choice(('geelong', 'Jenson Button', 'us airways center'))} {i}"
        rows.append({
            "question": f"Which {a.replace('_', ' ')} has {value} as {b.replace('_', ' ')}?",
            "context": f"CREATE TABLE table_name_{i} ({a} VARCHAR, {b} VARCHAR)",
            "answer": f'SELECT {a} FROM table_name_{i} WHERE {b} = "{value}"',
            "source": "wikisql-converted",
        })  # fmt: skip
    return rows


def test_weights_fit_the_package_and_the_promise(model):
    assert (TINY / "model.safetensors").stat().st_size <= 16 * 2**20
    assert 5e6 <= model.num_parameters() <= 8e6
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_every_linear_layer_has_whole_nf4_blocks(model):
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.in_features % 64 == 0, name


def test_text_survives_the_tokenizer(tokenizer):
    texts = [PROMPT.format(**row) + row["answer"] for row in sql_synth.generate("test", 50)]
    texts += ["  two  spaces\tand\n\n\nlines ", "Grüße, 12.50 € — 東京", "T1.Net_Worth >= -3; ### Schema:\n<>'\"", ""]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids or tokenizer.unk_token_id is None


def test_special_tokens_are_three_and_bos_comes_first(tokenizer, model):
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert len(set(special)) == 3
    assert None not in special
    assert tokenizer("SELECT")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in tokenizer("SELECT")["input_ids"]
    config = model.config
    assert [config.pad_token_id, config.bos_token_id, config.eos_token_id] == special
    assert len(tokenizer) == config.vocab_size


def test_digits_stand_alone(tokenizer):
    assert tokenizer.tokenize("1984") == ["1", "9", "8", "4"]


def test_a_name_is_the_same_tokens_wherever_it_is_copied_to(tokenizer):
    places = ("SELECT {} FROM", "T1.{} =", "MAX({})", "({} INTEGER", ", {} VARCHAR", '= "{}"', "of the {}?")
    name = tokenizer("honey_kilos", add_special_tokens=False)["input_ids"]
    for place in places:
        ids = tokenizer(place.format("honey_kilos"), add_special_tokens=False)["input_ids"]
        assert any(ids[i : i + len(name)] == name for i in range(len(ids))), place


def test_the_base_cannot_answer(tokenizer, model):
    rows = sql_synth.generate("test", 24)
    batch = tokenizer([PROMPT.format(**row) for row in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model.generate(**_inputs(batch), max_new_tokens=48, do_sample=False)
    answers = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert sum(" ".join(a.split()) == row["answer"] for a, row in zip(answers, rows, strict=True)) <= 1


def test_the_base_copies_a_question_it_has_never_seen(tokenizer, model):
    """What fine-tuning builds on: without it a few hundred steps teach nothing."""
    rows, right = sql_synth.generate("test", 8), 0
    for row in rows:
        shown = PROMPT.format(**row).removesuffix("SQL:\n") + "Question:\n"
        batch = tokenizer(shown, return_tensors="pt")
        length = len(tokenizer(row["question"])["input_ids"])
        with torch.no_grad():
            output = model.generate(**_inputs(batch), max_new_tokens=length, do_sample=False)
        answer = tokenizer.decode(output[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right += answer == row["question"]
    assert right >= 6


def test_documents_never_pair_a_question_with_a_query(wikisql):
    texts = list(pretrain.documents(wikisql, 3000, seed=5))
    pretrain.check(texts, pretrain.HeldOut(sql_synth.generate("test", 200)))
    assert {document.kind for document in texts} >= {
        "question",
        "schema",
        "schema and query",
        "shuffled words and query",
    }
    for document in texts:
        assert not ("### Question:" in document.text and "### SQL:" in document.text)
        if "### SQL:" in document.text:
            assert not re.search(r"\b(What|Which|How many|List|Show|Find|whose)\b.*[.?]\n", document.text)


def test_check_refuses_a_pair_a_held_out_schema_and_a_test_row(wikisql):
    row = sql_synth.generate("test", 1)[0]
    schema, asked, query = (
        ("Schema", "CREATE TABLE a (b VARCHAR)"),
        ("Question", row["question"]),
        ("SQL", "SELECT b FROM a"),
    )
    with pytest.raises(AssertionError, match="a question with a query"):
        pretrain.check([pretrain.Document("", (schema, asked, query))], pretrain.HeldOut([]))
    with pytest.raises(AssertionError, match="held-out text"):
        pretrain.check([pretrain.Document("", (("Schema", row["context"]), query))], pretrain.HeldOut([]))
    with pytest.raises(AssertionError, match="held-out text"):
        pretrain.check([pretrain.Document("", (asked,))], pretrain.HeldOut([row]))


def test_a_renamed_row_is_renamed_alike_in_question_schema_and_query(wikisql):
    words, rng = pretrain._Words.of(wikisql), Random(1)
    for row in sql_synth.generate("train", 60):
        new = words.renamed(row, rng)
        names = set(pretrain._names(new["context"]))
        used = set(re.findall(r"[a-z_]+", re.sub(r'"[^"]*"', "", new["answer"])))
        assert used <= names, new
        for value in re.findall(r'"%?([^"%]+)%?"', new["answer"]):
            assert value in new["question"]


def test_only_rows_with_a_permissive_licence_are_read(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    rows = [{"source": "wikisql-converted"}, {"source": "spider-converted"}, {"source": "sql-create-context"}]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert pretrain.wikisql_rows(path) == rows[:1]


def test_without_the_data_the_script_says_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match=r"no such file.*wikisql-converted"):
        pretrain.wikisql_rows(tmp_path / "train.jsonl.gz")


def test_the_script_runs_from_data_to_a_loadable_folder(tmp_path, wikisql):
    """In a process of its own: tests of the SQL engine limit SQLite's memory in theirs for good."""
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, wikisql)).encode()))
    options = ["--data", path, "--out", tmp_path / "out", "--steps", "1", "--batch", "2", "--documents", "640"]
    words = [sys.executable, "-m", "ftlab.tiny.pretrain", *map(str, options)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "none pairs a question with a query" in done.stdout
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() > 5e6


def _inputs(batch):
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
