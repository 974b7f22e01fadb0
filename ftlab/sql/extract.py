"""Taking the query out of an answer that wraps it in a fence or in prose.

A step of its own, off unless it is asked for, since every score judges the text that it is given. The rules, in
order; they know no model:

1. An answer that begins with a query (white space, comments and parentheses apart) is that query.
2. Else the text in a Markdown fence (``` or ~~~, closed or not): the first fence that begins with a query, or the
   first that holds anything.
3. Else the text from the first SELECT or WITH that begins a line, follows a colon or a backtick, or is in capitals.
4. The query ends before a fence, a chat marker such as <|im_end|>, before a semicolon or a blank line after which no
   SQL follows, or, where a backtick began it, before the last backtick.
5. An answer that is nothing but a query, and one in which nothing looks like a query, stay as they are, character
   by character.
"""

import re

_NAME = r"""(?:\w+|"[^"]{0,99}"|`[^`]{0,99}`|\[[^\]]{0,99}\])"""
_WITH = rf"WITH\s+(?:RECURSIVE\s+)?{_NAME}\s*(?:\([^)]{{0,999}}\)\s*)?AS\s*(?:\(|(?:NOT\s+)?MATERIALIZED\b)"
_BLANK = r"(?>\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/|[(;])*+"
_ANY, _DOT, _LINES = re.IGNORECASE, re.DOTALL, re.MULTILINE
_QUERY = rf"(?:SELECT\b|{_WITH})"

BEGINS = re.compile(rf"{_BLANK}{_QUERY}", _ANY | _DOT)
FENCE = re.compile(r"(`{3,}|~{3,})[ \t]*(?:(?!SELECT\b|WITH\b)[\w+.-]+)?(.*?)(?:\1|\Z)", _ANY | _DOT)
# Where a query begins in prose, likeliest first.
_PLACE = r"(?:^|[:`])[ \t]*\n?[ \t]*"
STARTS = (
    re.compile(rf"{_PLACE}(?P<query>\(*(?-i:(?=SELECT|WITH)){_QUERY})", _ANY | _LINES),
    re.compile(rf"\b(?P<query>{_QUERY})"),
    re.compile(rf"{_PLACE}(?P<query>\(*{_QUERY})", _ANY | _LINES),
)
# What may end a query; quoted text and comments are passed over.
ENDS = re.compile(
    rf"""(?P<quoted>'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]+`|\[(?!/?(?:INST|SQL)\])[^\]\n]*\]|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<marker>```|~~~|<\|[^|>\n]*\|>|</?s>|<eos>|<(?:start|end)_of_turn>|\[/?(?:INST|SQL)\]|\n[ \t]*\#{{2,}})
    |(?P<semicolon>;{_BLANK})
    |(?P<blank>\n[ \t\r]*\n\s*)""",
    re.VERBOSE | _ANY | _DOT,
)
# Text after a semicolon that is a further statement, which an answer must not be spared, or nothing.
STATEMENT = re.compile(
    rf"{_QUERY}|(?-i:INSERT|UPDATE|DELETE|DROP|CREATE|ALTER|REPLACE|PRAGMA|ATTACH|DETACH|VACUUM|EXPLAIN|BEGIN|COMMIT|"
    r"ROLLBACK|END|REINDEX|ANALYZE|SAVEPOINT|VALUES)\b|\Z",
    _ANY,
)
# Text after a blank line that goes on with the query, and text before one that is not yet a whole query.
GOES_ON = re.compile(
    r"[(),;=<>|+*/%]|--|\Z|(?:FROM|WHERE|GROUP\s+BY|ORDER\s+BY|HAVING|LIMIT|OFFSET|UNION|INTERSECT|EXCEPT|SELECT|NATURAL|"
    r"LEFT|RIGHT|FULL|INNER|CROSS|OUTER|JOIN|ON|USING|AND|OR|NOT|WHEN|THEN|ELSE|END|AS|WINDOW)\b",
    _ANY,
)
UNDONE = re.compile(
    r"(?:[,(=<>|+/%.-]|\b(?:SELECT|DISTINCT|FROM|WHERE|BY|HAVING|LIMIT|OFFSET|UNION|ALL|INTERSECT|EXCEPT|JOIN|ON|AND|OR|"
    r"NOT|IN|LIKE|BETWEEN|IS|AS|CASE|WHEN|THEN|ELSE|WITH|RECURSIVE))\s*\Z",
    _ANY,
)
TAIL = 40  # characters before a blank line in which UNDONE is looked for


def extract(answer: str) -> str:
    """The query in an answer by the rules above; the answer itself where there is nothing to take away."""
    if BEGINS.match(answer):
        return _cut(answer)
    fenced = [part.strip() for _, part in FENCE.findall(answer) if part.strip()]
    text = next((part for part in fenced if BEGINS.match(part)), fenced[0] if fenced else answer)
    return _cut(text) if BEGINS.match(text) else _from_prose(text)


def _from_prose(text: str) -> str:
    found = next((match for pattern in STARTS if (match := pattern.search(text))), None)
    if not found:
        return text
    start = found.start("query")
    if text[:start].endswith("`") and "`" in text[start:]:
        return text[start : text.rindex("`")].strip()
    return _cut(text[start:].strip())


def _cut(text: str) -> str:
    """The text up to the end of its query; unchanged where the query is all there is."""
    for found in ENDS.finditer(text):
        before, after = found.start(), found.end()
        prose = found["semicolon"] and not STATEMENT.match(text, after)
        if found["blank"]:
            prose = not GOES_ON.match(text, after) and not UNDONE.search(text[max(0, before - TAIL) : before])
        if found["marker"] or prose:
            return text[:before].strip()
    return text
