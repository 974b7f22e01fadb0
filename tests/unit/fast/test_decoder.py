"""The decoder by hand computes the loss and the gradients of PEFT and autograd, for every family and every adapter."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from ftlab.fast import decoder as module
from ftlab.fast import operands, ops
from ftlab.fast.attention import ByRow
from ftlab.fast.decoder import SITES, Decoder
from ftlab.fast.step import FastStep

BOUND = 1e-5
FAMILIES = (
    "llama",
    "llama, tied, biases",
    "llama, scaled rope",
    "mistral, window",
    "qwen2",
    "qwen2, window",
    "qwen3",
    "gemma3",
)
HEADS = {
    "one key for all heads": {"num_key_value_heads": 1},
    "a key for each head": {"num_key_value_heads": 4},
    "heads wider than the model": {"head_dim": 24},
    "heads narrower than the model": {"head_dim": 4},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "one layer": {"num_hidden_layers": 1},
}
TARGETS = {
    "q and v": ["q_proj", "v_proj"],
    "one": ["o_proj"],
    "k alone": ["k_proj"],
    "up alone": ["up_proj"],
    "the output layer": ["lm_head"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
    "one layer's": ["layers.1.mlp.down_proj"],
}
LORA = {
    "rank 1": {"r": 1, "lora_alpha": 2},
    "rank 13": {"r": 13},
    "rank above the width": {"r": 40, "lora_alpha": 20},
    # A small alpha: the scale grows with the root of the rank, and large logits with it, whose rounding differs by CPU.
    "rslora": {"r": 6, "lora_alpha": 4, "use_rslora": True},
    "no scale": {"lora_alpha": 6},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointed", [0, 2, 3])
def test_loss_and_gradients_are_those_of_autograd(kit: Any, family: str, checkpointed: int) -> None:
    model, rows = kit.adapt(kit.make(family)), kit.rows()
    expected = kit.plain(model, rows)
    step = kit.step(model)
    step.checkpointed = checkpointed
    assert kit.fast(model, step, rows).error(expected) <= BOUND


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("shape", HEADS)
def test_every_shape_of_heads(kit: Any, family: str, shape: str) -> None:
    more = dict(HEADS[shape])
    if family == "gemma3" and shape == "one layer":
        more["layer_types"] = ["sliding_attention"]
    model, rows = kit.adapt(kit.make(family, **more)), kit.rows()
    expected = kit.plain(model, rows)
    assert kit.fast(model, kit.step(model), rows).error(expected) <= BOUND


@pytest.mark.parametrize("targets", TARGETS)
def test_every_set_of_targets(kit: Any, targets: str) -> None:
    model, rows = kit.adapt(kit.make("qwen3", tie_word_embeddings=False), TARGETS[targets]), kit.rows()
    expected = kit.plain(model, rows)
    assert expected.of
    assert kit.fast(model, kit.step(model), rows).error(expected) <= BOUND


@pytest.mark.parametrize("lora", LORA)
def test_every_rank_and_scale(kit: Any, lora: str) -> None:
    model, rows = kit.adapt(kit.make(), [*kit.linears, "lm_head"], **LORA[lora]), kit.rows()
    expected = kit.plain(model, rows)
    assert kit.fast(model, kit.step(model), rows).error(expected) <= BOUND


def test_different_ranks_in_one_group(kit: Any) -> None:
    model = kit.adapt(kit.make(), r=4, lora_alpha=4, rank_pattern={"k_proj": 9}, alpha_pattern={"k_proj": 9})
    expected = kit.plain(model, kit.rows())
    assert kit.fast(model, kit.step(model), kit.rows()).error(expected) <= BOUND


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_add_up_to_the_step(kit: Any, micro: int) -> None:
    model, rows = kit.adapt(kit.make("gemma3")), kit.rows()
    expected = kit.plain(model, rows)
    assert kit.fast(model, kit.step(model, micro), rows).error(expected) <= BOUND


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("positions", [1, 7])
def test_logits_made_in_parts(kit: Any, targets: list[str], positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = kit.adapt(kit.make(), targets), kit.rows()
    expected = kit.plain(model, rows)
    monkeypatch.setattr(module, "LOGITS_BYTES", positions * kit.vocabulary * 4)
    sizes: list[int] = []
    entropy = ops.cross_entropy_

    def watched(logits: torch.Tensor, *more: Any) -> torch.Tensor:
        sizes.append(len(logits))
        return entropy(logits, *more)

    monkeypatch.setattr(ops, "cross_entropy_", watched)
    assert kit.fast(model, kit.step(model), rows).error(expected) <= BOUND
    assert max(sizes) == positions
    assert sum(sizes) == kit.trained(rows)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_bfloat16_is_no_further_from_float32_than_pefts_own(kit: Any, family: str) -> None:
    rows = kit.rows()
    model = kit.adapt(kit.make(family).to(torch.bfloat16))
    for parameter in model.parameters():
        parameter.data.copy_(parameter.to(torch.bfloat16))
    exact = kit.plain(copy.deepcopy(model).float(), rows)
    with torch.autocast("cpu", torch.bfloat16):
        usual = kit.plain(model, rows)
    found = kit.fast(model, kit.step(model), rows)
    assert apart(found, exact) <= max(2e-2, 1.2 * apart(usual, exact))
    assert abs(float(found.loss / exact.loss) - 1) <= 2e-2


def apart(found: Any, exact: Any) -> float:
    """The relative error of all gradients together."""
    difference = sum(float((found.of[name] - gradient).norm() ** 2) for name, gradient in exact.of.items())
    return float((difference / sum(float(gradient.norm() ** 2) for gradient in exact.of.values())) ** 0.5)


# --- dropout -------------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """Dropout by a mask of the fast step."""

    def __init__(self, p: float, seed: int, site: int) -> None:
        super().__init__()
        self.drop = operands.Dropout(p, torch.tensor([seed]), site)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * operands.kept(x.shape[1:], self.drop) * self.drop.scale


PLACES = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}


def mask(model: Any, p: float, seed: int, layers: int = 3) -> None:
    """Give PEFT's layers the fast step's masks."""
    for name, part in model.named_modules():
        if hasattr(part, "lora_dropout"):
            *_, layer, _, short = ["", *name.split(".")]
            site = SITES * layers if short == "lm_head" else SITES * int(layer) + PLACES[short]
            part.lora_dropout["default"] = Masked(p, seed, site)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("checkpointed", [0, 2])
def test_gradients_under_the_same_masks(kit: Any, family: str, checkpointed: int) -> None:
    targets = [*kit.linears, "lm_head"]
    model = kit.adapt(kit.make(family, tie_word_embeddings=False), targets, lora_dropout=0.3)
    rows, seed = kit.rows(), 2**40 + 12345
    step: FastStep = kit.step(model)
    step.checkpointed = checkpointed
    found = kit.fast(model, step, rows, seed)
    step.flat.release()
    undropped = kit.adapt(kit.make(family, tie_word_embeddings=False), targets)
    assert found.error(kit.plain(undropped, rows)) > 0.1
    mask(model, 0.3, seed)
    assert found.error(kit.plain(model, rows, together=True)) <= BOUND


def test_masks_follow_from_the_seed_alone(kit: Any) -> None:
    model, rows = kit.adapt(kit.make(), lora_dropout=0.2), kit.rows()
    step = kit.step(model)
    first = kit.fast(model, step, rows, 1)
    torch.rand(5)
    assert kit.fast(model, step, rows, 1).same(first)
    assert not kit.fast(model, step, rows, 2).same(first)


def test_no_two_places_of_the_model_share_a_mask(kit: Any) -> None:
    model = kit.adapt(kit.make(), [*kit.linears, "lm_head"], lora_dropout=0.2)
    decoder = Decoder(model)
    seed = torch.tensor([1])
    drops = [drop for layer in decoder.layers for drop in layer._drops(seed)]
    drops.append(decoder.head.drop(seed, SITES * len(decoder.layers)))
    sites = [drop.site for drop in drops if drop]
    assert len(sites) == len(set(sites)) == 4 * 3 + 1


def test_an_evaluation_drops_nothing(kit: Any) -> None:
    model = kit.adapt(kit.make(), lora_dropout=0.5)
    assert near(logits(Decoder(model), kit.rows()), own_logits(model, kit.rows()))


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_independent_of_its_neighbours(kit: Any, family: str) -> None:
    model = kit.adapt(kit.make(family), lora_dropout=0.1)
    step = kit.step(model)
    own = kit.row(5, 21, 4)

    def beside(seed: int) -> Any:
        """Of three rows only the middle one is scored."""
        return kit.fast(model, step, [kit.row(seed, 14, 14), own, kit.row(seed + 1, 30, 30)])

    first = beside(10)
    assert float(first.loss) > 0
    assert beside(20).same(first)


# --- inference -----------------------------------------------------------------------------------------------------


def logits(decoder: Decoder, rows: list[Any]) -> torch.Tensor:
    lengths = [len(row.input_ids) for row in rows]
    attention = ByRow(lengths)
    decoder.prepare_positions(max(lengths))
    ids = torch.tensor([token for row in rows for token in row.input_ids])
    places = torch.cat([torch.arange(length) for length in lengths])
    shapes = [layer.attention for layer in decoder.layers]
    with torch.no_grad():
        return decoder.logits(decoder.hidden(ids, places, lambda n, qkv: attention.forward(shapes[n], qkv)[0]))


def own_logits(model: Any, rows: list[Any]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0] for row in rows])


def near(found: torch.Tensor, expected: torch.Tensor, bound: float = BOUND) -> bool:
    return bool((found - expected).norm() <= bound * expected.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own_merged_or_not(kit: Any, family: str) -> None:
    model = kit.adapt(kit.make(family))
    decoder, expected = Decoder(model), own_logits(model, kit.rows())
    assert near(logits(decoder, kit.rows()), expected)
    with decoder.merged():
        assert near(logits(decoder, kit.rows()), expected)
    assert near(logits(decoder, kit.rows()), expected)


def test_an_evaluation_between_steps_sees_the_last_update(kit: Any) -> None:
    """Where memory is too short to merge, too."""
    model, rows = kit.adapt(kit.make()), kit.rows()
    step = kit.step(model)
    kit.fast(model, step, rows)
    with torch.no_grad():
        step.flat.parameter.add_(0.1 * torch.randn_like(step.flat.parameter))
    step.decoder.refresh()
    assert near(logits(step.decoder, rows), own_logits(model, rows))


def test_positions_beyond_the_prepared_ones_are_prepared_later(kit: Any) -> None:
    model = kit.make("gemma3")
    decoder = Decoder(model)
    for length in (5, 100, 40):
        rows = [kit.row(length, length, 1)]
        assert near(logits(decoder, rows), own_logits(model, rows))
