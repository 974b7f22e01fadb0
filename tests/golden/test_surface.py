"""Commands, options, configuration keys, metric keys and columns stay those of surface.json, of an earlier commit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from golden.changes import CHANGED, NEW
from golden.records import read_json
from golden.surface import surface

BEFORE = read_json(Path(__file__).parent / "surface.json")
MAY_GROW = ("keys", "groups", "commands", "python")


def lost(before: Any, now: Any, where: str) -> Iterator[str]:
    """A line for each value of a tree that is gone or another. Lists keep their order, with new entries between, but a
    list that is a key's value stays as it is."""
    if isinstance(before, dict):
        if not isinstance(now, dict):
            yield f"{where}: {now!r} in place of a map"
            return
        for key, value in before.items():
            if key in now:
                yield from lost(value, now[key], f"{where}: {key}")
            else:
                yield f"{where}: {key} is lost"
    elif isinstance(before, list) and isinstance(now, list) and not where.startswith(("keys", "options")):
        gone = [entry for entry in before if entry not in now]
        yield from (f"{where}: {entry} is lost" for entry in gone)
        if not gone and [entry for entry in now if entry in before] != before:
            yield f"{where}: in another order"
    elif before != now:
        yield f"{where}: {now!r}, was {before!r}"


def added(before: Any, now: Any, where: str) -> Iterator[str]:
    """A line for each key or entry that was not there; a group may have new options."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key, value in now.items():
            if where == "options" and key not in before:
                continue
            if key in before:
                yield from added(before[key], value, f"{where}: {key}")
            else:
                yield f"{where}: {key} is new"
    elif isinstance(before, list) and isinstance(now, list):
        yield from (f"{where}: {entry} is new" for entry in now if entry not in before)


@pytest.mark.timeout(300)
def test_what_users_hold_on_to_stays(material: Path, ok: Callable[..., str]) -> None:
    now = surface(ok)
    gone = [line for part in BEFORE for line in lost(BEFORE[part], now[part], part)]
    new = [line for part in BEFORE.keys() - MAY_GROW for line in added(BEFORE[part], now[part], part)]
    summary = [f"records: summary: {key}" for key in NEW["summary.json"]]
    assert [line for line in gone if not line.startswith(tuple(CHANGED["surface"]))] == []
    assert [line for line in new if not line.startswith((*NEW["surface"], *summary))] == []
