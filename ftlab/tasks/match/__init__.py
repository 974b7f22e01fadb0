"""Question and answer: a short answer is right where it matches the row's, as text or as a number."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any, cast

from ftlab.config import DataConfig, ExperimentConfig
from ftlab.data.faults import Fault
from ftlab.data.splits import Example
from ftlab.metrics import Metric
from ftlab.tasks.completion import CompletionTask, cluster_of
from ftlab.tasks.match import judge, labels, synth
from ftlab.tasks.task import Judgement, Scored, Source


@dataclass
class MatchOptions:
    """How an answer is read."""

    pattern: str | None = None  # a regular expression with one group: the answer is what it holds in its last match
    tolerance: float = 0.0  # numbers are equal within this share of the right one


def rate(name: str, title: str, help: str, **more: Any) -> Metric:
    """A score of which more is better."""
    return Metric(name, title, help, direction="maximize", unit="rate", **more)


class MatchTask(CompletionTask):
    """Answers that are a name, a number, a label or a few words."""

    name = "match"
    title = "question and answer"
    headline = "match_exact"
    metrics = (
        rate(
            "match_exact",
            "exact match (headline)",
            "share of answers that are the right one: equal in lower case, without punctuation and articles, their "
            "numbers by value",
            interval=True,
            objective=True,
            short="exact",
            field="exact",
        ),
        rate(
            "match_f1",
            "token F1",
            "mean F1 of the words that the answer has in common with the right one",
            interval=True,
            objective=True,
            short="F1",
            field="f1",
        ),
        rate(
            "match_macro_f1",
            "macro F1 of labels",
            "mean F1 over the labels, where the split's right answers are at most 20 labels",
        ),
        rate(
            "match_label_precision",
            "precision",
            "share of right ones among the answers that are this label",
            by_bucket=True,
        ),
        rate("match_label_f1", "F1", "F1 of this label; answers that are no label are wrong", by_bucket=True),
    )
    recorded = ("exact", "f1", "extracted", "label", "said", "reason")
    options = MatchOptions
    roles = tuple(replace(role, blank=role.name == "context") for role in CompletionTask.roles)
    sample = MappingProxyType({"context": "age of Ann: 40, age of Tom: 55", "question": "What is the age of Tom?"})

    @property
    def sources(self) -> Mapping[str, Source]:
        """Look-ups in small tables, and arithmetic."""
        return {"match_synth": synth.load}

    def parse(self, row: Mapping[str, Any], cfg: DataConfig, id: str) -> Example | Fault:
        """The example of a row, whose answer may be a number or true or false as well."""
        name = cfg.columns.answer
        return super().parse({**row, name: as_text(row[name])} if name in row else row, cfg, id)

    def check(self, cfg: ExperimentConfig) -> list[str]:
        """The pattern has one group, and the tolerance is a share."""
        wanted = self.settings(cfg)
        problems = [] if wanted.pattern is None else judge.faults(wanted.pattern)
        if not 0 <= wanted.tolerance < 1:
            problems.append(f"data.options.tolerance={wanted.tolerance} must lie in [0, 1)")
        return problems

    def settings(self, cfg: ExperimentConfig) -> MatchOptions:
        """Its settings in a configuration."""
        return cast(MatchOptions, super().settings(cfg))

    def judge(
        self,
        examples: Sequence[Example],
        answers: Sequence[str],
        cfg: ExperimentConfig,
        on_row: Callable[[], None] = lambda: None,
    ) -> list[Judgement]:
        """Each answer as it is, or what `data.options.pattern` takes out of it."""
        wanted = self.settings(cfg)
        found = []
        for example, answer in zip(examples, answers, strict=True):
            on_row()
            record = compared(example.answer, answer, wanted)
            found.append(self.judged(record, cluster_of(example)))
        return found

    def score(self, prefix: str, judgements: Sequence[Judgement]) -> Scored:
        """The rates and, where the right answers are labels, those of each."""
        metrics, intervals = super().score(prefix, judgements)
        records = [judgement.record for judgement in judgements]
        found = labels.by_label([record["label"] for record in records], [record["said"] for record in records])
        if found:
            metrics[f"{prefix}/match_macro_f1"] = sum(one.f1 for one in found.values()) / len(found)
        for label, one in found.items():
            name = labels.key_part(label)
            metrics[f"{prefix}/match_label_precision/{name}"] = one.precision
            metrics[f"{prefix}/match_label_f1/{name}"] = one.f1
        return metrics, intervals

    def reward(self, example: Example, answer: str, cfg: ExperimentConfig) -> float:
        """1 for an exact match, else 0."""
        return float(compared(example.answer, answer, self.settings(cfg))["exact"])


def as_text(value: Any) -> Any:
    """A number, true or false as text, as JSON writes it; all else, and what is no finite number, as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float | Decimal) and math.isfinite(value) else value


def compared(gold: str, answer: str, wanted: MatchOptions) -> dict[str, Any]:
    """The columns of one answer: what was taken out of it, and how it compares with the right one."""
    said, reason = judge.taken_out(answer, wanted.pattern)
    exact, equal = judge.same(gold, said, wanted.tolerance)
    label = judge.label(gold)
    return {
        "exact": exact,
        "f1": 1.0 if exact else judge.f1(gold, said),
        "extracted": said,
        "label": label,
        "said": label if exact else judge.label(said),
        "reason": reason or equal,
    }


TASK = MatchTask()
