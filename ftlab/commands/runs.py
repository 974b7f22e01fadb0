"""python -m ftlab runs [FOLDER] [KEY=VALUE ...]: the runs below outputs/ (or FOLDER), newest first.

status=finished  model=tiny  trainer.lr=1e-3   only runs where a column or configuration key has this value;
                                               numbers are compared by value, text may contain * and ?
min.eval/sql_exact_match=0.5  max.eval/loss=1  only runs whose value is at least, or at most, this number
sort=eval/sql_exact_match  sort=-trainer.lr    order by a column of the table, a configuration key or a score
                                               (best first); `-` reverses the order
limit=20                                       show at most 20 runs; default 50, null: all
json=true                                      print one JSON object per run, with its configuration
"""

import difflib
import fnmatch
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from ftlab import declared
from ftlab.composition import flatten
from ftlab.config import known_keys
from ftlab.errors import InputError
from ftlab.summary import Summary

OUTPUTS = Path("outputs")
DEPTH = 5  # levels of folders below FOLDER that are searched
MOST_FOLDERS = 20_000
MARKS = ("config.yaml", "summary.json", "metrics.jsonl", "checkpoints", "adapter", ".hydra")
OPTIONS = ("sort", "limit", "json")
TITLES = {"lora": "lora.r", "lr": "trainer.lr", "base -> tuned": "score"}  # column titles that differ from their key
COLUMNS = ("name", "status", "model", "lora.r", "trainer.lr", "steps", "score", "objective", "seconds", "started")


@dataclass
class FoundRun:
    """What can be read of a run folder; `values` holds columns, configuration keys and tuned scores."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)
    problems: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


def main(args: dict[str, str], words: list[str]) -> int:
    """List run folders, or print them as JSON lines. Raises InputError for an unknown filter."""
    if len(words) > 1:
        raise InputError(f"{words[1]!r} is one folder too many: python -m ftlab runs [FOLDER] [KEY=VALUE ...]")
    root = Path(words[0]).expanduser() if words else OUTPUTS
    if words and not root.is_dir():
        raise InputError(f"{root} is not a folder: python -m ftlab runs [FOLDER] lists the runs below FOLDER")
    runs = [read(path, root) for path in find(root)]
    keep, order, limit, as_json = _asked(args, runs)
    chosen = order([run for run in runs if all(test(run) for test in keep)])
    if as_json:
        for run in chosen[:limit]:
            print(json.dumps(_record(run), ensure_ascii=False))
    elif chosen:
        _show(chosen[:limit], len(chosen))
    else:
        none = f"no runs in {root}/ yet. Start one: python -m ftlab"
        print(f"none of the {len(runs)} runs in {root}/ matches" if runs else none)
    return 0


def find(root: Path) -> Iterator[Path]:
    """Yield the run folders at or below `root`, at most `DEPTH` levels deep; folders inside a run are not searched."""
    level, seen = [root], 0
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            seen += 1
            if seen > MOST_FOLDERS:
                return
            names = _names(folder)
            if any(mark in names for mark in MARKS):
                yield folder
            else:
                below += [folder / name for name, is_folder in names.items() if is_folder and name[0] != "."]
        level = below


def read(path: Path, root: Path) -> FoundRun:
    """Read a run folder; what is missing or broken in it is listed as a problem and raises no error."""
    run = FoundRun(path)
    run.config = _load(run, "config.yaml", _yaml)
    run.summary = Summary.of(_load(run, "summary.json", json.loads))
    run.values = {**flatten(run.config), **_scores(run, "tuned"), **_columns(run, root)}
    return run


def _names(folder: Path) -> dict[str, bool]:
    """Return the names in a folder, each with whether it is a folder; links are not followed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError:
        return {}


