"""Reads text files: their bytes, decompressed. A file that is not text in UTF-8 is refused with what it is and how to
convert it. No torch.
"""

import gzip
import shlex
import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from ftlab.encodings import LANGUAGES, guess
from ftlab.errors import DataError
from ftlab.paths import special

GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
SAMPLE = 20_000  # bytes of non-ASCII lines from which an encoding is guessed

# The first bytes of files that are not text, what these files are, and the remedy.
_OTHERS = (
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", "Unpack it: zstd -d {path}"),
    (b"\xfd7zXZ\x00", "compressed by xz", "Unpack it: xz -dk {path}"),
    (b"BZh", "compressed by bzip2", "Unpack it: bzip2 -dk {path}"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet (.xlsx)", "Unpack it, or save the sheet as CSV in UTF-8."),
    (b"\xd0\xcf\x11\xe0", "an Office document (.xls)", "Save the sheet as CSV in UTF-8."),
    (b"PAR1", "a Parquet file", "Rename it so that its name ends in .parquet."),
    (b"ARROW1", "an Arrow file", "Load it with the package datasets or pyarrow and save it as Parquet."),
    (b"SQLite format 3\x00", "an SQLite database", "Write its rows as JSON lines or CSV."),
    (b"%PDF", "a PDF document", "Name a file with rows: data.path=FILE"),
    (b"<!doctype html", "a web page, perhaps an error or log-in page saved in its place", "Download the file again."),
    (b"<html", "a web page, perhaps an error or log-in page saved in its place", "Download the file again."),
)
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Content:
    """The bytes of a text file, decompressed if they were gzipped (`packed`), without a byte order mark."""

    path: Path
    data: bytes
    packed: bool = False

    @cached_property
    def lines(self) -> list[bytes]:
        """Lines without line breaks: \\n, or \\r in a file without \\n."""
        if b"\n" not in self.data and b"\r" in self.data:
            return self.data.split(b"\r")
        return self.data.split(b"\n")

    @cached_property
    def remedy(self) -> str:
        """What to do about bytes that are not UTF-8."""
        odd = [line for line in self.lines if not line.isascii()]
        if any(_is_utf8(line) for line in odd):
            return "Other lines are UTF-8: correct or delete these, or copy the file again if it is incomplete."
        sizes = accumulate(map(len, odd))
        names = guess(
            b"\n".join(line for line, size in zip(odd, sizes, strict=True) if size <= SAMPLE or line is odd[0])
        )
        if not names:
            return "Its encoding cannot be recognised: save it as UTF-8 with the program that wrote it."
        if not names[1:]:
            seems = f"It seems to be {_named(names[0])}. Convert it to UTF-8"
        else:
            seems = f"It may be {' or '.join(map(_named, names))}. Convert it to UTF-8; if it is {names[0]}"
        return f"{seems}: {conversion(self.path, names[0], self.packed)}"


def _named(encoding: str) -> str:
    return f"{encoding} ({LANGUAGES[encoding]})"


def read(path: Path) -> Content:
    """Return the content of a text file; gzip is recognised by its first bytes, not by the file's name.

    Raises:
        DataError: a pipe, socket or device, a damaged archive, UTF-16 or UTF-32, a Git LFS pointer, or not text at all.
        OSError: it cannot be read.
    """
    refuse_special(path)
    data = path.read_bytes()
    packed = data.startswith(GZIP)
    try:
        data = gzip.decompress(data) if packed else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or incomplete ({error}). Copy or download the file again.") from None
    refuse_other(path, data[:512])
    if wide := _wide(data[:4]):
        raise DataError(f"{path}: line 1: {wide}, not UTF-8. Convert it: {conversion(path, wide, packed)}")
    return Content(path, data.removeprefix(BOM), packed)


def refuse_special(path: Path) -> None:
    """Raise DataError if a path names a pipe, a socket or a device."""
    if what := special(path):
        raise DataError(f"{path}: {what}, not a file with rows. Write the rows to a file and name that file.")


def refuse_other(path: Path, head: bytes) -> None:
    """Raise DataError if a file that should hold rows begins like another kind of file."""
    if head.startswith(_LFS):
        raise DataError(
            f"{path}: a Git LFS pointer, not the file itself. Fetch the file: run git lfs pull in its repository."
        )
    for begin, name, remedy in _OTHERS:
        if head.lstrip(b"\r\n\t " + BOM)[: len(begin)].lower() == begin.lower():
            raise DataError(f"{path}: {name}, not rows as text. {remedy.format(path=shlex.quote(str(path)))}")


def conversion(path: Path, encoding: str, packed: bool = False) -> str:
    """Return the shell command that converts a file to UTF-8."""
    name = shlex.quote(path.name)
    if packed:
        return f"gzip -dc < {name} | iconv -f {encoding} -t UTF-8 > NEW"
    return f"iconv -f {encoding} -t UTF-8 {name} > NEW"


def _is_utf8(line: bytes) -> bool:
    try:
        return bool(line.decode())
    except UnicodeDecodeError:
        return False


def _wide(head: bytes) -> str:
    """Recognise UTF-16 or UTF-32 by the byte order mark, or by the positions of zero bytes in the first character."""
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    zeros = "".join("0" if byte == 0 else "x" for byte in head)
    return {"x000": "UTF-32LE", "000x": "UTF-32BE", "x0x0": "UTF-16LE", "0x0x": "UTF-16BE"}.get(zeros, "")
