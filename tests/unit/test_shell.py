"""What is suggested can be pasted into a shell, whatever the folders are called."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ftlab.composition import compose
from ftlab.shell import typed

NAMES = ["plain", "my runs", "it's", 'a "quoted" one', "$HOME", "a;b", "x=1,y=2", "(v2)", "back\\slash", "é"]


@pytest.mark.parametrize("name", NAMES)
def test_a_typed_value_is_read_back(name: str) -> None:
    words = shlex.split(typed("data.path", f"/tmp/{name}"))
    assert compose(["data=jsonl", *words]).data.path == f"/tmp/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_after_a_run_name_its_folder(name: str, tmp_path: Path, terminal: "object") -> None:
    from ftlab.run_dir import RunDir
    from ftlab.run_report import report_run
    from ftlab.summary import Summary

    folder = tmp_path / name / name
    report_run(RunDir(folder), Summary(), terminal)  # type: ignore[arg-type]
    predict, evaluate, runs = (shlex.split(command) for command in terminal.commands)  # type: ignore[attr-defined]
    assert predict[:5] == ["python", "-m", "ftlab", "predict", f"run={folder}"]
    assert evaluate == ["python", "-m", "ftlab", "eval", f"run={folder}", "split=validation"]
    assert runs == ["python", "-m", "ftlab", "runs", str(folder.parent)]


def test_fetch_names_a_folder_with_blanks(cli: Callable[..., tuple[int, str, str]], base_folder: Path, tmp_path: Path):
    (tmp_path / "my model's").symlink_to(base_folder)
    code, out, _ = cli("fetch", *shlex.split(typed("model.id", tmp_path / "my model's")))
    assert code == 0
    command = out.splitlines()[-1].removeprefix("next").strip()
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "ftlab"]
    assert compose(words[3:]).model.id == str(tmp_path / "my model's")


def test_compare_suggests_an_evaluation_of_a_folder_with_blanks(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    run = tmp_path / "my run's"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    code, _, err = cli("compare", str(run), str(run))
    assert code == 2
    words = shlex.split(err.partition("Write them: ")[2])
    assert words == ["python", "-m", "ftlab", "eval", f"run={run}", "split=test"]
