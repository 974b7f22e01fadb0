"""A full disk gives one message with the bytes needed and free; the same command resumes once there is space."""

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from ftlab.disk import is_full, room_for, size
from ftlab.errors import InputError, TrainingError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_every_writers_words_for_a_full_disk_are_known(error: Exception, tmp_path: Path) -> None:
    assert is_full(error)
    with pytest.raises(TrainingError) as said, room_for("adapter", tmp_path / "not/yet", 1_500_000):
        raise error
    assert str(said.value).startswith("adapter cannot be written: the disk is full: it needs about 2 MB, and ")
    assert f"are free in {tmp_path}. Free some space" in str(said.value)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), InputError("No space left on device"), ValueError("x")])
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, room_for("adapter", tmp_path):
        raise error
    assert raised.value is error


def test_a_command_that_fills_the_disk_shows_no_traceback(
    cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ftlab.commands import runs

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "file"))

    monkeypatch.setattr(runs, "main", full)
    code, _, err = cli("runs")
    assert code == 1
    assert err.startswith("ftlab: what this command writes cannot be written: the disk is full: ")
    assert f"are free in {tmp_path}" in err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """Write until there is no room."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017  (filling it up is what is wanted)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_run_that_fills_its_disk_says_so_and_goes_on(
    step: int, fit: Callable[..., Any], small_disk: Path, terminal: Any
) -> None:
    """The disk fills up at a step: before the first checkpoint, before the second, before the adapter."""
    terminal.on_update = lambda now, metrics: fill(small_disk) if now == step else None
    run = small_disk / "run"
    with pytest.raises(TrainingError) as said:
        fit(run_dir=run)
    assert "the disk is full" in str(said.value)
    assert "are free in" in str(said.value)
    assert "inline_container" not in str(said.value)
    assert not [*run.rglob("*.part/adapter_config.json")], "no half adapter"
    terminal.on_update = lambda now, metrics: None
    (small_disk / "filler").unlink()
    assert fit(run_dir=run).summary.status == "finished"


def test_sizes_are_decimal() -> None:
    assert [size(n) for n in (999, 269_000_000, 14_500_000_000)] == ["999 B", "269 MB", "14.5 GB"]
