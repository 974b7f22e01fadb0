"""Which files of a folder are read: exact names and shards, and nothing else without a word."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ftlab import data
from ftlab.config import DataConfig
from ftlab.data.folder import described, find_splits
from ftlab.errors import DataError
from ftlab.tasks.sql import TASK

ROW = {"question": "How many?", "context": "CREATE TABLE t (a INTEGER)", "answer": "SELECT COUNT(*) FROM t"}


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps({**ROW, "question": f"{name} {i}?"}) + "\n" for i in range(4)))
    return folder


def found(folder: Path) -> dict[str, list[str]]:
    return {split: [path.name for path in paths] for split, paths in find_splits(folder).splits.items()}


READ = {
    "exact names": (("train.jsonl", "valid.csv", "test.parquet"), {"validation": ["valid.csv"]}),
    "upper case": (("TRAIN.JSONL", "Test.Json"), {"train": ["TRAIN.JSONL"], "test": ["Test.Json"]}),
    "eval": (("train.jsonl", "eval.jsonl"), {"validation": ["eval.jsonl"]}),
    "predictions and subsets": (
        ("train.jsonl", "train_small.jsonl", "trainer_state.json", "test_predictions.jsonl", "train-old.jsonl"),
        {"train": ["train.jsonl"]},
    ),
    "WikiSQL": (
        ("train.jsonl", "train.tables.jsonl", "dev.jsonl", "dev.tables.jsonl"),
        {"train": ["train.jsonl"], "validation": ["dev.jsonl"]},
    ),
    "words that begin alike": (
        ("train.jsonl", "values.csv", "devices.csv", "testers.json"),
        {"train": ["train.jsonl"]},
    ),
    "shards of the Hub": (
        ("train-00001-of-00002.jsonl", "train-00000-of-00002.jsonl", "test-00000-of-00001-a09b74b3ef9c3b56.parquet"),
        {"test": ["test-00000-of-00001-a09b74b3ef9c3b56.parquet"]},
    ),
    "parts in the order of their numbers": (
        tuple(f"train.part{i}.jsonl" for i in range(1, 12)),
        {"train": [f"train.part{i}.jsonl" for i in range(1, 12)]},
    ),
    "numbers": (("train_0.jsonl", "train_1.jsonl"), {"train": ["train_0.jsonl", "train_1.jsonl"]}),
    "numbers beside the whole": (("train.jsonl", "train_100.jsonl"), {"train": ["train.jsonl"]}),
    "counted from one": (("train-1-of-2.csv", "train-2-of-2.csv"), {"train": ["train-1-of-2.csv", "train-2-of-2.csv"]}),
    "a lone file": (("spider_v4.json",), {"train": ["spider_v4.json"]}),
    "hidden copies of a Mac": (("train.jsonl", "._train.jsonl"), {"train": ["train.jsonl"]}),
    "the folder data": (
        ("dataset_infos.json", "data/train-00000-of-00001.parquet"),
        {"train": ["train-00000-of-00001.parquet"]},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_exact_names_and_shards_are_read_in_order(name: str, tmp_path: Path) -> None:
    names, wanted = READ[name]
    splits = found(touch(tmp_path, *names))
    assert {split: splits[split] for split in wanted} == wanted
    assert "train" in splits


REFUSED = {
    "a missing shard": (("train-00000-of-00002.jsonl",), "1 of 2 shards are missing: train-00001-of-00002.jsonl"),
    "a missing shard with hashes": (
        ("train-00001-of-00002-abcdef0123.csv",),
        "1 of 2 shards are missing: train-00000-of-00002.csv",
    ),
    "a missing part": (("train.part1.csv", "train.part3.csv"), "missing: train.part2.csv"),
    "the first parts": (("train_2019.csv", "train_2020.csv"), "2,018 of 2,020 shards are missing: train_0001.csv"),
    "two totals": (("train-00000-of-00001.csv", "train-00000-of-00002.csv"), "look like two copies of the train rows"),
    "a shard twice": (("train-0-of-1.csv", "train-0-of-1.jsonl"), "look like two copies of the train rows"),
    "a split and its shards": (("train.csv", "train-00000-of-00001.csv"), "look like two copies of the train rows"),
    "two names": (
        ("train.csv", "dev.csv", "valid.csv"),
        "dev.csv and valid.csv look like two copies of the validation rows.\nKeep one of them.$",
    ),
    "too many": (
        tuple(f"train-{i}-of-2.csv" for i in range(3)),
        "by their names there are 2 shards, but there are also train-2-of-2.csv",
    ),
    "near misses": (
        ("train_small.jsonl", "test_predictions.jsonl"),
        "expected train.jsonl or its shards .* it holds test_predictions.jsonl, train_small.jsonl",
    ),
    "one near miss": (("test_predictions.jsonl",), "it holds test_predictions.jsonl"),
    "a folder of that name": (("train.jsonl/part.txt", "test.csv"), "it holds test.csv, train.jsonl/"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_missing_or_double_is_named(name: str, tmp_path: Path) -> None:
    names, said = REFUSED[name]
    with pytest.raises(DataError, match=said):
        find_splits(touch(tmp_path, *names))


def test_a_link_to_nowhere_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "train.jsonl")
    (tmp_path / "test.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"test\.jsonl: a link to a file that does not exist"):
        find_splits(tmp_path)
    (tmp_path / "gone.jsonl").write_text("x")
    assert found(tmp_path)["test"] == ["test.jsonl"]


def test_what_is_read_and_what_is_not_is_told_in_a_line_each(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train-{i}-of-3.jsonl" for i in range(3)), "test.jsonl", "test_predictions.jsonl")
    notes = data.load(DataConfig(name="x", source="table", path=str(tmp_path), validation=2), TASK).notes
    assert f"train: 12 rows from {tmp_path}/train-0-of-3.jsonl to train-2-of-3.jsonl (3 files)" in notes
    assert f"test: 4 rows from {tmp_path}/test.jsonl" in notes
    assert "not read, since the names are not those of a split: test_predictions.jsonl" in notes
    assert described([tmp_path]) == str(tmp_path)


def test_the_folder_with_predictions_is_read_without_them(shared: Callable[[str], Path]) -> None:
    assert found(shared("cases/folder_with_predictions/train.jsonl").parent) == {
        "train": ["train.jsonl"],
        "test": ["test.jsonl"],
    }
