"""The peak of GPU memory that training will reach, by a closed form and corrected by runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ftlab import models, weights
from ftlab.config import ExperimentConfig, QuantConfig
from ftlab.fast.plan import GIB, Setting
from ftlab.memory.batch import BYTES, batch_bytes


@dataclass(frozen=True)
class Estimate:
    """Peak of allocated memory while training, in GiB: what is there at every step, and what a batch adds."""

    fixed: float
    batch: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.fixed + self.batch


def estimate(cfg: ExperimentConfig, measured: Sequence[tuple[Estimate, float]] = ()) -> float:
    """GiB that training will allocate at its peak in the leanest setting that the configuration allows, by a closed
    form. What runs choose is as fast as fits.

    `measured` are estimates of other runs, each in the setting that it had, beside the peaks they had (GiB): what
    batches needed more or less than estimated there corrects the batch's part here. The form takes all rows to be
    `data.max_length` long.

    Raises:
        WeightsError: the architecture is not to be found.
    """
    mine = parts(cfg)
    ratios = [(peak - before.fixed) / before.batch for before, peak in measured if peak > before.fixed]
    return mine.fixed + mine.batch * (max(ratios) if ratios else 1.0)


def parts(cfg: ExperimentConfig, setting: Setting | None = None) -> Estimate:
    """The two parts of the closed form in a setting, or in the leanest one: micro-batches of `data.max_length` tokens a
    row.

    Fixed: base weights (quantised linear layers, the rest in `model.dtype`; where they are held unpacked, that beside),
    trained weights and their gradients in float32, a working copy of both in `model.dtype`, optimizer state.
    """
    setting = setting or leanest(cfg)
    full, width = cfg.lora.r == 0, BYTES[cfg.model.dtype]
    model = models.skeleton(weights.find(cfg.model, what="tokenizer"), cfg.model.trust_remote_code)
    fixed = base_bytes(model, cfg.quant, 4 if full else width)
    fixed += linear_numbers(model) * width * setting.keep_dequantized
    trained, _ = models.planned_parameters(model, cfg.lora)
    fixed += trained * (4 if full else 8 + 2 * width) + state_bytes(trained, cfg.trainer.optim)
    tokens = setting.micro * cfg.data.max_length
    scored = tokens if cfg.trainer.loss_on == "all" else round(0.3 * tokens)
    batch = batch_bytes(model.config, width, tokens, scored, setting.checkpointed_fraction, cfg.lora.lora_dropout > 0)
    return Estimate(fixed / GIB, batch / GIB)


def leanest(cfg: ExperimentConfig) -> Setting:
    """What takes the least memory of all that the configuration allows."""
    trainer = cfg.trainer
    micro = 1 if trainer.micro_batch_size == "auto" else int(trainer.micro_batch_size)
    cached = trainer.weight_cache is True and cfg.quant.load_in_4bit
    return Setting(micro, cached, 0.0 if trainer.activation_checkpointing is False else 1.0)


def state_bytes(trained: int, optim: str) -> float:
    """What the optimizer keeps of so many trained numbers: two more of each, in float32 or 8 bits."""
    return trained * (8.0 if optim == "adamw" else 2.0)


def base_bytes(model: Any, quant: QuantConfig, width: int) -> float:
    """Bytes of the base weights; the output layer and embeddings are never quantised."""
    linear = linear_numbers(model)
    total = sum(int(parameter.numel()) for parameter in model.parameters())
    if quant.load_in_4bit:
        scales = 0.127 / 8 if quant.bnb_4bit_use_double_quant else 0.5 / 8
        return linear * (0.5 + scales) + (total - linear) * width
    return linear * (1.0 if quant.load_in_8bit else width) + (total - linear) * width


def linear_numbers(model: Any) -> int:
    """Weights of the linear layers without the output layer: those that are quantised."""
    head = model.get_output_embeddings()
    return sum(int(m.weight.numel()) for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
