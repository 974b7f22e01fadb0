"""JSON lines as users hand them in, and files that are written as a whole or not at all."""

import gzip
import json
import os
from pathlib import Path

import pytest

from ftlab.errors import DataError, InputError
from ftlab.lines import read, replaced

TEXT = '{"id": 1, "a": "ü\u2028"}\r\n\n{"id": 2}\n\n'


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [False, True])
def test_lines_are_read_with_their_numbers(start: bytes, packed: bool, tmp_path: Path) -> None:
    data = start + TEXT.encode()
    (tmp_path / "in.jsonl").write_bytes(gzip.compress(data) if packed else data)  # recognised by content, not by name
    assert read(tmp_path / "in.jsonl") == [(1, {"id": 1, "a": "ü\u2028"}), (3, {"id": 2})]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"id": 1}\n{"id": 2', ":2: broken JSON"),
        (b'{"id": 1}\n[1, 2]\n', ":2: not a JSON object"),
        (b'{"id": 1}\n\n"\xff"\n', ":3: not UTF-8 (byte 0xff"),
        (b"\xff\xfe{\x00", ": line 1: UTF-16"),
        (b"[" * 100_000, ":1: broken JSON"),
        (gzip.compress(b'{"id": 1}\n')[:-9], "damaged or incomplete"),
        (b"\x1f\x8bnothing", "damaged or incomplete"),
    ],
    ids=range(7),
)
def test_a_fault_is_placed(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "in.jsonl")
    assert str(caught.value).startswith(str(tmp_path / "in.jsonl"))
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["absent.jsonl", ".", "x" * 300])
def test_a_file_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_rows_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    rows = [{"id": {"a": [1, None]}, "text": "é\u2028"}, {"id": "\ud800"}]
    with replaced(tmp_path / name) as out:
        out += rows
    assert [row for _, row in read(tmp_path / name)] == rows
    assert os.listdir(tmp_path) == [name]


def test_after_an_error_the_old_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("old")

    def fail(error: type[BaseException]) -> None:
        with replaced(tmp_path / "out.jsonl") as out:
            out.append({"id": 1})
            raise error

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "real/file.jsonl")
    with replaced(tmp_path / "out.jsonl") as out:
        out.append({"id": 1})
    assert (tmp_path / "out.jsonl").is_symlink()
    assert json.loads((tmp_path / "real/file.jsonl").read_text()) == {"id": 1}
    with replaced(Path(os.devnull)) as out:
        out.append({"id": 1})
    assert Path(os.devnull).is_char_device()


def test_a_full_disk_is_one_message() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(InputError, match="cannot be written"), replaced(full) as out:
        out.append({"id": 1})


@pytest.mark.parametrize("name", ["absent/out.jsonl", ".", "x" * 300])
def test_what_cannot_be_written_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError), replaced(tmp_path / name):
        pytest.fail("the work was done")
    assert os.listdir(tmp_path) == []
