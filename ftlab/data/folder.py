"""Which files of a folder are which split: those whose names say so exactly, or number its shards; no others."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ftlab.data import rows
from ftlab.errors import DataError
from ftlab.shell import typed

NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
_SPLITS = {name: split for split, names in NAMES.items() for name in names}
# train-00000-of-00002 (with a hash after it in older data sets of the Hub), train.part1, train-shard-1, train_1
_STEM = re.compile(
    rf"(?P<name>{'|'.join(_SPLITS)})"
    r"(?:[-_.]?(?:(?P<number>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]{6,})?|(?:part|shard)[-_.]?(?P<part>\d+)|(?P<bare>\d+)))?"
)
_NEAR = re.compile(rf"train|(?:{'|'.join(_SPLITS)})(?![a-z])")
_SHOWN = 8


@dataclass(frozen=True)
class Folder:
    """The files of each split, shards in order, and files of rows that belong to none."""

    splits: dict[str, list[Path]]
    left_out: list[Path]


@dataclass(frozen=True)
class _File:
    """A file whose name is a split's: `number` of its shard or None, of `total` or None."""

    path: Path
    name: str
    number: int | None
    total: int | None
    bare: bool  # only a number tells that it is a shard


def split_of(name: str) -> str | None:
    """The split that goes by this name."""
    return _SPLITS.get(name)


def names_of(source: str, names: Iterable[str]) -> dict[str, str]:
    """The name of each split among those of a data set `source`. Raises DataError where two names mean the same."""
    found: dict[str, str] = {}
    for name in names:
        if (split := split_of(name)) and found.setdefault(split, name) != name:
            raise DataError(
                f"{source} has the splits {found[split]} and {name}: both would be the {split} rows.\n"
                "Save it again with one of them, or with the other under another name."
            )
    return found


def look(folder: Path) -> Folder:
    """Find the splits of a folder, or of its sub-folder `data` if it has none itself. A lone file whose name is like no
    split's is all there is.

    Raises DataError without training rows, for missing shards, and where two files claim to be the same.
    """
    files = [path for path in sorted(folder.iterdir()) if rows.suffix(path) and not path.is_dir()]
    named = [found for path in files if (found := _named(path))]
    if not named and (folder / "data").is_dir():
        return look(folder / "data")
    if not named and len(files) == 1 and not _NEAR.match(files[0].name.lower()):
        return Folder({"train": files}, [])
    splits = {split: _files(split, [f for f in named if _SPLITS[f.name] == split]) for split in NAMES}
    splits = {split: paths for split, paths in splits.items() if paths}
    if "train" not in splits:
        raise _no_train(folder)
    used = {path for paths in splits.values() for path in paths}
    return Folder(splits, [path for path in files if path not in used])


def _named(path: Path) -> _File | None:
    match = _STEM.fullmatch(path.name[: -len(rows.suffix(path))].lower())
    if not match:
        return None
    if not path.exists():
        raise DataError(f"{path}: a link to a file that is not there. Copy or download the file again.")
    number = match["number"] or match["part"] or match["bare"]
    total = int(match["total"]) if match["total"] else None
    return _File(path, match["name"], int(number) if number else None, total, bool(match["bare"]))


def _files(split: str, found: list[_File]) -> list[Path]:
    """The files of one split. Beside a file of the split's bare name, others with a mere number are left out."""
    if any(file.number is None for file in found):
        found = [file for file in found if not file.bare]
    for file, other in pairwise(found):
        if (file.name, file.total, file.number is None) != (other.name, other.total, other.number is None):
            raise _copies(split, file, other)
    by_number: dict[int | None, _File] = {}
    for file in found:
        if file.number in by_number:
            raise _copies(split, by_number[file.number], file)
        by_number[file.number] = file
    shards = sorted(((file.number, file) for file in found if file.number is not None), key=lambda pair: pair[0])
    if not shards:
        return [file.path for file in found]
    _refuse_gaps(dict(shards))
    return [file.path for _, file in shards]


def _copies(split: str, one: _File, other: _File) -> DataError:
    return DataError(
        f"{one.path} and {other.path.name} look like two copies of the {split} rows.\n"
        "Keep one of them"
        + (f", or name the file to read: {typed('data.path', other.path)}" if split == "train" else "")
        + "."
    )


def _refuse_gaps(shards: dict[int, _File]) -> None:
    """Shards are numbered from 0 or from 1, without gaps, to their total where the names give one."""
    sample = next(iter(shards.values()))
    if sample.total is None:
        first = 0 if 0 in shards else 1
        wanted = range(first, max(shards) + 1)
    else:
        first = int(0 not in shards and sample.total in shards)
        wanted = range(first, first + sample.total)
    missing = [number for number in wanted if number not in shards]
    if missing:
        names = [_renumbered(sample, number) for number in missing]
        raise DataError(
            f"{sample.path.parent}: {len(missing):,} of {len(wanted):,} shards are missing: {_listed(names)}.\n"
            "Copy or download them too, or name one file to read: data.path=FILE"
        )
    if beyond := [file.path.name for number, file in shards.items() if number not in wanted]:
        raise DataError(f"{sample.path.parent}: {_listed(beyond)}: there should be {sample.total} shards only.")


def _renumbered(file: _File, number: int) -> str:
    """The name of another shard; the hash that may follow the numbers is that of the file, and unknown."""
    stem = file.path.name[: -len(rows.suffix(file.path))]
    if file.total is not None:
        stem = re.sub(r"(-of-\d+).*", r"\1", stem)
    digits = re.search(r"\d+", stem)
    width = len(digits[0]) if digits else 0
    return re.sub(r"\d+", f"{number:0{width}}", stem, count=1) + rows.suffix(file.path)


def _no_train(folder: Path) -> DataError:
    held = _listed([path.name + "/" * path.is_dir() for path in sorted(folder.iterdir())]) or "nothing"
    return DataError(
        f"data.path={folder} holds no training file: expected train.jsonl or its shards (train-00000-of-00002.jsonl, "
        f"train.part1.jsonl; or {', '.join(rows.SUFFIXES[1:])}); it holds {held}.\n"
        "Rename the training file to train.jsonl, or name one file: data.path=FILE"
    )


def described(paths: list[Path]) -> str:
    """One file by its path, several shards by the first and the last."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name} ({len(paths)} files)"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def left_out(found: Folder) -> list[str]:
    """A note of the files that were not read."""
    if not found.left_out:
        return []
    return [f"not read, since no split is called so: {_listed(path.name for path in found.left_out)}"]
