"""What a task is: the rows it reads, the prompt it makes of them, how it judges answers, and its metrics."""

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
    """What a task says of one answer; all of it can be written as JSON.

    `record` are the columns that predictions.jsonl gets. `hits` are the row's parts of the metrics, by name, without
    those that the row says nothing about. Rows of one `cluster` are alike and are drawn together in intervals.
    """

    record: Mapping[str, Any]
    hits: Mapping[str, bool | float]
    buckets: tuple[str, ...] = ()
    cluster: str = ""
    reason: str = ""


Scored = tuple[dict[str, float], dict[str, tuple[float, float]]]  # metrics and 95 % intervals, by key


class Task(Protocol):
    """One kind of work. Instances are cheap, and making one imports neither torch nor what it judges with."""

    @property
    def name(self) -> str:
        """What `data.task` calls it."""

    @property
    def title(self) -> str:
        """A few words for a person."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """Its metrics, in the order in which tables show them."""

    @property
    def headline(self) -> str:
        """The name of the metric that counts, and that is the objective unless another is named."""

    @property
    def gives(self) -> frozenset[str]:
        """What a stage may make of its rows: `completion` (a prompt with its answer), `prompt`."""

    @property
    def options(self) -> type:
        """The dataclass of its own settings, `data.options`, where a source has others; its defaults are theirs."""

    @property
    def sources(self) -> Mapping[str, Source]:
        """Rows that it makes itself, by the name that `data.source` has for them."""

    @property
    def roles(self) -> Sequence[Role]:
        """The columns that it reads."""

    @property
    def recorded(self) -> Sequence[str]:
        """The columns of a judgement in predictions.jsonl, in order."""

    @property
    def eval_keys(self) -> Sequence[str]:
        """Keys below `eval` that its judge alone reads; set for another task they are refused."""

    @property
    def cluster(self) -> str:
        """What rows of one cluster share, in a word."""

    @property
    def sample(self) -> Mapping[str, str]:
        """What a command that shows how to ask a model of this task asks, by column."""

    def check(self, cfg: ExperimentConfig) -> list[str]:
        """What is wrong with its options, beyond their types: a line each, as rules of the configuration are."""

    def check_files(self, cfg: ExperimentConfig) -> None:
        """Refuse files that judging needs and that are not there.

        Raises:
            ConfigError: names the key.
        """

    def parse(self, row: Mapping[str, Any], cfg: DataConfig, id: str) -> Example | Fault:
        """A row of a file as an example, or what is wrong with it."""

    def ask(self, fields: Mapping[str, str], id: str) -> Example:
        """An example without an answer, of the columns that the prompt may show."""

    def render(
        self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", cfg: DataConfig
    ) -> list[Tokens]:
        """Prompt and answer of each example as token ids, and what of them may be cut."""

    def judge(
        self,
        examples: Sequence[Example],
        answers: Sequence[str],
        cfg: ExperimentConfig,
        on_row: Callable[[], None] = lambda: None,
    ) -> list[Judgement]:
        """A judgement of each answer; `on_row` is called before each."""

    def read(self, row: Mapping[str, Any], prefix: str = "") -> Judgement:
        """The judgement that a row of predictions.jsonl holds, without buckets; its columns' names begin with `prefix`.

        Raises:
            KeyError: the row holds none: it lacks the column of the headline, which is named.
        """

    def score(self, prefix: str, judgements: Sequence[Judgement]) -> Scored:
        """The metrics below `prefix` (eval, test) of many judgements."""

    def reward(self, example: Example, answer: str, cfg: ExperimentConfig) -> float:
        """How good one answer is, from 0 to 1."""


def metric(task: Task, name: str) -> Metric:
    """One of a task's metrics; KeyError where it has none of that name."""
    return {metric.name: metric for metric in task.metrics}[name]


def rates(task: Task) -> list[Metric]:
    """The task's metrics that are rates of rows, each number once: what two runs can be compared in row by row."""
    names = {metric.name for metric in task.metrics}
    return [m for m in task.metrics if m.is_rate and m.field and m.hidden_by not in names]


def right(task: Task) -> list[str]:
    """Columns of predictions.jsonl that say whether an answer is right, the headline's first."""
    fields = [metric(task, task.headline).field, *(rate.field for rate in rates(task))]
    return list(dict.fromkeys(fields))
