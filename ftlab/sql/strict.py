"""The strict score: equal texts but for white space outside quotes and trailing semicolons."""

import re

# A quoted part ('…', "…", `…`, […]; an unclosed one runs to the end) or a run of SQLite's white space.
TOKEN = re.compile(r"""('[^']*(?:'|$)|"[^"]*(?:"|$)|`[^`]*(?:`|$)|\[[^\]]*(?:\]|$))|([ \t\n\f\r]+)|(.)""", re.DOTALL)


def normalise(query: str) -> str:
    """White space outside quotes collapsed, ends stripped, trailing semicolons (with blanks) removed."""
    parts: list[str] = []
    for quoted, space, other in TOKEN.findall(query):
        parts.append(" " if space else quoted or other)
    while parts and parts[-1] in (" ", ";"):
        parts.pop()
    if parts and parts[0] == " ":
        parts.pop(0)
    return "".join(parts)


def check_text(name: str, value: object) -> None:
    """Raises TypeError where a value that must be text, named so, is not."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text (str), not {type(value).__name__}")


def exact_string(gold: str, pred: object) -> bool:
    """Whether two queries are the same text. An empty or non-text prediction never matches.

    Raises TypeError where the gold query is not text.
    """
    check_text("gold", gold)
    if not isinstance(pred, str):
        return False
    normal = normalise(pred)
    return normal != "" and normal == normalise(gold)
