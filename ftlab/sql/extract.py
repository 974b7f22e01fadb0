"""Taking the query out of an answer that wraps it in a fence, in tags or in prose.

A step of its own, off unless it is asked for, since every score judges the text that it is given. The rules, in
order; they know no model:

0. A closed reasoning block at the start, such as <think>…</think>, is taken away, whatever it holds.
1. An answer that begins with a query (white space, comments and parentheses apart) is that query.
2. Else the query that follows the first <sql> or SQLQuery: (case aside) that a query follows, in a fence or not.
3. Else the text in a Markdown fence (``` or ~~~, closed or not): the first fence that begins with a query, or the
   first that holds anything.
4. Else the text from the first SELECT or WITH that begins a line, follows a colon or a backtick, or is in capitals. A
   full stop that ends its sentence is prose.
5. The query ends before a fence, </sql>, SQLResult:, a chat marker such as <|im_end|>, before a semicolon or a blank
   line after which no SQL follows, or, where one of ** " ' ` stands right before it, before the mark that closes it.
6. An answer that is nothing but a query, and one in which nothing looks like a query, stay as they are, character
   by character.
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
# What announces a query: the tag <sql>, and the label of LangChain's prompts for SQL. Comments between it and the query
# are of bounded length, so that a text of many labels is read in linear time.
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
# What may end a query; quoted text and comments are passed over.
ENDS = re.compile(
    rf"""(?P<quoted>'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]+`|\[(?!/?(?:INST|SQL)\])[^\]\n]*\]|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<marker>```|~~~|<\|[^|>\n]*\|>|</?s>|<eos>|<(?:start|end)_of_turn>|\[/?(?:INST|SQL)\]
        |</sql>|(?:\*\*|\b)SQLResult[ \t]*:|\n[ \t]*\#{{2,}})
    |(?P<semicolon>;{_BLANK})
    |(?P<blank>\n[ \t\r]*\n\s*)
    |(?P<stop>(?<!\s)\.(?:[ \t\r]*\n\s*|\s+(?=(?-i:[A-Z]))))""",
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
# What a query in prose can be wrapped in, and what follows a mark that closes one: punctuation, then white space.
MARKS = ("**", '"', "'", "`")
CLOSED = re.compile(r"[^\w\s(]{0,5}(?:\s|\Z)")
TAIL = 40  # characters before a place in which UNDONE is looked for


def extract(answer: str) -> str:
    """The query in an answer by the rules above; the answer itself where there is nothing to take away.

    Raises TypeError where the answer is not text.
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
    """The query up to the mark that closes it, where what is before it ends with one; else None."""
    mark = next((mark for mark in MARKS if before.endswith(mark) and not before.endswith("```")), None)
    end = _closing(query, mark) if mark else None
    return None if end is None else query[:end].strip()


def _closing(query: str, mark: str) -> int | None:
    """Where the mark is that closes a query in marks. Marks of the query's own come in pairs before it."""
    for number, found in enumerate(re.finditer(re.escape(mark), query)):
        end = found.start() - query.endswith(".", 0, found.start())
        if number % 2 == 0 and CLOSED.match(query, found.end()) and not _undone(query, end):
            return end
    return query.rindex(mark) if mark == "`" and mark in query else None


def _undone(text: str, end: int) -> bool:
    return UNDONE.search(text[max(0, end - TAIL) : end]) is not None


def _cut(text: str, prose: bool = False) -> str:
    """The text up to the end of its query; unchanged where the query is all there is. In `prose` sentences end it."""
    for found in ENDS.finditer(text):
        before, after = found.start(), found.end()
        ended = found["marker"] or (found["semicolon"] and not STATEMENT.match(text, after))
        if found["blank"] or (prose and found["stop"]):
            ended = not GOES_ON.match(text, after) and not _undone(text, before)
        if ended:
            return text[:before].strip()
    return text
