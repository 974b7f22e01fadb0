"""Scores of each label if the gold answers are a few labels, as in classification."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

MOST = 20  # largest number of different answers that still count as labels
WORDS = 3  # largest number of words in a label


@dataclass(frozen=True)
class LabelScore:
    """Counts of one label: correct answers (`right`), answers that give it (`said`), and rows whose gold it is."""

    right: int
    said: int
    rows: int

    @property
    def precision(self) -> float:
        """The share of correct answers among those that give this label; 0 if there is none."""
        return self.right / self.said if self.said else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 if no answer is correct."""
        return 2 * self.right / (self.said + self.rows) if self.right else 0.0


def labels(golds: Sequence[str]) -> list[str]:
    """Return the labels in alphabetical order; none if the gold answers are not labels: too many, too long, or fewer
    than two rows for each on average."""
    found = sorted(set(golds))
    few = 2 <= len(found) <= MOST and len(golds) >= 2 * len(found)
    return found if few and all(0 < len(label.split()) <= WORDS for label in found) else []


def by_label(golds: Sequence[str], answers: Sequence[str]) -> dict[str, LabelScore]:
    """Return the scores of each label. An answer that is no label is wrong for its row and counts for no label."""
    rows, said = Counter(golds), Counter(answers)
    right = Counter(gold for gold, answer in zip(golds, answers, strict=True) if gold == answer)
    return {label: LabelScore(right[label], said[label], rows[label]) for label in labels(golds)}


def key_part(label: str) -> str:
    """Return the label as part of a metric's key, with `_` for a space. A label in which another character had to be
    replaced ends with a digest of it, so that two labels never have the same key, whatever other labels there are."""
    name = re.sub(r"[\s/]", "_", label)
    return f"{name}~{sha256(label.encode()).hexdigest()[:6]}" if re.search(r"[/_~]", label) else name
