"""Extracts the query from an answer that wraps it in a fence, in tags or in prose.

This is an optional step, off by default, since every score judges the text as given. The rules, in order; none is
specific to a model:

0. A closed reasoning block at the start, such as <think>…</think>, is removed, whatever it contains.
1. An answer that begins with a query (after white space, comments and parentheses) is that query.
2. Else the query after the first <sql> or SQLQuery: (in any case) that is followed by one, in a fence or not.
3. Else the text in a Markdown fence (``` or ~~~, closed or not): the first fence that begins with a query, or the
   first that is not empty.
4. Else the text from the first SELECT or WITH that begins a line, follows a colon or a backtick, or is in capitals. A
   full stop at the end of its sentence is not part of it.
5. The query ends before a fence, </sql>, SQLResult:, a chat marker such as <|im_end|>, before a semicolon or a blank
   line that no SQL follows or, if one of ** " ' ` stands right before the query, before the closing mark.
6. An answer that is only a query, and one without anything like a query, are returned unchanged.
"""

import re

from ftlab.sql.strict import check_text

_NAME = r"""(?:\w+|"[^"]{0,99}"|`[^`]{0,99}`|\[[^\]]{0,99}\])"""
_WITH = rf"WITH\s+(?:RECURSIVE\s+)?{_NAME}\s*(?:\([^)]{{0,999}}\)\s*)?AS\s*(?:\(|(?:NOT\s+)?MATERIALIZED\b)"
_BLANK = r"(?>\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/|[(;])*+"
_ANY, _DOT, _LINES = re.IGNORECASE, re.DOTALL, re.MULTILINE
_QUERY = rf"(?:SELECT\b|{_WITH})"

REASONING = re.compile(r"(?:\s*<(think|thinking|thought|reasoning)>.*?</\1>\s*)+", _ANY | _DOT)
BEGINS = re.compile(rf"{_BLANK}{_QUERY}", _ANY | _DOT)
FENCE = re.compile(r"(`{3,}|~{3,})[ \t]*(?:(?!SELECT\b|WITH\b)[\w+.-]+)?(.*?)(?:\1|\Z)", _ANY | _DOT)
# Labels before a query: the tag <sql>, and the label of LangChain's prompts for SQL. The length of comments in between
# is limited, so that a text with many labels is read in linear time.
LABEL = re.compile(
    rf"""(?:<sql>|\bSQLQuery[ \t]*:)\s*(?:(?:`{{3,}}|~{{3,}})[ \t]*(?:(?!SELECT\b|WITH\b)[\w+.-]+)?|\*\*|["'`])?
    (?=(?>\s|--[^\n]{{0,200}}\n|/\*[^*]{{0,200}}\*/|[(;])*+{_QUERY})""",
    re.VERBOSE | _ANY | _DOT,
)
# Where a query begins in prose, likeliest first.
_PLACE = r"""(?:^|[:`])[ \t]*\n?[ \t]*(?:\*\*|["'`])?"""
STARTS = (
    re.compile(rf"{_PLACE}(?P<query>\(*(?-i:(?=SELECT|WITH)){_QUERY})", _ANY | _LINES),
    re.compile(rf"\b(?P<query>{_QUERY})"),
    re.compile(rf"{_PLACE}(?P<query>\(*{_QUERY})", _ANY | _LINES),
)
# What may end a query; quoted text and comments are skipped.
ENDS = re.compile(
    rf"""(?P<quoted>'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]+`|\[(?!/?(?:INST|SQL)\])[^\]\n]*\]|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<marker>```|~~~|<\|[^|>\n]*\|>|</?s>|<eos>|<(?:start|end)_of_turn>|\[/?(?:INST|SQL)\]
        |</sql>|(?:\*\*|\b)SQLResult[ \t]*:|\n[ \t]*\#{{2,}})
    |(?P<semicolon>;{_BLANK})
    |(?P<blank>\n[ \t\r]*\n\s*)
    |(?P<stop>(?<!\s)\.(?:[ \t\r]*\n\s*|\s+(?=(?-i:[A-Z]))))""",
    re.VERBOSE | _ANY | _DOT,
)
# Text after a semicolon that is empty, or a further statement, which stays in the answer and makes it invalid.
STATEMENT = re.compile(
    rf"{_QUERY}|(?-i:INSERT|UPDATE|DELETE|DROP|CREATE|ALTER|REPLACE|PRAGMA|ATTACH|DETACH|VACUUM|EXPLAIN|BEGIN|COMMIT|"
    r"ROLLBACK|END|REINDEX|ANALYZE|SAVEPOINT|VALUES)\b|\Z",
    _ANY,
)
# Text after a blank line that continues the query, and text before one that is not yet a complete query.
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
# Marks around a query in prose, and the text after a closing mark: punctuation, then white space.
MARKS = ("**", '"', "'", "`")
CLOSED = re.compile(r"[^\w\s(]{0,5}(?:\s|\Z)")
TAIL = 40  # characters before a position that are searched for UNDONE


def extract(answer: str) -> str:
    """The query in an answer by the rules above; the answer itself if there is nothing to remove.

    Raises TypeError if the answer is not text.
    """
    check_text("answer", answer)
    if reasoning := REASONING.match(answer):
        answer = answer[reasoning.end() :]
    if BEGINS.match(answer):
        return _cut(answer)
    if label := LABEL.search(answer):
        return _marked(answer[: label.end()], answer[label.end() :].strip()) or _cut(answer[label.end() :].strip())
    fenced = [part.strip() for _, part in FENCE.findall(answer) if part.strip()]
    text = next((part for part in fenced if BEGINS.match(part)), fenced[0] if fenced else answer)
    return _cut(text) if BEGINS.match(text) else _from_prose(text)


def _from_prose(text: str) -> str:
    found = next((match for pattern in STARTS if (match := pattern.search(text))), None)
    if not found:
        return text
    before, query = text[: found.start("query")], text[found.start("query") :]
    query = _marked(before, query) or _cut(query.strip(), prose=True)
    return query.removesuffix(".").rstrip()


def _marked(before: str, query: str) -> str | None:
    """The query up to its closing mark, if the text before it ends with an opening one; else None."""
    mark = next((mark for mark in MARKS if before.endswith(mark) and not before.endswith("```")), None)
    end = _closing(query, mark) if mark else None
    return None if end is None else query[:end].strip()


def _closing(query: str, mark: str) -> int | None:
    """The position of the mark that closes a query; marks inside the query come in pairs before it."""
    for number, found in enumerate(re.finditer(re.escape(mark), query)):
        end = found.start() - query.endswith(".", 0, found.start())
        if number % 2 == 0 and CLOSED.match(query, found.end()) and not _undone(query, end):
            return end
    return query.rindex(mark) if mark == "`" and mark in query else None


def _undone(text: str, end: int) -> bool:
    return UNDONE.search(text[max(0, end - TAIL) : end]) is not None


def _cut(text: str, prose: bool = False) -> str:
    """The text up to the end of its query, or unchanged if nothing follows. In `prose` a sentence's end ends it."""
    for found in ENDS.finditer(text):
        before, after = found.start(), found.end()
        ended = found["marker"] or (found["semicolon"] and not STATEMENT.match(text, after))
        if found["blank"] or (prose and found["stop"]):
            ended = not GOES_ON.match(text, after) and not _undone(text, before)
        if ended:
            return text[:before].strip()
    return text
