"""Rows of JSON files, whatever their suffix: an object per line, a list of objects, objects over several lines, and
the layouts in which pandas and `datasets` write a whole table as one object.
"""

import json
import re
from collections.abc import Collection, Iterator
from json.scanner import make_scanner
from typing import Any

from ftlab.content import BOM, Content
from ftlab.data.faults import Fault, Located, describe, not_utf8, refuse

_OBJECT = 'Each row must be an object: {"question": ..., "answer": ...}'


class _Repeated(ValueError):
    """An object has a key twice, so it is not known which value is meant."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Repeated(next(key for key in keys if keys.count(key) > 1))
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
_SCAN: Any = make_scanner(_DECODER)  # type: ignore[arg-type]  # a decoder is the context that it needs


def read(content: Content, wanted: Collection[str]) -> tuple[list[Located], str, list[str]]:
    """Return the rows, the unit of their numbers ("line", or "row" of a table that is one object), and notes.

    `wanted` are the names of columns, which distinguish the layouts of a table.
    """
    found = re.search(rb"\S[^\r\n]*", content.data)
    first = found[0] if found else b""
    located = _whole(content) if _spans_lines(content, first) else list(_lines(content))
    if len(located) == 1 and isinstance(located[0][1], dict) and (table := _table(located[0][1], wanted)):
        rows, note = table
        return list(enumerate(rows, start=1)), "row", [f"{content.path.name}: {note}"]
    return located, "line", []


def _spans_lines(content: Content, first: bytes) -> bool:
    """Whether the file's values span several lines: a list, or objects, the first of which does not end on the first
    line. A file of objects per line whose first line is broken does not count, so that every line's fault is found."""
    if not first.startswith(b"{"):
        return first.startswith(b"[")
    try:
        _DECODER.decode(first.decode())
    except (ValueError, RecursionError):
        others = [line for line in content.lines if line.strip().startswith(b"{")][1:3]
        return not any(line.rstrip().endswith(b"}") for line in others)
    return False


def _lines(content: Content) -> Iterator[Located]:
    for number, line in enumerate(content.lines, start=1):
        if line.strip():
            yield number, _line(content, line)


def _line(content: Content, line: bytes) -> dict[str, Any] | Fault:
    try:
        value = _DECODER.decode(line.decode())
        return value if type(value) is dict else _object(value)
    except UnicodeDecodeError as error:
        return not_utf8(content, error)
    except (ValueError, RecursionError) as error:
        # Concatenated files have a byte order mark in the middle.
        return _line(content, line.removeprefix(BOM)) if line.startswith(BOM) else _broken(error)


def _object(value: Any) -> dict[str, Any] | Fault:
    return value if isinstance(value, dict) else Fault(f"{describe(value)}, not an object", _OBJECT)


def _broken(error: Exception) -> Fault:
    if isinstance(error, _Repeated):
        return Fault(f"{error} occurs twice in one object", "Keep one of the two, or give them different names.")
    reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return Fault(
        f"broken JSON ({reason})",
        "Correct or delete these lines, or copy the file again if it is incomplete. A .jsonl or .json file holds one "
        "object per line, or one list of objects.",
    )


def _whole(content: Content) -> list[Located]:
    """Return the objects of one JSON list, or of objects one after another, each with the line on which it begins."""
    data = content.data if b"\n" in content.data else content.data.replace(b"\r", b"\n")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        start = data.rfind(b"\n", 0, error.start) + 1
        placed = UnicodeDecodeError("utf-8", data[start : error.end], error.start - start, error.end - start, "")
        raise refuse(str(content.path), "line", [(line, not_utf8(content, placed))], line) from None
    return list(_values(text))


def _values(text: str) -> Iterator[Located]:
    at = _after(_BLANK, text, 0)
    listed = text[at] == "["
    at = _after(_BLANK, text, at + 1) if listed else at
    line, counted, size, next_of, scan = 1, 0, len(text), _COMMA.match, _SCAN
    while at < size and not (listed and text[at] == "]"):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = scan(text, at)
            yield line, value if type(value) is dict else _object(value)
            gap = next_of(text, end)
            at = gap.end() if gap else end
            if listed and gap and not gap[1] and text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        except StopIteration as stop:  # raised by the scanner where no value begins
            yield line, _broken(json.JSONDecodeError("Expecting value", text, stop.value))
            return
        except (ValueError, RecursionError) as error:
            yield getattr(error, "lineno", line), _broken(error)
            return
    if listed:
        yield from _end(text, at)


def _end(text: str, at: int) -> Iterator[Located]:
    """Yield a fault if a list does not end with its bracket, or if text follows it."""
    after = _after(_BLANK, text, at + 1)
    if at >= len(text) or after < len(text):
        place = json.JSONDecodeError("Expecting ']'" if at >= len(text) else "text after the list's end", text, after)
        yield place.lineno, _broken(place)


_BLANK = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*(,?)[ \t\n\r]*")


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Return the end of the match at `at`, or `at` if the pattern does not match there."""
    match = pattern.match(text, at)
    return match.end() if match else at


# --- a table as one object ----------------------------------------------------------------------------------

_PANDAS = "read as a table that pandas wrote with to_json({})"


def _table(value: dict[str, Any], wanted: Collection[str]) -> tuple[list[dict[str, Any] | Fault], str] | None:
    """Return the rows of a table that is one object, and a note of its layout; None if the object is a row itself."""
    parts = list(value.values())
    if {"columns", "data"} <= set(value) and all(isinstance(value[key], list) for key in ("columns", "data")):
        return [_named(value["columns"], row) for row in value["data"]], _PANDAS.format("orient='split'")
    if parts and all(isinstance(part, dict) for part in parts):
        return _mapped(value, wanted)
    if parts and all(isinstance(part, list) for part in parts) and len(set(map(len, parts))) == 1 and parts[0]:
        return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)], "read as one list per column"
    lists = [key for key, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)]
    if len(lists) == 1 and not set(value) & set(wanted):
        return [_object(row) for row in value[lists[0]]], f'the rows are those of the list "{lists[0]}"'
    return None


def _named(columns: list[Any], row: Any) -> dict[str, Any] | Fault:
    if not isinstance(row, list) or len(row) != len(columns):
        return Fault(f"{describe(row)}, not a list of {len(columns)} fields", "Give each row a value for each column.")
    if len(set(map(str, columns))) < len(columns):
        return Fault("two columns have the same name", "Give each column a different name.")
    return dict(zip(map(str, columns), row, strict=True))


def _mapped(value: dict[str, Any], wanted: Collection[str]) -> tuple[list[dict[str, Any] | Fault], str] | None:
    """Return the rows of an object of objects: columns by name, as pandas writes them by default, or rows by index."""
    inner = dict.fromkeys(key for part in value.values() for key in part)
    if set(wanted) & set(inner) and not set(wanted) & set(value):
        return list(value.values()), _PANDAS.format("orient='index'")
    if set(wanted) & set(value) or all(key.isdigit() for key in inner):
        rows = [{name: part[key] for name, part in value.items() if key in part} for key in inner]
        return [*rows], _PANDAS.format("")
    return None
