"""The tables that a context of CREATE TABLE statements declares, or that a real database has.

Contexts in the wild are damaged: reserved words as names without quotes, a table declared twice, a column named
twice. So the reader is one of its own that takes names and declared types and skips all else; on every context that
SQLite accepts it finds what SQLite finds.
"""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ftlab.sql.lexer import TOKEN, WORD

Kind = Literal["number", "text", "any"]

QUOTES = {"'": "'", '"': '"', "`": "`", "[": "]"}
TEMPORARY = {"TEMP", "TEMPORARY"}

# Words that SQLite never takes for a part of a type's name: there the type ends.
AFTER_TYPE = frozenset(
    re.findall(
        r"\w+",
        """ADD ALL ALTER AND AS AUTOINCREMENT BETWEEN CASE CHECK COLLATE COMMENT COMMIT CONSTRAINT CREATE DEFAULT
        DEFERRABLE DELETE DISTINCT DROP ELSE ESCAPE EXISTS FOREIGN FROM GENERATED GROUP HAVING IN INDEX INSERT INTERSECT
        INTO IS ISNULL JOIN LIMIT NOT NOTNULL NULL ON OR ORDER PRIMARY REFERENCES SELECT SET TABLE THEN TO TRANSACTION
        UNION UNIQUE UPDATE USING VALUES WHEN WHERE""",
    )
)


@dataclass(frozen=True)
class Column:
    """A column: its name as first written, its declared type ("" where there is none), and what it may hold."""

    name: str
    type: str
    kind: Kind


@dataclass(frozen=True)
class Table:
    """A table: its name as first written, and its columns in order, by lower-case name."""

    name: str
    columns: dict[str, Column]


@dataclass(frozen=True, eq=False)
class Schema:
    """Tables by lower-case name, in the order of their first declaration."""

    tables: dict[str, Table]

    def ddl(self) -> list[str]:
        """One CREATE TABLE statement a table: names quoted, types as declared, no keys or constraints."""
        return [
            f"CREATE TABLE {quoted(table.name)} "
            f"({', '.join(f'{quoted(column.name)} {column.type}' for column in table.columns.values())})"
            for table in self.tables.values()
        ]

    @classmethod
    def of_database(cls, connection: sqlite3.Connection) -> "Schema":
        """The tables and views of a real database, without SQLite's own and without virtual tables.

        Raises sqlite3.Error where the database cannot be read.
        """
        kinds = connection.execute("SELECT name, type FROM pragma_table_list WHERE schema = 'main'").fetchall()
        tables: dict[str, Table] = {}
        for name, kind in kinds:
            if kind in ("table", "view") and not name.lower().startswith("sqlite_"):
                rows = connection.execute("SELECT name, type FROM pragma_table_info(?)", (name,)).fetchall()
                tables[name.lower()] = Table(name, {column.lower(): column_of(column, type) for column, type in rows})
        return cls(tables)


@lru_cache(maxsize=4096)
def read_schema(context: str) -> Schema:
    """The tables of a context. Never fails: what is no CREATE TABLE statement is skipped.

    A table declared more than once has the united columns, and of a column named twice (case aside) the first
    declaration counts. Names beginning with sqlite_ belong to SQLite and cannot be declared.
    """
    tables: dict[str, Table] = {}
    for name, body in table_bodies(context):
        columns = [column for definition in definitions(body) if (column := read_column(definition)) is not None]
        if columns and not name.lower().startswith("sqlite_"):
            table = tables.setdefault(name.lower(), Table(name, {}))
            for column in columns:
                table.columns.setdefault(column.name.lower(), column)
    return Schema(tables)


def quoted(name: str) -> str:
    """A name in double quotes, as SQLite reads it."""
    return '"' + name.replace('"', '""') + '"'


def unquoted(token: str) -> str:
    close = QUOTES.get(token[0])
    if close is None:
        return token
    inner = token[1:-1] if len(token) > 1 and token.endswith(close) else token[1:]
    return inner if close == "]" else inner.replace(close * 2, close)


