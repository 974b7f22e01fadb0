import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from ftlab.config import DataConfig
from ftlab.data.splits import Example, Grouping, SourceSplits, cap, carve, divide, fingerprint
from ftlab.errors import DataError


def rows_of(groups: dict[str, int]) -> list[Example]:
    named = [(group, i) for group, count in groups.items() for i in range(count)]
    return [Example(f"{g}:{i}", f"question {i} of {g}", f"schema {g}", f"SELECT {i}", g) for g, i in named]


def mixed(seed: int, groups: int = 60) -> list[Example]:
    rng = random.Random(seed)
    rows = rows_of({f"db{n}": rng.choice([1, 1, 2, 3, 8, 21]) for n in range(groups)})
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [1, 17, 0.02, 0.3, 0.9])
def test_no_group_is_on_both_sides_and_no_row_is_lost(seed: int, size: float) -> None:
    rows = mixed(seed)
    rest, taken = carve(rows, size, seed, "validation")
    assert rest
    assert taken
    assert not {row.group for row in rest} & {row.group for row in taken}
    assert sorted(row.id for row in rest + taken) == sorted(row.id for row in rows)
    assert rest == [row for row in rows if row in rest], "the order of rows must stay"


@pytest.mark.parametrize("seed", range(8))
def test_the_size_is_met_as_nearly_as_whole_groups_allow(seed: int) -> None:
    _, taken = carve(mixed(seed), 40, seed, "validation")
    assert len(taken) == 40, "there are groups of one row, so every size can be met"
    _, thirds = carve(rows_of(dict.fromkeys("abcdef", 10)), 14, seed, "validation")
    assert len(thirds) == 10
    _, least = carve(rows_of(dict.fromkeys("abcdef", 10)), 2, seed, "validation")
    assert len(least) == 10, "at least one group"


def test_a_fraction_is_a_share_of_the_rows() -> None:
    _, taken = carve(rows_of({f"g{n}": 1 for n in range(300)}), 0.1, 0, "test_size")
    assert len(taken) == 30


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    rows = mixed(0)
    groups = {row.group for row in carve(rows, 30, 1, "validation")[1]}
    assert groups == {row.group for row in carve(rows[::-1], 30, 1, "validation")[1]}
    assert groups != {row.group for row in carve(rows, 30, 2, "validation")[1]}


def test_validation_does_not_move_the_test_split() -> None:
    cfg = DataConfig(name="x", source="table", validation=10, test_size=30)
    one, other = divide(SourceSplits(mixed(3)), cfg), divide(SourceSplits(mixed(3)), replace(cfg, validation=60))
    assert one.test == other.test
    own = divide(SourceSplits(mixed(3), test=rows_of({"z": 4})), cfg)
    reordered = divide(SourceSplits(mixed(3), test=rows_of({"z": 4})[::-1]), cfg)
    assert own.validation == reordered.validation


def test_splits_do_not_depend_on_the_hash_seed_of_python() -> None:
    program = (
        "from ftlab.config import DataConfig\n"
        "from ftlab.data.splits import Example, SourceSplits, divide\n"
        "rows = [Example(str(i), f'q{i}', f'c{i % 40}', 'SELECT 1', f'c{i % 40}') for i in range(400)]\n"
        "cfg = DataConfig(name='x', source='table', validation=20, test_size=0.1, train_rows=50)\n"
        "print(divide(SourceSplits(rows), cfg).sha256)\n"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "7")
    }
    assert len(hashes) == 1


def test_one_group_cannot_be_divided() -> None:
    with pytest.raises(DataError, match=r"data\.validation=5: .*all share one db_id") as caught:
        carve(rows_of({"only": 50}), 5, 0, "validation", Grouping(lambda row: row.group, "db_id"))
    assert "Add a validation file" in str(caught.value)
    assert "data.columns.group=NAME" in str(caught.value)


