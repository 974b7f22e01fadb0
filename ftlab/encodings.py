"""Guesses the encoding of bytes that are not UTF-8, by how plausible the text is that each encoding yields.

An encoding is a candidate only if nearly all characters of its text are plausible; all candidates are returned.
"""

import unicodedata
from collections.abc import Callable
from functools import partial
from itertools import groupby

_MARKS = set("‘’‚“”„–—…€£¥°§©®«»·•¿¡™½¼¾×²³ªº\u00a0")  # noqa: RUF001
_WORDS = set("àáéèòóôêöåæøÀÁÉÈÒÓÔÊÖÅÆØаивкосуяАИВКОСУЯ")  # letters that are words by themselves
_CJK_MARKS = set("、。「」『』（），：；！？《》〈〉【】・ー“”‘’—…\u3000")  # noqa: RUF001


def guess(data: bytes) -> list[str]:
    """Return the possible encodings of `data`, by their names in iconv, most likely first: up to four, and none if no
    text is plausible or more than four different texts are."""
    texts = {name: text for name, codec in _CODECS.items() if (text := _decodes(data, codec))}
    likely = [name for name, text in texts.items() if _PLAUSIBLE[name](text) >= 0.95]
    if "CP949" in likely and sum(byte > 0x7F for byte in data) >= 16:
        return ["CP949"]  # Chinese text of eight characters or more has some that are not Hangul
    first_of: dict[str, str] = {}  # from each text to the first encoding that yields it
    for name in likely:
        first_of.setdefault(texts[name], name)
    return list(first_of.values()) if len(first_of) <= 4 else []


def _decodes(data: bytes, codec: str) -> str:
    try:
        return data.decode(codec)
    except UnicodeDecodeError:
        return ""


def _alphabetic(text: str, script: str) -> float:
    """Return the share of non-ASCII characters that are plausible: letters of `script` as in words (next to other
    letters, no capital after a small letter, no Latin word of accented letters only), and marks outside of words."""
    good = total = 0
    for odd, group in groupby(enumerate(text), key=lambda pair: not pair[1].isascii()):
        if not odd:
            continue
        run = list(group)
        total += len(run)
        before, after = text[max(0, run[0][0] - 1) : run[0][0]], text[run[-1][0] + 1 : run[-1][0] + 2]
        latin = any(beside.isalpha() for beside in (before, after))
        lone = len(run) == 1 and run[0][1] in _WORDS
        word = lone or (latin and len(run) <= 3 if script == "LATIN" else not latin and len(run) > 1)
        turned = any(char.isupper() and text[max(0, at - 1) : at].islower() for at, char in run)
        good += sum(_stands(text, at, char, script, word and not turned) for at, char in run)
    return good / max(1, total)


def _stands(text: str, at: int, char: str, script: str, word: bool) -> bool:
    if char not in _MARKS:
        return word and char.isalpha() and unicodedata.name(char, "").startswith(script)
    before, after = text[max(0, at - 1) : at], text[at + 1 : at + 2]
    inside = before.isalpha() and after.isalpha() and char not in "’·"  # noqa: RUF001
    return not inside and not (before.isalpha() and not before.isascii() and char in "²³ªº¿¡")


def _ideographic(text: str, codec: str, first: int, last: int, trail: int, syllables: tuple[str, ...] = ()) -> float:
    """Return the share of non-ASCII characters that are common in `codec`: ideographs whose lead byte is from `first`
    to `last` and whose second byte is at least `trail`; `syllables`, given by the beginnings of their Unicode names (a
    text without any scores 0); and marks."""
    odd = [char for char in text if not char.isascii()]
    codes = [char.encode(codec) for char in odd]
    spelled = [bool(syllables) and unicodedata.name(char, "").startswith(syllables) for char in odd]
    if syllables and not any(spelled):
        return 0.0
    common = sum(
        char in _CJK_MARKS or (len(code) == 2 and code[1] >= trail and (is_syllable or first <= code[0] <= last))
        for char, code, is_syllable in zip(odd, codes, spelled, strict=True)
    )
    return common / max(1, len(odd))


_CODECS = {
    "CP1252": "cp1252",
    "CP1250": "cp1250",
    "MACINTOSH": "mac_roman",
    "CP850": "cp850",
    "CP1251": "cp1251",
    "KOI8-R": "koi8_r",
    "GB18030": "gb18030",
    "BIG5": "big5",
    "CP932": "cp932",
    "EUC-JP": "euc_jp",
    "CP949": "cp949",
    # Tried so that texts which these encodings explain as well are not attributed to one of the above.
    "ISO-8859-2": "iso8859_2",
    "CP1254": "cp1254",
    "CP1257": "cp1257",
    "CP852": "cp852",
    "CP866": "cp866",
    "CP1255": "cp1255",
}
LANGUAGES = {
    "CP1252": "Western European, Windows",
    "CP1250": "Central European, Windows",
    "MACINTOSH": "Western European, old Macs",
    "CP850": "Western European, DOS",
    "CP1251": "Cyrillic, Windows",
    "KOI8-R": "Cyrillic",
    "GB18030": "Simplified Chinese, GBK included",
    "BIG5": "Traditional Chinese",
    "CP932": "Japanese, Shift JIS",
    "EUC-JP": "Japanese",
    "CP949": "Korean",
    "ISO-8859-2": "Central European",
    "CP1254": "Turkish, Windows",
    "CP1257": "Baltic, Windows",
    "CP852": "Central European, DOS",
    "CP866": "Cyrillic, DOS",
    "CP1255": "Hebrew, Windows",
}
_LATIN, _CYRILLIC = partial(_alphabetic, script="LATIN"), partial(_alphabetic, script="CYRILLIC")
_KANA = ("HIRAGANA", "KATAKANA")
_PLAUSIBLE: dict[str, Callable[[str], float]] = {
    "CP1252": _LATIN,
    "CP1250": _LATIN,
    "MACINTOSH": _LATIN,
    "CP850": _LATIN,
    "CP1251": _CYRILLIC,
    "KOI8-R": _CYRILLIC,
    # GB18030 decodes nearly any bytes; its common characters are the first level of GB 2312.
    "GB18030": partial(_ideographic, codec="gb18030", first=0xB0, last=0xD7, trail=0xA1),
    "BIG5": partial(_ideographic, codec="big5", first=0xA4, last=0xC6, trail=0x40),
    "CP932": partial(_ideographic, codec="cp932", first=0x88, last=0x97, trail=0x40, syllables=_KANA),
    "EUC-JP": partial(_ideographic, codec="euc_jp", first=0xB0, last=0xCF, trail=0xA1, syllables=_KANA),
    "CP949": partial(_ideographic, codec="cp949", first=1, last=0, trail=0xA1, syllables=("HANGUL",)),
    "ISO-8859-2": _LATIN,
    "CP1254": _LATIN,
    "CP1257": _LATIN,
    "CP852": _LATIN,
    "CP866": _CYRILLIC,
    "CP1255": partial(_alphabetic, script="HEBREW"),
}
