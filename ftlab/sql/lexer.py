"""SQLite's blanks, comments, quoted parts and words (sqlite.org/src/file/src/tokenize.c) as regular expressions.

All readers of this package use them, so that they split a text where SQLite does. They run in time linear in the length
of a text. An unclosed comment or quoted part runs to the end.
"""

import re

BLANKS = " \t\n\f\r"
# To SQLite a vertical tab is a blank only after another blank, a byte order mark only where a token may start.
BLANK = r"(?:[ \t\n\f\r][ \t\n\v\f\r]*+|\ufeff)"
COMMENT = r"(?:--[^\n]*+|/\*(?s:.*?)(?:\*/|\Z))"
QUOTED = r"""(?:'[^']*(?:''[^']*)*(?:'|\Z)|"[^"]*(?:""[^"]*)*(?:"|\Z)|`[^`]*(?:``[^`]*)*(?:`|\Z)|\[[^\]]*(?:\]|\Z))"""
WORD = r"[0-9A-Za-z_$\x80-\U0010ffff]"

TOKEN = re.compile(rf"(?P<blank>{BLANK}|{COMMENT})|(?P<quoted>{QUOTED})|{WORD}+|(?s:.)")


def end_of_query(text: str) -> int:
    """The end of a text without its trailing semicolons, blanks and comments."""
    end = 0
    for token in TOKEN.finditer(text):
        if token.group() != ";" and token.lastgroup != "blank":
            end = token.end()
    return end


def without_comments(text: str) -> str:
    """The text up to the end of its query, with one blank for each comment and each run of blanks."""
    parts = (" " if token.lastgroup == "blank" else token.group() for token in TOKEN.finditer(text))
    return "".join(parts).rstrip(BLANKS + ";")
