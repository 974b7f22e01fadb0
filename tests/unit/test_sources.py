"""Sources of installed packages: their rows are read as rows of a file are, and serve every task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab import compose, data, tasks
from ftlab.errors import ConfigError, DataError

Install = Callable[..., Path]
Cli = Callable[..., tuple[int, str, str]]

SOURCE = """
from dataclasses import dataclass

from ftlab.sources import RowSource


@dataclass
class SumOptions:
    largest: int = 9
    faulty: bool = False


class Sums(RowSource):
    name = "sums"
    options = SumOptions

    def rows(self, cfg, options):
        rows = [
            {"question": f"{a} + {b}?", "answer": a + b, "note": "x"}
            for a in range(options.largest)
            for b in range(options.largest)
        ]
        if options.faulty:
            rows[2:4] = [{"question": None, "answer": 3}, ["no row"]]
        return {"train": iter(rows), "test": rows[:3]}


SOURCE = Sums()
"""
POINTS = {"ftlab.sources": {"sums": "extra.sums:SOURCE"}}
SUMS = ["data=match", "data.source=sums", "data.validation=9", "data.prompt='{question}\n'"]


@pytest.fixture
def sums(install: Install) -> Path:
    """An installed package that provides a source."""
    return install("extra", POINTS, {"extra/__init__.py": "", "extra/sums.py": SOURCE})


def written(install: Install, text: str) -> None:
    install("extra", POINTS, {"extra/__init__.py": "", "extra/sums.py": SOURCE.replace("        rows = [", text, 1)})


def load(*overrides: str) -> data.Splits:
    cfg = compose([*SUMS, *overrides])
    return data.load(cfg.data, tasks.get(cfg.data.task))


def refusal(*overrides: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        load(*overrides)
    return str(caught.value)


@pytest.mark.usefixtures("sums")
def test_its_rows_are_divided_as_rows_of_files_are() -> None:
    splits = load()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (72, 9, 3)
    assert (splits.test[1].id, splits.test[1].question, splits.test[1].answer) == ("test:2", "0 + 1?", "1")
    assert splits.notes[0] == "train: 81 rows from data.source=sums"
    assert splits.sha256 == load().sha256


@pytest.mark.usefixtures("sums")
def test_its_options_reach_it_and_are_typed() -> None:
    assert len(load("data.options.largest=5").train) == 16
    assert (
        refusal("data.options.largest=many")
        == "data.options.largest=many must be of the type int, which data.source=sums declares"
    )
    assert refusal("data.options.larges=5") == (
        "data.options.larges is not an option of data.task=match or data.source=sums. "
        "Did you mean data.options.largest? "
        "data.task=match has pattern, tolerance; data.source=sums has largest, faulty"
    )


@pytest.mark.usefixtures("sums")
def test_options_of_the_task_and_of_the_source_are_given_together() -> None:
    cfg = compose([*SUMS, "data.options.largest=5", "data.options.pattern='(\\d+)'"])
    (judged,) = tasks.get("match").judge(load("data.options.largest=5").test[:1], ["it is 0."], cfg)
    assert judged.record["exact"]


def test_an_option_of_both_goes_to_both(install: Install) -> None:
    text = SOURCE.replace("largest: int = 9", "tolerance: float = 9").replace(
        "options.largest", "int(options.tolerance)"
    )
    install("extra", POINTS, {"extra/__init__.py": "", "extra/sums.py": text})
    assert tasks.get("match").settings(compose([*SUMS, "data.options.tolerance=0.5"])).tolerance == 0.5
    assert refusal("data.options.tolerance=0.5").startswith("data.source=sums (train): no rows")
    assert refusal("data.options.tolerance=x").splitlines() == [
        "data.options.tolerance=x must be of the type float, which data.task=match declares",
        "data.options.tolerance=x must be of the type float, which data.source=sums declares",
    ]


@pytest.mark.usefixtures("sums")
def test_rows_that_cannot_be_used_are_placed_by_split_and_number() -> None:
    assert refusal("data.options.faulty=true").splitlines()[:3] == [
        "data.source=sums (train): 2 of 81 rows cannot be used",
        "  row 3: question is null",
        "  row 4: a list (['no row']), not a mapping of columns to values",
    ]


@pytest.mark.usefixtures("sums")
def test_its_columns_are_named_as_those_of_a_file() -> None:
    said = refusal("data.columns.answer=anser")
    assert "data.source=sums (train): row 1: no column anser; the columns are question, answer, note" in said
    assert "data.columns.answer=answer" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "        return {'test': []}\n        rows = [",
            "data.source=sums provides the splits test: it must provide train",
        ),
        (
            "        return {'train': [], 'dev': []}\n        rows = [",
            "data.source=sums provides the splits train, dev",
        ),
        ("        return {'train': []}\n        rows = [", "data.source=sums (train): no rows"),
        (
            "        return [{}]\n        rows = [",
            "data.source=sums gives a list ([{}]), not rows by split, such as train",
        ),
        (
            "        return {'train': [{1: 'a'}]}\n        rows = [",
            "data.source=sums (train): 1 of 1 rows cannot be used",
        ),
        (
            "        raise SystemExit('no database')\n        rows = [",
            "data.source=sums: extra.sums:SOURCE of the package extra failed (SystemExit: no database)",
        ),
        (
            "        return 1 / 0\n        rows = [",
            "data.source=sums: extra.sums:SOURCE of the package extra failed (ZeroDivisionError: division by zero)",
        ),
    ],
)
def test_a_source_that_gives_no_rows_says_why(install: Install, cli: Cli, text: str, said: str) -> None:
    written(install, text)
    assert refusal().startswith(said)
    code, _, err = cli("--dry-run", *SUMS, "tracker=none")
    assert (code, "Traceback" in err) == (2, False)
    assert said in err


@pytest.mark.usefixtures("sums")
def test_an_unknown_source_is_answered_with_those_there_are() -> None:
    assert refusal("data.source=sum") == (
        "data.source=sum does not exist. Did you mean: sums? Available: match_synth, table, sums"
    )
    assert refusal("data.source=sql_synth") == (
        "data.source=sql_synth is generated by data.task=sql only: choose it or another source"
    )


def test_a_source_named_as_one_of_ftlab_is_refused_with_both(install: Install) -> None:
    text = SOURCE.replace('"sums"', '"table"')
    install("extra", {"ftlab.sources": {"table": "extra:SOURCE"}}, {"extra/__init__.py": text})
    assert refusal("data.source=table", "data.path=x") == (
        "data.source=table is ambiguous: the packages ftlab and extra both provide it; pip uninstall extra"
    )
    assert compose(["data=sql_synth"]).data.source == "sql_synth"


@pytest.mark.usefixtures("sums")
def test_a_run_reads_it_and_records_its_options(fit: Callable[..., Any], small: list[str]) -> None:
    own = [*SUMS, "data.path=null", "data.options.largest=4", "data.validation=4", "objective=eval/match_exact"]
    outcome = fit(*own, "trainer.max_steps=1")
    assert outcome.summary.status == "finished"
    assert (outcome.folder / "config.yaml").read_text().count("largest: 4") == 1
    again = fit(*own, "trainer.max_steps=1")
    assert again.folder == outcome.folder
    with pytest.raises(Exception, match=r"data\.options\.largest: 4 in the folder, 5 now"):
        fit(*own, "data.options.largest=5", "trainer.max_steps=1")
