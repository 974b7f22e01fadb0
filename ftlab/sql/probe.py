"""The probe of a gold query: a query whose result shows every row order and selection that the gold query allows.

It is the gold's text without its top-level LIMIT and OFFSET, and with its ORDER BY keys as additional output columns.
The text is only cut and joined, never generated from a tree, so the remaining parts keep their meaning.
"""

import re
from dataclasses import dataclass

from ftlab.sql.lexer import BLANK, COMMENT, QUOTED, WORD

LEXEME = re.compile(
    rf"(?P<blank>{BLANK}|{COMMENT})|{QUOTED}|\d(?:{WORD}|\.)*|\.\d{WORD}*|{WORD}+|(?s:.)",
    re.ASCII,
)
NAME = re.compile(rf'(?!\d){WORD}+|".*"|`.*`|\[.*\]', re.ASCII | re.DOTALL)
SET_OPERATORS = {"UNION", "INTERSECT", "EXCEPT"}
AFTER_OUTPUTS = {"FROM", "WHERE", "GROUP", "HAVING", "WINDOW", "ORDER", "LIMIT"} | SET_OPERATORS
# Words after which a name is an operand and not an alias; and words that are never an alias.
OPERATORS = {"AND", "OR", "NOT", "IS", "IN", "LIKE", "GLOB", "REGEXP", "MATCH", "BETWEEN", "COLLATE", "ESCAPE", "FROM"}
NO_ALIAS = {"END", "NULL", "ISNULL", "NOTNULL"}
EVERY_ROW = (0, None)


@dataclass(frozen=True)
class Lexeme:
    """A word, number, quoted text or sign; `word` is the text in upper case, `depth` the number of open parentheses."""

    text: str
    word: str
    start: int
    end: int
    depth: int


Part = list[Lexeme]


@dataclass(frozen=True)
class Key:
    """The place of an ORDER BY key in the probe's rows: output `column` (from 0), else the output called `name`, else
    the appended column `extra`. `collation` decides which texts are tied: BINARY, NOCASE or RTRIM."""

    column: int | None = None
    name: str | None = None
    extra: int | None = None
    collation: str = "BINARY"


@dataclass(frozen=True)
class Probe:
    """The query to run instead of the gold query.

    Its last `extras` columns are keys, not outputs. The gold query returns `window[1]` of its rows (None: all) from
    `window[0]` on. Without `keys` the gold query leaves the order open. `distinct`: it returns no row twice.
    """

    text: str
    keys: tuple[Key, ...] = ()
    extras: int = 0
    window: tuple[int, int | None] = EVERY_ROW
    distinct: bool = False


def read_probe(gold: str) -> Probe:
    """The probe of a query; a LIMIT that is not a plain number stays in it."""
    lexemes = read(gold)
    select, order, limit = at_top(lexemes, "SELECT"), at_top(lexemes, "ORDER", "BY"), at_top(lexemes, "LIMIT")
    branches = [branch_outputs(lexemes[at + 1 :]) for at in select]
    if not branches or not branches[0]:
        return Probe(gold)
    window = read_window(lexemes[limit[-1] + 1 :]) if limit else EVERY_ROW
    cut = lexemes[limit[-1]].start if limit and window else lexemes[-1].end
    if not order:
        return Probe(gold[:cut], window=window or EVERY_ROW)
    terms = split(lexemes[order[-1] + 2 : limit[-1] if limit else None])
    compound = any(at_top(lexemes, word) for word in SET_OPERATORS)
    keys, extras = [], list[str]()
    for term in terms:
        term, collation = bare(term)
        key = output_key(term, collation, branches, compound)
        if key is None:
            key = Key(extra=len(extras), collation=collation)
            extras.append(f", ({gold[term[0].start : term[-1].end]})")
        keys.append(key)
    at = branches[0][-1][-1].end
    distinct = lexemes[select[0] + 1].word == "DISTINCT"
    return Probe(gold[:at] + "".join(extras) + gold[at:cut], tuple(keys), len(extras), window or EVERY_ROW, distinct)


def read(text: str) -> Part:
    """The lexemes of a text without blanks, comments and final semicolons."""
    lexemes, depth = Part(), 0
    for match in LEXEME.finditer(text):
        if match.lastgroup == "blank":
            continue
        sign = match.group()
        depth -= sign == ")"
        lexemes.append(Lexeme(sign, sign.upper(), match.start(), match.end(), depth))
        depth += sign == "("
    while lexemes and lexemes[-1].text == ";":
        lexemes.pop()
    return lexemes


