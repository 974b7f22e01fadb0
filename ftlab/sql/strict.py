"""The exact-string score: equal texts, except for white space outside quotes and trailing semicolons."""

import re

# A quoted part ('…', "…", `…`, […]; an unclosed one runs to the end) or a run of SQLite's white space.
TOKEN = re.compile(r"""('[^']*(?:'|$)|"[^"]*(?:"|$)|`[^`]*(?:`|$)|\[[^\]]*(?:\]|$))|([ \t\n\f\r]+)|(.)""", re.DOTALL)


def normalise(query: str) -> str:
    """The query with white space outside quotes collapsed, its ends stripped, and trailing semicolons removed."""
    parts: list[str] = []
    for quoted, space, other in TOKEN.findall(query):
        parts.append(" " if space else quoted or other)
    while parts and parts[-1] in (" ", ";"):
        parts.pop()
    if parts and parts[0] == " ":
        parts.pop(0)
    return "".join(parts)


def check_text(name: str, value: object) -> None:
    """Raises TypeError, with the value's name, if it is not text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text (str), not {type(value).__name__}")


def exact_string(gold: str, pred: object) -> bool:
    """Whether two queries are the same text. An empty or non-text prediction never matches.

    Raises TypeError if the gold query is not text.
    """
    check_text("gold", gold)
    if not isinstance(pred, str):
        return False
    normal = normalise(pred)
    return normal != "" and normal == normalise(gold)
