"""Rows of CSV files: fields separated by commas, semicolons or tabs, with a header line that names the columns."""

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
_QUOTES = 'Enclose text that contains the separator, quotes or line breaks in "...", and double each quote inside it.'


def read(content: Content, wanted: Collection[str]) -> tuple[list[Located], str, list[str]]:
    """Return the rows, the unit of their numbers ("line"), and a note where fields are not separated by commas.

    Raises DataError for a header that names a column twice.
    """
    separator = _separator(content, wanted)
    notes = [f"{content.path.name}: fields are separated by {_SEPARATORS[separator]}"] if separator != "," else []
    with _fields_of_any_length():
        return list(_rows(content, separator)), "line", notes


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lift the limit of 131,072 characters that Python's csv module sets on fields, for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _separator(content: Content, wanted: Collection[str]) -> str:
    """Return the separator of the header: the one that yields most of the `wanted` columns, then the most columns,
    then the comma. A first line such as `sep=;`, which Excel writes, declares it."""
    first = next((line for line in content.lines if line.strip()), b"").decode(errors="replace")
    if declared := re.fullmatch(r'"?sep=([,;\t])"?\s*', first):
        return declared[1]

    def found(separator: str) -> tuple[int, int]:
        try:
            names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
        except csv.Error:  # reported when the rows are read
            return 0, 0
        return len(set(names) & set(wanted)), len(names)

    return max(_SEPARATORS, key=found)


def _rows(content: Content, separator: str) -> Iterator[Located]:
    # Undecodable bytes become lone surrogates, which the check of each field finds and reports.
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
    """Return the names of the columns, without empty names at the end (from superfluous separators)."""
    if _is_odd(fields):
        raise DataError(f"{content.path}: line {number}: the first line is not UTF-8\n{content.remedy}")
    names = [name.strip() for name in fields]
    while len(names) > 1 and not names[-1]:
        names.pop()
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            places = " and ".join(str(i) for i, other in enumerate(names, start=1) if other == name)
            raise DataError(
                f"{content.path}: line {number}: the first line names {name} {count} times (columns {places}).\n"
                "Give each column a different name, or delete the duplicate."
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
