"""Reading what runs record."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file below a folder."""
    return {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a tree by its dotted key; lists and empty maps are values."""
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
