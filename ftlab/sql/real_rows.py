"""Real databases in a folder, one SQLite file per name, on which queries are compared in addition."""

import os
from pathlib import Path


def rows_file(folder: Path | None, name: object) -> Path | None:
    """`folder/<name>.sqlite`; None if there is no such file, or if the name is a path that could leave the folder."""
    if folder is None or not isinstance(name, str) or name != os.path.basename(name):
        return None
    file = folder / f"{name}.sqlite"
    return file if os.path.isfile(file) else None


def fault(folder: Path) -> str | None:
    """Why a folder cannot be used, as text to follow its name; None if it can."""
    if not folder.is_dir():
        return "is not a folder: name one with <db_id>.sqlite files"
    if next(folder.glob("*.sqlite"), None) is None:
        return "contains no .sqlite file: each must be named <db_id>.sqlite"
    return None
