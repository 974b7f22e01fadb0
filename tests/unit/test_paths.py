"""What is neither a file nor a folder is refused by name, and nothing waits for it."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftlab.paths import special

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.jsonl")
    return tmp_path / "pipe.jsonl"


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)  # a socket's path may be 107 bytes long
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("s.jsonl")
        yield tmp_path / "s.jsonl"


def test_files_folders_and_what_is_not_there_are_nothing_special(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert [special(tmp_path / name) for name in ("file", ".", "absent", "file/below", "x" * 300)] == [""] * 5


def test_pipes_sockets_and_devices_are_told_apart(pipe: Path, listening: Path) -> None:
    assert special(pipe) == "a named pipe (FIFO)"
    assert special(listening) == "a socket"
    assert special(Path("/dev/zero")) == "a device or a terminal"


def test_a_pipe_of_the_shell_is_read_like_a_file(tmp_path: Path) -> None:
    from ftlab.lines import read

    out, into = os.pipe()
    os.write(into, b'{"a": 1}\n')
    os.close(into)
    try:
        assert read(Path(f"/dev/fd/{out}")) == [(1, {"a": 1})]
    finally:
        os.close(out)


@pytest.mark.timeout(60, func_only=True)
@pytest.mark.parametrize(
    "words",
    [
        ["score", "{pipe}", "out.jsonl"],
        ["compare", "{pipe}", "{pipe}"],
        ["predict", "run={run}", "input={pipe}"],
        ["--dry-run", "data=jsonl", "data.path={pipe}"],
        ["--dry-run", "data=jsonl", "data.path={folder}"],
        ["--dry-run", "data=jsonl", "data.path={socket}"],
        ["--dry-run", "data=jsonl", "data.path=/dev/zero"],
        ["experiment=quickstart", "run_dir={pipe}"],
        ["--dry-run", "experiment=quickstart", "model.id={pipe}"],
        ["--dry-run", "experiment=quickstart", "model.id={model}"],
    ],
    ids=lambda words: " ".join(words[-2:]),
)
def test_no_command_waits_for_a_pipe(
    words: list[str], cli: Cli, pipe: Path, listening: Path, finished: Path, base_folder: Path, tmp_path: Path
) -> None:
    folder, model = tmp_path / "folder", tmp_path / "model"
    folder.mkdir()
    os.mkfifo(folder / "train.jsonl")
    model.mkdir()
    for file in base_folder.iterdir():
        (model / file.name).symlink_to(file)
    (model / "tokenizer.json").unlink()
    os.mkfifo(model / "tokenizer.json")
    names = {"pipe": pipe, "socket": listening, "folder": folder, "model": model, "run": finished}
    code, _, err = cli(*(word.format(**names) for word in words))
    assert code == 2, err
    assert any(what in err for what in ("a named pipe (FIFO)", "a socket", "a device")), err
