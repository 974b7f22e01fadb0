"""Values as a person types them: by Hydra's grammar, then by the shell's, so that what is suggested can be pasted."""

import re
import shlex

_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")  # the same with and without quotes to Hydra


def quoted(value: str) -> str:
    """`value` as a quoted string of Hydra's grammar, where backslashes count as escapes before a quote only."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    trailing = len(value) - len(value.rstrip("\\"))
    return '"' + escaped + "\\" * trailing + '"'


def typed(key: str, value: object) -> str:
    """The override `key=value` as one word of the shell."""
    text = str(value)
    return shlex.quote(f"{key}={text if _PLAIN.fullmatch(text) else quoted(text)}")
