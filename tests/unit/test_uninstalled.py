"""Runs and studies whose task and source are not installed any more are still shown."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Install = Callable[..., Path]
Cli = Callable[..., tuple[int, str, str]]

EXTRA = """
from ftlab.metrics import Metric
from ftlab.sources import RowSource
from ftlab.tasks.completion import CompletionTask, cluster_of


class Echo(CompletionTask):
    name, title, headline = "echo", "echoing", "echo_rate"
    metrics = (Metric("echo_rate", "echo", "share of echoes", "maximize", "rate", objective=True, field="echoed"),)
    recorded = ("echoed",)
    sample = {"question": "Who is there?", "context": ""}

    def judge(self, examples, answers, cfg, on_row=lambda: None):
        pairs = zip(examples, answers, strict=True)
        return [self.judged({"echoed": answer in row.question}, cluster_of(row)) for row, answer in pairs]


class Words(RowSource):
    name = "words"

    def rows(self, cfg, options):
        return {"train": [{"question": f"say {n}", "answer": str(n), "context": f"c{n}"} for n in range(40)]}


TASK, SOURCE = Echo(), Words()
"""
POINTS = {"ftlab.tasks": {"echo": "extra:TASK"}, "ftlab.sources": {"words": "extra:SOURCE"}}
ECHO = ["data.task=echo", "data.source=words", "data.path=null", "data.test_size=4"]


@pytest.fixture
def folder(install: Install, cli: Cli, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two trials of a study, whose task and source are gone."""
    monkeypatch.chdir(tmp_path)
    site = install("extra", POINTS, {"extra/__init__.py": EXTRA})
    words = (*small, *ECHO, "trainer.max_steps=1", "eval.every=null", "sweep.study=gone", "trainer.lr=1e-2,1e-3")
    code, _, err = cli("--multirun", *words)
    assert code == 0, err
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(site)])
    del sys.modules["extra"]
    return tmp_path / "outputs/gone"


def test_they_are_shown_without_what_they_were_made_with(folder: Path, cli: Cli, small: list[str]) -> None:
    code, out, err = cli("runs")
    assert (code, err) == (0, "")
    assert out.count("finished") == 2
    assert "echo_rate" in out
    assert json.loads((folder / "0/summary.json").read_text())["versions"]["extra"] == "1.0"
    code, out, err = cli("report", "gone")
    assert code == 0, err
    assert "2 of 2 trials finished" in out
    code, _, err = cli("doctor", str(folder / "0"))
    assert (code, err) == (0, "")
    refused: dict[str, Any] = {
        "compare": cli("compare", str(folder / "0"), str(folder / "1")),
        "predict": cli("predict", str(folder / "0"), "question=a", "context=b"),
        "eval": cli("eval", str(folder / "0")),
        "resume": cli(*small, *ECHO, f"run_dir={folder / '0'}"),
    }
    for command, (code, out, err) in refused.items():
        assert (code, out, err.count("\n")) == (2, "", 1), f"{command}: {err}"
        assert ("data.task=echo does not exist" in err) == (command != "compare"), err
    assert "is not available here: install the package that provides it" in refused["compare"][2]
