"""Which files of a folder belong to which split: only files named exactly as a split or as its numbered shards."""

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
    """A file named as a split; `number` and `total` are of its shards, None where the name gives none."""

    path: Path
    name: str
    number: int | None
    total: int | None
    bare: bool  # its name marks a shard by a number only (train_1), without `part`, `shard` or `-of-`


def split_of(name: str) -> str | None:
    """Return the split that this name means, None if it is no name of a split."""
    return _SPLITS.get(name)


def names_of(source: str, names: Iterable[str]) -> dict[str, str]:
    """Return the name that a data set `source` has for each split.

    Raises DataError where two names mean the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        if (split := split_of(name)) and found.setdefault(split, name) != name:
            raise DataError(
                f"{source} has the splits {found[split]} and {name}, and both names mean {split}.\n"
                "Save it again with only one of them, or rename the other."
            )
    return found


def find_splits(folder: Path) -> Folder:
    """Find the splits of a folder, or of its sub-folder `data` if it has none itself. A single file whose name
    resembles no split's is taken as the training file.

    Raises DataError if there is no training file, if shards are missing, or if two files are the same split or shard.
    """
    files = [path for path in sorted(folder.iterdir()) if rows.suffix(path) and not path.is_dir()]
    named = [found for path in files if (found := _named(path))]
    if not named and (folder / "data").is_dir():
        return find_splits(folder / "data")
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
        raise DataError(f"{path}: a link to a file that does not exist. Copy or download the file again.")
    number = match["number"] or match["part"] or match["bare"]
    total = int(match["total"]) if match["total"] else None
    return _File(path, match["name"], int(number) if number else None, total, bool(match["bare"]))


def _files(split: str, found: list[_File]) -> list[Path]:
    """Return the files of one split. Where a file has the split's plain name, files with only a number are left out."""
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
    """Refuse shards that are not numbered from 0 or 1 without gaps, up to the total where the names give one."""
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
        raise DataError(
            f"{sample.path.parent}: by their names there are {sample.total} shards, but there are also "
            f"{_listed(beyond)}.\nDelete or rename these files."
        )


def _renumbered(file: _File, number: int) -> str:
    """Return the name of another shard, without the hash that may follow the numbers, which is unknown."""
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
    """Return the path of a single file, or the first and last of several shards."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name} ({len(paths)} files)"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def left_out(found: Folder) -> list[str]:
    """Return a note that names the files that were not read, if there are any."""
    if not found.left_out:
        return []
    return [f"not read, since the names are not those of a split: {_listed(path.name for path in found.left_out)}"]
