"""The list of runs is right, complete and quick, whatever lies in the folders."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.commands.runs import main
from ftlab.errors import InputError

HEAD = "eval/sql_exact_match"


def write(folder: Path, tuned: float | None = 0.63, **changes: Any) -> Path:
    """A run folder as a run writes it; `changes` are of the summary, `config` of its configuration."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "model": {"name": "tiny", "id": "embedded:tiny"},
        "lora": {"r": 16, "target_modules": ["q_proj", "v_proj"]},
        "trainer": {"lr": 1e-3, "max_steps": None},
        "objective": HEAD,
        "run_name": folder.name,
    }
    for node, values in changes.pop("config", {}).items():
        config[node] = {**config.get(node, {}), **values}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    summary = {
        "status": "finished",
        "run_name": folder.name,
        "objective": {"name": HEAD, "value": tuned},
        "base": {HEAD: 0.01, "eval/loss": 3.2},
        "tuned": {} if tuned is None else {HEAD: tuned, "eval/loss": 0.4},
        "step": 120,
        "seconds": {"total": 96.4},
        "started": "2026-01-02T03:04:05+00:00",
    }
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))
    return folder


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path / "outputs" / "old", 0.2, started="2025-01-01T00:00:00+00:00")
    write(tmp_path / "outputs" / "new", 0.63, config={"trainer": {"lr": 3e-3}})
    write(
        tmp_path / "outputs" / "study" / "0",
        0.4,
        started="2025-06-01T00:00:00+00:00",
        config={"model": {"name": "mistral7b", "id": "mistralai/Mistral-7B-v0.3"}, "lora": {"r": 0}},
    )
    return tmp_path / "outputs"


