"""The plain step on a GPU: torch's varlen FlashAttention against transformers' masked attention, and what it holds."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ftlab.config import TrainerConfig
from ftlab.data.encode import Encoded
from ftlab.fast.flat import Trainable
from ftlab.fast.plan import Setting
from ftlab.models import switch_activation_checkpointing
from ftlab.train import attention, loss
from ftlab.train.attention import RowMask
from ftlab.train.checkpoint import trainable
from ftlab.train.loss import rows_interact
from ftlab.train.step import PlainStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WINDOW = 16
SMALL = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
KINDS = ["sliding_attention", "full_attention"] * 2
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": KINDS}),
}
LENGTHS = (40, 7, 129, 64, 16, 90)


def row(seed: int, length: int, trained_from: int = 1) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    return Encoded(str(seed), torch.randint(1, 211, (length,), generator=draw).tolist(), ((trained_from, length),))


def make(family: str) -> PlainStep:
    """The plain step around a tiny random bfloat16 model in a DoRA adapter."""
    torch.manual_seed(0)
    kind, more = FAMILIES[family]
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | more), dtype=torch.bfloat16).cuda()
    config = LoraConfig(task_type="CAUSAL_LM", r=8, use_dora=True, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(base.requires_grad_(False), config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    switch = partial(switch_activation_checkpointing, base)
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests may have left one of another precision
    accelerator = Accelerator(mixed_precision="bf16")
    step = PlainStep(model, TrainerConfig(), accelerator, need=lambda *_: 0.0, checkpoint=switch)
    step.attach(Trainable(trainable(model)))
    return step


def gradients(step: PlainStep, rows: list[Encoded]) -> tuple[Tensor, Tensor]:
    """The loss, and all gradients as one vector."""
    trained = sum(row.trained for row in rows)
    step.begin()
    total = step.accumulate(rows, trained, 0, first=True)
    return total.float(), torch.cat([p.grad.flatten().float() for p in step.trained.parameters if p.grad is not None])


def masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers does it: rows are kept apart by a mask over the whole batch."""
    monkeypatch.setattr(loss, "rows_of", lambda lengths: nullcontext())


@pytest.fixture
def flash_calls(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The window of each call of FlashAttention; no mask is made."""
    calls: list[int | None] = []
    flash = attention._flash

    def counted(query: Tensor, key: Tensor, value: Tensor, mask: RowMask, **kwargs: Any) -> Tensor:
        calls.append(mask.window)
        return flash(query, key, value, mask, **kwargs)

    monkeypatch.setattr(attention, "_flash", counted)
    monkeypatch.setattr(RowMask, "whole", property(lambda mask: pytest.fail("the mask over all rows was made")))
    return calls


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_masked_attention(
    family: str, checkpointing: bool, flash_calls: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = make(family)
    step._apply(Setting(len(LENGTHS), False, float(checkpointing)))
    rows = [row(n, length) for n, length in enumerate(LENGTHS)]
    found, gradient = gradients(step, rows)
    windows = [WINDOW, None, WINDOW, None] if family == "gemma3" else [None] * 4
    assert flash_calls[:4] == windows
    assert len(flash_calls) == (8 if checkpointing else 4)
    with pytest.MonkeyPatch.context() as patch:
        masked(patch)
        wanted, reference = gradients(step, rows)
    assert len(flash_calls) == (8 if checkpointing else 4)
    torch.testing.assert_close(found, wanted, rtol=5e-3, atol=0)
    assert (gradient - reference).norm() <= 4e-2 * reference.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_do_not_see_each_other(family: str, flash_calls: list[int | None]) -> None:
    step = make(family)
    with step.accelerator.autocast():
        assert not rows_interact(step.model, [row(1, 40), row(2, 40)], torch.device("cuda"))
    assert flash_calls


def peak(step: PlainStep, rows: list[Encoded]) -> int:
    """Bytes that the rows' gradients take at most, beside what is held."""
    gradients(step, rows)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradients(step, rows)
    return torch.cuda.max_memory_allocated() - held


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_does_not_grow_with_the_square_of_the_batch(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = make("llama")
    step._apply(Setting(8, False, float(checkpointing)))
    rows = [row(n, 1024, 1000) for n in range(8)]
    few, many = peak(step, rows[:2]), peak(step, rows)
    assert many < 4.5 * few
    masked(monkeypatch)
    assert peak(step, rows) - many >= 8192**2
