"""Out of GPU memory: one message instead of a traceback, with the settings that need less memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from ftlab.config import ExperimentConfig
from ftlab.errors import TrainingError, first_line


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error means that GPU memory ran out. torch's allocator raises it, and so do cuBLAS and the driver
    when it loads kernels or instantiates graphs."""
    return any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))


@contextmanager
def explain_oom(phase: str, *ways: str) -> Iterator[None]:
    """Turn an out-of-memory error in the block into one message. `ways` are settings that need less memory.

    Raises:
        TrainingError: names the phase, torch's figures, and settings that need less memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        figures, _, rest = first_line(error).partition(" is free")
        raise TrainingError(
            f"out of GPU memory in the phase {phase} ({figures}{' is free' * bool(rest)}). "
            f"Try: {', '.join([*ways, 'a GPU that nothing else uses'])}"
        ) from None


def oom_remedies(cfg: ExperimentConfig, phase: str, *, trained: bool = False) -> list[str]:
    """Return settings that are not used yet and with which a phase of a run needs less memory. For a finished run
    (`trained`) these are the ones that can still change. Smaller batches are not among them: they have been tried
    before the phase fails."""
    ways = []
    pissa = str(cfg.lora.init_lora_weights).startswith("pissa") and not trained  # PiSSA changes the base's weights
    if phase == "train" or phase.startswith("evaluate"):
        ways.append(f"a data.max_length below {cfg.data.max_length}")
    if phase.startswith("evaluate"):
        ways.append(f"an eval.max_new_tokens below {cfg.eval.max_new_tokens}")
    if cfg.lora.r == 0 and not trained:
        ways.append("lora=r16 instead of training all weights")
    elif cfg.lora.r and not cfg.quant.load_in_4bit and not pissa:
        ways.append("quant=nf4")
    if phase == "train" and cfg.trainer.optim == "adamw":
        ways.append("trainer.optim=paged_adamw_8bit")
    if phase == "train" and cfg.lora.r > 8:
        ways.append("lora=r8")
    return ways if trained else [*ways, "a smaller model"]