def at_top(lexemes: Part, *words: str) -> list[int]:
    """The positions of these consecutive words outside parentheses."""
    return [
        at
        for at, lexeme in enumerate(lexemes)
        if lexeme.depth == 0
        and lexeme.word == words[0]
        and all(at + i < len(lexemes) and lexemes[at + i].word == word for i, word in enumerate(words))
    ]


def read_window(tail: Part) -> tuple[int, int | None] | None:
    """Offset and row count from the lexemes after LIMIT; None if they are not plain whole numbers."""
    numbers = re.fullmatch(r"(-?\d+)(?:(,|OFFSET)(-?\d+))?", "".join(lexeme.word for lexeme in tail))
    if not numbers:
        return None
    first, second = int(numbers[1]), int(numbers[3] or 0)
    offset, count = (first, second) if numbers[2] == "," else (second, first)
    return max(offset, 0), None if count < 0 else count


def split(lexemes: Part) -> list[Part]:
    """The parts between the commas outside parentheses."""
    found: list[Part] = [[]]
    for lexeme in lexemes:
        if lexeme.depth == lexemes[0].depth and lexeme.text == ",":
            found.append([])
        else:
            found[-1].append(lexeme)
    return [part for part in found if part]


def branch_outputs(lexemes: Part) -> list[Part]:
    """The output columns of a SELECT, from the lexemes after that word."""
    if lexemes and lexemes[0].word in ("DISTINCT", "ALL"):
        lexemes = lexemes[1:]
    for at, lexeme in enumerate(lexemes):
        # "a IS DISTINCT FROM b" is not a FROM clause
        if lexeme.depth == 0 and lexeme.word in AFTER_OUTPUTS and lexemes[at - 1].word != "DISTINCT":
            return split(lexemes[:at])
    return split(lexemes)


def bare(term: Part) -> tuple[Part, str]:
    """An ORDER BY term without direction, NULLS FIRST or LAST, collation and outer parentheses; and its collation."""
    collation = "BINARY"
    while len(term) > 1:
        if term[-1].word in ("ASC", "DESC"):
            term = term[:-1]
        elif term[-1].word in ("FIRST", "LAST") and term[-2].word == "NULLS":
            term = term[:-2]
        elif len(term) > 2 and term[-2].word == "COLLATE":
            term, collation = term[:-2], name_of(term[-1]).upper()
        elif term[0].text == "(" and encloses(term):
            term = term[1:-1]
        else:
            break
    return term, collation


def encloses(term: Part) -> bool:
    """Whether the term's first and last parenthesis belong together."""
    return len(term) > 2 and next(at for at in range(1, len(term)) if closes(term, at)) == len(term) - 1


def closes(term: Part, at: int) -> bool:
    return at == len(term) - 1 or (term[at].text == ")" and term[at].depth == term[0].depth)


def output_key(term: Part, collation: str, branches: list[list[Part]], compound: bool) -> Key | None:
    """The output that a term refers to: by position, by alias or, in a compound query, by any output's own text."""
    if len(term) == 1 and term[0].text.isdecimal():
        return Key(column=int(term[0].text) - 1, collation=collation)
    wanted = [name_of(lexeme) for lexeme in term]
    for outputs in branches:
        for at, output in enumerate(outputs):
            alias = alias_of(output)
            if wanted == [alias] or (compound and wanted in spellings(output, alias)):
                starred = any(part[-1].text == "*" for part in outputs[:at])
                return Key(None if starred else at, wanted[-1], collation=collation)
    return Key(name=wanted[-1], collation=collation) if compound else None


def alias_of(output: Part) -> str | None:
    """The alias of an output column, with or without AS; None without one."""
    if len(output) < 2 or output[-1].word in NO_ALIAS:
        return None
    last, before = output[-1], output[-2]
    ends = NAME.fullmatch(before.text) or before.text[0].isdigit() or before.text[-1] in ")'"
    implied = NAME.fullmatch(last.text) and ends and before.word not in OPERATORS
    return name_of(last) if before.word == "AS" or implied else None


def spellings(output: Part, alias: str | None) -> list[list[str]]:
    """How ORDER BY may name an output of a compound query besides its alias."""
    words = [name_of(lexeme) for lexeme in output]
    if alias is not None:
        words = words[: -2 if output[-2].word == "AS" else -1]
    qualified = len(words) == 3 and words[1] == "."
    return [words, words[-1:]] if qualified else [words]


def name_of(lexeme: Lexeme) -> str:
    """A name without quotes in lower case; a string as written."""
    if lexeme.text[0] in '"`[':
        return lexeme.text[1:-1].lower()
    return lexeme.text if lexeme.text[0] == "'" else lexeme.text.lower()
