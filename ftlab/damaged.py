"""Damaged records are set aside: renamed, never deleted."""

import os
import shutil
from pathlib import Path


def set_aside(path: Path, *, copy: bool = False) -> Path:
    """Rename a file to `NAME.damaged-1`, or the first number that is free; its new path. `copy` leaves the file too."""
    aside = _free_name(path)
    if copy:
        shutil.copy2(path, aside)
    else:
        os.rename(path, aside)
    return aside


def _free_name(path: Path) -> Path:
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    return aside
