"""A finished run scored again, on its own or other rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftlab.commands.eval import configuration
from ftlab.errors import InputError
from ftlab.run_dir import RunDir


def newest(run: Path) -> dict[str, Any]:
    return json.loads(max((run / "evaluations").glob("*.json")).read_text())  # type: ignore[no-any-return]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that may be written to."""
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize(("split", "prefix"), [("test", "test"), ("validation", "eval")])
def test_the_runs_own_scores_come_out_again(cli: Any, run: Path, split: str, prefix: str) -> None:
    code, out, err = cli("eval", f"run={run}", f"split={split}")
    assert code == 0, err
    tuned = json.loads((run / "summary.json").read_text())["tuned"]
    wanted = {key: value for key, value in tuned.items() if key.startswith(prefix + "/")}
    assert newest(run)["metrics"] == pytest.approx(wanted, rel=1e-5)
    assert "evaluations" in out


def test_answers_are_kept_beside_the_scores(cli: Any, run: Path) -> None:
    cli("eval", str(run), "eval.max_rows=null")
    rows = [json.loads(line) for line in next((run / "evaluations").glob("*.jsonl")).read_text().splitlines()]
    assert len(rows) == newest(run)["rows"] == 6
    assert all(isinstance(row["pred"], str) for row in rows)


def test_evaluations_of_one_second_keep_their_own_files_and_time(
    cli: Any, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda *args: "20261101-020000")
    for _ in range(2):
        cli("eval", str(run), "eval.max_new_tokens=1")
    files = sorted((run / "evaluations").glob("*.json"))
    assert [file.name for file in files] == ["20261101-020000-2.json", "20261101-020000.json"]
    later, earlier = (json.loads(file.read_text()) for file in files)
    assert later["written"] > earlier["written"]
    assert later["step"] == 4


@pytest.mark.parametrize(("split", "shown"), [("train", True), ("test", False)])
def test_the_runs_own_scores_stand_beside_only_where_the_split_is_the_same(
    cli: Any, run: Path, rows_folder: Path, tmp_path: Path, split: str, shown: bool
) -> None:
    import shutil

    data = Path(shutil.copytree(rows_folder, tmp_path / "data"))
    lines = (data / f"{split}.jsonl").read_text().splitlines(keepends=True)
    again = json.loads(lines[0]) | {"question": "How many, all in all?"}
    (data / f"{split}.jsonl").write_text("".join([json.dumps(again) + "\n", *lines[1:]]))
    code, out, err = cli("eval", str(run), f"data.path={data}")
    assert code == 0, err
    assert ("test: 6 rows in the run and now, but they differ" in out) != shown
    loss = next(line.split() for line in out.splitlines() if line.split()[:1] == ["loss"])
    assert (loss[1] == "-") != shown


def test_a_group_choice_replaces_the_data(cli: Any, run: Path) -> None:
    code, _, err = cli(
        "eval", str(run), "data=sql_synth", "data.test_rows=5", "data.train_rows=20", "eval.max_new_tokens=2"
    )
    assert code == 0, err
    assert (newest(run)["data"], newest(run)["rows"]) == ("sql_synth", 4)


def test_the_run_itself_is_left_as_it_was(cli: Any, run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    cli("eval", str(run))
    assert {p: p.read_bytes() for p in before} == before


def test_values_are_plain_text_of_the_keys_type(run: Path, tmp_path: Path) -> None:
    hard = str(tmp_path / "a, (b) 'c'")
    cfg = configuration(RunDir(run), {"data.path": hard, "eval.max_rows": "7", "quant": "nf4", "model.id": "123"})
    assert (cfg.data.path, cfg.eval.max_rows, cfg.quant.load_in_4bit) == (hard, 7, True)
    assert cfg.model.id == "123"
    assert configuration(RunDir(run), {"eval.max_rows": "null"}).eval.max_rows is None
    assert cfg.data.prompt == "{context}\n{question}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval.max_row=3"], "eval.max_rows"),
        (["trainer.lr=1"], "no effect on an evaluation"),
        (["data=sql_sinth"], "sql_synth"),
        (["split=train"], "validation"),
        (["eval.max_rows=some"], "whole number"),
        (["eval.batch_size=0"], "at least 1"),
        (["data.path=/nowhere"], "/nowhere"),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_what_is_wrong_is_said(cli: Any, run: Path, words: list[str], said: str) -> None:
    code, _, err = cli("eval", str(run), *words)
    assert code == 2
    assert said in err
    assert not (run / "evaluations").exists()


def test_a_run_must_be_named(cli: Any) -> None:
    code, _, err = cli("eval")
    assert code == 2
    assert "eval needs a run" in err
    with pytest.raises(InputError):
        configuration(RunDir("absent"), {"lora.r": "4"})
