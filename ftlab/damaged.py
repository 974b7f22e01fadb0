"""Renames damaged records, which are never deleted."""

import os
import shutil
from pathlib import Path


def set_aside(path: Path, *, copy: bool = False) -> Path:
    """Rename a file to `NAME.damaged-1`, or the first free number, and return the new path. `copy` keeps the file."""
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
