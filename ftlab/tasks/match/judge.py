"""Whether a short answer is the right one: as text, as a number, and by the words that the two have in common.

Sources: normalisation and token F1 as in SQuAD's evaluation (P. Rajpurkar et al., EMNLP 2016, arXiv:1606.05250).
"""

import re
import string
import unicodedata
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = set(string.punctuation)
# A number with its sign, thousands in groups of three, a fraction, an exponent, a sign of percent.
NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:[eE]([+-]?\d{1,3}))?\s*(%?)")
MOST_DIGITS = 400  # of what is read as a number
SECONDS = 1.0  # that a pattern may take for one answer


def normalised(text: str) -> str:
    """The text in lower case without punctuation and articles, its words one blank apart."""
    text = "".join(char for char in text.lower() if char not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


def number(text: str) -> tuple[Fraction, str] | None:
    """The number that a text is, with its unit (`%` or none); None where it is something else."""
    text = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").strip().removesuffix(".")
    found = NUMBER.fullmatch(text) if len(text) <= MOST_DIGITS else None
    if not found or not (found[2] or found[3]):
        return None
    sign, whole, part, exponent, unit = found.groups()
    value = Fraction(f"{sign}{(whole or '0').replace(',', '')}{part or ''}") * Fraction(10) ** int(exponent or 0)
    return value, unit


def same(gold: str, answer: str, tolerance: float = 0.0) -> tuple[bool, str]:
    """Whether two texts say the same, and by what: equal when normalised or, where both are numbers, equal within a
    relative `tolerance` and of one unit. An empty answer is never right."""
    if not answer.strip():
        return False, "no answer"
    a, b = number(gold), number(answer)
    if a and b:
        near = abs(a[0] - b[0]) <= Fraction(tolerance) * abs(a[0])
        return near and a[1] == b[1], "numbers" if a[1] == b[1] else "one is a percentage"
    if normalised(gold) or normalised(answer):
        return normalised(gold) == normalised(answer), "texts"
    return gold.strip() == answer.strip(), "texts"  # nothing but punctuation or articles


def f1(gold: str, answer: str) -> float:
    """The harmonic mean of precision and recall of the words of a normalised answer; 1 for two texts without any."""
    a, b = normalised(gold).split(), normalised(answer).split()
    common = sum((Counter(a) & Counter(b)).values())
    if not a or not b:
        return float(a == b and bool(answer.strip()))
    return 0.0 if common == 0 else 2 * common / (len(a) + len(b))


def taken_out(answer: str, pattern: str | None) -> tuple[str, str]:
    """What the pattern's group holds in its last match, the whole answer where there is no pattern; and the reason why
    it is nothing."""
    if pattern is None:
        return answer.strip(), ""
    found = None
    try:
        for found in _compiled(pattern).finditer(answer, timeout=SECONDS):  # noqa: B007 (the last one counts)
            pass
    except TimeoutError:
        return "", f"the pattern took more than {SECONDS:g} s"
    return ((found[1] or "").strip(), "") if found else ("", "the pattern does not match")


def faults(pattern: str) -> list[str]:
    """What is wrong with a pattern, a line each."""
    import regex

    try:
        groups = _compiled(pattern).groups
    except regex.error as error:
        return [f"data.options.pattern={pattern!r} is no regular expression ({error})"]
    if groups != 1:
        return [f"data.options.pattern={pattern!r} has {groups} groups: it must have one, which holds the answer"]
    return []


@lru_cache(maxsize=8)
def _compiled(pattern: str) -> Any:
    """By the package `regex`, which unlike Python's own ends a match that takes too long."""
    import regex

    return regex.compile(pattern)
