"""docs/extending.md as its reader follows it: the package that its code blocks make is installed beside ftlab into a
fresh environment, and its commands run there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

pytestmark = pytest.mark.slow


def run(*words: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs/extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def environment(page: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with ftlab, labkit, and the packages that both need."""
    package, folder = tmp_path_factory.mktemp("labkit"), tmp_path_factory.mktemp("environment")
    for name, text in BLOCK.findall(page):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "needed.pth").write_text("".join(f"{place}\n" for place in sys.path if place.endswith("site-packages")))
    install = ["install", "-q", "--no-index", "--no-deps", "--no-build-isolation", str(wheel), str(package)]
    run(*PIP, "--python", str(folder / "bin/python"), *install, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def printed(page: str, environment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where the page's commands ran, and what each printed."""
    work = tmp_path_factory.mktemp("work")
    (commands,) = COMMANDS.findall(page)
    env = {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    return work, [run("bash", "-c", command, cwd=work, **env) for command in commands.strip().splitlines()]


def test_the_page_names_the_files_of_each_part(page: str) -> None:
    files = [name for name, _ in BLOCK.findall(page)]
    assert len(files) == len(set(files)) == 9
    assert page.count("```console") == 1


def test_its_rows_are_shown(printed: tuple[Path, list[str]]) -> None:
    _, (data, *_) = printed
    assert "9 + 9?" in data or "+" in data
    assert "sums" in data


def test_a_run_uses_all_that_the_package_adds(printed: tuple[Path, list[str]]) -> None:
    work, (_, run_output, _) = printed
    summary = json.loads((work / "first/summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["objective"]["name"] == "eval/shout_loud"
    assert 0 <= summary["tuned"]["test/shout_loud"] <= 1
    assert "loud" in json.loads((work / "first/predictions.jsonl").read_text().splitlines()[0])
    logged = (work / "first/log.txt").read_text().splitlines()
    assert logged[-1].startswith("2 {'test/")
    assert (work / "first/metrics.csv").exists()
    assert "cat " in run_output
    config = (work / "first/config.yaml").read_text()
    assert "name: small" in config
    assert "stage: few" in config


def test_a_sweep_searches_a_setting_of_the_package(printed: tuple[Path, list[str]]) -> None:
    work, _ = printed
    report = (work / "largest/report.md").read_text()
    assert "data.options.largest" in report
    assert "shout_loud" in report or "loud" in report
    assert len(list((work / "largest").glob("[0-9]*/lines.txt"))) == 2
    trials = sorted((work / "largest").glob("[0-9]*/summary.json"))
    assert [json.loads(file.read_text())["status"] for file in trials] == ["finished", "finished"]
