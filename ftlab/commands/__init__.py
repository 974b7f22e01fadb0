"""The commands beside training, one module each.

Commands that read or answer get their own key=value as plain text, split at the first `=`; `fetch` and
`data` get a composed configuration.
"""

import difflib
from collections.abc import Iterable

from ftlab.errors import InputError


def plain_arguments(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """`key=value` words as a dict of plain text, and the words without `=`.

    Raises:
        InputError: a key is given twice.
    """
    arguments: dict[str, str] = {}
    bare: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.replace(".", "").replace("_", "").replace("/", "").isalnum():
            bare.append(word)
        elif key in arguments:
            raise InputError(f"{key}= is given twice")
        else:
            arguments[key] = value
    return arguments, bare


def check_keys(command: str, arguments: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a key that the command does not take, naming the nearest.

    Raises:
        InputError: an unknown key.
    """
    known = list(known)
    for key in arguments:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.4) or known
            raise InputError(f"{key}= is no argument of {command}. Did you mean: {', '.join(near)}?")
