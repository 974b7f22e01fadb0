"""Scores of each label where the right answers are few labels, as in classification."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

MOST = 20  # different answers that are still labels
WORDS = 3  # of a label at most


@dataclass(frozen=True)
class LabelScore:
    """Of one label: `right` answers, how often it was `said`, and the rows that have it."""

    right: int
    said: int
    rows: int

    @property
    def precision(self) -> float:
        """The share of right ones among the answers that are this label; 0 where none is."""
        return self.right / self.said if self.said else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where no answer is right."""
        return 2 * self.right / (self.said + self.rows) if self.right else 0.0


def labels(golds: Sequence[str]) -> list[str]:
    """The labels in order of the alphabet; none where the answers are no labels: too many, too long, or on average
    fewer than two rows of each."""
    found = sorted(set(golds))
    few = 2 <= len(found) <= MOST and len(golds) >= 2 * len(found)
    return found if few and all(0 < len(label.split()) <= WORDS for label in found) else []


def by_label(golds: Sequence[str], answers: Sequence[str]) -> dict[str, LabelScore]:
    """The scores of each label. An answer that is no label is wrong for its row and counts for no label."""
    rows, said = Counter(golds), Counter(answers)
    right = Counter(gold for gold, answer in zip(golds, answers, strict=True) if gold == answer)
    return {label: LabelScore(right[label], said[label], rows[label]) for label in labels(golds)}


def key_part(label: str) -> str:
    """What a metric's key calls a label: the label with `_` for a blank. One in which another sign had to be replaced
    ends on a digest of it, so that no two labels are called the same, whatever other labels there are."""
    name = re.sub(r"[\s/]", "_", label)
    return f"{name}~{sha256(label.encode()).hexdigest()[:6]}" if re.search(r"[/_~]", label) else name
