"""Masks secrets in everything that is written or shown, at three levels:

known(text)           masks the values of secrets that this process knows; for data, which is otherwise left unchanged
redact(text)          also masks text that has the form of a secret; for configuration and notes
redact_message(text)  also masks `password=...` in the middle of a line; for errors, tracebacks and logs
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import quote

MASK = "***"

# Words in the name of an environment variable whose value is a secret: HF_TOKEN, SECRET_KEY_BASE, PGPASSWORD.
_VARIABLE = re.compile(
    r"(?:^|_)(?:(?:API|ACCESS|PRIVATE)?KEY|TOKEN|SECRET|CREDENTIALS?|AUTH|PASS|MYSQL_PWD)(?:_|\d*$)|"
    r"PASSWORD|PASSWD|PASSPHRASE",
    re.IGNORECASE,
)
_SHORTEST = 8  # masking a shorter value would also mask ordinary words
_ORDINARY = frozenset(
    {
        *("password", "passw0rd", "changeme", "postgres", "localhost", "anonymous", "disabled", "required", "optional"),
        *("undefined", "username", "development", "production", "transformers"),
    }
)
_IN_ADDRESS = re.compile(r"://[^\s/:@]*:([^\s@]+)@")
_remembered: set[str] = set()

# A key names a secret if its LAST words do: `hub_token` does, `tokenizer` and `max_new_tokens` do not.
_SECRET_NAME = re.compile(
    r"(?:^|[._/-])(?:api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|secret(?:[_-]?key)?|(?:pg)?password|passwd|"
    r"passphrase|credentials?|authorization|token)$",
    re.IGNORECASE,
)
# Names of vocabulary tokens, which are not secrets.
_PUBLIC_NAME = re.compile(
    r"(?:^|[._/-])(?:bos|eos|pad|unk|sep|cls|mask|image|stop|end|start|first|last|next|per|special)_?token$",
    re.IGNORECASE,
)

# `+hub.token=VALUE` or `password: VALUE`, alone on its line: an override or a line of YAML. Inside a longer
# line the same letters may be SQL (`a.password=b.password`), which must stay.
_ASSIGNMENT = re.compile(
    r"^(?P<head>[ \t]*(?:-[ ]+)?[\"']?[+~]{0,2}(?P<name>[\w./@-]+)[\"']?[ ]?[=:][ ]?[\"']?)"
    r"[^\s\"']+(?=[\"',]*[ \t]*$)",
    re.MULTILINE,
)

# The same anywhere in a line. It is used for messages only, where masking a piece of SQL does no harm.
_INLINE = re.compile(
    r"(?P<head>(?<![\w.])(?:--?|[+~]{1,2})?(?P<name>[\w./@-]+?)(?:=|:[ ](?=\S+$)|(?<=-key)[ ]|(?<=-token)[ ])[\"']?)"
    r"[^\s\"',;)\]}]+",
    re.MULTILINE,
)

# URLs with these schemes have no path before the host, so a password in them may contain any character.
_STORES = (
    "postgres(?:ql)?|mysql|mariadb|mssql|oracle|clickhouse|snowflake|redis|rediss|amqps?|mongodb|s3[an]?|gs|abfss?|"
    "wasbs?|ftps?|sftp"
)
_NAMES = r"(?:[\w.-]*(?:token|secret|passwo?r?d|pwd|api[_-]?key|access[_-]?key|signature|credential)|key|sig|sas|auth)"
_SHAPES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<keep>\b(?:{_STORES})(?:\+\w+)?:/{{1,2}}[^\s/:@]*:)(?:[^\s?]+(?=@)|[^\s@]+(?=@))",
        r"(?P<keep>\b[a-zA-Z][a-zA-Z0-9+.-]*:/{1,2}[^\s/:@]*:)[^\s/@]+(?=@)",  # scheme://user:password@host
        r"(?P<keep>\bhttps?:/{1,2})[^\s/:@?#]+(?=@)",  # https://token@host
        rf"(?i)(?P<keep>[?&#;]{_NAMES}=)[^\s&#'\";]+",
        r"(?i)(?P<keep>\bbearer\s+)(?=\S*\d)[a-z0-9._~+/=-]{16,}",
        r"(?i)(?P<keep>\bauthorization:\s*basic\s+)[a-z0-9+/=]{8,}",
        r"(?P<keep>\b)hf_[A-Za-z0-9]{20,}",
        r"(?P<keep>\b)sk-(?=\S*\d)[A-Za-z0-9_-]{16,}",
        r"(?P<keep>\b)(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}",
        r"(?P<keep>\b)gh[pousr]_[A-Za-z0-9]{20,}",
        r"(?P<keep>\b)github_pat_[A-Za-z0-9_]{20,}",
        r"(?P<keep>\b)glpat-[A-Za-z0-9_-]{16,}",
        r"(?P<keep>\b)xox[abeoprs]-[A-Za-z0-9-]{10,}",
        r"(?P<keep>\b)xapp-[A-Za-z0-9-]{20,}",
        r"(?P<keep>\bhooks\.slack\.com/services/)[A-Za-z0-9/]{20,}",
        r"(?P<keep>\b)(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        r"(?P<keep>\b)AIza[A-Za-z0-9_-]{35}",
        r"(?P<keep>\b)ya29\.[A-Za-z0-9_-]{20,}",
        r"(?P<keep>\b)npm_[A-Za-z0-9]{36}",
        r"(?P<keep>\b)pypi-[A-Za-z0-9_-]{50,}",
        r"(?P<keep>\b)eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",  # a JSON web token
        r"(?P<keep>\b)wandb_v\d+_[A-Za-z0-9_]{16,}",
        # An old W&B key has 40 hex digits like a git commit: only the name before it distinguishes the two.
        r"(?i)(?P<keep>(?:api_?key[\"']?\s*[=:]\s*[\"']?|\b(?:key|login|token)\s?[=:]\s?|\blogin\s+))[0-9a-f]{40}\b",
        r"(?P<keep>-----BEGIN [A-Z ]*PRIVATE KEY-----)[\s\S]+?(?=-----END)",
    )
)


def secrets() -> set[str]:
    """Return the values of environment variables with a secret's name (`WANDB_API_KEY`, `HF_TOKEN`, `*_PASSWORD`), and
    the secrets on the command line."""
    named = {value for name, value in os.environ.items() if _is_secret_variable(name)}
    return {value for value in named if _is_secret(value)} | _remembered


def remember(words: Iterable[str]) -> None:
    """Remember the secrets among the words of a command line, so that they are masked wherever they occur."""
    for word in words:
        name, _, value = word.lstrip("+-~").partition("=")
        given = {value.strip("'\"")} if names_secret(name) else set(_IN_ADDRESS.findall(word))
        _remembered.update(secret for secret in given if _is_secret(secret))


@lru_cache(maxsize=1024)
def _is_secret_variable(name: str) -> bool:
    return bool(_VARIABLE.search(name))


@lru_cache(maxsize=1024)
def _is_secret(value: str) -> bool:
    """Whether a value is long enough, not an ordinary word and not a path (`SSH_AUTH_SOCK` holds one)."""
    ordinary = value.lower() in _ORDINARY or value.isspace() or (value.isdigit() and len(value) < 12)
    return len(value) >= _SHORTEST and not ordinary and not os.path.exists(value)


@lru_cache(maxsize=8)
def _any_of(values: frozenset[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds the values, also in the forms of URLs and JSON; of overlapping ones the longest."""
    forms = {form for value in values for form in (value, quote(value, safe=""), json.dumps(value)[1:-1])}
    longest = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(re.escape, longest))) if forms else None


