"""Rows of CSV files: fields between commas, semicolons or tabs, named by the first line."""

import csv
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from ftlab.content import Content
from ftlab.data.faults import Fault, Located
from ftlab.errors import DataError

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_QUOTES = 'Text with the separator, quotes or line ends stands in "...", a quote in it is doubled.'


def read(content: Content, wanted: Collection[str]) -> tuple[list[Located], str, list[str]]:
    """The rows, that they are counted in lines, and a note where something else than commas stands between fields.

    Raises DataError for a first line that names a column twice.
    """
    separator = _separator(content, wanted)
    notes = [f"{content.path.name}: fields between {_SEPARATORS[separator]}"] if separator != "," else []
    with _fields_of_any_length():
        return list(_rows(content, separator)), "line", notes


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Python's csv refuses fields of more than 131,072 characters, by a limit for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _separator(content: Content, wanted: Collection[str]) -> str:
    """What stands between the names of the first line: that which gives most of the `wanted` columns, else most
    columns, else the comma. A first line `sep=;`, as Excel writes it, says it."""
    first = next((line for line in content.lines if line.strip()), b"").decode(errors="replace")
    if said := re.fullmatch(r'"?sep=([,;\t])"?\s*', first):
        return said[1]

    def found(separator: str) -> tuple[int, int]:
        try:
            names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
        except csv.Error:  # reading the rows says what is wrong
            return 0, 0
        return len(set(names) & set(wanted)), len(names)

    return max(_SEPARATORS, key=found)


def _rows(content: Content, separator: str) -> Iterator[Located]:
    # Undecodable bytes become lone surrogates, which the check of each field finds and places.
    lines = (line.decode(errors="surrogateescape") + "\n" for line in content.lines)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, Fault(f"broken CSV ({error})", _QUOTES)
            return
        if len(fields) < 2 and not "".join(fields).strip():
            continue
        if header is None and separator.join(fields).startswith("sep="):
            continue
        if header is None:
            header = _header(content, number, fields)
        else:
            yield number, _row(content, header, fields)


def _header(content: Content, number: int, fields: list[str]) -> list[str]:
    """The names of the columns; nameless ones at the end (a separator too many) are left out."""
    if _is_odd(fields):
        raise DataError(f"{content.path}: line {number}: the first line is not UTF-8\n{content.remedy}")
    names = [name.strip() for name in fields]
    while len(names) > 1 and not names[-1]:
        names.pop()
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            places = " and ".join(str(i) for i, other in enumerate(names, start=1) if other == name)
            raise DataError(
                f"{content.path}: line {number}: the first line names {name} {count} times (columns {places}): which "
                "is meant?\nGive each column a name of its own, or delete the one that is not meant."
            )
    return names


def _row(content: Content, header: list[str], fields: list[str]) -> dict[str, Any] | Fault:
    if _is_odd(fields):
        return Fault("not UTF-8", content.remedy)
    if len(fields) > len(header) and not "".join(fields[len(header) :]).strip():
        fields = fields[: len(header)]
    if len(fields) != len(header):
        return Fault(f"{len(fields)} fields, but the first line names {len(header)} columns", _QUOTES)
    return dict(zip(header, fields, strict=True))


def _is_odd(fields: list[str]) -> bool:
    if all(map(str.isascii, fields)):
        return False
    return any("\udc80" <= char <= "\udcff" for field in fields for char in field)
