"""Rows of your own or of the Hub: finding the files, checking their columns, and turning rows into examples.

Everything that can be wrong with a row is found here, before weights load; errors name file, line and remedy.
"""

import difflib
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ftlab.config import ColumnsConfig, DataConfig
from ftlab.content import refuse_special
from ftlab.data import folder, hub, rows, saved
from ftlab.data.faults import Fault, Located, describe, refuse, too_large
from ftlab.data.folder import Folder
from ftlab.data.prompts import uses_context
from ftlab.data.splits import Example, Parts
from ftlab.errors import DataError

# Names under which other text-to-SQL and instruction data keep the same thing, likeliest first.
_ALIASES = {
    "question": ("instruction", "sql_prompt", "prompt", "utterance", "input", "text"),
    "context": ("schema", "sql_context", "create_table", "full_context", "input"),
    "answer": ("sql", "query", "output", "response", "completion", "target"),
}


def load(cfg: DataConfig) -> Parts:
    """The rows of `cfg.path` (a file or a folder) or, without a path, of the Hub data set `cfg.hub_id`.

    Raises DataError for files that are missing or hold rows that cannot be used.
    """
    if not cfg.path:
        return _from_hub(cfg)
    path = Path(cfg.path).expanduser()
    if path.is_dir() and saved.is_saved(path):
        return _from_saved(path, cfg)
    found = folder.look(path) if path.is_dir() else Folder({"train": [existing(path)]}, [])
    examples: dict[str, list[Example]] = {}
    notes: list[str] = []
    for name, files in found.splits.items():
        examples[name] = [row for file in files for row in _examples(file, cfg, notes)]
        notes.append(f"{name}: {len(examples[name]):,} rows from {folder.described(files)}")
    return _parts(examples, notes + folder.left_out(found), cfg)


def _from_hub(cfg: DataConfig) -> Parts:
    tables, read_from = hub.tables(str(cfg.hub_id), cfg.hub_revision)
    return _from_tables(str(cfg.hub_id), tables, read_from, cfg)


def _from_saved(path: Path, cfg: DataConfig) -> Parts:
    tables, left_out = saved.tables(path)
    parts = _from_tables(str(path), tables, f"{path} (save_to_disk)", cfg)
    notes = [f"not read, since no split is called so: {', '.join(left_out)}"] if left_out else []
    return replace(parts, notes=parts.notes + notes)


def _from_tables(name: str, tables: hub.Tables, read_from: str, cfg: DataConfig) -> Parts:
    examples = {
        split: parse(f"{name} ({split})", "row", list(enumerate(table, start=1)), cfg, f"{split}:")
        for split, table in tables.items()
    }
    notes = [f"{split}: {len(found):,} rows from {read_from}" for split, found in examples.items()]
    return _parts(examples, notes, cfg)


def _parts(examples: dict[str, list[Example]], notes: list[str], cfg: DataConfig) -> Parts:
    named = any(row.group not in (row.context, row.question) for row in examples["train"])
    return Parts(
        examples["train"],
        examples.get("validation"),
        examples.get("test"),
        notes,
        cfg.columns.group if named else "context",
    )


def existing(path: Path) -> Path:
    """The path where it names a file or folder.

    Raises:
        DataError: there is none, or it is a pipe, a socket or a device.
    """
    refuse_special(path)
    if path.exists():
        return path
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f" Did you mean {path.parent / near[0]}?" if near else ""
    raise DataError(
        f"data.path={path} does not exist.{hint}\n"
        f"Name a file ({', '.join(rows.SUFFIXES)}) or a folder with train.jsonl and perhaps test.jsonl in it."
    )


def _examples(file: Path, cfg: DataConfig, notes: list[str]) -> list[Example]:
    """The examples of one file; `notes` gets what the user should hear of how it was read."""
    columns = cfg.columns
    read = rows.read(file, (columns.question, columns.context, columns.answer))
    notes += read.notes
    return parse(str(file), read.unit, read.rows, cfg, f"{file.name}:")


