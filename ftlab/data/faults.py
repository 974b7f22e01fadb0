"""What is wrong with rows: each fault in its row's place, so that a file's faults are reported together."""

from dataclasses import dataclass
from typing import Any

from ftlab.content import Content
from ftlab.errors import DataError

SHOWN = 5
_DELETE = "Correct these rows or delete them."
LARGE = "Shorten these fields or delete the rows, or allow them with data.max_field_bytes=N."


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row, and what to do about it."""

    text: str
    remedy: str = _DELETE


Located = tuple[int, dict[str, Any] | Fault]  # a row and the line or row number it stands at, counted from 1


def refuse(name: str, unit: str, faults: list[tuple[int, Fault]], total: int) -> DataError:
    """One error for all faults of a file: the first few with their place, a count of the rest, remedies."""
    shown = faults[:SHOWN]
    lines = [f"{name}: {len(faults):,} of {total:,} rows cannot be used"]
    lines += [f"  {unit} {number:,}: {fault.text}" for number, fault in shown]
    if rest := len(faults) - len(shown):
        lines.append(f"  and {rest:,} more")
    return DataError("\n".join(lines + list(dict.fromkeys(fault.remedy for _, fault in shown))))


def too_large(name: str, value: str, limit: int) -> Fault | None:
    """A field of more than `limit` bytes in UTF-8 (`data.max_field_bytes`): reading it as tokens would take hundreds of
    times its size in memory."""
    if len(value) <= limit and (value.isascii() or 4 * len(value) <= limit):
        return None
    size = len(value.encode(errors="surrogatepass"))
    return Fault(large(name, size, limit), LARGE) if size > limit else None


def large(name: str, size: int, limit: int) -> str:
    """What is wrong with a field of `size` bytes."""
    return f"{name} has {size:,} bytes, more than data.max_field_bytes={limit}"


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


def not_utf8(content: Content, error: UnicodeDecodeError) -> Fault:
    """Bytes that are not UTF-8, and what encoding they seem to be in."""
    return Fault(f"not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start + 1:,})", content.remedy)
