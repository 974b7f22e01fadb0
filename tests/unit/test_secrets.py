"""A secret that is planted somewhere turns up nowhere: not in files, on the terminal, at the tracker or in a card."""

import io
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab import compose, redact
from ftlab.composition import composition
from ftlab.errors import ConfigError
from ftlab.redact import RedactedStream, known, redact_message

Cli = Callable[..., tuple[int, str, str]]
TOKEN = "hf_" + "aB3dE5" * 6  # has a token's shape
PLAIN = "quietly-walking-otter"  # is known by its variable's name alone
TYPED = "heron.typed.value"


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(redact, "_remembered", set())
    monkeypatch.setenv("SERVICE_SECRET", PLAIN)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_a_run_leaves_none_of_them(ftlab: Callable[..., Any], small: list[str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    done = ftlab(
        *(word for word in small if not word.startswith(("tracker=", "data.prompt="))),
        "tracker=wandb",
        "run_name='night-${oc.env:SERVICE_SECRET}-${oc.env:HF_TOKEN}'",
        "tracker.tags=['${oc.env:SERVICE_SECRET}',plain]",
        "tracker.project='p-${oc.env:SERVICE_SECRET}'",
        "tracker.group='${oc.env:SERVICE_SECRET}'",
        "data.prompt='{context} ${oc.env:SERVICE_SECRET}\n{question}\n'",
        f"+hydra.job.env_set.OTHER_TOKEN={TYPED}",
        "sweep.storage='postgresql://me:${oc.env:SERVICE_SECRET}@host/db'",
        cwd=work,
        SERVICE_SECRET=PLAIN,
        HF_TOKEN=TOKEN,
        WANDB_SILENT="true",
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    held = [path for path in work.rglob("*") if path.is_file()]
    assert len(held) > 15
    for secret in (PLAIN, TOKEN, TYPED):
        assert secret not in shown
        assert [path for path in held if secret.encode() in path.read_bytes()] == []
        assert [path for path in work.rglob("*") if secret in path.name] == []
    run = work / "outputs" / "night-redacted-redacted"
    assert "***" in (run / "adapter" / "README.md").read_text()
    again = ftlab("predict", str(run), "question=How many?", "context=CREATE TABLE t (a INT)", cwd=work)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    "words",
    [
        [f"tracker.api_key={TYPED}"],
        [f"tracker.apy_key={TYPED}", f"hub.token={TYPED}"],
        [f"--api-key={TYPED}"],
        [TOKEN],
        [f"model={TOKEN}"],
        [f"data.path=https://me:{TYPED}@host/x(y"],
        [f"model=https://host/x?token={TYPED}"],
        [f"data.path=s3://KEY:{TYPED}@bucket/x", "data=jsonl"],
        ["--multirun", f"lora.r=1,2 token={TYPED}"],
        ["--cfg", "job", f"sweep.storage=postgresql://me:{TYPED}@host/db"],
        ["--cfg", "job", "sweep.storage='postgresql://me:${oc.env:SERVICE_SECRET}@host/db'", "--resolve"],
        ["--cfg", "all", f"sweep.storage=postgresql://me:{TYPED}@host/db"],
        ["--info", "config", f"tracker.project={TOKEN}"],
        ["--multirun", "sweep=lr_serach", f"sweep.storage=postgresql://me:{TYPED}@host/db"],
        ["sweep=lr_search", f"sweep.storage=postgresql://me:{TYPED}@host/db"],
        ["predict", f"run=https://me:{TYPED}@host"],
        ["predict", f"password={TYPED}"],
        ["eval", f"api_key={TYPED}"],
        ["fetch", f"model.id={TOKEN}/x/y"],
        ["runs", f"token={TYPED}"],
        ["score", f"--api-key={TYPED}"],
    ],
    ids=str,
)
def test_no_answer_shows_it(cli: Cli, words: list[str]) -> None:
    _, out, err = cli(*words)
    assert out + err
    for secret in (TYPED, TOKEN, PLAIN):
        assert secret not in out + err


def test_what_must_function_has_the_real_value() -> None:
    cfg = compose(["sweep.storage='postgresql://me:${oc.env:SERVICE_SECRET}@host/db'", "run_dir=x"])
    assert cfg.sweep.storage == f"postgresql://me:{PLAIN}@host/db"
    assert compose([f"data.path=https://host/{PLAIN}.jsonl", "data=jsonl"]).data.path == f"https://host/{PLAIN}.jsonl"


def test_the_store_of_a_sweep_is_reached_with_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from ftlab.sweep.storage import PASSWORD, set_password_aside

    monkeypatch.delenv(PASSWORD, raising=False)
    assert (
        set_password_aside(f"sweep.storage=postgresql://me:{TYPED}@host/db") == "sweep.storage=postgresql://me@host/db"
    )
    assert redact_message(f"psycopg: password {TYPED} is wrong") == "psycopg: password *** is wrong"


def test_an_error_in_python_names_none() -> None:
    with pytest.raises(ConfigError) as caught:
        compose([f"tracker.api_key={TYPED}", f"data.path=https://me:{TYPED}@host/x(y"])
    assert TYPED not in str(caught.value)


def test_a_traceback_that_leaves_the_process_shows_none(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom ftlab.redact import redact_streams\nredact_streams()\n"
        "print('plain ' + sys.argv[1])\nraise RuntimeError('with ' + sys.argv[1] + ' and password=' + 'short')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, PLAIN], capture_output=True, text=True)
    assert done.stdout == "plain ***\n"
    assert "RuntimeError: with *** and password=***" in done.stderr
    assert PLAIN not in done.stderr


def test_a_redacted_stream_is_a_stream_otherwise() -> None:
    below = io.StringIO()
    stream = RedactedStream(below, known)
    print("a", PLAIN, file=stream)
    stream.writelines([PLAIN, "\n"])
    assert (below.getvalue(), stream.isatty()) == ("a ***\n***\n", False)


def test_a_failed_trial_writes_none_down(tmp_path: Path) -> None:
    from ftlab.sweep.worker import in_one_line

    error = ValueError(f"cannot connect: token={TYPED} for {PLAIN}")
    assert in_one_line(error) == "ValueError: cannot connect: token=*** for ***"
    assert TYPED not in redact_message("".join(traceback.format_exception(error)))


def test_data_stays_as_it_is_but_for_known_secrets(tmp_path: Path) -> None:
    from ftlab.run_dir import RunDir

    sql = "SELECT a.password FROM a JOIN b ON a.password=b.password WHERE token='hf_" + "x" * 30 + "'"
    RunDir(tmp_path).write_rows("predictions.jsonl", [{"pred": sql, "gold": f"SELECT '{PLAIN}'"}])
    assert json.loads((tmp_path / "predictions.jsonl").read_text()) == {"pred": sql, "gold": "SELECT '***'"}


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("MY_API_KEY", "abcdefgh12", True),
        ("SECRET_KEY_BASE", "abcdefgh12", True),
        ("DB_PASSWORD_2", "abcdefgh12", True),
        ("AWS_SECRET_ACCESS_KEY", "ab/cd+efgh12", True),
        ("SSH_AUTH_SOCK", "/tmp", False),
        ("CACHE_KEY", "20240101", False),
        ("DB_PASSWORD", "password", False),
        ("SHORT_TOKEN", "abc", False),
        ("TOKENIZERS_PARALLELISM", "abcdefgh12", False),
        ("MONKEY", "abcdefgh12", False),
        ("OLDPWD", "abcdefgh12", False),
    ],
)
def test_which_variables_hold_secrets(monkeypatch: pytest.MonkeyPatch, name: str, value: str, hidden: bool) -> None:
    monkeypatch.setenv(name, value)
    assert (known(f"x {value} y") == "x *** y") is hidden


def test_a_secret_written_as_a_url_or_as_json_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", 'p@ss "w/rd"')
    assert known("postgresql://u:p%40ss%20%22w%2Frd%22@h") == "postgresql://u:***@h"
    assert known(json.dumps({"a": 'p@ss "w/rd"'})) == '{"a": "***"}'


def test_the_record_of_what_hydra_composed_holds_none(tmp_path: Path) -> None:
    from ftlab.run_dir import RunDir

    made = composition([f"+hydra.job.env_set.OTHER_TOKEN={TYPED}", f"tracker.tags=[{PLAIN}]", "run_dir=r"])
    RunDir(tmp_path).record(made)
    for file in tmp_path.rglob("*.yaml"):
        assert TYPED not in file.read_text()
        assert PLAIN not in file.read_text()
