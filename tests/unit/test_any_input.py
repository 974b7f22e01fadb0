"""Whatever the command line, a data file, a run folder or a study holds: an answer, or one message without a traceback.

A hundred cases, always the same, in the normal suite; 2,000 new ones in `make soak`.
"""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftlab import data
from ftlab.composition import composition
from ftlab.config import DataConfig, known_keys
from ftlab.errors import InputError
from ftlab.tasks.sql import TASK

QUICK, SOAK = 25, 500
Cli = Callable[..., tuple[int, str, str]]


def cases(count: int) -> settings:
    """So many cases; a hundred quick ones are the same each time."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count == QUICK,
        suppress_health_check=list(HealthCheck),
    )


def said(call: Callable[[], object]) -> str:
    """What a user reads; any other exception is a bug."""
    try:
        call()
    except InputError as error:
        return str(error).strip()
    return "an answer"


class Original(bytes):
    """The bytes of a whole file, which a failing case need not show."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


# --- overrides ------------------------------------------------------------------------------------------------

GROUPS = ("model", "quant", "lora", "data", "trainer", "eval", "tracker", "experiment", "sweep", "hydra/launcher")
WORDS = (
    "tiny",
    "none",
    "r4",
    "jsonl",
    "null",
    "true",
    "1e-3",
    "-1",
    "1e999",
    "nan",
    "[1,2]",
    "{a: 1}",
    "${seed}",
    "???",
)
SPECIAL = st.text(alphabet="abz019=,.[]{}()$'\"\\~+@:/ #%&*!?\n\t\0é\ud800", max_size=20)
KEYS = st.sampled_from(sorted([*known_keys(), *GROUPS])) | SPECIAL
VALUES = st.sampled_from(WORDS) | SPECIAL | st.text(max_size=12) | st.integers().map(str) | st.floats().map(str)
OVERRIDE = st.builds("{}{}{}{}".format, st.sampled_from(["", "", "", "+", "++", "~"]), KEYS, st.just("="), VALUES)


def compose_them(overrides: list[str]) -> None:
    assert said(lambda: composition(["run_dir=x", "run_name=x", *overrides]))


# --- data files -----------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELD = st.sampled_from(["question", "context", "answer", "db_id", "id", "columns", "data", ""])
ROW = st.dictionaries(FIELD, JSON, max_size=5) | st.fixed_dictionaries(
    {"question": st.text(min_size=1), "context": st.text(), "answer": st.text(min_size=1)}
)
LINES = st.lists((ROW | JSON).map(json.dumps) | st.text(max_size=20), max_size=8).map("\n".join)
TEXT = (
    LINES
    | JSON.map(json.dumps)
    | st.lists(ROW, max_size=5).map(json.dumps)
    | st.text(alphabet='ab,;\t"\n\r', max_size=60)
)
BYTES = TEXT.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=80)
SUFFIX = st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz", "txt", ""])


def load_it(folder: Path, content: bytes, suffix: str) -> None:
    file = folder / f"train.{suffix}"
    file.write_bytes(content)
    for path in (file, folder):
        cfg = DataConfig(name="any", source="table", path=str(path), validation=1, test_size=1)
        assert said(partial(data.load, cfg, TASK))
    file.unlink()


# --- files that a run or a sweep wrote, and somebody changed ------------------------------------------------------

RUN_FILES = ("config.yaml", "summary.json", "metrics.jsonl", "predictions.jsonl", ".hydra/overrides.yaml")


@st.composite
def changed(draw: st.DrawFn, original: Original) -> bytes:
    """The bytes of a file cut off, flipped in a place, with another value under one of its keys, or replaced."""
    kind = draw(st.sampled_from(["cut", "flip", "value", "anything"]))
    at = draw(st.integers(0, max(0, len(original) - 1)))
    if kind == "cut":
        return original[:at]
    if kind == "flip" and original:
        return original[:at] + bytes([original[at] ^ draw(st.integers(1, 255))]) + original[at + 1 :]
    if kind == "value" and original[:1].isalpha() | (original[:1] == b"{"):
        lines = original.decode(errors="replace").splitlines() or [""]
        i = draw(st.integers(0, len(lines) - 1))
        lines[i] = lines[i].partition(":")[0] + ": " + draw(JSON.map(json.dumps) | st.text(max_size=9))
        return "\n".join(lines).encode(errors="replace")
    return draw(BYTES)


def ask_of_a_run(run: Path, cli: Cli) -> None:
    """Every command that reads a run without torch."""
    for words in (["runs", str(run), "json=true"], ["runs", str(run), "sort=score"], ["compare", str(run), str(run)]):
        code, _, err = cli(*words)
        assert code in (0, 2), err
        assert "Traceback" not in err
    from ftlab.commands.eval import configuration
    from ftlab.run_dir import RunDir

    assert said(lambda: configuration(RunDir(run), {"eval.max_rows": "3"}))


def load_a_study(folder: Path) -> None:
    from ftlab.sweep.study import Study

    assert said(lambda: Study.load(str(folder)))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study without trials. Only to read."""
    from ftlab.config import SweepConfig
    from ftlab.sweep.space import Space
    from ftlab.sweep.study import Study

    folder = tmp_path_factory.mktemp("study") / "toy"
    Study.open("toy", folder, SweepConfig(n_trials=4), Space.read(["lora.r=4,8"], {})[0], ["eval/loss"], [])
    with closing(sqlite3.connect(folder / "study.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it in one file
    return folder


# --- the cases --------------------------------------------------------------------------------------------------


@pytest.fixture(params=[QUICK, pytest.param(SOAK, marks=[pytest.mark.soak, pytest.mark.timeout(1500)])])
def count(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_any_overrides(count: int) -> None:
    cases(count)(given(st.lists(OVERRIDE, max_size=3))(compose_them))()


def test_any_data_file(count: int, tmp_path: Path) -> None:
    cases(count)(given(content=BYTES, suffix=SUFFIX)(lambda content, suffix: load_it(tmp_path, content, suffix)))()


def test_any_run_folder(count: int, finished: Path, tmp_path: Path, cli: Cli) -> None:
    originals = {name: Original((finished / name).read_bytes()) for name in RUN_FILES}
    run = tmp_path / "run"
    for name in RUN_FILES:
        (run / name).parent.mkdir(parents=True, exist_ok=True)

    def check(name: str, draw: Any) -> None:
        for other, content in originals.items():
            (run / other).write_bytes(content)
        (run / name).write_bytes(draw.draw(changed(originals[name])))
        ask_of_a_run(run, cli)

    cases(count)(given(st.sampled_from(RUN_FILES), st.data())(check))()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_study(count: int, study: Path, tmp_path: Path) -> None:
    originals = {name: Original((study / name).read_bytes()) for name in ("study.json", "study.db")}
    folder = tmp_path / "toy"

    def check(name: str, draw: Any) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for other, content in originals.items():
            (folder / other).write_bytes(content)
        (folder / name).write_bytes(draw.draw(changed(originals[name])))
        load_a_study(folder)

    cases(count)(given(st.sampled_from(sorted(originals)), st.data())(check))()


def test_the_originals_are_answered(finished: Path, study: Path, cli: Cli) -> None:
    """Without a change nothing is refused: the cases above change what matters."""
    from ftlab.sweep.study import Study

    assert cli("runs", str(finished))[0] == 0
    assert cli("compare", str(finished), str(finished))[0] == 0
    assert Study.load(str(study)).name == "toy"
    assert yaml.safe_load((finished / "config.yaml").read_text())["lora"]["r"] == 4