def parse(name: str, unit: str, located: list[Located], cfg: DataConfig, prefix: str) -> list[Example]:
    """Examples of all rows of the file `name`, or one DataError that places what is wrong with them.

    `located` holds the rows with their numbers, counted in `unit`; ids are `prefix` and that number.
    """
    if not located:
        raise DataError(f"{name}: {unit} 1: the file is empty: no rows.\nFill it, or name another: data.path=FILE")
    # Without {context} in the prompt a data set may do without schemas.
    needs_context = uses_context(cfg.prompt)
    _check_columns(f"{name}: {unit} {located[0][0]}", located, cfg.columns, needs_context)
    examples, faults = [], []
    for number, row in located:
        fault = row if isinstance(row, Fault) else _row_fault(row, cfg, needs_context)
        if fault:
            faults.append((number, fault))
        elif not isinstance(row, Fault):
            examples.append(_example(f"{prefix}{number}", row, cfg.columns))
    if faults:
        raise refuse(name, unit, faults, len(located))
    return examples


def _example(id: str, row: dict[str, Any], columns: ColumnsConfig) -> Example:
    question, context = row[columns.question], row.get(columns.context) or ""
    group = row.get(columns.group)
    return Example(
        id=id,
        question=question,
        context=context,
        answer=row[columns.answer].strip(),
        group=(context or question) if group in (None, "") else str(group),
    )


def _row_fault(row: dict[str, Any], cfg: DataConfig, needs_context: bool) -> Fault | None:
    """The first thing that is wrong with a row's fields."""
    columns = cfg.columns
    for name in (columns.question, columns.context, columns.answer):
        optional = name == columns.context and not needs_context
        value = row.get(name)
        if isinstance(value, str) and (fault := too_large(name, value, cfg.max_field_bytes)):
            return fault
        if isinstance(value, str) and value.isascii() and value and not value.isspace():
            continue
        if name not in row and not optional:
            return Fault(f"no column {name} (it has {', '.join(row) or 'none'})")
        if (value is None or value == "") and optional:
            continue
        if fault := _field_fault(name, value, optional):
            return fault
    return None


def _field_fault(name: str, value: Any, may_be_blank: bool) -> Fault | None:
    if value is None:
        return Fault(f"{name} is null", "Fill the empty fields, or delete these rows.")
    if not isinstance(value, str):
        return Fault(f"{name} is {describe(value)}, not text", f"Write every {name} as text, in quotes.")
    if not value.strip() and not may_be_blank:
        return Fault(f"{name} is empty", "Fill the empty fields, or delete these rows.")
    if any("\ud800" <= char <= "\udfff" for char in value):
        return Fault(f"{name} holds half a character (a lone surrogate \\ud800 to \\udfff)")
    return None


def _check_columns(place: str, located: Iterable[Located], columns: ColumnsConfig, needs_context: bool) -> None:
    """Refuse a file none of whose rows has a column that is needed, naming those it has and the likeliest."""
    present = list(dict.fromkeys(key for _, row in located if isinstance(row, dict) for key in row))
    if not present:
        return
    default = {field.name: field.default for field in fields(ColumnsConfig)}
    needed = ["question", "context", "answer"] if needs_context else ["question", "answer"]
    # A group column may be absent, but not one that the user has named.
    needed += [] if columns.group == default["group"] else ["group"]
    missing = {role: getattr(columns, role) for role in needed if getattr(columns, role) not in present}
    if not missing:
        return
    taken = {getattr(columns, role) for role in needed} - set(missing.values())
    lines = [f"{place}: no column {', '.join(missing.values())}; the columns are {', '.join(present)}"]
    for role, wanted in missing.items():
        nearest = _nearest(role, wanted, [column for column in present if column not in taken])
        taken.add(nearest)
        lines.append(f"Name the column of the {role}: data.columns.{role}={nearest or 'NAME'}")
    if "context" in missing:
        lines.append("Data without schemas: leave {context} out of data.prompt")
    raise DataError("\n".join(lines))


def _nearest(role: str, wanted: str, free: list[str]) -> str:
    """The free column that is likeliest meant: spelt alike, else an alias of the role, else an empty text."""
    lower = {column.lower(): column for column in reversed(free)}
    alike = difflib.get_close_matches(wanted.lower(), lower, n=1, cutoff=0.6)
    known = [alias for alias in _ALIASES.get(role, ()) if alias in lower]
    return lower[(alike + known)[0]] if alike or known else ""
