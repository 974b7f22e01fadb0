"""Which module may import which: the parts stay apart; only `experiment` (and `evaluate`, which scores) imports all.

Imports inside functions count: what may not be known may not be known later either.
"""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import ftlab

PACKAGE = Path(ftlab.__file__).parent
PLUGIN = PACKAGE.parent / "hydra_plugins" / "ftlab_sweeper"

# The row type and the prompt are the words in which the parts speak of data.
SHARED = {"ftlab.data.encode", "ftlab.data.prompts", "ftlab.data.splits"}
SQL = {f"ftlab.sql.{file.stem}" for file in (PACKAGE / "sql").glob("*.py")} | {"ftlab.sql"}
BASICS = {
    "ftlab.errors",
    "ftlab.config",
    "ftlab.damaged",
    "ftlab.disk",
    "ftlab.paths",
    "ftlab.redact",
    "ftlab.quiet",
    "ftlab.shell",
    "ftlab.out_of_memory",
    "ftlab.summary",
}

DECLARED = {"ftlab.metrics", "ftlab.tasks", "ftlab.stages", "ftlab.declared"}
# What a stage is given, and what it calls.
STAGE_TYPES = {
    "ftlab.data.encode",
    "ftlab.fast.decoder",
    "ftlab.summary",
    *(f"ftlab.train.{name}" for name in ("checkpoint", "learner", "loss", "ranks", "signals")),
}

# Module or package -> the modules of ours that it may import, its own apart.
MAY_IMPORT = {
    "ftlab.errors": set(),
    "ftlab.disk": {"ftlab.errors"},
    "ftlab.paths": set(),
    "ftlab.shell": set(),
    "ftlab.architecture": set(),
    "ftlab.redact": set(),
    "ftlab.quiet": set(),
    "ftlab.damaged": set(),
    "ftlab.summary": {"ftlab.disk", "ftlab.redact"},
    "ftlab.memory": BASICS | {"ftlab.models", "ftlab.weights", "ftlab.fast.plan"},
    "ftlab.sql": set(),
    "ftlab.config": set(),
    "ftlab.metrics": set(),
    "ftlab.registry": {"ftlab.errors", "ftlab.metrics"},
    "ftlab.options": {"ftlab.errors"},
    "ftlab.stages": BASICS | STAGE_TYPES | {"ftlab.fast.scoring", "ftlab.fit", "ftlab.metrics", "ftlab.registry"},
    "ftlab.declared": DECLARED | {"ftlab.errors"},
    "ftlab.rules": BASICS
    | DECLARED
    | {"ftlab.data", "ftlab.options", "ftlab.registry", "ftlab.sources"}
    | {"ftlab.trackers"},
    # A task knows its own scores; what only one of them needs, it imports inside functions.
    "ftlab.tasks": BASICS
    | SHARED
    | SQL
    | {"ftlab.registry", "ftlab.options", "ftlab.metrics", "ftlab.data.faults", "ftlab.data.table"}
    | {"ftlab.data.sql_synth", "ftlab.data"},
    "ftlab.out_of_memory": {"ftlab.errors", "ftlab.config"},
    "ftlab.weights": BASICS | {"ftlab.architecture"},
    "ftlab.checksums": set(),
    "ftlab.models": BASICS | {"ftlab.weights"},
    "ftlab.encodings": set(),
    "ftlab.content": {"ftlab.errors", "ftlab.encodings", "ftlab.paths"},
    "ftlab.sources": {"ftlab.config", "ftlab.options", "ftlab.registry"},
    "ftlab.data": BASICS | {"ftlab.content", "ftlab.options", "ftlab.sources"},
    "ftlab.process": set(),
    "ftlab.train": BASICS
    | SHARED
    | {"ftlab.declared", "ftlab.process", "ftlab.fast.flat", "ftlab.fast.plan", "ftlab.fast.adam"},
    "ftlab.fast": BASICS | SHARED,
    "ftlab.trackers": BASICS | {"ftlab.declared", "ftlab.options", "ftlab.registry"},
    "ftlab.generate": BASICS,
    "ftlab.terminal": BASICS | {"ftlab.declared", "ftlab.metrics"},
    "ftlab.conf_folders": {"ftlab.errors", "ftlab.registry"},
    "ftlab.allowlist": {"ftlab.errors", "ftlab.conf_folders"},
    "ftlab.composition": BASICS
    | {"ftlab.allowlist", "ftlab.conf_folders", "ftlab.rules", "ftlab.stages", "ftlab.tasks"}
    | {"ftlab.trackers"},
    "ftlab.run_dir": BASICS | {"ftlab.composition"},
    "ftlab.lines": {"ftlab.errors", "ftlab.content"},
    "ftlab.evaluate": BASICS
    | SHARED
    | {"ftlab.data", "ftlab.tasks", "ftlab.fast.decoder", "ftlab.fast.scoring", "ftlab.generate"}
    | {"ftlab.stages", "ftlab.stages.stage"},
    "ftlab.commands.score": BASICS | SQL | {"ftlab.commands", "ftlab.lines", "ftlab.terminal"},
    "ftlab.commands.compare": BASICS
    | {"ftlab.commands", "ftlab.lines", "ftlab.metrics", "ftlab.run_report", "ftlab.run_dir", "ftlab.sql.intervals"}
    | {"ftlab.tasks", "ftlab.tasks.task", "ftlab.terminal"},
}

