"""Disk space: how much is free, one message for a full disk, and atomic replacement of files. No torch."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftlab.errors import FtlabError, TrainingError

FULL = (errno.ENOSPC, errno.EDQUOT)
# Messages of libraries that raise no error number: those in Rust (safetensors, tokenizers), SQLite, and torch, which
# names a line of its own source instead of the reason.
MESSAGES = (
    *("No space left on device", "Disk quota exceeded", "database or disk is full"),
    *("inline_container", "file write"),
)


def size(count: float) -> str:
    """Return a number of bytes as text in decimal units: 269 MB, 14.5 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(nearest(folder)).free


def nearest(folder: Path) -> Path:
    """Return `folder`, or its closest parent that exists."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def is_full(error: BaseException) -> bool:
    """Whether an error means that a disk is full or a quota used up."""
    if isinstance(error, FtlabError):
        return False
    return getattr(error, "errno", None) in FULL or any(words in str(error) for words in MESSAGES)


def full_disk(folder: Path, needed: float | None) -> str:
    """Return the message for a full disk: the bytes needed, if known, and those free on the disk of `folder`."""
    about = f"it needs about {size(needed)}, and " if needed is not None else ""
    return f"the disk is full: {about}{size(free_bytes(folder))} are free in {nearest(folder)}"


@contextmanager
def room_for(what: str, folder: Path, needed: float | None = None) -> Iterator[None]:
    """Turn errors of a full disk into one message, in a block that writes below `folder`. `needed` are the bytes that
    it writes, if known.

    Raises:
        TrainingError: the disk is full; names the bytes needed and free.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        # The file that the error names may be elsewhere, such as in a folder for temporary files.
        named = getattr(error, "filename", None)
        where = Path(named).parent if isinstance(named, str) else folder
        raise TrainingError(
            f"{what} cannot be written: {full_disk(where, needed)}. Free some space, then run the same command again"
        ) from None


def write_atomic(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old text or the new, never a part of it."""
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(aside, path)
