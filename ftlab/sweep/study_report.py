"""The report of a finished or running study: on the terminal, as report.html and report.md, and as experiment file."""

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ftlab.disk import write_atomic
from ftlab.errors import ConfigError, RunDirError
from ftlab.paths import short
from ftlab.process import Process
from ftlab.redact import redact
from ftlab.sweep import best as best_file
from ftlab.sweep import page, run_records, tables
from ftlab.sweep.best import ComposedConfig
from ftlab.sweep.entry import Entry, Parameter, State, best_of, front, text
from ftlab.sweep.figures import Sweep
from ftlab.sweep.page import Page
from ftlab.sweep.statistics import against, importance, saved
from ftlab.terminal import Terminal

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from ftlab.sweep.space import Dimension
    from ftlab.sweep.study import Study, TrialRow

FEW_VALUES = 8  # numbers in steps are drawn as categories up to this many
ROWS = 20  # of the leaderboard on the terminal
TESTS = {"rows": "95 % paired cluster bootstrap or McNemar's test", "intervals": "95 % interval of the difference"}
PLAIN_WIDTH = 200  # characters of a table's line where the output is a file


@dataclass(frozen=True)
class Report:
    """The state of a study when the report was made."""

    name: str
    folder: Path
    sweep: Sweep
    wanted: int | None = None  # the number of finished trials at which the sweep ends
    storage: str = ""  # the database's URL, without its password
    shares: dict[str, float] = field(default_factory=dict)  # of the parameters, by importance
    fixed: Sequence[str] = ()  # overrides that all trials share
    chosen: Sequence[str] = ()  # overrides of the best trial
    hints: Sequence[str] = ()  # warnings, and what a further sweep could do

    @property
    def best(self) -> Entry | None:
        """The best trial, by the same rule as `Study.best`."""
        return best_of(self.sweep.entries, self.sweep.directions)

    def show(self, terminal: Terminal, rows: int | None = ROWS, notes: Sequence[str] = ()) -> None:
        """Print the leaderboard of at most `rows` trials, the findings, the `notes` of `write` and next commands."""
        page = self.page()
        width = PLAIN_WIDTH if terminal.plain else terminal.console.width
        if terminal.plain:
            terminal.console.width = PLAIN_WIDTH
        terminal.note(f"{page.title}: {page.lines[0]}")
        for table in page.tables:
            board = table.title == tables.LEADERBOARD
            shown = table.fitting(width, rows if board else None) if board else table
            if shown.rows:
                terminal.table(shown.head, shown.rows)
            if len(shown.rows) < len(table.rows):
                terminal.note(f"{len(table.rows) - len(shown.rows)} more trials: limit=null shows all")
            for note in shown.notes:
                terminal.note(note)
        terminal.note("")
        for line in page.lines[1:]:
            terminal.note(line)
        if page.best:
            terminal.note(f"best configuration: {' '.join(page.best)}")
        for line in notes:
            terminal.note(line)
        terminal.next_commands([command for _, command in page.commands[:4]])

    def write(self) -> list[str]:
        """Write report.html, report.md and, where a trial is complete, experiment/best.yaml. Returns notes for the
        reader.

        Raises:
            RunDirError: the study's folder cannot be written.
        """
        notes = []
        try:
            if self.best is not None:
                notes = self._write_best(self.best)
            found = self.page()
            write_atomic(self.folder / "report.html", redact(page.html(found)))
            write_atomic(self.folder / "report.md", redact(page.markdown(found)))
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunDirError(
                f"{self.folder} cannot be written ({reason}): the report is shown on the terminal only"
            ) from None
        return [
            *notes,
            f"written: {short(self.folder)}/report.html, report.md" + (", experiment/best.yaml" * bool(self.best)),
        ]

    def _write_best(self, best: Entry) -> list[str]:
        value = tables.number(best.values[0], self.sweep.objectives[0])
        comment = f"trial {best.number} of the sweep {self.name}: {self.sweep.objectives[0]} {value}"
        try:
            recipe = (
                ComposedConfig.of_run(best.folder)
                if best.folder
                else ComposedConfig.of_overrides([*self.fixed, *self.chosen])
            )
            off = best_file.write(self.folder, recipe, comment)
        except ConfigError as error:  # what ftlab ships has changed since, or an option lay outside of it
            return [f"experiment/best.yaml cannot be composed: {'; '.join(error.problems)}"]
        return [f"experiment/best.yaml does not set {', '.join(off)}: set them on the command line"] if off else []

    def page(self) -> Page:
        """The content of the report, for every form."""
        sweep = self.sweep
        found = (tables.rungs(sweep), tables.importance(self.shares), tables.failures(sweep.entries))
        board = [tables.leaderboard(sweep, self._links())] if sweep.entries else []
        return Page(
            f"Sweep {self.name}",
            list(self._lines()),
            list(self._commands()),
            list(self.chosen),
            [*board, *(table for table in found if table)],
            sweep,
        )

    def _links(self) -> dict[str, str]:
        """Trial number to the relative path of its folder, for trials that have one."""
        places = {e.number: e.folder or self.folder / str(e.number) for e in self.sweep.entries if e.distinct}
        names = {number: os.path.relpath(place, self.folder).partition(os.sep)[0] for number, place in places.items()}
        return {str(number): f"{name}/" for number, name in names.items() if (self.folder / name).is_dir()}

    def _lines(self) -> Iterator[str]:
        sweep, best = self.sweep, self.best
        yield tables.counts(sweep.entries, self.wanted)
        when = datetime.fromtimestamp(sweep.now).strftime("%Y-%m-%d %H:%M")
        yield (
            "objective: "
            + "; ".join(f"{way} {name}" for name, way in zip(sweep.objectives, sweep.directions, strict=True))
            + f" (state of {when})"
        )
        yield from self.hints
        if best is None:
            yield "no trial is complete yet, so there is no best configuration"
            return
        yield from self._best_lines(best)
        if sentence := tables.pruning(saved(sweep.entries)):
            yield sentence

    def _best_lines(self, best: Entry) -> Iterator[str]:
        sweep = self.sweep
        values = [
            f"{name} {tables.number(value, name)}" for name, value in zip(sweep.objectives, best.values, strict=True)
        ]
        between = f" (95 % interval: {tables.interval(best, sweep.objectives[0])})" if best.interval else ""
        if len(sweep.objectives) > 1:
            members = [entry.number for entry in front(sweep.entries, sweep.directions)]
            if len(members) == 1:
                yield f"the Pareto front is trial {best.number} alone: no other trial is better in any objective"
            else:
                yield f"there is no single best: the Pareto front is trials {', '.join(map(str, members))}"
            first = f"best by {sweep.objectives[0]}, run by experiment=best"
            yield f"{first}: trial {best.number}, {', '.join([values[0] + between, *values[1:]])}"
            return
        yield f"best: trial {best.number}, {values[0]}{between}"
        standings = {entry.number: against(best, entry) for entry in sweep.done[1:]}
        ties = {number: TESTS[found.by] for number, found in standings.items() if found and found.tie}
        if ties:
            listed = f"trial{'s' * (len(ties) > 1)} {', '.join(map(str, ties))}"
            tests = " or ".join(dict.fromkeys(ties.values()))
            yield f"statistically tied with {len(ties)} other{'s' * (len(ties) > 1)} ({tests}): {listed}"
        if best.test:
            yield f"on the test split, which was not used to choose it: {best.test}"

    def _commands(self) -> Iterator[tuple[str, str]]:
        if self.best is not None:
            folder = shlex.quote(short(self.folder))
            yield "Run the best configuration", f"python -m ftlab --config-dir {folder} experiment=best"
        if self.storage:
            what = "View the study in a browser (needs pip install optuna-dashboard)"
            yield what, f"optuna-dashboard {shlex.quote(self.storage)}"


