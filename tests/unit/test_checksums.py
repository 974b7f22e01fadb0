"""Hashes of a base's files: right, remembered, and taken anew where a file has changed."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from ftlab import checksums
from ftlab.checksums import Checksums, changed


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"model-{i}.safetensors" for i in range(6)]
    for i, file in enumerate(made):
        file.write_bytes(bytes([i]) * 1000)
    return made


def test_each_file_has_its_sha256(files: list[Path], tmp_path: Path) -> None:
    found = Checksums(files, tmp_path / "memory.json").result()
    assert found == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_an_unchanged_file_is_read_once(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, hashed = tmp_path / "cache" / "memory.json", []
    plain = checksums._sha256
    monkeypatch.setattr(checksums, "_sha256", lambda file: (hashed.append(file.name), plain(file))[1])
    first = Checksums(files, memory).result()
    assert len(hashed) == 6
    assert Checksums(files, memory).result() == first
    assert len(hashed) == 6
    files[2].write_bytes(b"x" * 1000)  # as large as before
    os.utime(files[2], ns=(1, 1))
    second = Checksums(files, memory).result()
    assert hashed[6:] == [files[2].name]
    assert changed(first, second) == [files[2].name]
    files[3].unlink()
    assert changed(first, Checksums([file for file in files if file.exists()], memory).result()) == [
        files[2].name,
        files[3].name,
    ]


def test_a_damaged_or_unwritable_memory_costs_time_only(files: list[Path], tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    for text in ("{", "[]", json.dumps({str(files[0]): "x"})):
        memory.write_text(text)
        assert len(Checksums(files, memory).result()) == 6
    blocked = tmp_path / "file" / "memory.json"
    blocked.parent.write_text("")
    assert len(Checksums(files, blocked).result()) == 6


def test_a_file_that_cannot_be_read_is_an_error(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        Checksums([*files, tmp_path / "gone"], tmp_path / "memory.json")
