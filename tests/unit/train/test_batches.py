"""Which rows a step has, and rows laid end to end."""

from collections import Counter

import pytest
import torch

from ftlab.data.encode import Encoded
from ftlab.train.batches import RowOrder, lay_flat, micro_batches


def row(ids: list[int], trained_from: int) -> Encoded:
    return Encoded("", ids, ((trained_from, len(ids)),))


def seen(plan: RowOrder) -> list[list[int]]:
    return [plan.indices(step) for step in range(plan.steps)]


@pytest.mark.parametrize(("rows", "size", "epochs"), [(10, 4, 1), (10, 4, 3), (7, 16, 2), (8, 4, 2), (1, 1, 1)])
def test_every_row_comes_once_an_epoch(rows: int, size: int, epochs: int) -> None:
    steps = seen(RowOrder.of(rows, size, None, epochs, seed=3))
    flat = [index for step in steps for index in step]
    for epoch in range(epochs):
        assert sorted(flat[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert all(len(step) == size for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= size
    assert len(flat) == rows * epochs


def test_part_of_an_epoch_has_that_part_of_the_rows() -> None:
    plan = RowOrder.of(10, 4, None, 0.5, seed=0)
    assert [len(step) for step in seen(plan)] == [4, 1]
    assert plan.epochs == 0.5


def test_max_steps_replaces_epochs_and_its_batches_are_whole() -> None:
    plan = RowOrder.of(10, 4, 7, 1, seed=0)
    assert [len(step) for step in seen(plan)] == [4] * 7
    assert max(Counter(i for step in seen(plan) for i in step).values()) == 3
    assert plan.epochs == 2.8


def test_a_step_has_its_rows_whenever_it_is_asked() -> None:
    plan, again = RowOrder.of(50, 8, 40, 1, seed=1), RowOrder.of(50, 8, 40, 1, seed=1)
    backwards = [again.indices(step) for step in reversed(range(40))]
    assert seen(plan) == backwards[::-1]


def test_more_steps_begin_like_fewer() -> None:
    assert seen(RowOrder.of(10, 4, 20, 1, 0))[:5] == seen(RowOrder.of(10, 4, 5, 1, 0))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    plan = RowOrder.of(30, 30, 2, 1, seed=0)
    orders = [plan.indices(0), plan.indices(1), RowOrder.of(30, 30, 1, 1, seed=1).indices(0), list(range(30))]
    assert len({tuple(order) for order in orders}) == 4


def test_rows_are_laid_end_to_end() -> None:
    batch = lay_flat([row([5, 6, 7], 2), row([8, 9, 4], 1)], torch.device("cpu"))
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch.predict.tolist() == [1, 3, 4]
    assert batch.targets.tolist() == [7, 9, 4]
    assert (batch.input_ids.numel(), batch.trained, len(batch.lengths)) == (6, 3, 2)


def test_no_row_predicts_the_first_token_of_the_next() -> None:
    rows = [row([1, 2, 3], 1), row([4, 5], 1), row([6, 7, 8, 9], 3)]
    batch = lay_flat(rows, torch.device("cpu"))
    assert not {1, 4, 6} & set(batch.targets.tolist())
    assert batch.trained == sum(r.trained for r in rows)


def test_micro_batches_cover_the_rows_in_order() -> None:
    rows = [row([i, i], 1) for i in range(7)]
    parts = list(micro_batches(rows, 3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [r for part in parts for r in part] == rows