# --- reading a study ------------------------------------------------------------------------------------------


def report_study(study: "Study", terminal: Terminal, rows: int | None = ROWS) -> Report:
    """Print the report of a study, with at most `rows` trials, and write it into the study's folder.

    Raises:
        InputError: its database cannot be read, or its folder not written.
    """
    found = gathered(study)
    try:
        notes = found.write()
    except RunDirError:
        found.show(terminal, rows)
        raise
    found.show(terminal, rows, notes)
    return found


def gathered(study: "Study") -> Report:
    """The report of a study as it is now; it may be running.

    Raises:
        InputError: its database cannot be read.
    """
    entries = _entries(study)
    by_seed = study.cfg.pruner == "wilcoxon"  # then each seed's objective is reported in place of the rung metric
    sweep = Sweep(
        entries,
        [_parameter(dimension) for dimension in study.space.dimensions],
        study.objectives,
        study.directions,
        study.objectives[0] if by_seed else study.cfg.rung_metric,
        "seed" if by_seed else "step",
        time.time(),
        study.directions[0] == "maximize" if by_seed else study.rung_up,
    )
    shares = importance(study.optuna)
    found = Report(study.name, study.folder, sweep, study.target, _storage(study), shares, study.fixed)
    found = replace(found, hints=[*tables.mixed(entries), *_hints(study)])
    return replace(found, chosen=study.space.overrides(found.best.params)) if found.best else found


