"""Checks of the environment variables by which `accelerate launch` and MPI configure the processes they start. No
torch.

ftlab supports data parallelism in processes that torchrun or accelerate start, in the precision of `model.dtype`. Any
other setting of a launcher is refused, because ftlab would follow it partly or not at all. Two settings are ignored,
since no result depends on them: torch.compile (`ACCELERATE_DYNAMO_*`), and the number of accumulated batches
(`ACCELERATE_GRADIENT_ACCUMULATION_STEPS`), which follows from `trainer.global_batch_size`.
"""

import os

from ftlab.errors import ConfigError

# By variable: the feature that it requests, and the option of `accelerate launch` that sets it.
REFUSED = {
    "ACCELERATE_USE_FSDP": ("sharded weights (FSDP)", "--use_fsdp"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "--use_deepspeed"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "--use_megatron_lm"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("tensor, context or sequence parallelism", "--use_parallelism_config"),
    "ACCELERATE_USE_SAGEMAKER": ("SageMaker's data parallelism", "a SageMaker configuration"),
}
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}  # accelerate's names of values of model.dtype
# Variables with the number of processes that MPI has started, of different MPI implementations.
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
ON = ("1", "true", "yes", "on", "y", "t")
REMEDY = "(or the same line of the file that `accelerate config` wrote)"


def whole_number(name: str, default: int = 0) -> int:
    """Return the number in a launcher's variable; `default` if it is not set.

    Raises:
        ConfigError: it is not a whole number of at least 0.
    """
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(
            f"{name}={text} must be a whole number, as torchrun and accelerate launch set it: start the processes with "
            f"one of these, or for a single process: unset {name}"
        )
    return int(text)


def check_numbers(world: int) -> int:
    """Return `world` after checking all numbers that a launcher gives to each of its processes.

    Raises:
        ConfigError: names a variable that is not a number, or a rank that is not below the number of processes.
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if whole_number(rank) >= (count := whole_number(size, world)):
            raise ConfigError(
                f"{rank}={os.environ[rank]} must be below {size}={count}, since processes are counted from 0: start "
                "them with torchrun or accelerate launch"
            )
    whole_number("MASTER_PORT")
    return world


def check_launch(dtype: str | None) -> None:
    """Refuse launcher settings that ftlab does not support, for a run in the precision `dtype`; None if runs differ in
    it.

    Raises:
        ConfigError: names every setting of the launcher that is refused.
    """
    problems = [*_parallelism(), *_precision(dtype), *_mpi()]
    if problems:
        raise ConfigError(*problems)


def _parallelism() -> list[str]:
    return [
        f"{name}={os.environ[name]}: the launcher asks for {what}, but ftlab supports data parallelism only, each "
        f"process with the whole model: leave out {option} {REMEDY}"
        for name, (what, option) in REFUSED.items()
        if os.environ.get(name, "").lower() in ON
    ]


def _precision(dtype: str | None) -> list[str]:
    """accelerate's launcher sets `no` if no precision was requested."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    known = PRECISIONS.get(asked)
    if asked == "no" or (known and dtype in (known, None)):
        return []
    wanted = f"choose model.dtype={known}, or leave" if known else "ftlab does not support it: leave"
    mine = f"model.dtype={dtype}" if dtype else "model.dtype"
    return [
        f"ACCELERATE_MIXED_PRECISION={asked} contradicts {mine}, the precision of the run: "
        f"{wanted} out --mixed_precision {REMEDY}"
    ]


def _mpi() -> list[str]:
    return [
        f"{name}={os.environ[name]}: MPI has started several processes, which cannot find each other without RANK: "
        "start them with torchrun, or with accelerate launch without --mpirun_hostfile"
        for name in MPI
        if "RANK" not in os.environ and whole_number(name, 1) > 1
    ]
