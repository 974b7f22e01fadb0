"""Real databases in a folder, one SQLite file for each name, on which queries are compared as well."""

import os
from pathlib import Path


def rows_file(folder: Path | None, name: object) -> Path | None:
    """`folder/<name>.sqlite`; None where there is no such file. A name leads to nowhere else: it is no path."""
    if folder is None or not isinstance(name, str) or name != os.path.basename(name):
        return None
    file = folder / f"{name}.sqlite"
    return file if os.path.isfile(file) else None


def fault(folder: Path) -> str | None:
    """Why a folder cannot be used, to be put after its name; None where it can."""
    if not folder.is_dir():
        return "is no folder: name one that holds <db_id>.sqlite files"
    if next(folder.glob("*.sqlite"), None) is None:
        return "holds no .sqlite file: each must be named <db_id>.sqlite"
    return None