# No module of these may import, at any depth of code, the libraries beside it.
WITHOUT = {
    "ftlab.config": {"torch", "transformers", "peft"},
    "ftlab.rules": {"torch", "transformers", "peft"},
    "ftlab.declared": {"torch", "transformers", "peft", "sqlglot"},
    "ftlab.out_of_memory": {"torch", "transformers", "peft"},
    "ftlab.allowlist": {"torch", "transformers", "peft"},
    "ftlab.composition": {"torch", "transformers", "peft"},
    "ftlab.run_dir": {"torch", "transformers", "peft"},
    "ftlab.summary": {"torch", "transformers", "peft", "hydra", "omegaconf"},
    "ftlab.provenance": {"torch", "transformers", "peft"},
    "ftlab.redact": {"torch", "hydra"},
    "ftlab.checksums": {"torch", "hydra", "transformers"},
    "ftlab.sql": {"torch", "hydra", "omegaconf", "transformers"},
    "ftlab.data.sql_synth": {"torch", "transformers", "hydra"},
    "ftlab.train": {"wandb", "hydra", "rich"},
    "ftlab.fast": {"wandb", "hydra", "rich", "peft", "transformers", "accelerate"},
    "ftlab.models": {"wandb", "hydra", "rich"},
    "ftlab.generate": {"wandb", "hydra", "peft"},
    **{f"ftlab.trackers.{name}": {"torch", "hydra", "transformers"} for name in ("tracker", "jsonl", "csv", "wandb")},
    "ftlab.trackers.tensorboard": {"hydra", "transformers"},
    "ftlab.memory": {"transformers", "peft", "hydra"},
    "ftlab.content": {"torch", "hydra", "omegaconf", "transformers"},
    "ftlab.lines": {"torch", "hydra", "omegaconf", "transformers"},
    "ftlab.terminal": {"torch", "transformers"},
    "ftlab.commands.score": {"torch", "hydra", "transformers"},
    "ftlab.commands.compare": {"torch", "hydra", "transformers"},
}

# Libraries that one place alone knows.
ONLY = {
    "wandb": ("ftlab.trackers",),
    "optuna": ("ftlab.sweep",),
    "sqlglot": ("ftlab.sql",),
    "tensorboard": ("ftlab.trackers",),
    "rich": ("ftlab.terminal", "ftlab.commands", "ftlab.sweep.board"),
}


