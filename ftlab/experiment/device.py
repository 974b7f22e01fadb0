"""The device of a run: its Accelerator, its name, and the FLOPs of a token on it."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from ftlab.config import ExperimentConfig
from ftlab.launcher import check_launch

# Dense bfloat16 tensor-core rates in FLOP/s, from the manufacturers' data sheets.
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
    """Silence the notices and progress bars of transformers."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def make_accelerator(cfg: ExperimentConfig) -> Accelerator:
    """Return the Accelerator (device and precision); a second run in the same process may use another precision.

    Raises:
        ConfigError: the launcher that started this process requests something that ftlab does not support.
    """
    check_launch(cfg.model.dtype)
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = PRECISION[cfg.model.dtype]
    # dynamo_backend is set here: a value in the environment would turn TF32 on.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision, dynamo_backend="no")
    accelerator.gradient_accumulation_steps = 1  # accelerate would read it from the environment and divide gradients
    return accelerator


def device_name(device: torch.device) -> str:
    """The GPU's name, or the number of threads on a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x {torch.get_num_threads()}"


def flops_per_token(base: PreTrainedModel, parameters: int, cfg: ExperimentConfig) -> float:
    """Return the floating-point operations per token of training: 2 N for the forward pass, 2 N for the gradients of
    activations, 2 N for those of the weights if all are trained, 2 N for the second forward pass under activation
    checkpointing. An untied embedding table does no arithmetic and is left out of N."""
    embedding = base.get_input_embeddings().weight
    if not base.config.tie_word_embeddings:
        parameters -= embedding.numel()
    passes = 2 + (cfg.lora.r == 0) + (cfg.trainer.activation_checkpointing is True)
    return 2.0 * parameters * passes


def peak_flops(device: torch.device) -> float | None:
    """Return the GPU's peak rate in FLOP/s, or None if it is unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for mark, rate in PEAK_FLOPS.items() if mark in name), None)