def table_bodies(context: str) -> Iterator[tuple[str, list[str]]]:
    """The name of each created table and the tokens between its parentheses."""
    tokens = [token.group() for token in TOKEN.finditer(context) if token.lastgroup != "blank"]
    at = 0
    while at < len(tokens):
        start = at
        at += 1
        if tokens[start].upper() != "CREATE":
            continue
        at += at < len(tokens) and tokens[at].upper() in TEMPORARY
        if at >= len(tokens) or tokens[at].upper() != "TABLE":
            continue
        at += 1
        if [token.upper() for token in tokens[at : at + 3]] == ["IF", "NOT", "EXISTS"]:
            at += 3
        while tokens[at + 1 : at + 2] == ["."]:
            at += 2
        if tokens[at + 1 : at + 2] == ["("]:
            end = closing(tokens, at + 1)
            yield unquoted(tokens[at]), tokens[at + 2 : end]
            at = end


def closing(tokens: list[str], start: int) -> int:
    """Where the parenthesis that opens at `start` closes, else the end of the tokens."""
    depth = 0
    for at in range(start, len(tokens)):
        depth += (tokens[at] == "(") - (tokens[at] == ")")
        if depth == 0:
            return at
    return len(tokens)


def definitions(body: list[str]) -> Iterator[list[str]]:
    """The tokens of each part between the commas of a table's body."""
    depth, part = 0, list[str]()
    for token in body:
        depth += (token == "(") - (token == ")")
        if token == "," and depth == 0:
            yield part
            part = []
        else:
            part.append(token)
    yield part


def read_column(definition: list[str]) -> Column | None:
    """The column that a part declares; None for a constraint, a key, and what begins with no name."""
    if not definition or not re.match(rf"{WORD}|['\"`\[]", definition[0]) or is_constraint(definition):
        return None
    name = unquoted(definition[0])
    return column_of(name, declared_type(definition[1:])) if name else None


def is_constraint(definition: list[str]) -> bool:
    """Whether a part is a constraint of the table and not a column of that name, as in (group TEXT, key TEXT)."""
    first, second, third = [*(token.upper() for token in definition[:3]), "", "", ""][:3]
    match first:
        case "PRIMARY" | "FOREIGN":
            return second == "KEY"
        case "UNIQUE" | "CHECK":
            return second in ("(", "KEY", "INDEX")
        case "CONSTRAINT":
            return third in ("PRIMARY", "FOREIGN", "UNIQUE", "CHECK")
        case "KEY" | "INDEX":
            return second == "(" or (third == "(" and not definition[3].isdecimal())
    return False


def declared_type(tokens: list[str]) -> str:
    """The type's words up to the first that belongs to a constraint, with a size: `VARCHAR(20)`, `DOUBLE PRECISION`."""
    words: list[str] = []
    for at, token in enumerate(tokens):
        if token == "(" and words:
            size = "".join(tokens[at : closing(tokens, at) + 1])
            return " ".join(words) + (size if re.fullmatch(r"\([+-]?[\d.]+(,[+-]?[\d.]+)?\)", size) else "")
        word = unquoted(token)
        if token.upper() in AFTER_TYPE or not re.fullmatch(r"[^\W\d][\w$]*", word):
            break
        words.append(word)
    return " ".join(words)


@lru_cache(maxsize=4096)
def column_of(name: str, type: str) -> Column:
    return Column(name, type, kind_of(type))


def kind_of(type: str) -> Kind:
    """What a column of a declared type holds, after SQLite's rules of affinity (sqlite.org/datatype3.html, 3.1).

    Dates, times, booleans and types that SQLite does not know are stored in more than one way, so they are "any".
    """
    upper = type.upper()
    if any(part in upper for part in ("DATE", "TIME", "BOOL")):
        return "any"
    if "INT" in upper:
        return "number"
    if any(part in upper for part in ("CHAR", "CLOB", "TEXT")):
        return "text"
    numbers = (
        "REAL",
        "FLOA",
        "DOUB",
        "NUMERIC",
        "NUMBER",
        "DEC",
        "MONEY",
        "CURRENCY",
        "YEAR",
        "BIT",
        "FIXED",
        "SERIAL",
    )
    return "number" if "BLOB" not in upper and any(part in upper for part in numbers) else "any"
