"""Rows of files and of the Hub: finding the files, checking their columns, and turning rows into examples.

Every fault of a row is found here, before weights load; errors name the file, the line and the remedy.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from ftlab.config import ColumnsConfig, DataConfig
from ftlab.content import refuse_special
from ftlab.data import folder, hub, rows, saved
from ftlab.data.faults import Fault, Located, refuse
from ftlab.data.folder import Folder
from ftlab.data.prompts import shows
from ftlab.data.splits import Example, SourceSplits
from ftlab.errors import DataError


@dataclass(frozen=True)
class Role:
    """A column that a task reads, by its key in `data.columns`."""

    name: str
    aliases: tuple[str, ...]  # other common names of the column, most likely first
    in_prompt: Literal["always", "may", "never"]  # whether data.prompt shows it; with "may", data may lack the column
    blank: bool = False  # whether a row may leave it empty although the prompt shows it

    def needed(self, prompt: str) -> bool:
        """Whether the data must have the column, given this prompt."""
        return self.in_prompt != "may" or shows(prompt, self.name)


class Reader(Protocol):
    """The part of a task that reading rows needs."""

    @property
    def roles(self) -> Sequence[Role]: ...
    def parse(self, row: Mapping[str, Any], cfg: DataConfig, id: str) -> Example | Fault:
        """Return a row of a file as an example, or its fault."""


def load(cfg: DataConfig, task: Reader) -> SourceSplits:
    """Return the rows of `cfg.path` (a file or a folder) or, without a path, of the Hub data set `cfg.hub_id`.

    Raises DataError for files that are missing and for rows that cannot be used.
    """
    if not cfg.path:
        return _from_hub(cfg, task)
    path = Path(cfg.path).expanduser()
    if path.is_dir() and saved.is_saved(path):
        return _from_saved(path, cfg, task)
    found = folder.find_splits(path) if path.is_dir() else Folder({"train": [existing(path)]}, [])
    examples: dict[str, list[Example]] = {}
    notes: list[str] = []
    for name, files in found.splits.items():
        examples[name] = [row for file in files for row in _examples(file, cfg, task, notes)]
        notes.append(f"{name}: {len(examples[name]):,} rows from {folder.described(files)}")
    return _source_splits(examples, notes + folder.left_out(found), cfg)


def _from_hub(cfg: DataConfig, task: Reader) -> SourceSplits:
    tables, read_from = hub.tables(str(cfg.hub_id), cfg.hub_revision)
    return from_tables(str(cfg.hub_id), tables, read_from, cfg, task)


def _from_saved(path: Path, cfg: DataConfig, task: Reader) -> SourceSplits:
    tables, left_out = saved.tables(path)
    parts = from_tables(str(path), tables, f"{path} (save_to_disk)", cfg, task)
    notes = [f"not read, since the names are not those of a split: {', '.join(left_out)}"] if left_out else []
    return replace(parts, notes=parts.notes + notes)


def from_tables(
    name: str, tables: Mapping[str, Sequence[dict[str, Any] | Fault]], read_from: str, cfg: DataConfig, task: Reader
) -> SourceSplits:
    """The rows of each split of the table `name`; a note says that they come from `read_from`.

    Raises:
        DataError: places every row that cannot be used by split and number.
    """
    examples = {
        split: parse(f"{name} ({split})", "row", list(enumerate(table, start=1)), cfg, task, f"{split}:")
        for split, table in tables.items()
    }
    notes = [f"{split}: {len(found):,} rows from {read_from}" for split, found in examples.items()]
    return _source_splits(examples, notes, cfg)


def _source_splits(examples: dict[str, list[Example]], notes: list[str], cfg: DataConfig) -> SourceSplits:
    named = any(row.group not in (row.shared, row.asked) for row in examples["train"])
    return SourceSplits(
        examples["train"],
        examples.get("validation"),
        examples.get("test"),
        notes,
        cfg.columns.group if named else "context",
    )


def existing(path: Path) -> Path:
    """Return the path if it names a file or folder.

    Raises:
        DataError: it does not exist, or it is a pipe, a socket or a device.
    """
    refuse_special(path)
    if path.exists():
        return path
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f" Did you mean {path.parent / near[0]}?" if near else ""
    raise DataError(
        f"data.path={path} does not exist.{hint}\n"
        f"Name a file ({', '.join(rows.SUFFIXES)}) or a folder with train.jsonl and optionally test.jsonl."
    )


def _examples(file: Path, cfg: DataConfig, task: Reader, notes: list[str]) -> list[Example]:
    """Return the examples of one file; notes for the user on how it was read are appended to `notes`."""
    read = rows.read(file, tuple(getattr(cfg.columns, role.name) for role in task.roles))
    notes += read.notes
    return parse(str(file), read.unit, read.rows, cfg, task, f"{file.name}:")


def parse(name: str, unit: str, located: list[Located], cfg: DataConfig, task: Reader, prefix: str) -> list[Example]:
    """Return the examples of all rows of the file `name`.

    `located` holds the rows with their numbers, counted in `unit`; an example's id is `prefix` and its number.
    Raises one DataError that lists the faults of all rows with their numbers.
    """
    if not located:
        raise DataError(f"{name}: {unit} 1: the file is empty.\nAdd rows, or name another file: data.path=FILE")
    _check_columns(f"{name}: {unit} {located[0][0]}", located, cfg, task.roles)
    examples, faults = [], []
    for number, row in located:
        found = row if isinstance(row, Fault) else task.parse(row, cfg, f"{prefix}{number}")
        if isinstance(found, Fault):
            faults.append((number, found))
        else:
            examples.append(found)
    if faults:
        raise refuse(name, unit, faults, len(located))
    return examples


def _check_columns(place: str, located: Iterable[Located], cfg: DataConfig, roles: Sequence[Role]) -> None:
    """Refuse a file if none of its rows has a needed column; the error lists its columns and the most likely one."""
    columns = cfg.columns
    present = list(dict.fromkeys(key for _, row in located if isinstance(row, dict) for key in row))
    if not present:
        return
    default = {field.name: field.default for field in fields(ColumnsConfig)}
    needed = [role.name for role in roles if role.needed(cfg.prompt)]
    # The group column may be absent, unless the user has named one.
    needed += [] if columns.group == default["group"] else ["group"]
    missing = {role: getattr(columns, role) for role in needed if getattr(columns, role) not in present}
    if not missing:
        return
    taken = {getattr(columns, role) for role in needed} - set(missing.values())
    aliases = {role.name: role.aliases for role in roles}
    lines = [f"{place}: no column {', '.join(missing.values())}; the columns are {', '.join(present)}"]
    for role, wanted in missing.items():
        nearest = _nearest(aliases.get(role, ()), wanted, [column for column in present if column not in taken])
        taken.add(nearest)
        lines.append(f"Name the column that holds the {role}: data.columns.{role}={nearest or 'NAME'}")
    optional = [role.name for role in roles if role.in_prompt == "may" and role.name in missing]
    lines += [f"If the data have no {name}, leave {{{name}}} out of data.prompt" for name in optional]
    raise DataError("\n".join(lines))


def _nearest(aliases: Iterable[str], wanted: str, free: list[str]) -> str:
    """Return the free column that is most likely meant: one of similar spelling, else an alias, else an empty text."""
    lower = {column.lower(): column for column in reversed(free)}
    alike = difflib.get_close_matches(wanted.lower(), lower, n=1, cutoff=0.6)
    known = [alias for alias in aliases if alias in lower]
    return lower[(alike + known)[0]] if alike or known else ""
