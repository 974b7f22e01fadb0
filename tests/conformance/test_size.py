"""Sizes that docs/architecture.md promises, counted."""

import ast
import re
from pathlib import Path

import pytest

import ftlab

PACKAGE = Path(ftlab.__file__).parent
ARCHITECTURE = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
BUDGETS = {
    place: int(lines.replace(",", ""))
    for place, lines in re.findall(r"^\| `ftlab/([\w/.]+)` \| ([\d,]+) lines \|", ARCHITECTURE, re.MULTILINE)
}
# Modules that combine the engines: each class there is one part of a run.
ENGINES = ("fast", "sql", "sweep", "tiny", "data/sql_synth.py")
LARGEST_CLASS = 300


def lines_of(place: Path) -> int:
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def test_the_document_names_budgets() -> None:
    assert {"sweep", "fast", "sql", "experiment", "experiment/order.py"} <= BUDGETS.keys()


@pytest.mark.parametrize("place", BUDGETS)
def test_a_part_keeps_its_budget(place: str) -> None:
    assert lines_of(PACKAGE / place) <= BUDGETS[place]


def test_no_class_that_joins_is_long() -> None:
    long = []
    for file in PACKAGE.rglob("*.py"):
        if str(file.relative_to(PACKAGE)).startswith(ENGINES):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= LARGEST_CLASS:
                long.append(f"{file.relative_to(PACKAGE)}: {node.name}")
    assert long == []


def test_every_module_has_a_place_in_the_document() -> None:
    """Each module or package of the architecture, by its name in the document."""
    houses = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    named = {f"ftlab/{path.name}" + ("/" if path.is_dir() else "") for path in houses if path.name != "__init__.py"}
    missing = sorted(name for name in named if f"`{name}`" not in ARCHITECTURE)
    assert missing == []
