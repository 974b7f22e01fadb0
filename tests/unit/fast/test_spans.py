"""Rows with several trained spans: in both steps, loss and gradients are those of the spans' tokens and no others."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ftlab.data.encode import Encoded
from ftlab.fast import scoring
from ftlab.fast.decoder import Decoder
from ftlab.fast.layout import Layout
from ftlab.train.batches import lay_flat
from ftlab.train.loss import mean_loss

CPU = torch.device("cpu")


@pytest.fixture
def rows(kit: Any) -> list[Encoded]:
    """Spans at the beginning, at the end, beside each other and of one token; one span as ever; none at all."""
    spans = [((1, 3), (7, 12), (20, 21), (25, 27)), ((2, 5), (5, 9)), ((9, 16),), ()]
    rows = [kit.row(i, length, 1) for i, length in enumerate((27, 13, 16, 11))]
    return [Encoded(row.id, row.input_ids, mine) for row, mine in zip(rows, spans, strict=True)]


def by_hand(model: Any, rows: list[Encoded]) -> torch.Tensor:
    """Cross entropy of every token in a span, given all before it in its row, one token after another."""
    total = torch.zeros(())
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]
        for first, last in row.spans:
            for place in range(first, last):
                total = total + F.cross_entropy(logits[place - 1], torch.tensor(row.input_ids[place]))
    return total


@pytest.mark.parametrize(("micro", "count"), [(1, 3), (2, 4), (4, 4)])
def test_both_steps_agree_with_the_loss_and_gradients_computed_token_by_token(
    kit: Any, rows: list[Encoded], micro: int, count: int
) -> None:
    model, rows = kit.adapt(kit.make()), rows[:count]
    assert kit.trained(rows) == 10 + 7 + 7
    loss = by_hand(model, rows)
    (loss / kit.trained(rows)).backward()
    expected = kit.now(model, loss)
    assert kit.plain(model, rows, together=True).error(expected) < 1e-5
    assert kit.fast(model, kit.step(model, micro), rows).error(expected) < 1e-5


def test_both_evaluations_agree_with_the_loss_computed_token_by_token(kit: Any, rows: list[Encoded]) -> None:
    model = kit.adapt(kit.make()).eval()
    expected = by_hand(model, rows).item() / kit.trained(rows)
    assert mean_loss(model, rows, CPU, True) == pytest.approx(expected, rel=1e-5)
    decoder = Decoder(model)
    decoder.refresh()
    assert scoring.mean_loss(decoder, rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_a_packed_batch_scores_what_stands_before_each_trained_token(padded: bool) -> None:
    rows = [Encoded("a", [5, 6, 7, 8, 9], ((1, 2), (3, 5))), Encoded("b", [10, 11, 12], ((2, 3),))]
    layout = Layout.of(rows, 2, padded=padded)
    _, _, predict, targets, _, _, _ = layout.parts(layout.pack(rows, 4, 0, pinned=False))
    assert predict[:4].tolist() == [0, 2, 3, 6]
    assert targets[:4].tolist() == [6, 8, 9, 12]
    flat = lay_flat(rows, CPU)
    assert (flat.predict.tolist(), flat.targets.tolist()) == ([0, 2, 3, 6], [6, 8, 9, 12])
    assert layout.scored >= flat.trained == 4
