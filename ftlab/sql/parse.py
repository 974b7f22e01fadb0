"""Parses texts into syntax trees with sqlglot's SQLite dialect, without its rewriting.

sqlglot translates between dialects, so it rewrites while it parses: IFNULL becomes COALESCE, CAST(x AS STRING) becomes
a cast to TEXT, unary plus disappears. Here two spellings are equal only by a rule of `ftlab.sql.canonical`, so
functions, types and literals keep their spelling. Text that SQLite refuses may still parse here; SQLite itself decides
whether a text is SQL.
"""

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from sqlglot import exp
from sqlglot.dialects.sqlite import SQLite
from sqlglot.generators.sqlite import SQLiteGenerator
from sqlglot.parsers.sqlite import SQLiteParser
from sqlglot.tokenizer_core import Token, TokenType

from ftlab.sql.lexer import BLANKS, TOKEN, without_comments

NO_PAREN_FUNCTIONS = (TokenType.CURRENT_DATE, TokenType.CURRENT_TIME, TokenType.CURRENT_TIMESTAMP)


class LiteralParser(SQLiteParser):
    """Functions become `exp.Anonymous`, named as written, and so do casts ("CAST", with the type's text as a Var) and
    unary plus ("+"). Hexadecimal integers and `.5` keep their text."""

    FUNCTIONS: ClassVar[dict[str, Any]] = {}
    NO_PAREN_FUNCTIONS: ClassVar[dict[Any, Any]] = {
        key: SQLiteParser.NO_PAREN_FUNCTIONS[key] for key in NO_PAREN_FUNCTIONS
    }
    NO_PAREN_FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {"CASE": lambda self: self._parse_case()}
    FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {"CAST": lambda self: self._parse_plain_cast()}
    UNARY_PARSERS: ClassVar[dict[Any, Any]] = {
        **SQLiteParser.UNARY_PARSERS,
        TokenType.PLUS: lambda self: self.expression(exp.Anonymous(this="+", expressions=[self._parse_unary()])),
    }
    ADD_JOIN_ON_TRUE = False

    def _parse_plain_cast(self) -> exp.Expr:
        value = self._parse_disjunction()
        self._match(TokenType.ALIAS)
        words: list[str] = []
        depth = 0
        while self._curr and (depth or self._curr.token_type != TokenType.R_PAREN):
            depth += {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(self._curr.token_type, 0)
            words.append(self._curr.text.upper())
            self._advance()
        return self.expression(exp.Anonymous(this="CAST", expressions=[value, exp.Var(this=" ".join(words))]))

    def _parse_hex_string(self, token: Token) -> exp.Expr:
        if self.sql.startswith(("0x", "0X"), token.start):
            return self.expression(exp.Literal.number(f"0x{token.text.lower()}"), token)
        return self.expression(exp.HexString(this=token.text.lower()), token)

    def _parse_primary(self) -> exp.Expr | None:
        """Keep `.5` distinct from `0.5`."""
        if self._match_pair(TokenType.DOT, TokenType.NUMBER):
            return exp.Literal.number(f".{self._prev.text}")
        return super()._parse_primary()

    def _parse_type(self, parse_interval: bool = True, fallback_to_identifier: bool = False) -> exp.Expr | None:
        """SQLite has neither typed literals nor intervals: `date 'x'` is a column with an alias."""
        if fallback_to_identifier:
            return self._parse_id_var()
        atom = self._parse_atom()
        return atom if atom is not None else self._parse_column()


class LiteralGenerator(SQLiteGenerator):
    """Generates the SQL that `LiteralParser` parsed."""

    def anonymous_sql(self, expression: exp.Anonymous) -> str:
        if expression.name == "CAST" and isinstance(expression.expressions[-1], exp.Var):
            return f"CAST({self.sql(expression.expressions[0])} AS {expression.expressions[1].name})"
        return super().anonymous_sql(expression)


class LiteralSQLite(SQLite):
    """The SQLite dialect that keeps every spelling."""

    Parser = LiteralParser
    Generator = LiteralGenerator


DIALECT = LiteralSQLite()
PLAIN_TOKENS = (TokenType.VAR, TokenType.IDENTIFIER, TokenType.STRING, TokenType.NUMBER)
# Characters at which sqlglot may split a text differently from SQLite: comments, which sqlglot also ends at a carriage
# return and reads as statements, and blanks of Unicode.
CUT_OTHERWISE = re.compile(r"--|/\*|[\v\x1c-\x1f]|[^\x00-\x7f]")
UNICODE_BLANK = re.compile(r"[\v\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


def query(text: str) -> exp.Query | None:
    """The tree of a text that is exactly one query; None if sqlglot cannot parse it as such.

    Since the text is untrusted and the parser is third-party code, any exception counts as "no tree".
    """
    readable = as_sqlite_cuts(text)
    if readable is None:
        return None
    try:
        statements = [statement for statement in DIALECT.parse(readable) if statement is not None]
    except Exception:
        return None
    return statements[0] if len(statements) == 1 and isinstance(statements[0], exp.Query) else None


def as_sqlite_cuts(text: str) -> str | None:
    """The query in a text without final semicolons and comments, so that sqlglot splits it as SQLite does; None if it
    would still differ."""
    if CUT_OTHERWISE.search(text) is None:
        return text.rstrip(BLANKS + ";")
    if UNICODE_BLANK.search(text) and any(
        token.lastgroup is None and UNICODE_BLANK.search(token.group()) for token in TOKEN.finditer(text)
    ):
        return None
    return without_comments(text)


def with_names_quoted(text: str, names: Iterable[str]) -> str:
    """The text with quotes around names of a schema that are keywords to sqlglot: `SELECT window FROM t`."""
    known = set(names)
    for token in reversed(tokens(text)):
        if token.token_type not in PLAIN_TOKENS and token.text.lower() in known:
            text = f'{text[: token.start]}"{token.text}"{text[token.end + 1 :]}'
    return text


def tokens(text: str) -> list[Token]:
    """The tokens of a text; none if it cannot be tokenized."""
    try:
        return DIALECT.tokenize(text)
    except Exception:
        return []
