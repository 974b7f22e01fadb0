"""What a metric is, and the metrics that every run has.

A metric is declared once: here, by its task (`ftlab/tasks/`) or by its stage (`ftlab/stages/`). Tables, the trackers,
sweeps and docs/metrics.md read the declaration; `ftlab.declared` finds it by key.
"""

from dataclasses import dataclass
from typing import Literal

SPLITS = {"eval": "validation", "test": "test"}  # the prefix of a metric's key, and what it was measured on

Direction = Literal["maximize", "minimize"]
Unit = Literal["rate", "count", "nats", "GiB", "s", "tokens/s", ""]


@dataclass(frozen=True)
class Metric:
    """One number of a run or of an evaluation.

    `name` is the last part of the keys `eval/NAME` and `test/NAME`, or a whole key (`train/loss`) where the number
    belongs to the run. A `rate` lies in 0 to 1 and is shown in percent.
    """

    name: str
    title: str  # in tables
    help: str  # one plain sentence, for docs/metrics.md
    direction: Direction | None = None  # None: neither is better
    unit: Unit = ""
    interval: bool = False  # has a 95 % interval
    objective: bool = False  # may be an objective and a sweep's rung metric; of a run's own: a sweep's objective
    short: str = ""  # its name in the progress line and in narrow tables; empty: not shown there
    field: str = ""  # the column of predictions.jsonl that holds each row's part of it
    by_bucket: bool = False  # is also given for each kind of row, as NAME/KIND
    silent: str = ""  # why rows say nothing of it
    hidden_by: str = ""  # the metric that tables show in its place, where both are there

    @property
    def of_split(self) -> bool:
        """Whether it is measured on a split (`eval/NAME`), or a number of the run."""
        return "/" not in self.name

    @property
    def keys(self) -> list[str]:
        """Its keys, without those by kind of row."""
        return [f"{split}/{self.name}" for split in SPLITS] if self.of_split else [self.name]

    @property
    def is_rate(self) -> bool:
        """Whether it is a share or a mean between 0 and 1."""
        return self.unit == "rate"

    @property
    def rises(self) -> bool:
        """Whether more of it is better."""
        return self.direction == "maximize"


def name_of(key: str) -> str:
    """The name of the metric behind a key: `sql_valid` of `test/sql_valid`, `train/loss` of itself."""
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

# Numbers of a run, by their whole key.
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
        "seconds of the training, evaluations included (in the summary as `seconds.train`)",
        direction="minimize",
        unit="s",
        objective=True,
    ),
    Metric(
        "perf/tokens_per_second",
        "tokens/s",
        "tokens (prompts included, no padding exists) over the seconds spent in steps, both since the last record: a "
        "slowdown shows at once. What the terminal shows as tok/s",
        direction="maximize",
        unit="tokens/s",
        short="tok/s",
    ),
    Metric(
        "perf/tokens_per_second_mean",
        "mean tokens/s",
        "the same over the whole run so far, before a resume included; the last one is the run's speed",
        direction="maximize",
        unit="tokens/s",
    ),
    Metric(
        "perf/mfu",
        "model FLOPs utilisation",
        "achieved share, since the last record, of the GPU's bfloat16 rate: 4 N operations a token with an adapter, "
        "6 N without, 2 N more under activation checkpointing; N counts parameters that do arithmetic",
        direction="maximize",
        unit="rate",
    ),
    Metric(
        "vram/peak_allocated_gib",
        "peak memory allocated",
        "torch's peak of allocated memory in the running phase",
        direction="minimize",
        unit="GiB",
        objective=True,
        short="GiB",
        hidden_by="vram/peak_reserved_gib",
    ),
    Metric(
        "vram/peak_reserved_gib",
        "peak memory reserved",
        "torch's peak of reserved memory in the running phase",
        direction="minimize",
        unit="GiB",
        short="GiB",
    ),
    Metric(
        "vram/nvml_gib",
        "memory by the driver",
        "what the driver counts for the process (for the whole GPU inside most containers), sampled",
        direction="minimize",
        unit="GiB",
    ),
)
