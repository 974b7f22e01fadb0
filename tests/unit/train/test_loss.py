"""Rows in one flat batch: no padding, no interaction, the loss of each as if alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from ftlab.data.encode import Encoded
from ftlab.train.batches import lay_flat
from ftlab.train.loss import keeps_logits, mean_loss, rows_interact, summed_loss

CPU = torch.device("cpu")


def row(seed: int, length: int, trained_from: int = 1) -> Encoded:
    ids = torch.randint(0, 255, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Encoded(str(seed), ids, ((trained_from, length),))


ROWS = [row(1, 7, 3), row(2, 12, 1), row(3, 3, 2), row(4, 9, 8)]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: Any, make_llama: Any) -> Any:
    return make_llama(attn_implementation=request.param).eval()


def losses(model: nn.Module, rows: list[Encoded]) -> list[Tensor]:
    """Token losses of each row in a flat batch."""
    batch = lay_flat(rows, CPU)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[
            0, batch.predict
        ]
    tokens = F.cross_entropy(logits, batch.targets, reduction="none")
    return list(tokens.split([r.trained for r in rows]))


def test_changing_one_row_leaves_the_others_bit_for_bit(model: Any) -> None:
    before = losses(model, ROWS)
    for changed in range(len(ROWS)):
        rows = list(ROWS)
        rows[changed] = row(99, len(ROWS[changed].input_ids), ROWS[changed].spans[0][0])
        after = losses(model, rows)
        for i in range(len(ROWS)):
            assert torch.equal(before[i], after[i]) == (i != changed)


def alone(model: Any, one: Encoded) -> float:
    """By the library's own loss: a row alone, its prompt's labels masked."""
    ids = torch.tensor([one.input_ids])
    labels = ids.clone()
    labels[:, : one.spans[0][0]] = -100
    with torch.no_grad():
        mean = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    return float(mean) * one.trained


def test_the_loss_is_that_of_the_rows_one_by_one(model: Any) -> None:
    together = summed_loss(model, lay_flat(ROWS, CPU)).item()
    assert together == pytest.approx(sum(alone(model, one) for one in ROWS), rel=1e-5)


@pytest.mark.parametrize("tokens", [0, 10, 20, 10_000])
def test_the_mean_loss_counts_tokens_not_rows(model: Any, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftlab.train.loss.TOKENS", tokens)
    trained = sum(r.trained for r in ROWS)
    wanted = sum(alone(model, one) for one in ROWS) / trained
    model.train()
    assert mean_loss(model, ROWS, CPU, flat=True) == pytest.approx(wanted, rel=1e-5)
    assert mean_loss(model, ROWS, CPU, flat=False) == pytest.approx(wanted, rel=1e-5)
    assert model.training
    model.eval()


def test_rows_do_not_interact_in_an_architecture_that_keeps_them_apart(model: Any) -> None:
    assert not rows_interact(model, ROWS, CPU)


def test_gpt2_is_batched_flat_too() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5)
    model = GPT2LMHeadModel(config).eval()
    together = summed_loss(model, lay_flat(ROWS, CPU)).item()
    assert together == pytest.approx(sum(alone(model, one) for one in ROWS), rel=1e-4)
    assert not rows_interact(model, ROWS, CPU)


class RunningMean(nn.Module):
    """Mixes every token with all before it in the batch, as a state-space model does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(259, 8), nn.Linear(8, 259)

    def forward(self, input_ids: Tensor, position_ids: Tensor, use_cache: bool) -> Any:
        hidden = self.embed(input_ids).cumsum(1) * 3
        return type("Output", (), {"logits": self.head(hidden)})


def test_rows_interact_in_a_model_that_mixes_them() -> None:
    torch.manual_seed(0)
    assert rows_interact(RunningMean(), ROWS, CPU)


def test_rows_interact_in_a_model_without_positions() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=259, hidden_size=16, state_size=4, num_hidden_layers=1)
    assert rows_interact(MambaForCausalLM(config), ROWS, CPU)


def test_long_rows_cost_the_check_no_more_than_short_ones(model: Any) -> None:
    """Logits of rows of 16,000 tokens with a vocabulary of 128,000 take more memory than a step."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["input_ids"].numel()), with_kwargs=True
    )
    long = [Encoded(str(i), [1 + (i * 7 + at) % 250 for at in range(500)], 1, False) for i in range(3)]
    assert not rows_interact(model, long, CPU)
    handle.remove()
    assert seen
    assert max(seen) <= 64


def test_rows_of_one_repeated_token_do_not_interact(model: Any) -> None:
    assert not rows_interact(model, [Encoded(str(i), [7] * 20, 1, False) for i in range(2)], CPU)


def test_a_single_row_does_not_interact(model: Any) -> None:
    assert not rows_interact(model, ROWS[:1], CPU)


def test_only_the_scored_positions_go_through_the_output_layer(make_llama: Any) -> None:
    model = make_llama()
    shapes: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[1]))
    summed_loss(model, lay_flat(ROWS, CPU))
    assert shapes == [sum(r.trained for r in ROWS)]


def test_an_adapted_model_keeps_that_advantage(make_llama: Any) -> None:
    assert keeps_logits(get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"])))
    assert not keeps_logits(RunningMean())
