"""Tiny random models of each family with adapters that are not zero; their gradients by the fast step and by PEFT."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ftlab.config import TrainerConfig
from ftlab.data.encode import Encoded
from ftlab.fast.decoder import Decoder
from ftlab.fast.flat import Flat, Trainable
from ftlab.fast.plan import Setting
from ftlab.fast.step import FastStep
from ftlab.train.batches import lay_flat
from ftlab.train.checkpoint import trainable
from ftlab.train.loss import summed_loss

VOCABULARY = 101
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
WINDOW = 8  # shorter than the rows
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, scaled rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral, window": ("mistral", {"sliding_window": WINDOW}),
    "qwen2": ("qwen2", {}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 16, "sliding_window": WINDOW, "layer_types": KINDS, "query_pre_attn_scalar": 20},
    ),
}


@dataclass(frozen=True)
class Gradients:
    """A loss, summed over the trained tokens, and the gradient of its mean at each trained tensor."""

    loss: torch.Tensor
    of: dict[str, torch.Tensor]

    @classmethod
    def now(cls, model: nn.Module, loss: torch.Tensor) -> "Gradients":
        return cls(
            loss.detach().clone(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )

    def error(self, other: "Gradients") -> float:
        """The largest relative difference of the loss or of one tensor's gradient."""
        assert self.of.keys() == other.of.keys()
        gradients = [float((self.of[name] - theirs).norm() / theirs.norm()) for name, theirs in other.of.items()]
        return max(*gradients, float((self.loss - other.loss).abs() / other.loss))

    def same(self, other: "Gradients") -> bool:
        """Bit for bit."""
        equal = [torch.equal(self.of[name], theirs) for name, theirs in other.of.items()]
        return torch.equal(self.loss, other.loss) and all(equal)


def make(family: str = "llama", **shape: Any) -> Any:
    """A random frozen float32 model; norms and biases are random too."""
    torch.manual_seed(0)
    kind, more = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **COMMON | more | shape), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.requires_grad_(False)


def adapt(base: Any, targets: list[str] = LINEARS, **lora: Any) -> Any:
    """The model inside PEFT, in training mode, its adapters random."""
    torch.manual_seed(1)
    options = {"r": 6, "lora_alpha": 12, "target_modules": list(targets)} | lora
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data.normal_(0, 0.2)
    return model.train()


def some_row(seed: int, length: int, trained_from: int) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    return Encoded(
        str(seed), torch.randint(1, VOCABULARY, (length,), generator=draw).tolist(), ((trained_from, length),)
    )


def some_rows() -> list[Encoded]:
    return [some_row(1, 13, 5), some_row(2, 27, 1), some_row(3, 20, 19), some_row(4, 16, 9)]


def trained(rows: list[Encoded]) -> int:
    return sum(row.trained for row in rows)


def plain(model: Any, rows: list[Encoded], *, together: bool = False) -> Gradients:
    """PEFT's forward and autograd, row by row, or `together` in one flat batch."""
    model.zero_grad()
    parts = [rows] if together else [[row] for row in rows]
    loss = sum(summed_loss(model, lay_flat(part, torch.device("cpu"))) for part in parts)
    assert isinstance(loss, torch.Tensor)
    (loss / trained(rows)).backward()
    found = Gradients.now(model, loss)
    for parameter in model.parameters():
        parameter.grad = None
    return found


def stepping(model: Any, micro: int = 8, **cfg: Any) -> FastStep:
    """The fast step round a model; `micro` rows at a time."""
    decoder = Decoder(model)
    flat = Flat(decoder.parameters())
    step = FastStep(decoder, TrainerConfig(**cfg), longest=64, need=lambda *_: 0.0)
    step.attach(Trainable(trainable(model), flat))
    step._apply(Setting(micro, False, 0.0))
    return step


def fast(model: Any, step: FastStep, rows: list[Encoded], seed: int = 7) -> Gradients:
    """One step's gradients by hand, in micro-batches."""
    step.begin()
    total = torch.zeros(())
    for start in range(0, len(rows), step.micro):
        part = rows[start : start + step.micro]
        total = total + step.accumulate(part, trained(rows), seed + start, first=start == 0)
    return Gradients.now(model, total)


@pytest.fixture(scope="session")
def kit() -> Any:
    """What the tests of this folder make and compare models with."""
    functions: dict[str, Callable[..., Any]] = {
        "make": make,
        "adapt": adapt,
        "row": some_row,
        "rows": some_rows,
        "trained": trained,
        "plain": plain,
        "step": stepping,
        "fast": fast,
        "now": Gradients.now,
    }
    return SimpleNamespace(**functions, families=list(FAMILIES), linears=LINEARS, vocabulary=VOCABULARY)


@pytest.fixture
def interpreted(root: Path) -> Callable[[Path], None]:
    """Runs the tests of a file in a pytest of their own, where Triton's kernels are interpreted: Triton decides that
    when it is imported."""

    def run(file: Path) -> None:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file)],
            cwd=root,
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout

    return run
