"""Room on disks: how much is free, one message where it has run out, and files replaced as a whole. No torch."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftlab.errors import FtlabError, TrainingError

FULL = (errno.ENOSPC, errno.EDQUOT)
# What writers say that pass no error number on: those in Rust (safetensors, tokenizers), SQLite, and torch's, which
# names the line of its own source instead of the reason.
SAID = ("No space left on device", "Disk quota exceeded", "database or disk is full", "inline_container", "file write")


def size(count: float) -> str:
    """Bytes in decimal units, as disks and downloads are sold: 269 MB, 14.5 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def free_bytes(folder: Path) -> int:
    """Free space where `folder` lies or will lie."""
    return shutil.disk_usage(nearest(folder)).free


def nearest(folder: Path) -> Path:
    """`folder`, or the closest folder above it that exists."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def is_full(error: BaseException) -> bool:
    """Whether an error is a disk's, or a quota's, that has no room left."""
    if isinstance(error, FtlabError):
        return False
    return getattr(error, "errno", None) in FULL or any(words in str(error) for words in SAID)


def shortage(folder: Path, needed: float | None) -> str:
    """What is free where `folder` lies, and what was needed."""
    about = f"it needs about {size(needed)}, and " if needed is not None else ""
    return f"the disk is full: {about}{size(free_bytes(folder))} are free in {nearest(folder)}"


@contextmanager
def room_for(what: str, folder: Path, needed: float | None = None) -> Iterator[None]:
    """A part of a run or command that writes below `folder`; `needed` are the bytes that it writes, where they are
    known.

    Raises:
        TrainingError: there was no room: the bytes needed and free.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        # The file of which the system spoke may lie elsewhere, such as a folder for temporary files.
        named = getattr(error, "filename", None)
        where = Path(named).parent if isinstance(named, str) else folder
        raise TrainingError(
            f"{what} cannot be written: {shortage(where, needed)}. Make room, then the same command goes on"
        ) from None


def write_atomic(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new, never a part."""
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(aside, path)