def test_a_split_must_leave_something_to_train_on() -> None:
    with pytest.raises(DataError, match=r"data\.test_size=2000 leaves nothing.*30 rows") as caught:
        carve(rows_of(dict.fromkeys("abc", 10)), 2000, 0, "test_size")
    assert "data.test_size=0.1" in str(caught.value)


def test_a_larger_cap_only_adds_rows() -> None:
    rows = mixed(5)
    few, more = cap(rows, 10, 0), cap(rows, 40, 0)
    assert len(few) == 10
    assert set(few) < set(more)
    assert set(few) == set(cap(rows[::-1], 10, 0))
    assert few != cap(rows, 10, 1)
    assert cap(rows, None, 0) == cap(rows, 10**6, 0) == rows


def test_caps_keep_validation_and_are_noted() -> None:
    cfg = DataConfig(name="x", source="table", validation=20, test_size=20, train_rows=30, test_rows=5)
    splits = divide(SourceSplits(mixed(1)), cfg)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 20, 5)
    assert any("train: 30 of" in note and "data.train_rows" in note for note in splits.notes)
    assert any("test: 5 of 20 rows kept" in note for note in splits.notes)


def test_the_fingerprint_covers_every_text_and_the_borders_of_splits() -> None:
    rows = rows_of({"a": 2, "b": 2})
    base = fingerprint(rows[:2], rows[2:])
    for changed in ("question", "context", "answer", "group"):
        assert fingerprint([replace(rows[0], **{changed: "other"}), rows[1]], rows[2:]) != base
    assert fingerprint(rows[:1], rows[1:]) != base
    assert fingerprint([rows[1], rows[0]], rows[2:]) != base
    assert fingerprint([replace(row, id="renamed") for row in rows[:2]], rows[2:]) == base


def test_contexts_and_questions_of_test_that_occur_in_train_are_counted() -> None:
    train = rows_of({"a": 6, "b": 6, "c": 6})
    test = [*rows_of({"b": 2, "d": 1}), replace(train[0], id="t", question="new")]
    cfg = DataConfig(name="x", source="table", validation=1)
    splits = divide(SourceSplits(train, validation=rows_of({"v": 1}), test=test), cfg)
    assert "test: 2 of its 3 contexts also occur in train" in splits.notes
    assert "test: 2 of its 4 rows repeat a question of train about the same context" in splits.notes
    assert splits.train == train, "the user's own splits stay as they are"


def test_rows_over_one_schema_are_divided_by_question_and_equal_questions_stay_together() -> None:
    rows = [replace(row, context="one", group="one") for row in rows_of({"only": 60})]
    again = [replace(row, id=f"{row.id}b", question=f" {row.question.upper()}  ", answer="other") for row in rows]
    splits = divide(SourceSplits(rows + again), DataConfig(name="x", source="table", validation=10, test_size=12))
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [98, 10, 12]
    asked = [{" ".join(row.question.lower().split()) for row in part} for part in parts]
    assert not asked[0] & (asked[1] | asked[2])
    assert not asked[1] & asked[2]
    assert {row.group for row in splits.train} == {"one"}, "the database of a row stays what it is"
    for line in ("test: 12 rows", "validation: 10 rows"):
        (note,) = [note for note in splits.notes if note.startswith(line)]
        assert note.endswith("by question, since all rows share one context)")


def test_what_one_split_leaves_of_a_single_schema_is_divided_by_question_too() -> None:
    rows = rows_of({"a": 5, "b": 40})
    splits = divide(SourceSplits(rows), DataConfig(name="x", source="table", validation=4, test_size=5))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [36, 4, 5]
    assert {row.group for row in splits.test} == {"a"}


def test_one_question_over_one_schema_cannot_be_divided() -> None:
    rows = [replace(row, question="same", context="one", group="one") for row in rows_of({"only": 9})]
    with pytest.raises(DataError, match="all share one context and one question"):
        divide(SourceSplits(rows), DataConfig(name="x", source="table"))