def known(text: str) -> str:
    """Return `text` with the values of `secrets()` replaced by `***`."""
    pattern = _any_of(frozenset(secrets()))
    return pattern.sub(MASK, text) if pattern else text


def redact(text: str) -> str:
    """Return `text` with the values of `secrets()`, and all text that has the form of a secret, replaced by `***`."""
    text = known(text)
    if len(text) < 16 and ":" not in text and "=" not in text:  # no pattern matches shorter text; saves time
        return text
    text = _ASSIGNMENT.sub(_mask_assignment, text)
    for shape in _SHAPES:
        text = shape.sub(rf"\g<keep>{MASK}", text)
    return text


def redact_message(text: str) -> str:
    """Do `redact`, and also mask the values of assignments inside of lines."""
    return _INLINE.sub(_mask_assignment, redact(text))


class RedactedStream:
    """A text stream that masks secrets in what is written to it."""

    def __init__(self, stream: Any, mask: Callable[[str], str]) -> None:
        self._stream, self._mask = stream, mask

    def write(self, text: str) -> int:
        self._stream.write(self._mask(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_streams() -> None:
    """Mask secrets in everything that this process prints, tracebacks included. On stdout, which may carry data, only
    known values are masked."""
    sys.stdout, sys.stderr = RedactedStream(sys.stdout, known), RedactedStream(sys.stderr, redact_message)


def redact_tree(node: Any, mask: Callable[[str], str] = redact) -> Any:
    """Return a copy of nested dicts, lists and tuples in which secrets in every string are masked.

    The value of a key that names a secret (`api_key`, `hub_token`, `db.password`) is always masked, except for null,
    empty and boolean values, which hold no secret.
    """
    if isinstance(node, dict):
        return {
            redact_tree(key, mask): MASK if names_secret(key) and _may_be_secret(value) else redact_tree(value, mask)
            for key, value in node.items()
        }
    if isinstance(node, (list, tuple)):
        items = [redact_tree(item, mask) for item in node]
        return items if isinstance(node, list) else tuple(items)
    return mask(node) if isinstance(node, str) else node


def names_secret(key: object) -> bool:
    """Whether a key names a secret: `token` and `api_key` do; `tokenizer` and `eos_token` do not."""
    return isinstance(key, str) and bool(_SECRET_NAME.search(key)) and not _PUBLIC_NAME.search(key)


def _may_be_secret(value: object) -> bool:
    return isinstance(value, (str, bytes, int, float)) and not isinstance(value, bool) and value != ""


def _mask_assignment(match: re.Match[str]) -> str:
    return match["head"] + MASK if names_secret(match["name"]) else match[0]
