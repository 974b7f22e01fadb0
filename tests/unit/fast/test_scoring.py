"""An evaluation's loss is that of the model's own forward, and leaves the model bit for bit."""

from typing import Any

import pytest
import torch

from ftlab.data.encode import in_chunks
from ftlab.fast import scoring
from ftlab.fast.decoder import Decoder
from ftlab.train import loss as plain

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama, tied, biases", "mistral, window", "qwen3", "gemma3"])
@pytest.mark.parametrize("part", [1 << 28, 3 * 101 * 4])
def test_the_loss_is_that_of_the_models_own_forward(
    kit: Any, family: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = kit.adapt(kit.make(family), lora_dropout=0.5), kit.rows()
    decoder = Decoder(model)
    monkeypatch.setattr(scoring, "LOGITS_BYTES", part)
    monkeypatch.setattr(scoring, "TOKENS", 40)
    expected = plain.mean_loss(model, rows, CPU, False)
    with scoring.ready(decoder):
        assert scoring.mean_loss(decoder, rows) == pytest.approx(expected, rel=1e-5)
    decoder.refresh()
    assert scoring.mean_loss(decoder, rows) == pytest.approx(expected, rel=1e-5)


def test_rows_longer_than_a_part_go_alone(kit: Any) -> None:
    rows = kit.rows()
    parts = list(in_chunks(rows, 29))
    assert [row for part in parts for row in part] == rows
    assert [[len(row.input_ids) for row in part] for part in parts] == [[13], [27], [20], [16]]
    assert [[len(row.input_ids) for row in part] for part in in_chunks(rows, 40)] == [[13, 27], [20, 16]]
    assert len(list(in_chunks(rows, 1))) == 4


@pytest.mark.parametrize("family", ["llama", "llama, tied, biases", "gemma3"])
def test_an_evaluation_leaves_every_tensor_as_it_was(kit: Any, family: str) -> None:
    model, rows = kit.adapt(kit.make(family)), kit.rows()
    step = kit.step(model)
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict(keep_vars=True).items()}
    alone = kit.fast(model, step, rows)
    gradient, work = step.flat.gradient.clone(), step.work.clone()
    with scoring.ready(step.decoder):
        scoring.mean_loss(step.decoder, rows)
        scoring.answers(
            step.decoder, [row.input_ids for row in rows], end=0, max_new_tokens=4, batch_size=2,
            on_done=lambda done: None,
        )  # fmt: skip
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.data_ptr() == before[name][1]
    assert torch.equal(step.flat.gradient, gradient)
    assert torch.equal(step.work, work)
    assert model.training
    assert kit.fast(model, step, rows).same(alone)


def test_what_is_raised_inside_leaves_nothing_merged(kit: Any) -> None:
    model = kit.adapt(kit.make())
    decoder = Decoder(model)
    with pytest.raises(KeyboardInterrupt), scoring.ready(decoder):
        raise KeyboardInterrupt
    assert all(group._merged is None for group in decoder.groups)


def test_each_evaluation_sees_the_adapters_of_its_time(kit: Any) -> None:
    model, rows = kit.adapt(kit.make()), kit.rows()
    step = kit.step(model)
    losses = []
    for _ in range(2):
        with scoring.ready(step.decoder):
            losses.append(scoring.mean_loss(step.decoder, rows))
        assert losses[-1] == pytest.approx(plain.mean_loss(model, rows, CPU, False), rel=1e-5)
        with torch.no_grad():
            step.flat.parameter.add_(torch.randn_like(step.flat.parameter) * 0.1)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
