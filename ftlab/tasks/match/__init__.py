"""Question and answer: a short answer is correct if it matches the answer of its row, as text or as a number."""

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
    """How an answer is extracted and compared."""

    pattern: str | None = None  # a regular expression with one group: in its last match this group is the answer
    tolerance: float = 0.0  # relative tolerance: numbers are equal if they differ by at most this share of the gold one


def rate(name: str, title: str, help: str, **more: Any) -> Metric:
    """Declare a rate, for which higher is better."""
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
            "share of answers that equal the gold answer in lower case, without punctuation and articles, with numbers "
            "compared by value",
            interval=True,
            objective=True,
            short="exact",
            field="exact",
        ),
        rate(
            "match_f1",
            "token F1",
            "mean F1 of the words that the answer has in common with the gold answer",
            interval=True,
            objective=True,
            short="F1",
            field="f1",
        ),
        rate(
            "match_macro_f1",
            "macro F1 of labels",
            "mean F1 over the labels, if the gold answers of the split are at most 20 labels",
        ),
        rate(
            "match_label_precision",
            "precision",
            "share of correct answers among those that give this label",
            by_bucket=True,
        ),
        rate("match_label_f1", "F1", "F1 of this label; answers that are no label count as wrong", by_bucket=True),
    )
    recorded = ("exact", "f1", "extracted", "label", "said", "reason")
    options = MatchOptions
    roles = tuple(replace(role, blank=role.name == "context") for role in CompletionTask.roles)
    sample = MappingProxyType({"context": "age of Ann: 40, age of Tom: 55", "question": "What is the age of Tom?"})

    @property
    def sources(self) -> Mapping[str, Source]:
        """Generated rows: look-ups in small tables, and arithmetic."""
        return {"match_synth": synth.load}

    def parse(self, row: Mapping[str, Any], cfg: DataConfig, id: str) -> Example | Fault:
        """Return the example of a row; its answer may also be a number, true or false."""
        name = cfg.columns.answer
        return super().parse({**row, name: as_text(row[name])} if name in row else row, cfg, id)

    def check(self, cfg: ExperimentConfig) -> list[str]:
        """Check that the pattern has one group and that the tolerance lies in [0, 1)."""
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
        """Judge each answer, or the part of it that `data.options.pattern` extracts."""
        wanted = self.settings(cfg)
        found = []
        for example, answer in zip(examples, answers, strict=True):
            on_row()
            record = compared(example.answer, answer, wanted)
            found.append(self.judged(record, cluster_of(example)))
        return found

    def score(self, prefix: str, judgements: Sequence[Judgement]) -> Scored:
        """Return the rates and, if the gold answers are labels, also those of each label."""
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
        """Return 1 for an exact match, else 0."""
        return float(compared(example.answer, answer, self.settings(cfg))["exact"])


def as_text(value: Any) -> Any:
    """Return a finite number, true or false as the text that JSON writes; any other value unchanged."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float | Decimal) and math.isfinite(value) else value


def compared(gold: str, answer: str, wanted: MatchOptions) -> dict[str, Any]:
    """Return the columns of one answer: what was extracted from it, and how that compares with the gold answer."""
    extracted, reason = judge.extract(answer, wanted.pattern)
    exact, compared_as = judge.same(gold, extracted, wanted.tolerance)
    label = judge.label(gold)
    return {
        "exact": exact,
        "f1": 1.0 if exact else judge.f1(gold, extracted),
        "extracted": extracted,
        "label": label,
        "said": label if exact else judge.label(extracted),
        "reason": reason or compared_as,
    }


TASK = MatchTask()