def listed(capsys: pytest.CaptureFixture[str], *words: str, **args: str) -> list[str]:
    """Names in the order shown."""
    assert main(args, list(words)) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_newest_first_with_what_one_compares(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main({}, []) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "status", "model", "lora", "lr", "steps", "sql_exact_match", "seconds", "started"]
    assert [row.split()[0] for row in rows] == ["new", "study/0", "old"]
    assert rows[0].split()[1:11] == ["finished", "tiny", "r16", "0.003", "120", "1.0", "->", "63.0", "%", "96"]
    assert rows[1].split()[2:4] == ["mistral7b", "full"]
    assert re.search(r"2026-01-0\d \d\d:04$", rows[0])
    assert len({len(line) for line in (head, *rows)} - {len(head)}) <= 1


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ({"status": "finished"}, ["new", "study/0", "old"]),
        ({"status": "failed"}, []),
        ({"model": "tiny"}, ["new", "old"]),
        ({"model": "mistral*"}, ["study/0"]),
        ({"model": "mistralai/Mistral-7B-v0.3"}, ["study/0"]),
        ({"trainer.lr": "1e-3"}, ["study/0", "old"]),
        ({"trainer.lr": "0.0030"}, ["new"]),
        ({"lora.r": "0"}, ["study/0"]),
        ({"lora.target_modules": "[q_proj,v_proj]"}, ["new", "study/0", "old"]),
        ({"trainer.max_steps": "null", "lora.r": "16"}, ["new", "old"]),
        ({f"min.{HEAD}": "0.4"}, ["new", "study/0"]),
        ({"max.trainer.lr": "1e-3", "min.score": "0.3"}, ["study/0"]),
        ({"sort": HEAD}, ["new", "study/0", "old"]),
        ({"sort": f"-{HEAD}"}, ["old", "study/0", "new"]),
        ({"sort": "-trainer.lr", "limit": "1"}, ["new", "2"]),
        ({"sort": "model"}, ["study/0", "new", "old"]),
        ({"name": "study/*"}, ["study/0"]),
    ],
)
def test_filters_and_order(
    args: dict[str, str], names: list[str], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(capsys, **args) == names


@pytest.mark.parametrize(
    ("args", "near"),
    [
        ({"trainer.lrr": "1"}, "trainer.lr"),
        ({"lr": "1"}, "trainer.lr"),
        ({"stats": "finished"}, "status"),
        ({"min.eval/sql_exact": "1"}, f"min.{HEAD}"),
        ({"sort": "trainer.l"}, "trainer.lr"),
        ({"min.trainer.lr": "much"}, "must be a number"),
        ({"limit": "some"}, "must be a whole number"),
        ({"json": "maybe"}, "true or false"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(args: dict[str, str], near: str, outputs: Path) -> None:
    with pytest.raises(InputError, match=re.escape(near)):
        main(args, [])


@pytest.mark.parametrize("objective", [[HEAD], [HEAD, "eval/loss"]], ids=["one objective", "several"])
def test_every_title_of_the_table_can_be_sorted_by(
    objective: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(objective * 2):
        chosen = {"name": name, "value": 0.1 * number}
        write(tmp_path / f"outputs/{number}", objective=chosen, config={"lora": {"r": 8 - number}})
    assert main({}, []) == 0
    head = re.split(r"  +", capsys.readouterr().out.splitlines()[0].strip())
    assert {"lora", "lr", "base -> tuned" if len(objective) > 1 else "sql_exact_match"} <= {*head}
    for title in head:
        assert main({"sort": title}, []) == 0
        assert main({"sort": f"-{title}"}, []) == 0
    capsys.readouterr()
    assert listed(capsys, sort="lora")[0] == str(len(objective) * 2 - 1)


def test_every_score_can_be_sorted_by_best_first_and_counts_lowest_first(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rate, broken in (("x", 0.5, 3.0), ("y", 0.7, 1.0)):
        scores = {"eval/sql_exec_match": rate, "eval/sql_exec_match/nested": rate, "eval/sql_gold_broken": broken}
        write(outputs / name, tuned=0.1, started="2024-01-01T00:00:00+00:00")
        summary = json.loads((outputs / name / "summary.json").read_text())
        (outputs / name / "summary.json").write_text(json.dumps({**summary, "tuned": scores}))
    for key in ("eval/sql_exec_match", "eval/sql_exec_match/nested", "eval/sql_gold_broken"):
        assert listed(capsys, sort=key)[:2] == ["y", "x"]
    assert listed(capsys, **{"min.eval/sql_exec_match": "0.6"}) == ["y"]
    assert listed(capsys, **{"min.test/sql_valid": "0.6"}) == []


def test_a_key_is_known_although_no_run_has_it(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, **{"tracker.group": "study"}) == []


def test_another_folder_and_its_refusals(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, "outputs/study") == ["outputs/study/0"]
    assert listed(capsys, "outputs/new") == ["outputs/new"]
    with pytest.raises(InputError, match="nowhere is not a folder"):
        main({}, ["nowhere"])
    with pytest.raises(InputError, match="one folder too many"):
        main({}, ["outputs", "more"])


def test_no_runs_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main({}, []) == 0
    assert capsys.readouterr().out == "no runs in outputs/ yet. Start one: python -m ftlab\n"


def test_json_lines_hold_configuration_and_summary(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(outputs / "nan", started="2024-01-01", base={HEAD: float("nan")})
    assert main({"json": "true"}, []) == 0
    lines = [
        json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
        for line in capsys.readouterr().out.splitlines()
    ]
    assert [line["run"] for line in lines] == ["outputs/new", "outputs/study/0", "outputs/old", "outputs/nan"]
    assert lines[0]["config"]["trainer"]["lr"] == 0.003
    assert lines[0]["tuned"][HEAD] == 0.63
    assert lines[0]["status"] == "finished"
    assert lines[3]["base"][HEAD] is None


def test_broken_and_partial_folders_are_listed_as_such(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write(outputs / "torn") / "summary.json").write_text('{"status": "fini')
    (write(outputs / "yaml") / "config.yaml").write_text("a: [1\nb")
    (write(outputs / "bytes") / "config.yaml").write_bytes(b"\xff\xfe\x00")
    (write(outputs / "list") / "summary.json").write_text("[1, 2]")
    (write(outputs / "begun") / "summary.json").unlink()
    (write(outputs / "types") / "summary.json").write_text(
        json.dumps({"status": 5, "objective": "x", "base": [1], "tuned": {HEAD: "y"}, "seconds": 3, "started": 7})
    )
    (outputs / "dropped" / "checkpoints").mkdir(parents=True)
    (outputs / "not a run" / "notes").mkdir(parents=True)
    assert main({"sort": "name"}, []) == 0
    text = capsys.readouterr().out
    status = {line.split()[0]: line.split()[1] for line in text.splitlines()[1:] if ":" not in line.split()[0]}
    assert status["torn"] == status["yaml"] == status["bytes"] == status["list"] == "broken"
    assert status["begun"] == status["dropped"] == status["types"] == "partial"
    assert status["new"] == "finished"
    assert "not a run" not in text
    assert "torn: summary.json cannot be read (Unterminated string" in text
    assert main({"json": "true", "status": "broken"}, []) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_run_whose_process_is_gone_is_not_shown_as_running(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(outputs / "alive", None, status="running")
    (outputs / "alive" / ".lock").write_text(str(os.getpid()))
    write(outputs / "dead", None, status="running")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (outputs / "dead" / ".lock").write_text(str(child.pid))
    assert listed(capsys, status="running") == ["alive"]
    assert main({"status": "killed"}, []) == 0
    assert "1.0 ->" in capsys.readouterr().out


def test_runs_of_several_objectives_say_which(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(outputs / "loss", objective={"name": "eval/loss", "value": 0.4})
    assert main({"name": "[ln]*"}, []) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "base -> tuned" in head
    assert {"eval/loss", HEAD} == {row.split()[-4] for row in rows}
    assert any("3.200 -> 0.400" in row for row in rows)


@pytest.mark.parametrize(("width", "some"), [(60, "status"), (80, "lr"), (200, "seconds")])
def test_a_terminal_shows_the_columns_that_fit(
    width: int, some: str, outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(outputs / "mistral7b-20260102-030405")
    for name, value in (("TTY_COMPATIBLE", "1"), ("TERM", "xterm"), ("COLUMNS", str(width)), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    main({}, [])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    assert some in lines[0]
    assert all("63.0 %" in line for line in lines if "mistral7b-" in line)


def test_names_are_shown_as_they_are(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(outputs / "[red]x[/red]")
    write(outputs / "esc\x1b[31m")
    assert main({}, []) == 0
    text = capsys.readouterr().out
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


def test_a_hundred_runs_within_a_second_and_without_torch(outputs: Path) -> None:
    for i in range(100):
        write(outputs / "many" / str(i), config={"data": {f"key_{n}": "some text" for n in range(60)}})
    code = (
        "import sys; from ftlab.commands.runs import main; main({'limit': 'null'}, []);"
        "print(sorted({'torch', 'transformers', 'wandb'} & set(sys.modules)))"
    )
    began = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - began < 3  # a second on an idle machine
    assert len(out.splitlines()) == 105
    assert out.splitlines()[-1] == "[]"
