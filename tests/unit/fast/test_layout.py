"""Rows as one packed tensor of few shapes, and padding that nothing notices."""

from typing import Any

import pytest
import torch

from ftlab.data.encode import Encoded
from ftlab.fast import step as step_module
from ftlab.fast.layout import IGNORED, Layout, bucket

ROWS = [Encoded("a", [5, 6, 7, 8], ((2, 4),)), Encoded("b", [9, 10], ((1, 2),)), Encoded("c", [11, 12, 13], ((2, 3),))]


def parts(layout: Layout, rows: list[Encoded]) -> list[list[int]]:
    packed = layout.pack(rows, 11, 2**40, pinned=False)
    assert packed.shape == (layout.size,)
    return [part.tolist() for part in layout.parts(packed)]


def test_rows_lie_end_to_end_without_padding() -> None:
    layout = Layout.of(ROWS, 8, padded=False)
    assert (layout.tokens, layout.scored, layout.rows) == (9, 4, 3)
    ids, positions, predict, targets, starts, trained, seed = parts(layout, ROWS)
    assert ids == [5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert positions == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert predict == [1, 2, 4, 7]
    assert targets == [7, 8, 10, 13]
    assert starts == [0, 4, 6, 9]
    assert (trained, seed) == ([11], [2**40])


def test_padding_is_a_row_of_its_own_behind_the_others() -> None:
    layout = Layout.of(ROWS, 8, padded=True)
    assert (layout.tokens, layout.scored, layout.rows) == (64, 64, 9)
    ids, positions, predict, targets, starts, _, _ = parts(layout, ROWS)
    assert ids[:9] == [5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert positions[9:] == list(range(55))
    assert predict[:4] == [1, 2, 4, 7]
    assert targets[:4] == [7, 8, 10, 13]
    assert targets[4:] == [IGNORED] * 60
    assert starts == [0, 4, 6, 9, 64, 64, 64, 64, 64, 64]


def test_a_shape_that_is_full_has_an_empty_row_of_padding() -> None:
    rows = [Encoded("a", list(range(64)), ((1, 64),))]
    layout = Layout.of(rows, 1, padded=True)
    assert (layout.tokens, layout.rows) == (64, 2)
    assert parts(layout, rows)[4] == [0, 64, 64]


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 401, 449, 700, 768, 769, 2048, 2049, 4096, 4097, 30001])
def test_padding_never_outgrows_a_row_that_is_prepared_for(tokens: int) -> None:
    row = Encoded("a", [1] * tokens, ((1, tokens),))
    layout = Layout.of([row], 1, padded=True)
    assert tokens <= layout.tokens < tokens + 512  # the fast step prepares positions up to 511
    assert layout.tokens % bucket(tokens) == 0
    assert tokens - 1 <= layout.scored <= layout.tokens
    if tokens > 400:
        assert layout.tokens <= 7 / 6 * tokens


def test_padded_shapes_are_few() -> None:
    lengths = range(8, 4096)
    shapes = {Layout.of([Encoded("a", [1] * n, ((n // 2, n),))], 1, padded=True) for n in lengths}
    assert len(shapes) < 64


def padded_everywhere(monkeypatch: pytest.MonkeyPatch) -> list[Layout]:
    """Batches have shapes as on a GPU; the shapes that were made."""
    made: list[Layout] = []
    of = Layout.of

    class Padded:
        @staticmethod
        def of(rows: list[Encoded], most_rows: int, *, padded: bool) -> Layout:
            made.append(of(rows, most_rows, padded=True))
            return made[-1]

    monkeypatch.setattr(step_module, "Layout", Padded)
    return made


@pytest.mark.parametrize("family", ["llama", "mistral, window", "gemma3"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_padding_changes_neither_loss_nor_gradients(
    kit: Any, family: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [*kit.linears, "lm_head"]
    model = kit.adapt(kit.make(family, tie_word_embeddings=False), targets, lora_dropout=dropout)
    step, rows = kit.step(model, 3), kit.rows()
    expected = kit.fast(model, step, rows)
    made = padded_everywhere(monkeypatch)
    assert kit.fast(model, step, rows).error(expected) <= 1e-5
    assert [layout.tokens for layout in made] == [64, 64]
    assert [layout.rows for layout in made] == [4, 4]


def test_what_stands_in_the_padding_changes_not_a_bit(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kit.adapt(kit.make(), [*kit.linears, "lm_head"])
    step, rows = kit.step(model), kit.rows()[:2]
    padded_everywhere(monkeypatch)
    expected = kit.fast(model, step, rows)
    pack = Layout.pack

    def other(self: Layout, rows: list[Encoded], *more: Any, **options: Any) -> torch.Tensor:
        packed = pack(self, rows, *more, **options)
        self.parts(packed)[0][sum(len(row.input_ids) for row in rows) :] = 17
        return packed

    monkeypatch.setattr(Layout, "pack", other)
    assert kit.fast(model, step, rows).same(expected)
