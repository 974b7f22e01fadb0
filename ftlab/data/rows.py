"""Files of rows: JSON lines, a JSON list, CSV or Parquet, each row with the line or row number it stands at.

A row that cannot be read becomes a `Fault` in its place, so that a file's faults can be reported together.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlab.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet")
SHOWN = 5
_DELETE = "Correct these rows or delete them."
_ENCODING = "Write the file as UTF-8: iconv -f LATIN1 -t UTF-8 OLD > NEW (or name its real encoding)."


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row, and what to do about it."""

    text: str
    remedy: str = _DELETE


Located = tuple[int, dict[str, Any] | Fault]


def suffix(path: Path) -> str:
    """The format of a file by its name, one of SUFFIXES, or an empty text."""
    return next((known for known in SUFFIXES if path.name.lower().endswith(known)), "")


def unit(path: Path) -> str:
    """What rows of this file are counted in: Parquet has no lines."""
    return "row" if suffix(path) == ".parquet" else "line"


def read(path: Path) -> list[Located]:
    """Every row of a file with the number it stands at, counted from 1.

    Raises DataError where the file as a whole cannot be read (damaged archive, no permission, UTF-16, unknown
    format).
    """
    kind = suffix(path)
    if not kind:
        raise DataError(f"{path}: cannot tell its format. Use one of {', '.join(SUFFIXES)}")
    try:
        if kind == ".parquet":
            return list(_parquet(path))
        lines = _bytes(path).split(b"\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or incomplete ({error}). Copy or download the file again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Check data.path.") from None
    if kind == ".csv":
        return list(_csv(lines))
    listed = kind.startswith(".json") and "jsonl" not in kind and _first(lines).startswith(b"[")
    return list(_json_list(path, b"\n".join(lines)) if listed else _json_lines(lines))


def refuse(name: str, unit: str, faults: list[tuple[int, Fault]], total: int) -> DataError:
    """One error for all faults of a file: the first few with their place, a count of the rest, remedies."""
    shown = faults[:SHOWN]
    lines = [f"{name}: {len(faults):,} of {total:,} rows cannot be used"]
    lines += [f"  {unit} {number:,}: {fault.text}" for number, fault in shown]
    if rest := len(faults) - len(shown):
        lines.append(f"  and {rest:,} more")
    return DataError("\n".join(lines + list(dict.fromkeys(fault.remedy for _, fault in shown))))


def describe(value: Any) -> str:
    """A short name of a value's type in the words of a data file, with a glimpse of the value."""
    if value is None:
        return "null"
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    glimpse = str(value).replace("\n", " ")
    return f"{kinds.get(type(value), type(value).__name__)} ({glimpse[:40]}{'…' if len(glimpse) > 40 else ''})"


def _bytes(path: Path) -> bytes:
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
        data = file.read()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: line 1: UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW")
    return data.removeprefix(b"\xef\xbb\xbf")


def _first(lines: list[bytes]) -> bytes:
    return next((line.lstrip() for line in lines if line.strip()), b"")


def _json_lines(lines: Iterable[bytes]) -> Iterator[Located]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _json_object(line)


def _json_object(line: bytes) -> dict[str, Any] | Fault:
    try:
        return _object(json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    except (ValueError, RecursionError) as error:
        return _broken(error)


def _object(value: Any) -> dict[str, Any] | Fault:
    if isinstance(value, dict):
        return value
    return Fault(f"{describe(value)}, not an object", 'Each row must be an object: {"question": ..., "answer": ...}')


def _broken(error: Exception) -> Fault:
    reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return Fault(
        f"broken JSON ({reason})",
        "Correct or delete these lines, or copy the file again if it is cut off. A .jsonl file holds one "
        "object a line; a .json file may hold one list of objects.",
    )


def _not_utf8(error: UnicodeDecodeError) -> Fault:
    return Fault(f"not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start + 1:,})", _ENCODING)


def _json_list(path: Path, data: bytes) -> Iterator[Located]:
    """The objects of one JSON list, each with the line it begins at."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refuse(str(path), "line", [(line, _not_utf8(error))], line) from None
    decoder, line, counted = json.JSONDecoder(), 1, 0
    at = _skip(text, text.index("[") + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
            yield line, _object(value)
            at = _skip(text, at)
            if text[at : at + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = _skip(text, at + 1) if text[at] == "," else at
        except (ValueError, RecursionError) as error:
            yield getattr(error, "lineno", line), _broken(error)
            return


def _skip(text: str, at: int) -> int:
    """The index of the next character that is no white space."""
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _csv(lines: list[bytes]) -> Iterator[Located]:
    # Undecodable bytes become lone surrogates, which the check of each field finds and places.
    reader = csv.reader((line.decode(errors="surrogateescape") + "\n" for line in lines), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield (
                number,
                Fault(f"broken CSV ({error})", 'Text with commas, quotes or line ends stands in "...".'),
            )
            return
        if len(fields) < 2 and not "".join(fields).strip():
            continue
        if header is None:
            header = [name.strip() for name in fields]
        else:
            yield number, _csv_row(header, fields)


def _csv_row(header: list[str], fields: list[str]) -> dict[str, Any] | Fault:
    if any("\udc80" <= char <= "\udcff" for field in fields if not field.isascii() for char in field):
        return Fault("not UTF-8", _ENCODING)
    if len(fields) != len(header):
        remedy = 'Text with commas, quotes or line ends stands in "...".'
        return Fault(f"{len(fields)} fields, but the first line names {len(header)} columns", remedy)
    return dict(zip(header, fields, strict=True))


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        table = pq.read_table(path)
        yield from enumerate(table.to_pylist(), start=1)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({reason}). Copy or download it again.") from None
