"""What a path names. Opening a named pipe waits for whoever writes into it, and a device may have no end: what is given
as a file or folder must be one. No torch.
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
    """What a path names where that is neither a file nor a folder; empty where it is one, or nothing is there. A
    shell's pipe (`<(command)`, /dev/stdin) has no name of its own and is read to its end like a file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # not to be reached, or no path at all: opening it says why
        return ""
    if stat.S_ISFIFO(mode) and not os.path.lexists(os.path.realpath(path)):
        return ""
    return next((name for is_one, name in _SPECIAL if is_one(mode)), "")


def short(path: Path) -> str:
    """A path as a user types it: relative to the working directory where it lies below it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
