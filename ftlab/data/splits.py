"""Rows and how they are divided into splits: in whole groups, never row by row, and the same way every time.

Every choice sorts the candidates by a hash of the seed and the candidate. It therefore depends neither on the order of
rows, nor on other splits, nor on PYTHONHASHSEED, and a larger `train_rows` only adds rows.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from operator import attrgetter
from typing import Protocol, TypeVar

from ftlab.config import DataConfig
from ftlab.errors import DataError


class Row(Protocol):
    """The part of a row that dividing needs; rows of one `group` stay in one split."""

    @property
    def group(self) -> str: ...
    @property
    def asked(self) -> str:
        """The question, by which rows are divided if they are all of one group."""

    @property
    def shared(self) -> str:
        """The context, which several rows may share; empty if there is none."""

    @property
    def text(self) -> str:
        """The whole row as one text, for the fingerprint; equal texts are equal rows."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Example:
    """A question, its context (may be empty) and answer; rows of one `group` (database, schema) stay in one split."""

    id: str
    question: str
    context: str
    answer: str
    group: str

    @property
    def asked(self) -> str:
        return self.question

    @property
    def shared(self) -> str:
        return self.context

    @property
    def text(self) -> str:
        return json.dumps([self.question, self.context, self.answer, self.group])


@dataclass(frozen=True)
class SourceSplits:
    """The splits of a source; None stands for a split that it does not have, which is then taken from `train`."""

    train: list[Example]
    validation: list[Example] | None = None
    test: list[Example] | None = None
    notes: list[str] = field(default_factory=list)
    grouped_by: str = "context"


