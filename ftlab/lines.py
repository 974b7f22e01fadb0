"""Files of JSON lines that a command is given or asked for, gzip or not. No torch.

A file that cannot be read is refused as a whole, with the line of its first fault; a file is written as a whole, or
not at all.
"""

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from ftlab import content
from ftlab.content import Content
from ftlab.errors import DataError, InputError


def read(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file with their line numbers, counted from 1. Blank lines are passed over, a byte order mark
    too; gzip is told by its content.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object; the message names file and line.
    """
    text = _content(path)
    return [(number, _object(text, number, line)) for number, line in enumerate(text.lines, 1) if line.strip()]


@contextmanager
def replaced(path: Path) -> Iterator[list[dict[str, Any]]]:
    """A list for the rows that `path` shall hold; they are written, all at once, when the block has ended well, and
    compressed where the name ends in .gz. After an error or Ctrl-C `path` is as it was. What is no ordinary file (a
    pipe, /dev/null) is written as it is.

    Raises:
        InputError: it cannot be written; before the block runs where that can be known.
    """
    rows: list[dict[str, Any]] = []
    with _refusing(path):
        aside = _aside(path)
        if aside != path:
            aside.touch()  # proves that it can be written; a killed process leaves nothing behind
            aside.unlink()
    try:
        yield rows
        text = b"".join(map(_line, rows))
        with _refusing(path):
            aside.write_bytes(gzip.compress(text, mtime=0) if path.name.endswith(".gz") else text)
            if aside != path:
                os.replace(aside, path.resolve())
    finally:
        if aside != path:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}): name another file") from None


def _line(row: dict[str, Any]) -> bytes:
    """A row in UTF-8; half characters (lone surrogates), which UTF-8 has no bytes for, are escaped."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


def _aside(path: Path) -> Path:
    """Where the new content waits; beside the file, so that it can be moved in one step."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file to write")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        return path
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{path} cannot be written (Permission denied): name another file")
    real = path.resolve()
    return real.with_name(f".{real.name}.{os.getpid()}.part")


def _content(path: Path) -> Content:
    try:
        return content.read(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


def _object(text: Content, number: int, line: bytes) -> dict[str, Any]:
    path = text.path
    try:
        value = json.loads(line.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise DataError(
            f"{path}:{number}: not UTF-8 (byte 0x{bad:02x} at {error.start + 1:,}). {text.remedy}"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: broken JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: broken JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number}: no JSON object, but {json.dumps(value)[:40]}")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