def _hints(study: "Study") -> Iterator[str]:
    imported = sum("from" in trial.user_attrs for trial in study.optuna.get_trials(deepcopy=False))
    if imported:
        yield f"warm start: trials imported from another study for the sampler, listed in no table: {imported}"
    if study.exhausted():
        yield f"all {study.space.size()} configurations of the space were run: more trials would only repeat them"
    lost = study.failed_points()
    if lost and not study.left():
        words, them = ("1 point of the grid", "it") if lost == 1 else (f"{lost} points of the grid", "them")
        budget = max(study.cfg.max_failures, study.counts().failed) + lost
        yield f"{words} failed: the same command with sweep.max_failures={budget} runs {them} again"


def _storage(study: "Study") -> str:
    from ftlab.sweep.storage import file_url, without_password

    default = study.folder / "study.db"
    return file_url(short(default)) if default.is_file() else redact(without_password(study.storage_url))


def _parameter(dimension: "Dimension") -> Parameter:
    grid = dimension.grid()
    if grid is not None and (dimension.kind == "choice" or len(grid) <= FEW_VALUES):
        return Parameter(dimension.key, "choice", tuple(map(text, dimension.choices)))
    return Parameter(dimension.key, "log" if dimension.log else "linear")


def _entries(study: "Study") -> list[Entry]:
    """The trials of the leaderboard by number, with the records of their run folders."""
    trials = {trial.number: trial for trial in study.optuna.get_trials(deepcopy=False)}
    rows = {row.number: row for row in study.leaderboard()}
    return [_entry(study, row, trials[row.number], rows) for _, row in sorted(rows.items())]


def _entry(study: "Study", row: "TrialRow", trial: "FrozenTrial", rows: Mapping[int, "TrialRow"]) -> Entry:
    attrs = row.user_attrs
    same_as: int | None = attrs.get("same_as")
    runs = run_records.runs(Path(rows.get(-1 if same_as is None else same_as, row).folder))
    ran = row.distinct and trial.datetime_start is not None
    values = tuple(row.values or ())
    entry = Entry(
        row.number,
        cast(State, row.state),
        values,
        row.params,
        row.rungs,
        folder=runs[0].path if runs else None,
        started=trial.datetime_start.timestamp() if ran and trial.datetime_start else None,
        ended=trial.datetime_complete.timestamp() if ran and trial.datetime_complete else None,
        worker=_worker(Process.read(trial.user_attrs.get("owner"))),
        cause=row.cause or "",
        peak_gib=attrs.get("vram_peak_gib") or None,
        note="" if row.distinct else f"same as {same_as}",
        loss=row.loss,
        same_as=same_as,
    )
    deviations = attrs.get("deviation")
    deviation = deviations[0] if deviations else None
    return run_records.completed(entry, runs, study.objectives[0], study.cfg.seeds, deviation)


def _worker(owner: Process | None) -> str:
    return f"{owner.host.partition('/')[0]} {owner.pid}" if owner else "unknown"
