"""Recognises paths that are neither files nor folders. They are refused, because opening a named pipe waits for its
writer and a device may have no end. No torch.
"""

import os
import stat
from pathlib import Path

_SPECIAL = (
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device or a terminal"),
    (stat.S_ISBLK, "a block device"),
)


def special(path: Path) -> str:
    """Return what a path names if it is neither a file nor a folder, otherwise an empty text, also if nothing exists. A
    pipe of the shell (`<(command)`, /dev/stdin) has no name of its own and counts as a file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # not accessible, or not a valid path: opening it will raise the reason
        return ""
    if stat.S_ISFIFO(mode) and not os.path.lexists(os.path.realpath(path)):
        return ""
    return next((name for is_one, name in _SPECIAL if is_one(mode)), "")


def short(path: Path) -> str:
    """A path as a user types it: relative to the working directory where it lies below it."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
