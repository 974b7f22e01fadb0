"""The tables and views that a context of CREATE statements declares, or that a real database has.

Contexts in real data are often invalid: reserved words as names without quotes, a table declared twice, a column named
twice. So this reader is lenient: it reads names and declared types and skips all else. On every context that SQLite
accepts it finds what SQLite finds.
"""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from ftlab.sql.lexer import TOKEN, WORD

Kind = Literal["number", "text", "any"]

QUOTES = {"'": "'", '"': '"', "`": "`", "[": "]"}
TEMPORARY = {"TEMP", "TEMPORARY"}
# A line that ends a batch in scripts of SQL Server.
END_OF_BATCH = re.compile(r"^[ \t]*GO[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
BEFORE_KIND = {"OR", "REPLACE", "MATERIALIZED"} | TEMPORARY

# Words that SQLite never reads as part of a type's name, so that the type ends there.
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
    """A column: its name as first written, its declared type ("" without one), and the kind of its values."""

    name: str
    type: str
    kind: Kind


@dataclass(frozen=True)
class Table:
    """A table or a view: its name as first written, its columns in order, by lower-case name, and its schema."""

    name: str
    columns: dict[str, Column]
    schema: str = "main"

    def address(self) -> str:
        """The table's name in SQL text, with its schema."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"


@dataclass(frozen=True)
class View:
    """A view as it is declared: the names that it gives to its columns, if any, and the text of its query."""

    name: str
    schema: str
    names: tuple[str, ...]
    query: str


@dataclass(frozen=True, eq=False)
class Schema:
    """Tables by key. The key is the lower-case name; if several schemas have a table of that name, it is `schema.name`
    for all but the one that the bare name refers to.

    `views` has the views by their keys. Only SQLite can determine the columns of a view, so `read_schema` returns views
    in `views` alone; `Engine.schema` has them in `tables` as well.
    """

    tables: dict[str, Table]
    views: dict[str, View] = field(default_factory=dict)

    def key(self, name: str, schema: str = "") -> str | None:
        """The key of the table to which a name in a query, without quotes, refers; None if there is none."""
        name, schema = name.lower(), schema.lower()
        for key in (name, f"{schema}.{name}") if schema else (name,):
            table = self.tables.get(key)
            if table is not None and (not schema or (table.schema, table.name.lower()) == (schema, name)):
                return key
        return None

    def ddl(self) -> dict[str, str]:
        """A CREATE TABLE statement for each table: names quoted, types as declared, no keys or constraints."""
        return {
            key: f"CREATE TABLE {table.address()} "
            f"({', '.join(f'{quoted(column.name)} {column.type}' for column in table.columns.values())})"
            for key, table in self.tables.items()
        }

    @classmethod
    def of_database(cls, connection: sqlite3.Connection) -> "Schema":
        """The tables and views of a real database, without SQLite's own and without virtual tables.

        Raises sqlite3.Error if the database cannot be read.
        """
        kinds = connection.execute("SELECT name, type FROM pragma_table_list WHERE schema = 'main'").fetchall()
        tables = {
            name.lower(): Table(name, columns_of(connection, name))
            for name, kind in kinds
            if kind in ("table", "view") and not name.lower().startswith("sqlite_")
        }
        return cls(tables)


def columns_of(connection: sqlite3.Connection, table: str, schema: str = "main") -> dict[str, Column]:
    """The columns of a table or view according to SQLite. Raises sqlite3.Error for a view that it cannot resolve."""
    rows = connection.execute("SELECT name, type FROM pragma_table_info(?, ?)", (table, schema)).fetchall()
    return {column.lower(): column_of(column, type) for column, type in rows}


@lru_cache(maxsize=4096)
def read_schema(context: str) -> Schema:
    """The tables and views of a context. Never fails: text that is not a CREATE TABLE or CREATE VIEW is skipped.

    A table declared more than once in a schema has the union of the columns. Of a column named twice (ignoring case)
    the first declaration counts, and so it does of a view. Names that begin with sqlite_ are SQLite's own and cannot
    be declared. A temporary table belongs to the schema "temp". A table without a schema belongs to the only other
    schema that the context names, else to "main".
    """
    tables: dict[tuple[str, str], Table] = {}
    views: dict[tuple[str, str], View] = {}
    declared = list(created(context))
    named = {made.schema for made in declared} - {"", "main", "temp"}
    default = named.pop() if len(named) == 1 else "main"
    for made in (made if made.schema else replace(made, schema=default) for made in declared):
        place = (made.schema, made.name.lower())
        if isinstance(made, View):
            views.setdefault(place, made)
        elif made.columns and not made.name.lower().startswith("sqlite_"):
            table = tables.setdefault(place, Table(made.name, {}, made.schema))
            for key, column in made.columns.items():
                table.columns.setdefault(key, column)
    keys = keys_of([*tables, *(place for place in views if place not in tables)])
    return Schema(
        {keys[place]: table for place, table in tables.items()},
        {keys[place]: view for place, view in views.items() if place not in tables},
    )


def keys_of(places: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The key of each (schema, name). As in SQLite, a bare name refers to the table of temp, else of main, else of the
    schema that is named first."""
    order = list(dict.fromkeys(["temp", "main", *(schema for schema, _ in places)]))
    keys: dict[tuple[str, str], str] = {}
    taken: set[str] = set()
    for schema, name in sorted(places, key=lambda place: order.index(place[0])):
        keys[schema, name] = f"{schema}.{name}" if name in taken else name
        taken.add(name)
    return keys


def quoted(name: str) -> str:
    """A name in double quotes, as SQLite reads it."""
    return '"' + name.replace('"', '""') + '"'


def unquoted(token: str) -> str:
    close = QUOTES.get(token[0])
    if close is None:
        return token
    inner = token[1:-1] if len(token) > 1 and token.endswith(close) else token[1:]
    return inner if close == "]" else inner.replace(close * 2, close)


def created(context: str) -> Iterator[Table | View]:
    """The tables and views of a context, one per statement; the schema is empty if the statement names none."""
    tokens = [token for token in TOKEN.finditer(context) if token.lastgroup != "blank"]
    words = [token.group() for token in tokens]
    at = 0
    while at < len(words):
        start = at
        at += 1
        if words[start].upper() != "CREATE":
            continue
        while at < len(words) and words[at].upper() in BEFORE_KIND:
            at += 1
        kind = words[at].upper() if at < len(words) else ""
        if kind not in ("TABLE", "VIEW"):
            continue
        schema = "" if TEMPORARY.isdisjoint(map(str.upper, words[start:at])) else "temp"
        at += 1
        if [word.upper() for word in words[at : at + 3]] == ["IF", "NOT", "EXISTS"]:
            at += 3
        while words[at + 1 : at + 2] == ["."]:
            schema = unquoted(words[at]).lower()
            at += 2
        if kind == "TABLE" and words[at + 1 : at + 2] == ["("]:
            end = closing(words, at + 1)
            yield Table(unquoted(words[at]), read_columns(words[at + 2 : end]), schema)
            at = end
        elif kind == "VIEW" and at < len(words):
            name, names, at = unquoted(words[at]), *column_list(words, at + 1)
            if words[at : at + 1] and words[at].upper() == "AS":
                end = end_of_view(words, at)
                query = context[tokens[at].end() : tokens[end - 1].end()]
                yield View(name, schema, names, END_OF_BATCH.split(query)[0])
                at = end


def column_list(words: list[str], at: int) -> tuple[tuple[str, ...], int]:
    """The names in the parentheses that open at `at`, if any, and the position after them."""
    if words[at : at + 1] != ["("]:
        return (), at
    end = closing(words, at)
    return tuple(unquoted(word) for word in words[at + 1 : end] if word != ","), end + 1


def end_of_view(words: list[str], start: int) -> int:
    """The end of a view's query: a semicolon, or the next CREATE."""
    ends = (at for at in range(start + 1, len(words)) if words[at] == ";" or words[at].upper() == "CREATE")
    return next(ends, len(words))


def read_columns(body: list[str]) -> dict[str, Column]:
    """The columns that the words between a table's parentheses declare, by lower-case name."""
    columns: dict[str, Column] = {}
    for definition in definitions(body):
        if (column := read_column(definition)) is not None:
            columns.setdefault(column.name.lower(), column)
    return columns


def closing(tokens: list[str], start: int) -> int:
    """The position where the parenthesis at `start` closes, else the number of tokens."""
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
    """The column that a part declares; None for a constraint, a key, and a part that does not begin with a name."""
    if not definition or not re.match(rf"{WORD}|['\"`\[]", definition[0]) or is_constraint(definition):
        return None
    name = unquoted(definition[0])
    return column_of(name, declared_type(definition[1:])) if name else None


def is_constraint(definition: list[str]) -> bool:
    """Whether a part is a table constraint, and not a column with such a name, as in (group TEXT, key TEXT)."""
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
    """The words of the type, up to the first of a constraint, with its size: `VARCHAR(20)`, `DOUBLE PRECISION`."""
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


def affinity(type: str) -> str:
    """SQLite's affinity of a declared type (sqlite.org/datatype3.html, 3.1). INTEGER and NUMERIC compare alike."""
    parts = {"INT": "number", "CHAR": "text", "CLOB": "text", "TEXT": "text", "BLOB": "", "REAL": "real"}
    parts |= {"FLOA": "real", "DOUB": "real"}
    return next((name for part, name in parts.items() if part in type.upper()), "number") if type else ""


def kind_of(type: str) -> Kind:
    """The kind of values in a column, by SQLite's rules of type affinity (sqlite.org/datatype3.html, 3.1).

    Dates, times, booleans and types unknown to SQLite are stored in more than one way, so they are "any".
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
