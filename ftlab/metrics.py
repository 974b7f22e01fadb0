"""The declaration of a metric, and the metrics of every run.

A metric is declared once: here, by its task (`ftlab/tasks/`) or by its stage (`ftlab/stages/`). Tables, trackers,
sweeps and docs/metrics.md use the declaration; `ftlab.declared` finds it by key.
"""

from dataclasses import dataclass
from typing import Literal

SPLITS = {"eval": "validation", "test": "test"}  # from the prefix of a metric's key to the split it is measured on

Direction = Literal["maximize", "minimize"]
Unit = Literal["rate", "count", "nats", "GiB", "s", "tokens/s", ""]


@dataclass(frozen=True)
class Metric:
    """One number of a run or of an evaluation.

    `name` is the last part of the keys `eval/NAME` and `test/NAME`, or the whole key (`train/loss`) of a number of the
    run. A `rate` lies between 0 and 1 and is shown in percent.
    """

    name: str
    title: str  # in tables
    help: str  # one plain sentence, for docs/metrics.md
    direction: Direction | None = None  # whether higher or lower is better; None: neither
    unit: Unit = ""
    interval: bool = False  # has a 95 % interval
    objective: bool = False  # may be the objective and a sweep's rung metric; a number of the run: a sweep's objective
    short: str = ""  # its name in the progress line and in narrow tables; empty: not shown there
    field: str = ""  # the column of predictions.jsonl with its value for each row
    by_bucket: bool = False  # is also computed for each kind of row, as NAME/KIND
    silent: str = ""  # why a row may not count for it
    hidden_by: str = ""  # the metric that tables show instead if both are present

    @property
    def of_split(self) -> bool:
        """Whether it is measured on a split (`eval/NAME`); otherwise it is a number of the run."""
        return "/" not in self.name

    @property
    def keys(self) -> list[str]:
        """Its keys, without those for single kinds of row."""
        return [f"{split}/{self.name}" for split in SPLITS] if self.of_split else [self.name]

    @property
    def is_rate(self) -> bool:
        """Whether it is a fraction or a mean between 0 and 1."""
        return self.unit == "rate"

    @property
    def rises(self) -> bool:
        """Whether higher is better."""
        return self.direction == "maximize"


def name_of(key: str) -> str:
    """Return the name of the metric of a key: `sql_valid` for `test/sql_valid`, `train/loss` for `train/loss`."""
    split, _, rest = key.partition("/")
    return rest.partition("/")[0] if split in SPLITS and rest else key


LOSS = Metric(
    "loss",
    "loss",
    "mean cross entropy over the trained tokens of the split (`trainer.loss_on`)",
    direction="minimize",
    unit="nats",
    objective=True,
    short="loss",
)

# Numbers of a run; their name is the whole key.
RUN = (
    Metric(
        "train/loss",
        "training loss",
        "mean cross entropy over the trained tokens of each step, averaged over the steps since the last record",
        direction="minimize",
        unit="nats",
        short="loss",
    ),
    Metric("train/lr", "learning rate", "learning rate of the step", short="lr"),
    Metric("train/grad_norm", "gradient norm", "norm of all gradients before clipping"),
    Metric(
        "train/seconds",
        "training time",
        "seconds of training, including evaluations (in the summary as `seconds.train`)",
        direction="minimize",
        unit="s",
        objective=True,
    ),
    Metric(
        "perf/tokens_per_second",
        "tokens/s",
        "tokens, prompts included, per second spent in steps since the last record (there is no padding); the terminal "
        "shows it as tok/s",
        direction="maximize",
        unit="tokens/s",
        short="tok/s",
    ),
    Metric(
        "perf/tokens_per_second_mean",
        "mean tokens/s",
        "the same over the whole run so far, including the time before a resume; the last value is the run's speed",
        direction="maximize",
        unit="tokens/s",
    ),
    Metric(
        "perf/mfu",
        "model FLOPs utilisation",
        "achieved share of the GPU's bfloat16 peak rate since the last record, with 4 N operations per token with an "
        "adapter, 6 N without, and 2 N more under activation checkpointing; N counts parameters that do arithmetic",
        direction="maximize",
        unit="rate",
    ),
    Metric(
        "vram/peak_allocated_gib",
        "peak memory allocated",
        "torch's peak of allocated GPU memory in the current phase",
        direction="minimize",
        unit="GiB",
        objective=True,
        short="GiB",
        hidden_by="vram/peak_reserved_gib",
    ),
    Metric(
        "vram/peak_reserved_gib",
        "peak memory reserved",
        "torch's peak of reserved GPU memory in the current phase",
        direction="minimize",
        unit="GiB",
        short="GiB",
    ),
    Metric(
        "vram/nvml_gib",
        "memory by the driver",
        "GPU memory of the process as the driver reports it (of the whole GPU in most containers), sampled",
        direction="minimize",
        unit="GiB",
    ),
)
