"""The commands other than training, one module each.

`fetch` and `data` get a composed configuration. The other commands get their own KEY=VALUE arguments as plain text,
split at the first `=`; `score` has options with dashes.
"""

import difflib
from collections.abc import Iterable

from ftlab.errors import InputError


def plain_arguments(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return `key=value` words as a dict of plain text, and the words without `=`.

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
            raise InputError(f"{key}= is given twice: remove one of them")
        else:
            arguments[key] = value
    return arguments, bare


def check_keys(command: str, arguments: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a key that the command does not have, and suggest the nearest ones.

    Raises:
        InputError: an unknown key.
    """
    known = list(known)
    for key in arguments:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.4) or known
            raise InputError(f"{key}= is not an argument of {command}. Did you mean: {', '.join(near)}?")


def allowed_code(arguments: dict[str, str]) -> bool:
    """Remove `model.trust_remote_code` from the arguments and return whether it is true.

    Raises:
        InputError: it is neither true nor false.
    """
    text = arguments.pop("model.trust_remote_code", "false").lower()
    if text not in ("true", "false"):
        raise InputError(f"model.trust_remote_code={text} must be true or false")
    return text == "true"


def dashed_arguments(
    command: str, words: list[str], options: Iterable[str], flags: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Return `--option VALUE` or `--option=VALUE`, and `--flag`, as a dict (a flag's value is true or false); and the
    words that are not options: those without a leading dash, `-`, and all that follow `--`.

    Raises:
        InputError: an option is unknown, has no value or is given twice, or a flag is neither true nor false.
    """
    options, flags = list(options), list(flags)
    arguments: dict[str, str] = {}
    bare: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--":
            bare += rest
        elif not word.startswith("-") or word == "-":
            bare.append(word)
        elif name not in (*options, *flags):
            raise InputError(f"{word} is not an option of {command}. {_meant(name, [*options, *flags])}")
        elif name in arguments:
            raise InputError(f"--{name} is given twice: remove one of them")
        else:
            given = value if equals else "true" if name in flags else next(rest, None)
            arguments[name] = _checked(name, given, name in flags)
    return arguments, bare


def _meant(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lstrip("-"), known, n=1, cutoff=0.4) or known
    return f"Did you mean: {', '.join('--' + other for other in near)}?"


def _checked(name: str, value: str | None, is_flag: bool) -> str:
    if value is None:
        raise InputError(f"--{name} needs a value: --{name} VALUE")
    if is_flag and value.lower() not in ("true", "false"):
        raise InputError(f"--{name}={value} must be true or false, or --{name} without a value")
    return value.lower() if is_flag else value
