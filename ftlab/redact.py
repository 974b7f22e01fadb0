"""Masking secrets in whatever is written or shown: configuration, overrides, messages."""

import os
import re
from typing import Any

MASK = "***"

_VARIABLE = re.compile(r"(?:^|_)(?:API_KEY|ACCESS_KEY|TOKEN|SECRET|(?:PG)?PASSWORD|MYSQL_PWD)$", re.IGNORECASE)
_SHORTEST = 8  # masking a shorter value would hit ordinary words

# A key names a secret when its LAST words say so: `hub_token` does, `tokenizer` and `max_new_tokens` do not.
_SECRET_NAME = re.compile(
    r"(?:^|[._/-])(?:api_?key|access_?key|private_?key|secret(?:_?key)?|(?:pg)?password|passwd|credentials?|"
    r"authorization|token)$",
    re.IGNORECASE,
)
# Tokens of a vocabulary, not of an account.
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

_SHAPES = tuple(
    re.compile(pattern)
    for pattern in (
        # A database's address has no path before its host, so that a password may hold any character.
        r"(?P<keep>\b(?:postgres(?:ql)?|mysql|mariadb)(?:\+\w+)?://[^\s/:@]*:)[^\s?]+(?=@)",
        r"(?P<keep>\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/:@]*:)[^\s/@]+(?=@)",  # scheme://user:password@host
        r"(?i)(?P<keep>[?&](?:(?:[a-z]+_)?token|api_?key|key|sig|signature|secret|password)=)[^\s&#'\"]+",
        r"(?i)(?P<keep>\bbearer\s+)(?=\S*\d)[a-z0-9._~+/=-]{16,}",
        r"(?P<keep>\b)hf_[A-Za-z0-9]{20,}\b",
        r"(?P<keep>\b)sk-(?=\S*\d)[A-Za-z0-9_-]{16,}",
        r"(?P<keep>\b)gh[pousr]_[A-Za-z0-9]{20,}\b",
        r"(?P<keep>\b)wandb_v\d+_[A-Za-z0-9_]{16,}",
        # A classic W&B key is 40 hex digits like a git commit: only the name before it tells them apart.
        r"(?i)(?P<keep>(?:api_?key[\"']?\s*[=:]\s*[\"']?|\b(?:key|login|token)\s?[=:]\s?|\blogin\s+))[0-9a-f]{40}\b",
    )
)


def secrets() -> set[str]:
    """Values of environment variables whose name says secret: `WANDB_API_KEY`, `HF_TOKEN`, `*_PASSWORD`..."""
    return {v for name, v in os.environ.items() if _VARIABLE.search(name) and len(v) >= _SHORTEST}


def redact(text: str) -> str:
    """`text` with the values of `secrets()`, and whatever has a secret's shape, replaced by `***`."""
    for value in sorted(secrets(), key=len, reverse=True):
        text = text.replace(value, MASK)
    text = _ASSIGNMENT.sub(_mask_assignment, text)
    for shape in _SHAPES:
        text = shape.sub(rf"\g<keep>{MASK}", text)
    return text


def redact_tree(node: Any) -> Any:
    """A copy of nested dicts, lists and tuples in which every string is redacted.

    The value of a key that names a secret (`api_key`, `hub_token`, `db.password`) is masked whatever it looks
    like. Null, empty and boolean values stay: they only say that there is no secret.
    """
    if isinstance(node, dict):
        return {
            redact_tree(key): MASK if names_secret(key) and _may_be_secret(value) else redact_tree(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [redact_tree(item) for item in node]
    if isinstance(node, tuple):
        return tuple(redact_tree(item) for item in node)
    return redact(node) if isinstance(node, str) else node


def names_secret(key: object) -> bool:
    """Whether a key names a secret: `token` and `api_key` do; `tokenizer` and `eos_token` do not."""
    return isinstance(key, str) and bool(_SECRET_NAME.search(key)) and not _PUBLIC_NAME.search(key)


def _may_be_secret(value: object) -> bool:
    return isinstance(value, (str, bytes, int, float)) and not isinstance(value, bool) and value != ""


def _mask_assignment(match: re.Match[str]) -> str:
    return match["head"] + MASK if names_secret(match["name"]) else match[0]