@dataclass(frozen=True)
class Splits:
    """The rows of one experiment. `sha256` is over the text of all rows in order; `notes` are for the user."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    sha256: str
    notes: list[str]


def divide(parts: SourceSplits, cfg: DataConfig) -> Splits:
    """Take the splits that `parts` lacks from its train rows, then keep `train_rows` and `test_rows` of them.

    Raises DataError if there are too few rows or groups to take a split from.
    """
    notes = list(parts.notes)
    train, validation, test = parts.train, parts.validation, parts.test
    if test is None:
        grouping = Grouping.of(train, parts.grouped_by)
        train, test = carve(train, cfg.test_size, cfg.split_seed, "test_size", grouping)
        notes.append(_taken("test", test, grouping))
    if validation is None:
        grouping = Grouping.of(train, parts.grouped_by)
        train, validation = carve(train, cfg.validation, cfg.split_seed, "validation", grouping)
        notes.append(_taken("validation", validation, grouping))
    kept, scored = cap(train, cfg.train_rows, cfg.split_seed), cap(test, cfg.test_rows, cfg.split_seed)
    notes += _capped("train", train, kept) + _capped("test", test, scored)
    for name, rows in (("validation", validation), ("test", scored)):
        notes += _shared(name, rows, kept)
    return Splits(kept, validation, scored, fingerprint(kept, validation, scored), notes)


@dataclass(frozen=True)
class Grouping:
    """How rows are grouped: the `key` of a row, the `name` that messages use for it, and `why` it was chosen."""

    key: Callable[[Row], str]
    name: str
    why: str = ""

    @classmethod
    def of(cls, rows: Sequence[Row], grouped_by: str) -> "Grouping":
        """Group rows as the source does. If all rows are of one group, such as a single database, group them by
        question instead, so that no question is in two splits."""
        groups = {row.group for row in rows}
        if len(groups) == 1 and len({_asked(row) for row in rows}) > 1:
            return cls(_asked, "question", f", since all rows share one {grouped_by}")
        return cls(attrgetter("group"), grouped_by)


def _asked(row: Row) -> str:
    """Return the question with case and white space normalised."""
    return " ".join(row.asked.casefold().split())


BY_CONTEXT = Grouping(attrgetter("group"), "context")


def carve(rows: list[R], size: float, seed: int, key: str, grouping: Grouping = BY_CONTEXT) -> tuple[list[R], list[R]]:
    """Divide `rows` into (rest, taken) in whole groups, with `taken` as close to `size` as the groups allow.

    `size` is a number of rows or, below 1, a fraction of them. Both sides get at least one group and keep the order of
    `rows`. `data.<key>` is the setting that an error names.
    """
    groups = list(map(grouping.key, rows))
    counts = Counter(groups)
    wanted = round(size) if size >= 1 else max(1, round(size * len(rows)))
    if len(counts) < 2:
        raise DataError(
            f"data.{key}={size:g}: no rows can be taken from the {len(rows):,} training rows: all share one "
            f"{grouping.name} and one question, and rows of one {grouping.name} stay in one split.\n"
            f"Add a {key.removesuffix('_size')} file beside the training file, or name a column that groups rows: "
            "data.columns.group=NAME"
        )
    if wanted >= len(rows):
        raise DataError(
            f"data.{key}={size:g} leaves nothing to train on: there are only {len(rows):,} rows.\n"
            f"Set a smaller number, or a fraction of the rows: data.{key}=0.1"
        )
    chosen = _choose(counts, wanted, f"{key}/{seed}")
    rest = [row for row, group in zip(rows, groups, strict=True) if group not in chosen]
    return rest, [row for row, group in zip(rows, groups, strict=True) if group in chosen]


def _choose(counts: Counter[str], wanted: int, salt: str) -> set[str]:
    """Choose groups in hashed order while they fit; then add the smallest other one if that is closer to `wanted`."""
    order = sorted(counts, key=lambda group: _draw(salt, group))
    chosen: set[str] = set()
    missing = wanted
    for group in order:
        if counts[group] <= missing:
            chosen.add(group)
            missing -= counts[group]
    others = [group for group in order if group not in chosen]
    nearest = min(others, key=lambda group: counts[group])
    if not chosen or (len(others) > 1 and counts[nearest] - missing < missing):
        chosen.add(nearest)
    return chosen


def cap(rows: list[R], limit: int | None, seed: int) -> list[R]:
    """Return at most `limit` of `rows`, in their order. A larger limit keeps the rows of a smaller one."""
    if limit is None or limit >= len(rows):
        return rows
    drawn = sorted(range(len(rows)), key=lambda i: _draw(f"rows/{seed}", rows[i].text))
    return [rows[i] for i in sorted(drawn[:limit])]


def fingerprint(*splits: Iterable[Row]) -> str:
    """Return the sha256 (hex) of the text of all rows in order; names of files and splits do not count."""
    digest = sha256()
    for rows in splits:
        digest.update(b"split\n")
        for row in rows:
            digest.update(row.text.encode() + b"\n")
    return digest.hexdigest()


def _draw(salt: str, text: str) -> bytes:
    return sha256(f"{salt}/{text}".encode(errors="surrogatepass")).digest()


def _taken(name: str, rows: Sequence[Row], by: Grouping) -> str:
    groups = len(set(map(by.key, rows)))
    return f"{name}: {len(rows):,} rows taken from train in whole groups ({groups:,} groups by {by.name}{by.why})"


def _capped(name: str, rows: Sequence[Row], kept: Sequence[Row]) -> list[str]:
    if len(kept) == len(rows):
        return []
    return [f"{name}: {len(kept):,} of {len(rows):,} rows kept (data.{name}_rows)"]


def _shared(name: str, rows: Sequence[Row], train: Sequence[Row]) -> list[str]:
    """Return notes on what a split shares with train, which inflates its scores."""
    known = {row.shared for row in train} - {""}
    contexts = {row.shared for row in rows}
    asked = {(row.asked, row.shared) for row in train}
    again = sum((row.asked, row.shared) in asked for row in rows)
    notes = []
    if both := len(contexts & known):
        notes.append(f"{name}: {both:,} of its {len(contexts):,} contexts also occur in train")
    if again:
        notes.append(f"{name}: {again:,} of its {len(rows):,} rows repeat a question of train about the same context")
    return notes
