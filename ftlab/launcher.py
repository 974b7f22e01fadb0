"""What `accelerate launch` and MPI ask of the processes they start, in environment variables; without torch.

ftlab trains with data parallelism, in processes that torchrun or accelerate start, and in the precision of
`model.dtype`. What else a launcher asks for would be done by half or not at all: it is refused. Ignored, since no
result depends on it: torch.compile (`ACCELERATE_DYNAMO_*`), and a number of accumulated batches
(`ACCELERATE_GRADIENT_ACCUMULATION_STEPS`), which follows from `trainer.global_batch_size`.
"""

import os

from ftlab.errors import ConfigError

# Variable to what it asks for, and the option of `accelerate launch` that sets it.
REFUSED = {
    "ACCELERATE_USE_FSDP": ("sharded weights (FSDP)", "--use_fsdp"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "--use_deepspeed"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "--use_megatron_lm"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("tensor, context or sequence parallelism", "--use_parallelism_config"),
    "ACCELERATE_USE_SAGEMAKER": ("SageMaker's data parallelism", "a SageMaker configuration"),
}
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}  # accelerate's names of what model.dtype can be
# How many processes an MPI starter has started, by its kind.
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
ON = ("1", "true", "yes", "on", "y", "t")
REMEDY = "(or the same line of the file that `accelerate config` wrote)"


def whole_number(name: str, default: int = 0) -> int:
    """A variable as a launcher sets it; `default` where nobody has.

    Raises:
        ConfigError: it is no whole number of 0 or more.
    """
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(
            f"{name}={text} must be a whole number, as torchrun and accelerate launch set it: start the processes with "
            f"one of these, or for a single process: unset {name}"
        )
    return int(text)


def check_numbers(world: int) -> int:
    """`world`, once all numbers that a launcher gives each of its processes are known to be some.

    Raises:
        ConfigError: names the variable that is none, or a rank beyond the number of processes.
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if whole_number(rank) >= (count := whole_number(size, world)):
            raise ConfigError(
                f"{rank}={os.environ[rank]} must lie below {size}={count}, since processes are counted from 0: start "
                "them with torchrun or accelerate launch"
            )
    whole_number("MASTER_PORT")
    return world


def check_launch(dtype: str | None) -> None:
    """Refuse what ftlab does not do, for a run in the precision `dtype`, or for runs in various ones.

    Raises:
        ConfigError: every setting of the launcher that is refused.
    """
    problems = [*_parallelism(), *_precision(dtype), *_mpi()]
    if problems:
        raise ConfigError(*problems)


def _parallelism() -> list[str]:
    return [
        f"{name}={os.environ[name]}: the launcher asks for {what}, and ftlab trains with data parallelism alone, each "
        f"process with the whole model: leave out {option} {REMEDY}"
        for name, (what, option) in REFUSED.items()
        if os.environ.get(name, "").lower() in ON
    ]


def _precision(dtype: str | None) -> list[str]:
    """accelerate's launcher says `no` where nobody has asked for any."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    known = PRECISIONS.get(asked)
    if asked == "no" or (known and dtype in (known, None)):
        return []
    wanted = f"choose model.dtype={known}, or leave" if known else "there is none such in ftlab: leave"
    mine = f"model.dtype={dtype}" if dtype else "model.dtype"
    return [
        f"ACCELERATE_MIXED_PRECISION={asked} contradicts {mine}, in which a run computes: "
        f"{wanted} out --mixed_precision {REMEDY}"
    ]


def _mpi() -> list[str]:
    return [
        f"{name}={os.environ[name]}: MPI has started several processes, which do not know of each other: "
        "start them with torchrun, or with accelerate launch without --mpirun_hostfile"
        for name in MPI
        if "RANK" not in os.environ and whole_number(name, 1) > 1
    ]
