"""What a task is: the rows it reads, the prompts it builds, how it judges answers, and its metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ftlab.config import DataConfig, ExperimentConfig
from ftlab.data.encode import Tokens
from ftlab.data.faults import Fault
from ftlab.data.splits import Example, SourceSplits
from ftlab.data.table import Role
from ftlab.metrics import Metric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Source = Callable[[DataConfig], SourceSplits]


@dataclass(frozen=True)
class Judgement:
    """The verdict on one answer; all of it can be written as JSON.

    `record` holds the columns for predictions.jsonl. `hits` holds the row's values for the metrics, by name; metrics
    that do not apply to the row are absent. Rows of one `cluster` are similar: the bootstrap draws them together.
    """

    record: Mapping[str, Any]
    hits: Mapping[str, bool | float]
    buckets: tuple[str, ...] = ()
    cluster: str = ""
    reason: str = ""


Scored = tuple[dict[str, float], dict[str, tuple[float, float]]]  # metrics and 95 % intervals, by key


class Task(Protocol):
    """One task. Instances are cheap, and making one imports neither torch nor the libraries that judge answers."""

    @property
    def name(self) -> str:
        """The value of `data.task` that chooses it."""

    @property
    def title(self) -> str:
        """A few words that describe it to a person."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """Its metrics, in the order in which tables show them."""

    @property
    def headline(self) -> str:
        """The name of the main metric, which is the objective unless another is chosen."""

    @property
    def gives(self) -> frozenset[str]:
        """The kinds of rows that it can provide to a stage: `completion` (a prompt with its answer), `prompt`."""

    @property
    def options(self) -> type:
        """The dataclass of its own settings and their defaults, set in `data.options`, which the source shares."""

    @property
    def sources(self) -> Mapping[str, Source]:
        """Rows that it generates itself, by the value of `data.source` that chooses them."""

    @property
    def roles(self) -> Sequence[Role]:
        """The columns that it reads."""

    @property
    def recorded(self) -> Sequence[str]:
        """The columns of a judgement in predictions.jsonl, in order."""

    @property
    def eval_keys(self) -> Sequence[str]:
        """Keys below `eval` that only this task reads; they are refused for other tasks."""

    @property
    def cluster(self) -> str:
        """A word for what rows of one cluster share."""

    @property
    def sample(self) -> Mapping[str, str]:
        """An example question by column, for the commands that a report suggests."""

    def check(self, cfg: ExperimentConfig) -> list[str]:
        """Problems with its options beyond their types, one line each, worded like the rules of the configuration."""

    def check_files(self, cfg: ExperimentConfig) -> None:
        """Refuse a configuration if files that judging needs are missing.

        Raises:
            ConfigError: names the key.
        """

    def parse(self, row: Mapping[str, Any], cfg: DataConfig, id: str) -> Example | Fault:
        """A row of a file as an example, or the fault that makes it unusable."""

    def ask(self, fields: Mapping[str, str], id: str) -> Example:
        """An example without an answer, from the columns that the prompt may show."""

    def render(
        self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", cfg: DataConfig
    ) -> list[Tokens]:
        """Prompt and answer of each example as token ids, with the parts that may be truncated."""

    def judge(
        self,
        examples: Sequence[Example],
        answers: Sequence[str],
        cfg: ExperimentConfig,
        on_row: Callable[[], None] = lambda: None,
    ) -> list[Judgement]:
        """A judgement of each answer; `on_row` is called before each."""

    def read(self, row: Mapping[str, Any], prefix: str = "") -> Judgement:
        """The judgement in a row of predictions.jsonl, without buckets; `prefix` is the prefix of its columns' names.

        Raises:
            KeyError: the row has no judgement: it lacks the column of the headline metric, which the error names.
        """

    def score(self, prefix: str, judgements: Sequence[Judgement]) -> Scored:
        """The metrics below `prefix` (eval, test) of many judgements."""

    def reward(self, example: Example, answer: str, cfg: ExperimentConfig) -> float:
        """How good one answer is, from 0 to 1."""


def metric(task: Task, name: str) -> Metric:
    """One of a task's metrics; KeyError if it has none of that name."""
    return {metric.name: metric for metric in task.metrics}[name]


def rates(task: Task) -> list[Metric]:
    """The task's metrics that are rates over rows, without duplicates: those that can be compared row by row."""
    names = {metric.name for metric in task.metrics}
    return [m for m in task.metrics if m.is_rate and m.field and m.hidden_by not in names]


def right(task: Task) -> list[str]:
    """Columns of predictions.jsonl that hold whether an answer is right, the headline metric's first."""
    fields = [metric(task, task.headline).field, *(rate.field for rate in rates(task))]
    return list(dict.fromkeys(fields))
