"""JSON-lines files that commands read and write, gzipped or not. No torch.

A file with a fault is refused with the line of its first fault. A file is written completely or not at all.
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
    """Return the objects of a file with their line numbers, counted from 1. Blank lines and a byte order mark are
    skipped; gzip is recognised by the content.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object; the message names file and line.
    """
    text = _content(path)
    return [(number, _object(text, number, line)) for number, line in enumerate(text.lines, 1) if line.strip()]


@contextmanager
def replaced(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield a list for the new rows of `path`. They are written atomically when the block ends without an error, and
    gzipped if the name ends in .gz; otherwise `path` stays unchanged. Pipes and devices (/dev/null) are written
    directly.

    Raises:
        InputError: the file cannot be written; raised before the block runs if that is known then.
    """
    rows: list[dict[str, Any]] = []
    with _refusing(path):
        aside = _aside(path)
        if aside != path:
            aside.touch()  # checks that it can be written; removed at once, so that a killed process leaves no file
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
    """Return a row as a line in UTF-8; half characters (lone surrogates), which UTF-8 cannot encode, are escaped."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


def _aside(path: Path) -> Path:
    """Return the temporary file for the new content, in the same folder, so that it can replace `path` in one step."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file to write")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}. Create it, or name another file")
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
        raise DataError(f"{path} cannot be read ({error.strerror or error}): check the path") from None


def _object(text: Content, number: int, line: bytes) -> dict[str, Any]:
    path = text.path
    try:
        value = json.loads(line.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise DataError(
            f"{path}:{number}: not UTF-8 (byte 0x{bad:02x} at position {error.start + 1:,}). {text.remedy}"
        ) from None
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, column {error.colno}"
        raise DataError(f"{path}:{number}: broken JSON ({reason}): correct or delete this line") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: broken JSON ({error}): correct or delete this line") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number}: not a JSON object but {json.dumps(value)[:40]}: write one object per line")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