def _load(run: FoundRun, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parse((run.path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        run.problems.append(f"{name} is missing")
        return {}
    except Exception as error:  # each parser has its own exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        run.problems.append(f"{name} cannot be read ({reason})")
        return {}
    if not isinstance(found, dict):
        run.problems.append(f"{name} holds no keys")
        return {}
    return found


def _yaml(text: str) -> Any:
    import yaml

    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the C loader is ten times faster


def _part(tree: dict[str, Any], key: str) -> dict[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, dict) else {}


def _scores(run: FoundRun, which: str) -> dict[str, float]:
    scores: dict[str, float] = getattr(run.summary, which)
    return scores


def _columns(run: FoundRun, root: Path) -> dict[str, Any]:
    """Return the columns of the table that are not simply a configuration key."""
    summary = run.summary
    name = summary.objective.name or run.config.get("objective")
    # A name that `run=NAME` accepts: relative to outputs/, otherwise the path below FOLDER as given.
    shown = run.path.relative_to(root) if root == OUTPUTS and run.path != root else run.path
    return {
        "name": str(shown),
        "status": _status(run),
        "model": _part(run.config, "model").get("name") or (summary.model.id if summary.model else None),
        "steps": summary.step,
        "objective": name if isinstance(name, str) else None,
        "score": summary.objective.value,
        "seconds": summary.seconds.get("total"),
        "started": _started(run),
    }


def _status(run: FoundRun) -> str:
    if any("cannot be read" in problem or "holds no" in problem for problem in run.problems):
        return "broken"
    status = run.summary.status or "partial"
    return "killed" if status == "running" and not _alive(run.path) else status


def _alive(path: Path) -> bool:
    """Whether the process that holds the folder's lock still runs on this machine."""
    try:
        return bool(psutil.pid_exists(int((path / ".lock").read_text())))
    except (OSError, ValueError, OverflowError):
        return False


def _started(run: FoundRun) -> float:
    """Return the start in seconds since the epoch, or the folder's modification time if the summary has none."""
    try:
        return datetime.fromisoformat(run.summary.started).timestamp()
    except ValueError:
        try:
            return run.path.stat().st_mtime
        except OSError:
            return 0.0


# --- filters and order --------------------------------------------------------------------------------------

Tests = list[Callable[[FoundRun], bool]]
SortOrder = Callable[[list[FoundRun]], list[FoundRun]]


def _asked(args: dict[str, str], runs: list[FoundRun]) -> tuple[Tests, SortOrder, int | None, bool]:
    """Return the tests that a run must pass, the order, the largest number of runs, and whether to print JSON."""
    scores = declared.objectives()
    known = {*_leaves(), *scores, *(key.replace("eval/", "test/") for key in scores)}
    known |= {*COLUMNS, *(key for run in runs for key in run.values)}
    if "sort" in args:
        args = {**args, "sort": _meant(args["sort"], known)}
    _refuse_unknown(args, known)
    tests = [_test(key, text) for key, text in args.items() if key not in OPTIONS]
    as_json = args.get("json", "false").lower()
    if as_json not in ("true", "false"):
        raise InputError(f"json={as_json} must be true or false")
    limit = args.get("limit", "null" if as_json == "true" else "50")
    if limit != "null" and not limit.isdigit():
        raise InputError(f"limit={limit} must be a whole number, or null for all runs")
    return tests, _order(args.get("sort", "started")), None if limit == "null" else int(limit), as_json == "true"


def _meant(order: str, known: set[str]) -> str:
    """Return the key to sort by for a key or a column title; the title of the scores is their objective without its
    split."""
    title = order.removeprefix("-")
    scores = {key.removeprefix("eval/"): key for key in declared.objectives()}
    key = title if title in known else {**scores, **TITLES}.get(title, title)
    return "-" * order.startswith("-") + key


def _leaves() -> set[str]:
    """Return the keys of the configuration that hold a value, not further keys."""
    keys = list(known_keys())
    return {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}


def _refuse_unknown(args: dict[str, str], known: set[str]) -> None:
    for key, text in args.items():
        prefix = key[:4] if key.startswith(("min.", "max.")) and key not in known else ""
        if key not in OPTIONS and key[len(prefix) :] not in known:
            near = ", ".join(prefix + name for name in _nearest(key[len(prefix) :], known | set(OPTIONS)))
            raise InputError(f"{key}={text}: {key} is neither a column nor a configuration key. Did you mean: {near}?")
        if key == "sort" and text.removeprefix("-") not in known:
            near = ", ".join(_nearest(text.removeprefix("-"), known | TITLES.keys()))
            raise InputError(f"sort={text} is neither a column, a configuration key nor a score. Did you mean: {near}?")


def _nearest(key: str, known: set[str]) -> list[str]:
    """Return the three names most similar to `key`, as a whole or in their last part: `lr` to `trainer.lr`."""

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, key, name).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        return max(whole, 0.9 * last)

    return sorted(known, key=lambda name: (-likeness(name), name))[:3]


def _test(key: str, text: str) -> Callable[[FoundRun], bool]:
    if key.startswith(("min.", "max.")):
        bound, sign = _number(text), 1 if key.startswith("min.") else -1
        if bound is None:
            raise InputError(f"{key}={text} must be a number")
        return lambda run: (value := _number(run.values.get(key[4:]))) is not None and sign * (value - bound) >= 0
    if key == "model":
        return lambda run: _same(run.values["model"], text) or _same(run.values.get("model.id"), text)
    return lambda run: _same(run.values.get(key), text)


def _same(value: Any, text: str) -> bool:
    """Whether a value matches a filter: numbers by value, `null` and `true` as in YAML, text with * and ?."""
    number, asked = _number(value), _number(text)
    if number is not None and asked is not None:
        return math.isclose(number, asked, rel_tol=1e-9)
    if value is None or isinstance(value, bool):
        return text.lower() == json.dumps(value)
    if isinstance(value, list):
        return [item.strip() for item in text.strip("[]").split(",")] == [str(item) for item in value]
    return str(value) == text or fnmatch.fnmatchcase(str(value), text)


def _number(value: Any) -> float | None:
    """Return a value as a finite number, also from text; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _order(text: str) -> SortOrder:
    """Return the order: newest and best first, other keys ascending; `-` reverses it, absent values stay last."""
    key = text.removeprefix("-")
    down = key in ("started", "score") or declared.of(key).rises
    down = down != text.startswith("-")

    def ordered(runs: list[FoundRun]) -> list[FoundRun]:
        runs = sorted(runs, key=lambda run: run.values["started"], reverse=True)
        there = [run for run in runs if run.values.get(key) is not None]
        absent = [run for run in runs if run.values.get(key) is None]
        numbers = all(_number(run.values[key]) is not None for run in there)

        def rank(run: FoundRun) -> Any:
            return float(run.values[key]) if numbers else str(run.values[key])

        return sorted(there, key=rank, reverse=down) + absent

    return ordered


# --- what is shown ------------------------------------------------------------------------------------------


def _record(run: FoundRun) -> dict[str, Any]:
    """Return a run as a JSON object."""
    started = datetime.fromtimestamp(run.values["started"]).astimezone().isoformat(timespec="seconds")
    record = {"run": str(run.path), "status": run.values["status"], "started": started, "problems": run.problems}
    return {key: _finite(value) for key, value in {**run.summary.tree(), **record, "config": run.config}.items()}


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _finite(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_finite(value) for value in node]
    plain = node is None or isinstance(node, (str, bool, int)) or (isinstance(node, float) and math.isfinite(node))
    return node if plain else None if isinstance(node, float) else str(node)


def _show(runs: list[FoundRun], total: int) -> None:
    """Print the table; on a narrow terminal the least important columns are left out."""
    from rich.cells import cell_len
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    shared = {run.values["objective"] for run in runs if run.values["objective"]}
    columns = _table(runs, shared.pop() if len(shared) == 1 else "")
    width = console.width if console.is_terminal else 10_000
    sizes = {title: max(map(cell_len, [title, *cells])) for title, cells in columns.items()}
    fitting = _fitting(sizes, width)
    left = ("name", "status", "model", "objective")
    for i in range(-1, len(runs)):
        cells = []
        for title in fitting:
            text = title if i < 0 else columns[title][i]
            gap = " " * (sizes[title] - cell_len(text))
            cells.append(text + gap if title in left else gap + text)
        console.print("  ".join(cells).rstrip(), style="dim" if i < 0 else "", soft_wrap=True)
    for run in runs:
        if run.values["status"] == "broken":
            console.print(f"{run.values['name']}: {'; '.join(run.problems)}", style="yellow", soft_wrap=True)
    if total > len(runs):
        console.print(f"{total - len(runs)} more runs: limit=null shows all", style="dim")


def _fitting(sizes: dict[str, int], width: int) -> list[str]:
    """Return the titles of the columns that fit into `width`; the most important columns are placed first."""
    optional = ["model", "lr", "lora", "objective", "started", "steps", "seconds"]
    chosen = [title for title in sizes if title not in optional]
    for title in optional:
        if title in sizes and sum(sizes[name] + 2 for name in [*chosen, title]) - 2 <= width:
            chosen.append(title)
    return [title for title in sizes if title in chosen]


def _table(runs: list[FoundRun], objective: str) -> dict[str, list[str]]:
    """Return the cells by column title; an objective that all runs share is the title of the scores."""
    columns = {
        "name": [run.values["name"] for run in runs],
        "status": [run.values["status"] for run in runs],
        "model": [_text(run.values["model"]) for run in runs],
        "lora": [_lora(run.values.get("lora.r")) for run in runs],
        "lr": [_text(run.values.get("trainer.lr")) for run in runs],
        "steps": [_text(run.values["steps"]) for run in runs],
        objective.removeprefix("eval/") or "base -> tuned": [_headline(run) for run in runs],
    }
    if not objective:
        columns["objective"] = [_text(run.values["objective"]) for run in runs]
    seconds = [_number(run.values["seconds"]) for run in runs]
    columns["seconds"] = ["-" if value is None else f"{value:,.0f}" for value in seconds]
    columns["started"] = [time.strftime("%Y-%m-%d %H:%M", time.localtime(run.values["started"])) for run in runs]
    return {title: [_printable(cell) for cell in cells] for title, cells in columns.items()}


def _headline(run: FoundRun) -> str:
    """Return the objective of base and tuned model: `1.0 -> 63.0 %`."""
    key = run.values["objective"]
    base, tuned = (_scores(run, which).get(key) for which in ("base", "tuned"))
    tuned = run.summary.objective.value if tuned is None else tuned
    if base is None and tuned is None:
        return "-"
    rate = key is not None and declared.of(key).is_rate
    before, after = ("" if n is None else f"{100 * n:.1f}" if rate else f"{n:.3f}" for n in (base, tuned))
    return f"{before} -> {after}{' %' if rate and after else ''}".strip()


def _lora(r: Any) -> str:
    return "full" if r == 0 and not isinstance(r, bool) else "-" if r is None else f"r{r}"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
