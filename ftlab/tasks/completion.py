"""What all tasks of a question, an optional context and one answer have in common: columns, rows and prompts."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftlab.config import DataConfig, ExperimentConfig
from ftlab.data.encode import Tokens, tokenise
from ftlab.data.faults import Fault, describe, too_large
from ftlab.data.prompts import shows
from ftlab.data.splits import Example
from ftlab.data.table import Role
from ftlab.metrics import Metric
from ftlab.options import NoOptions, settings
from ftlab.tasks.scores import score
from ftlab.tasks.task import Judgement, Scored, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILL = "Fill the empty fields, or delete these rows."


class CompletionTask:
    """A task whose rows are a question, an optional context, and an answer. A subclass declares its metrics and judges
    the answers."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    headline: str
    recorded: tuple[str, ...]
    sample: Mapping[str, str]
    eval_keys: tuple[str, ...] = ()
    cluster: str = "context"
    gives: frozenset[str] = frozenset({"completion", "prompt"})
    options: type = NoOptions
    buckets: tuple[str, ...] = ()
    roles: tuple[Role, ...] = (
        Role("question", ("instruction", "prompt", "utterance", "input", "text"), "always"),
        Role("context", ("passage", "document", "input"), "may"),
        Role("answer", ("answers", "output", "response", "completion", "target", "label"), "never"),
    )

    @property
    def sources(self) -> Mapping[str, Source]:
        """None, unless a subclass generates rows itself."""
        return {}

    def check(self, cfg: ExperimentConfig) -> list[str]:
        """Check nothing beyond the types of the options."""
        return []

    def check_files(self, cfg: ExperimentConfig) -> None:
        """Check nothing: judging needs no files."""

    def parse(self, row: Mapping[str, Any], cfg: DataConfig, id: str) -> Example | Fault:
        """Return the example of a row. The context may be empty if the task allows it or the prompt does not show it.
        A row without a group is grouped by its context, and without a context by its question."""
        columns = cfg.columns
        blank = {getattr(columns, role.name) for role in self.roles if role.blank}
        if fault := row_fault(row, cfg, blank):
            return fault
        question, context = row[columns.question], row.get(columns.context) or ""
        context = context if context.strip() else ""  # rows of blanks alone have nothing in common
        group = row.get(columns.group)
        group = (context or question) if group in (None, "") else str(group)
        return Example(id, question, context, row[columns.answer].strip(), group)

    def ask(self, fields: Mapping[str, str], id: str) -> Example:
        """Return an example without an answer: a question and its optional context."""
        return Example(id, fields["question"], fields.get("context", ""), "", "")

    def render(
        self, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", cfg: DataConfig
    ) -> list[Tokens]:
        """Return prompts from the template `data.prompt`, each with its answer, as token ids."""
        return tokenise(examples, tokenizer, cfg.prompt)

    def judge(
        self,
        examples: Sequence[Example],
        answers: Sequence[str],
        cfg: ExperimentConfig,
        on_row: Callable[[], None] = lambda: None,
    ) -> list[Judgement]:
        """To be implemented by a subclass."""
        raise NotImplementedError

    def counts(self, metric: Metric, record: Mapping[str, Any]) -> bool:
        """Whether a row counts for a metric: its column is not null."""
        return record[metric.field] is not None

    def reward(self, example: Example, answer: str, cfg: ExperimentConfig) -> float:
        """What the answer is worth by the headline."""
        (judgement,) = self.judge([example], [answer], cfg)
        return float(judgement.hits.get(self.headline, 0))

    def settings(self, cfg: ExperimentConfig) -> Any:
        """Its own settings in a configuration: an instance of `options`."""
        return settings(self.options, cfg.data.options)

    def judged(self, record: Mapping[str, Any], cluster: str, buckets: tuple[str, ...] = ()) -> Judgement:
        """Return the judgement whose columns are `record`."""
        counted = [metric for metric in self.metrics if metric.field and self.counts(metric, record)]
        hits = {metric.name: record[metric.field] for metric in counted}
        return Judgement(record, hits, buckets, cluster, str(record.get("reason", "")))

    def read(self, row: Mapping[str, Any], prefix: str = "") -> Judgement:
        """Return the judgement in a row of predictions.jsonl; rows of one context form a cluster. The row does not
        count for metrics that were added after it was written."""
        right = next(metric.field for metric in self.metrics if metric.name == self.headline)
        record = {name: row[prefix + name] if name == right else row.get(prefix + name) for name in self.recorded}
        return self.judged(record, str(row.get("context") or row.get("id", "")))

    def score(self, prefix: str, judgements: Sequence[Judgement]) -> Scored:
        """Return the metrics as declared: rates and counts."""
        return score(prefix, judgements, self.metrics, self.buckets)


def cluster_of(example: Example) -> str:
    """Return the cluster of an example: its context, or its own id if it has none."""
    return example.context or example.id


def row_fault(row: Mapping[str, Any], cfg: DataConfig, blank: Collection[str] = ()) -> Fault | None:
    """Return the first fault of a row's fields, if any; fields of the columns `blank` may be empty."""
    columns = cfg.columns
    for name in (columns.question, columns.context, columns.answer):
        optional = name in blank or (name == columns.context and not shows(cfg.prompt, "context"))
        value = row.get(name)
        if isinstance(value, str) and (fault := too_large(name, value, cfg.max_field_bytes)):
            return fault
        if isinstance(value, str) and value.isascii() and value and not value.isspace():
            continue
        if name not in row and not optional:
            return Fault(f"no column {name} (this row has {', '.join(row) or 'none'})")
        if (value is None or value == "") and optional:
            continue
        if fault := _field_fault(name, value, optional):
            return fault
    return None


def _field_fault(name: str, value: Any, may_be_blank: bool) -> Fault | None:
    if value is None:
        return Fault(f"{name} is null", FILL)
    if not isinstance(value, str):
        return Fault(f"{name} is {describe(value)}, not text", f"Write every {name} as text, in quotes.")
    if not value.strip() and not may_be_blank:
        return Fault(f"{name} is empty", FILL)
    if any("\ud800" <= char <= "\udfff" for char in value):
        return Fault(f"{name} contains half a character (a lone surrogate, \\ud800 to \\udfff)")
    return None
