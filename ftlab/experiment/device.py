"""The device of a run: accelerate's view of it, its name, and what a token costs there."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from ftlab.config import ExperimentConfig
from ftlab.launcher import check_launch

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
PRECISION = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}


def quiet() -> None:
    """Keep the libraries' own notices and bars out of ftlab's output."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def make_accelerator(cfg: ExperimentConfig) -> Accelerator:
    """Device and precision; a second run in the same process may use another precision.

    Raises:
        ConfigError: the launcher that started this process asks for what ftlab does not do.
    """
    check_launch(cfg.model.dtype)
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = PRECISION[cfg.model.dtype]
    # Not from the environment: torch.compile's mere name would turn TF32 on.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision, dynamo_backend="no")
    accelerator.gradient_accumulation_steps = 1  # accelerate would take it from the environment and divide gradients
    return accelerator


def device_name(device: torch.device) -> str:
    """The GPU's name, or the number of threads on a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x {torch.get_num_threads()}"


def flops_per_token(base: PreTrainedModel, parameters: int, cfg: ExperimentConfig) -> float:
    """Floating-point operations a token: 2 N forward, 2 N for the gradients of activations, 2 N for those of
    weights where all are trained, 2 N for a second forward under activation checkpointing. An untied embedding
    table does no arithmetic."""
    embedding = base.get_input_embeddings().weight
    if not base.config.tie_word_embeddings:
        parameters -= embedding.numel()
    passes = 2 + (cfg.lora.r == 0) + (cfg.trainer.activation_checkpointing is True)
    return 2.0 * parameters * passes


def peak_flops(device: torch.device) -> float | None:
    """The GPU's arithmetic limit in FLOP/s, where known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for mark, rate in PEAK_FLOPS.items() if mark in name), None)
