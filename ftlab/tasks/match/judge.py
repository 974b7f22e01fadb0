"""Whether a short answer is the right one: as text, as a number, and by the words that the two have in common.

Sources: normalisation and token F1 as in SQuAD's evaluation (P. Rajpurkar et al., EMNLP 2016, arXiv:1606.05250), but
that a number within a text keeps its sign, its point and its unit.
"""

import re
import string
import unicodedata
from collections import Counter
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any

ARTICLES = re.compile("a|an|the")
PUNCTUATION = set(string.punctuation)
# A number with its sign, thousands in groups of three, a fraction, an exponent, a sign of percent.
NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:[eE]([+-]?\d{1,3}))?\s*(%?)")
# What may be a number within a text: no part of a word, the signs that touch its digits included.
NUMERIC = re.compile(r"(?<![\w.])[-+]?(?:\d[\d.,:/]*\d|\.\d+|\d)(?:e[-+]?\d{1,3})?(?!\w)(?:\s*%)?")
MOST_DIGITS = 400  # of what is read as a number
SECONDS = 1.0  # that a pattern may take for one answer


def normalised(text: str) -> str:
    """The text in lower case without punctuation and articles, its words one blank apart, its numbers as `canonical`. A
    text of articles alone keeps them."""
    text, words, end = _ascii_digits(text).lower(), list[str](), 0
    for found in NUMERIC.finditer(text):
        words += [*_words(text[end : found.start()]), canonical(found[0])]
        end = found.end()
    words += _words(text[end:])
    return " ".join([word for word in words if not ARTICLES.fullmatch(word)] or words)


def canonical(text: str) -> str:
    """A number as it is written without sign of plus, thousands, exponent and needless zeros; what only looks like one
    (`10:30`, `1/2`, `1,00`) as it is."""
    found = number(text)
    if found is None:
        return "".join(text.split())
    value, unit = found
    with localcontext(prec=2 * MOST_DIGITS + 2_000):  # enough for it to be exact
        return f"{(Decimal(value.numerator) / Decimal(value.denominator)).normalize():f}{unit}"


def _words(text: str) -> list[str]:
    return "".join(char for char in text if char not in PUNCTUATION).split()


def _ascii_digits(text: str) -> str:
    """Digits of other scripts as ASCII's, and the sign of minus as a hyphen. Superscripts stay, which are no digits."""
    digits: dict[str, str | int | None] = {
        char: str(unicodedata.decimal(char)) for char in set(text) if unicodedata.decimal(char, None) is not None
    }
    return text.translate(str.maketrans({**digits, "\N{MINUS SIGN}": "-"}))


def number(text: str) -> tuple[Fraction, str] | None:
    """The number that a text is, with its unit (`%` or none); None where it is something else."""
    text = _ascii_digits(text).strip().removesuffix(".")
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
    return label(gold) == label(answer), "texts"


def label(text: str) -> str:
    """What a text is compared by: as it is normalised, or where nothing is left of it, as it is."""
    return normalised(text) or text.strip()


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
