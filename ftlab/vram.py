"""GPU memory: measured phase by phase, and estimated before a run."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ftlab import models, weights
from ftlab.config import DTYPES, ExperimentConfig, QuantConfig
from ftlab.fast.plan import GIB, Setting

KINDS = ("allocated", "reserved", "nvml")
BYTES = dict(zip(DTYPES, (2, 2, 4), strict=True))
# Names of the MLP's width; an architecture with another has four times the hidden size, as GPT-2 has by default.
INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


class Meter:
    """Peak memory of each phase in GiB: what tensors held (allocated), what torch took from the driver
    (reserved), and what the driver counts for this process (NVML, sampled, includes the CUDA context).

    Phases nest: an evaluation inside training does not count towards training's peak. Without a GPU every
    reading is empty.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, dict[str, float]] = {}
        self._active: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count towards `name` until the block ends."""
        self._fold()
        self._active.append(name)
        try:
            yield
        finally:
            self._fold()
            self._active.pop()

    def metrics(self) -> dict[str, float]:
        """The running phase's peaks under the tracker's keys; empty without a GPU."""
        self._fold()
        peaks = self.peaks.get(self._active[-1], {}) if self._active else {}
        keys = {
            "allocated": "vram/peak_allocated_gib",
            "reserved": "vram/peak_reserved_gib",
            "nvml": "vram/nvml_gib",
        }
        return {keys[kind]: value for kind, value in peaks.items()}

    def _fold(self) -> None:
        """Add the peaks since the last reset to the running phase, and reset."""
        if self.device.type != "cuda":
            return
        if self._active:
            peaks = self.peaks.setdefault(self._active[-1], dict.fromkeys(KINDS, 0.0))
            now = {
                "allocated": torch.cuda.max_memory_allocated(self.device) / GIB,
                "reserved": torch.cuda.max_memory_reserved(self.device) / GIB,
                "nvml": nvml_gib(self.device),
            }
            for kind in KINDS:
                peaks[kind] = max(peaks[kind], now[kind])
        torch.cuda.reset_peak_memory_stats(self.device)


def nvml_gib(device: torch.device) -> float:
    """What the driver counts for this process, or for the whole GPU where it does not tell processes apart
    (inside most containers); 0 without nvidia-ml-py."""
    with suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return float(process.usedGpuMemory) / GIB
        return float(pynvml.nvmlDeviceGetMemoryInfo(handle).used) / GIB
    return 0.0


# Dense bfloat16 tensor-core rates in FLOP/s, from the makers' data sheets.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The GPU's arithmetic limit in FLOP/s, where known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for mark, rate in PEAK_FLOPS.items() if mark in name), None)


# --- before a run -------------------------------------------------------------------------------------------


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
    fixed += linear_numbers(model) * width * setting.cached
    trained, _ = models.planned_parameters(model, cfg.lora)
    fixed += trained * (4 if full else 8 + 2 * width) + state_bytes(trained, cfg.trainer.optim)
    tokens = setting.micro * cfg.data.max_length
    scored = tokens if cfg.trainer.loss_on == "all" else round(0.3 * tokens)
    batch = batch_bytes(model.config, width, tokens, scored, setting.share, cfg.lora.lora_dropout > 0)
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


def batch_bytes(
    shape: Any, width: int, tokens: int, scored: int, share: float, dropout: bool, logits: float | None = None
) -> float:
    """What a micro-batch needs at most, in bytes: what the backward pass keeps of every layer (of a `share` of them
    their entrance only), one layer at work, and the logits of the scored positions.

    `shape` is a transformers configuration, `width` the bytes of an activation. Kept of a layer are the inputs of its
    norms and of its linear layers, query, key and value, and the MLP's two halves (ftlab/fast/decoder.py); PEFT's own
    path keeps about as much. `logits` are the bytes of logits held at a time where they are made in parts; else all are
    held in float32 with their gradient.
    """
    hidden, layers, vocabulary = (_size(shape, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    heads = _size(shape, "num_attention_heads")
    inner = next((size for name in INNER if (size := _size(shape, name, 0))), 4 * hidden)
    head = _size(shape, "head_dim", hidden // heads)
    query = head * heads
    values = query + 2 * head * _size(shape, "num_key_value_heads", heads)
    layer = (4 * hidden + values + query * (2 if dropout else 1) + 3 * inner) * width
    kept = layers * ((1 - share) * layer + share * hidden * width)
    work = (layer if share else 0) + (4 * inner + 6 * hidden) * width
    whole = scored * vocabulary * 8 if logits is None else min(scored * vocabulary * width, logits)
    return float(tokens * (kept + work) + scored * 4 * hidden * width + whole)


def _size(shape: Any, name: str, otherwise: int = 1) -> int:
    """A number of an architecture, the largest where layers differ; `otherwise` where it is not told."""
    with suppress(AttributeError, ValueError, RuntimeError):
        sizes = getattr(shape.get_text_config(), name)
        return int(max(sizes) if isinstance(sizes, list | tuple) else sizes or otherwise)
    return otherwise


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
