"""Whether a short answer is correct: compared as text, as a number, and by the words in common with the gold answer.

Sources: normalisation and token F1 as in SQuAD's evaluation (P. Rajpurkar et al., EMNLP 2016, arXiv:1606.05250), except
that numbers keep their sign, the punctuation between their digits, and a percent sign.
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
# A number with its sign, thousands in groups of three, a fraction, an exponent, a percent sign.
NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:[eE]([+-]?\d{1,3}))?\s*(%?)")
# Digits within a text, with the punctuation between them and what belongs to them: a sign or a point in front, an
# exponent, a percent sign. A hyphen that connects them with a word (covid-19) is not a sign.
DIGITS = re.compile(
    rf"(?:(?<!\w)[+-])?(?:(?<![\w.])\.)?\d+(?:[{MARKS}]+\d+)*(?:e[+-]?\d{{1,3}}(?!\w|[{MARKS}]+\d))?(?:\s*%)?"
)
IN_A_NAME = re.compile(r"\w-?$")  # matches the two characters before digits that belong to a name: v1.50, F-16
SIGN_OF_MONEY = re.compile(r"(?<!\w)([+-])([$£€¥])(?=\.?\d)")
FULL_WIDTH = re.compile(r"(?<=\d)[\uff0e\uff0c\uff1a\uff0f\uff05]|[\uff0e\uff0b\uff0d](?=[\uff0e.]?\d)")
MOST_DIGITS = 400  # longest text, in characters, that is read as a number
SECONDS = 1.0  # time that a pattern may take for one answer


def normalised(text: str) -> str:
    """Return the text in lower case, without punctuation and articles, its words separated by one space and its numbers
    in `canonical` form. A text of articles alone keeps them; a text of punctuation alone becomes empty."""
    text = "".join(_parts(SIGN_OF_MONEY.sub(r"\2\1", _ascii_numbers(text).lower())))
    return " ".join(ARTICLES.sub(" ", text).split() or text.split())


def label(text: str) -> str:
    """Return the form in which a text is compared: normalised or, if that is empty, unchanged."""
    return normalised(text) or text.strip()


def canonical(text: str) -> str:
    """Return a number in its one canonical form: no plus sign, thousands separators, exponent or superfluous zeros.
    Text that only looks like a number (`10:30`, `1/2`, `1,00`) stays as it is."""
    found = number(text)
    if found is None:
        return "".join(text.split())
    value, unit = found
    digits = f"{value:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return f"{digits if value else '0'}{unit}"


def number(text: str) -> tuple[Decimal, str] | None:
    """Return the exact value of a text that is a number, with its unit (`%` or none); None for any other text."""
    text = _ascii_numbers(text).strip().removesuffix(".")
    found = NUMBER.fullmatch(text) if len(text) <= MOST_DIGITS else None
    if not found or not (found[2] or found[3]):
        return None
    sign, whole, part, exponent, unit = found.groups()
    return Decimal(f"{sign}{(whole or '0').replace(',', '')}{part or ''}e{exponent or 0}"), unit


def same(gold: str, answer: str, tolerance: float = 0.0) -> tuple[bool, str]:
    """Return whether an answer equals the gold one, and how they were compared: as normalised texts or, if both are
    numbers, by value within a relative `tolerance` and with the same unit. An empty answer is never correct."""
    if not answer.strip():
        return False, "no answer"
    a, b = number(gold), number(answer)
    if a and b:
        wanted, given = Fraction(a[0]), Fraction(b[0])
        near = abs(wanted - given) <= Fraction(tolerance) * abs(wanted)
        return near and a[1] == b[1], "numbers" if a[1] == b[1] else "one is a percentage"
    return label(gold) == label(answer), "texts"


def f1(gold: str, answer: str) -> float:
    """Return the F1 (harmonic mean of precision and recall) of an answer's words; 0 for an empty answer."""
    a, b = label(gold).split(), label(answer).split()
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _parts(text: str) -> Iterator[str]:
    """Yield a lower-case text in pieces: without punctuation, numbers in canonical form unless they are in a name."""
    end = 0
    for found in DIGITS.finditer(text):
        yield text[end : found.start()].translate(DROPPED)
        in_a_name = IN_A_NAME.search(text[max(0, found.start() - 2) : found.start()])
        yield "".join(found[0].split()) if in_a_name else canonical(found[0])
        end = found.end()
    yield text[end:].translate(DROPPED)


def _ascii_numbers(text: str) -> str:
    """Return the text with digits of other scripts, and full-width signs beside digits, as ASCII. Superscripts and
    fractions of one character stay as they are: 10\N{SUPERSCRIPT TWO} is not 102."""
    if text.isascii():
        return text
    text = "".join(str(unicodedata.decimal(char, char)) for char in text).replace("\N{MINUS SIGN}", "-")
    return FULL_WIDTH.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)


def extract(answer: str, pattern: str | None) -> tuple[str, str]:
    """Return the text of the pattern's group in its last match, or the whole answer if there is no pattern; and the
    reason if nothing could be extracted."""
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
    """Return what is wrong with a pattern, one line for each problem."""
    import regex

    try:
        groups = _compiled(pattern).groups
    except regex.error as error:
        return [f"data.options.pattern={pattern!r} is not a valid regular expression ({error})"]
    if groups != 1:
        return [f"data.options.pattern={pattern!r} has {groups} groups: it must have one, which matches the answer"]
    return []


@lru_cache(maxsize=8)
def _compiled(pattern: str) -> Any:
    """Compile a pattern with the package `regex`, which unlike Python's `re` can stop a match that takes too long."""
    import regex

    return regex.compile(pattern)
