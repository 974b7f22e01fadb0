"""Quotes values for Hydra's grammar and for the shell, so that a suggested command can be pasted."""

import re
import shlex

_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")  # values that Hydra reads in the same way with and without quotes


def quoted(value: str) -> str:
    """Return `value` as a quoted string of Hydra's grammar, in which a backslash escapes only a quote."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    trailing = len(value) - len(value.rstrip("\\"))
    return '"' + escaped + "\\" * trailing + '"'


def typed(key: str, value: object) -> str:
    """Return the override `key=value` as one word of the shell."""
    text = str(value)
    return shlex.quote(f"{key}={text if _PLAIN.fullmatch(text) else quoted(text)}")
