"""Whether a short answer is the right one: as text, as a number, and by the words that the two have in common.

Sources: normalisation and token F1 as in SQuAD's evaluation (P. Rajpurkar et al., EMNLP 2016, arXiv:1606.05250), except
that numbers keep their sign, what stands between their digits, and a sign of percent.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
MARKS = re.escape(string.punctuation)
DROPPED = str.maketrans("", "", string.punctuation)
# A number with its sign, thousands in groups of three, a fraction, an exponent, a sign of percent.
NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:[eE]([+-]?\d{1,3}))?\s*(%?)")
# Digits within a text, whatever punctuation stands between them, and what belongs to them: a sign or a point in front,
# an exponent, a sign of percent. A hyphen that joins them to a word (covid-19) is no sign.
DIGITS = re.compile(
    rf"(?:(?<!\w)[+-])?(?:(?<![\w.])\.)?\d+(?:[{MARKS}]+\d+)*(?:e[+-]?\d{{1,3}}(?!\w|[{MARKS}]+\d))?(?:\s*%)?"
)
IN_A_NAME = re.compile(r"\w-?$")  # the two characters in front of digits that belong to a name: v1.50, F-16
SIGN_OF_MONEY = re.compile(r"(?<!\w)([+-])([$£€¥])(?=\.?\d)")
FULL_WIDTH = re.compile(r"(?<=\d)[\uff0e\uff0c\uff1a\uff0f\uff05]|[\uff0e\uff0b\uff0d](?=[\uff0e.]?\d)")
MOST_DIGITS = 400  # of what is read as a number
SECONDS = 1.0  # that a pattern may take for one answer


def normalised(text: str) -> str:
    """The text in lower case without punctuation and articles, its words one blank apart and its numbers as
    `canonical`. A text of articles alone keeps them; one of punctuation alone is empty."""
    text = "".join(_parts(SIGN_OF_MONEY.sub(r"\2\1", _ascii_numbers(text).lower())))
    return " ".join(ARTICLES.sub(" ", text).split() or text.split())


def label(text: str) -> str:
    """What a text is compared by: as it is normalised or, where nothing is left of it, as it is."""
    return normalised(text) or text.strip()


def canonical(text: str) -> str:
    """A number written in one way: no plus, thousands, exponent or needless zeros. What only looks like a number
    (`10:30`, `1/2`, `1,00`) stays as it is."""
    found = number(text)
    if found is None:
        return "".join(text.split())
    value, unit = found
    digits = f"{value:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return f"{digits if value else '0'}{unit}"


def number(text: str) -> tuple[Decimal, str] | None:
    """The number that a text is, exactly, with its unit (`%` or none); None where it is something else."""
    text = _ascii_numbers(text).strip().removesuffix(".")
    found = NUMBER.fullmatch(text) if len(text) <= MOST_DIGITS else None
    if not found or not (found[2] or found[3]):
        return None
    sign, whole, part, exponent, unit = found.groups()
    return Decimal(f"{sign}{(whole or '0').replace(',', '')}{part or ''}e{exponent or 0}"), unit


def same(gold: str, answer: str, tolerance: float = 0.0) -> tuple[bool, str]:
    """Whether two texts say the same, and by what: equal when normalised or, where both are numbers, equal within a
    relative `tolerance` and of one unit. An empty answer is never right."""
    if not answer.strip():
        return False, "no answer"
    a, b = number(gold), number(answer)
    if a and b:
        right, said = Fraction(a[0]), Fraction(b[0])
        near = abs(right - said) <= Fraction(tolerance) * abs(right)
        return near and a[1] == b[1], "numbers" if a[1] == b[1] else "one is a percentage"
    return label(gold) == label(answer), "texts"


def f1(gold: str, answer: str) -> float:
    """The harmonic mean of precision and recall of the words that an answer is compared by; 0 for an empty one."""
    a, b = label(gold).split(), label(answer).split()
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _parts(text: str) -> Iterator[str]:
    """A text of lower case in pieces: without punctuation, and numbers by their value unless a name holds them."""
    end = 0
    for found in DIGITS.finditer(text):
        yield text[end : found.start()].translate(DROPPED)
        in_a_name = IN_A_NAME.search(text[max(0, found.start() - 2) : found.start()])
        yield "".join(found[0].split()) if in_a_name else canonical(found[0])
        end = found.end()
    yield text[end:].translate(DROPPED)


def _ascii_numbers(text: str) -> str:
    """The text with digits of other scripts, and signs of full width beside digits, as those of ASCII. Superscripts and
    fractions of one character stay: 10\N{SUPERSCRIPT TWO} is not 102."""
    if text.isascii():
        return text
    text = "".join(str(unicodedata.decimal(char, char)) for char in text).replace("\N{MINUS SIGN}", "-")
    return FULL_WIDTH.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)


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
