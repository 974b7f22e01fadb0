"""The estimated peak of GPU memory in training: a closed form, corrected by measured runs."""

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
    """The peak of allocated memory in training, in GiB: what is allocated at every step, and what a batch adds."""

    fixed: float
    batch: float

    @property
    def total(self) -> float:
        """The sum of both parts."""
        return self.fixed + self.batch


def estimate(cfg: ExperimentConfig, measured: Sequence[tuple[Estimate, float]] = ()) -> float:
    """Return the estimated peak of memory in training, in GiB, in the leanest setting that the configuration allows. A
    run itself chooses the fastest setting that fits.

    `measured` are pairs of another run's estimate, in the setting that it used, and its measured peak (GiB). The
    largest ratio of measured to estimated batch memory corrects the batch's part of this estimate. The closed form
    assumes that all rows are `data.max_length` tokens long.

    Raises:
        WeightsError: the architecture cannot be found.
    """
    mine = parts(cfg)
    ratios = [(peak - before.fixed) / before.batch for before, peak in measured if peak > before.fixed]
    return mine.fixed + mine.batch * (max(ratios) if ratios else 1.0)


def parts(cfg: ExperimentConfig, setting: Setting | None = None) -> Estimate:
    """Return the two parts of the closed form in a setting, by default the leanest one, for rows of `data.max_length`
    tokens.

    The fixed part: base weights (quantised linear layers, the rest in `model.dtype`), dequantized weights if they are
    kept in memory, trained weights and their gradients in float32, a working copy of both in `model.dtype`, and the
    optimizer state.
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
    """Return the setting that takes the least memory of all that the configuration allows."""
    trainer = cfg.trainer
    micro = 1 if trainer.micro_batch_size == "auto" else int(trainer.micro_batch_size)
    keep_dequantized = trainer.weight_cache is True and cfg.quant.load_in_4bit
    return Setting(micro, keep_dequantized, 0.0 if trainer.activation_checkpointing is False else 1.0)


def state_bytes(trained: int, optim: str) -> float:
    """Return the bytes of the optimizer state: two numbers per trained number, in float32 or 8 bits."""
    return trained * (8.0 if optim == "adamw" else 2.0)


def base_bytes(model: Any, quant: QuantConfig, width: int) -> float:
    """Return the bytes of the base weights. The output layer and the embeddings are never quantised."""
    linear = linear_numbers(model)
    total = sum(int(parameter.numel()) for parameter in model.parameters())
    if quant.load_in_4bit:
        scales = 0.127 / 8 if quant.bnb_4bit_use_double_quant else 0.5 / 8
        return linear * (0.5 + scales) + (total - linear) * width
    return linear * (1.0 if quant.load_in_8bit else width) + (total - linear) * width


def linear_numbers(model: Any) -> int:
    """Return the number of weights of the linear layers except the output layer: those that are quantised."""
    head = model.get_output_embeddings()
    return sum(int(m.weight.numel()) for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
