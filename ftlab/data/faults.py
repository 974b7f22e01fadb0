"""What is wrong with rows. A fault takes the place of its row, so that all faults of a file are reported together."""

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


Located = tuple[int, dict[str, Any] | Fault]  # the number of a line or row, counted from 1, and the row


def refuse(name: str, unit: str, faults: list[tuple[int, Fault]], total: int) -> DataError:
    """Return one error for all faults of a file: the first few with their numbers, a count of the rest, remedies."""
    shown = faults[:SHOWN]
    lines = [f"{name}: {len(faults):,} of {total:,} rows cannot be used"]
    lines += [f"  {unit} {number:,}: {fault.text}" for number, fault in shown]
    if rest := len(faults) - len(shown):
        lines.append(f"  and {rest:,} more")
    return DataError("\n".join(lines + list(dict.fromkeys(fault.remedy for _, fault in shown))))


def too_large(name: str, value: str, limit: int) -> Fault | None:
    """Return a fault if a field has more than `limit` bytes in UTF-8 (`data.max_field_bytes`): to tokenise it would
    take hundreds of times its size in memory."""
    if len(value) <= limit and (value.isascii() or 4 * len(value) <= limit):
        return None
    size = len(value.encode(errors="surrogatepass"))
    return Fault(large(name, size, limit), LARGE) if size > limit else None


def large(name: str, size: int, limit: int) -> str:
    """Return the message for a field of `size` bytes."""
    return f"{name} has {size:,} bytes, more than data.max_field_bytes={limit}"


def describe(value: Any) -> str:
    """Return a value's type in the terms of a data file, with the beginning of the value."""
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
    """Return the fault of a text that is not UTF-8, with the encoding that it seems to have as the remedy."""
    return Fault(f"not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start + 1:,})", content.remedy)