def modules() -> dict[str, Path]:
    found = {}
    for file in (*PACKAGE.rglob("*.py"), *PLUGIN.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imported(name: str) -> set[str]:
    """Full names of what a module imports; of `from package import module`, the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else str(node.module))
    return found


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """The names along a cycle, the first one again at its end; nothing where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))  # graphlib goes from what is imported to who imports it
    return []


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports inside functions and for types alone count. That a module's packages are imported with it does not."""
    graph = {name: {other for other in imported(name) if other in MODULES and other != name} for name in MODULES}
    assert "hydra_plugins.ftlab_sweeper" in graph["ftlab.composition"]
    assert cycle_in(graph) == [], " -> ".join(cycle_in(graph))


def test_a_cycle_is_told_in_the_order_of_its_imports() -> None:
    found = cycle_in({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()})
    assert list(pairwise(found)) in (
        [("a", "b"), ("b", "c"), ("c", "a")],
        [("b", "c"), ("c", "a"), ("a", "b")],
        [("c", "a"), ("a", "b"), ("b", "c")],
    )


# What two parts each have their own of, and names of the language of `data/sql_synth.py`, of a schema and of a report.
SAME_NAMES = {"attention", "folder", "hub", "step", "Column", "Schema", "Table", "Metrics", "Scores"}


def typed(name: str) -> bool:
    """Whether a module has its name from a word that users type: a command, or an option of a group."""
    return any(below(name, package) for package in ("ftlab.commands", "ftlab.tasks", "ftlab.stages", "ftlab.trackers"))


def public_types(name: str) -> set[str]:
    """Public classes and type aliases of a module."""
    body = ast.parse(MODULES[name].read_text(encoding="utf-8")).body
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    targets = [node.targets[0] for node in body if isinstance(node, ast.Assign)]
    aliases = {target.id for target in targets if isinstance(target, ast.Name) and not target.id.isupper()}
    return {found for found in classes | aliases if found[0].isupper()}


def test_a_name_of_a_class_a_type_or_a_module_stands_for_one_thing() -> None:
    places = defaultdict[str, list[str]](list)
    for name in MODULES:
        types = set() if below(name, "ftlab.sql") else public_types(name)  # which is used alone as well
        named_here = types | ({name.rpartition(".")[2]} if not typed(name) else set())
        for found in named_here:
            places[found].append(name)
    several = {found: names for found, names in places.items() if len(names) > 1 and found not in SAME_NAMES}
    assert several == {}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_knows_only_what_it_may(part: str) -> None:
    mine = [name for name in MODULES if below(name, part)]
    assert mine
    allowed = MAY_IMPORT[part] | {"ftlab"}
    for name in mine:
        ours = {other for other in imported(name) if below(other, "ftlab") and not below(other, part)}
        assert ours <= allowed, f"{name} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("part", WITHOUT)
def test_a_part_does_without_these_libraries(part: str) -> None:
    for name in (name for name in MODULES if below(name, part)):
        used = {other.split(".")[0] for other in imported(name)}
        assert not used & WITHOUT[part], f"{name} imports {used & WITHOUT[part]}"


@pytest.mark.parametrize("library", ONLY)
def test_a_library_is_known_in_one_place(library: str) -> None:
    users = {name for name in MODULES if any(below(other, library) for other in imported(name))}
    strangers = {name for name in users if not any(below(name, place) for place in ONLY[library])}
    assert strangers <= {"ftlab.commands.doctor"}  # which looks at everything


def test_nothing_imports_the_command_line() -> None:
    for name in MODULES:
        assert "ftlab.__main__" not in imported(name)


def test_only_commands_and_the_command_line_import_the_experiment() -> None:
    users = {name for name in MODULES if "ftlab.experiment" in imported(name)}
    assert users <= {"ftlab", "ftlab.__main__", "ftlab.commands.predict", "ftlab.commands.eval", "ftlab.sweep.trial"}


def test_no_pickle_is_read_with_code_in_it() -> None:
    for name, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                assert safe.get("weights_only") is True, name
        assert not imported(name) & {"pickle", "dill", "cloudpickle"}


def test_functions_are_short() -> None:
    for name, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 70, f"{name}.{node.name} has {length} lines"
