"""What a sweep found, at any moment of it: on the terminal, as report.html and report.md, and as an experiment file."""

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

FEW_VALUES = 8  # up to so many, numbers in steps are drawn as names
ROWS = 20  # of the leaderboard on the terminal
PLAIN_WIDTH = 200  # columns of tables where the output is no terminal: a log wraps nothing


@dataclass(frozen=True)
class Report:
    """A study as it stands."""

    name: str
    folder: Path
    sweep: Sweep
    wanted: int | None = None  # finished trials
    storage: str = ""  # the database's URL, without its password
    shares: dict[str, float] = field(default_factory=dict)  # of the parameters, by importance
    fixed: Sequence[str] = ()  # overrides that all trials share
    chosen: Sequence[str] = ()  # overrides of the best trial
    hints: Sequence[str] = ()  # sentences on what the study can still do

    @property
    def best(self) -> Entry | None:
        """The one that `Study.best` names, by the same rule."""
        return best_of(self.sweep.entries, self.sweep.directions)

    def show(self, terminal: Terminal, rows: int | None = ROWS, told: Sequence[str] = ()) -> None:
        """Leaderboard of at most `rows` trials, findings, what `write` told, and what to do next."""
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
                terminal.note(f"{len(table.rows) - len(shown.rows)} more: limit=null shows all")
            for note in shown.notes:
                terminal.note(note)
        terminal.note("")
        for line in page.lines[1:]:
            terminal.note(line)
        if page.best:
            terminal.note(f"best configuration: {' '.join(page.best)}")
        for line in told:
            terminal.note(line)
        terminal.next_commands([command for _, command in page.commands])

    def write(self) -> list[str]:
        """Write report.html, report.md and, where a trial is complete, experiment/best.yaml; a sentence on each thing
        that a reader must know of them.

        Raises:
            RunDirError: the study's folder cannot be written.
        """
        told = []
        try:
            if self.best is not None:
                told = self._write_best(self.best)
            found = self.page()
            write_atomic(self.folder / "report.html", redact(page.html(found)))
            write_atomic(self.folder / "report.md", redact(page.markdown(found)))
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunDirError(
                f"{self.folder} cannot be written ({reason}): the report is on the terminal only"
            ) from None
        return [
            *told,
            f"written: {shown(self.folder)}/report.html, report.md" + (", experiment/best.yaml" * bool(self.best)),
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
            return [f"experiment/best.yaml composes to nothing: {'; '.join(error.problems)}"]
        return [f"experiment/best.yaml does not hold {', '.join(off)}: set them on the command line"] if off else []

    def page(self) -> Page:
        """What is told, whatever the form."""
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
        """The folders of the trials that have one, below the study's, by number."""
        places = {e.number: e.folder or self.folder / str(e.number) for e in self.sweep.entries if e.distinct}
        names = {number: os.path.relpath(place, self.folder).partition(os.sep)[0] for number, place in places.items()}
        return {str(number): f"{name}/" for number, name in names.items() if (self.folder / name).is_dir()}

    def _lines(self) -> Iterator[str]:
        sweep, best = self.sweep, self.best
        yield tables.counts(sweep.entries, self.wanted)
        when = datetime.fromtimestamp(sweep.now).strftime("%Y-%m-%d %H:%M")
        yield (
            "; ".join(f"{way} {name}" for name, way in zip(sweep.objectives, sweep.directions, strict=True))
            + f" (as of {when})"
        )
        yield from self.hints
        if best is None:
            yield "no trial is complete yet: there is no best configuration"
            return
        yield from self._best_lines(best)
        if sentence := tables.pruning(saved(sweep.entries)):
            yield sentence

    def _best_lines(self, best: Entry) -> Iterator[str]:
        sweep = self.sweep
        values = [
            f"{name} {tables.number(value, name)}" for name, value in zip(sweep.objectives, best.values, strict=True)
        ]
        between = f" (95 %: {tables.interval(best, sweep.objectives[0])})" if best.interval else ""
        if len(sweep.objectives) > 1:
            members = [entry.number for entry in front(sweep.entries, sweep.directions)]
            if len(members) == 1:
                yield f"the front is trial {best.number} alone: no other beats it in any objective"
            else:
                yield f"there is no single best: the front is trials {', '.join(map(str, members))}"
            first = f"best by {sweep.objectives[0]}, and experiment=best"
            yield f"{first}: trial {best.number}, {', '.join(values)}{between}"
            return
        yield f"best: trial {best.number}, {values[0]}{between}"
        standings = {entry.number: against(best, entry) for entry in sweep.done[1:]}
        ties = [number for number, found in standings.items() if found and found.tie]
        if ties:
            listed = ", ".join(map(str, ties))
            yield f"it is not told apart from {len(ties)} other{'s' * (len(ties) > 1)}: trial {listed}"
        if best.test:
            yield f"on test, which chose nothing: {best.test}"

    def _commands(self) -> Iterator[tuple[str, str]]:
        if self.best is not None:
            folder = shlex.quote(shown(self.folder))
            yield "run the best configuration", f"python -m ftlab --config-dir {folder} experiment=best"
        if self.storage:
            what = "look at the study in a browser (pip install optuna-dashboard)"
            yield what, f"optuna-dashboard {shlex.quote(self.storage)}"


# --- reading a study ------------------------------------------------------------------------------------------


def report_study(study: "Study", terminal: Terminal, rows: int | None = ROWS) -> Report:
    """Show a study as it stands, with at most `rows` trials, and write its report into its folder.

    Raises:
        InputError: its database cannot be read, or its folder not written.
    """
    found = gathered(study)
    try:
        told = found.write()
    except RunDirError:
        found.show(terminal, rows)
        raise
    found.show(terminal, rows, told)
    return found


def gathered(study: "Study") -> Report:
    """The study as it stands now; it may be running.

    Raises:
        InputError: its database cannot be read.
    """
    entries = _entries(study)
    by_seed = study.cfg.pruner == "wilcoxon"  # which is told each seed's objective
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
    taken = sum("from" in trial.user_attrs for trial in study.optuna.get_trials(deepcopy=False))
    if taken:
        yield f"trials taken over from another study, for the sampler to learn from: {taken}, which no table lists"
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
    return file_url(shown(default)) if default.is_file() else redact(without_password(study.storage_url))


def _parameter(dimension: "Dimension") -> Parameter:
    grid = dimension.grid()
    if grid is not None and (dimension.kind == "choice" or len(grid) <= FEW_VALUES):
        return Parameter(dimension.key, "choice", tuple(map(text, dimension.choices)))
    return Parameter(dimension.key, "log" if dimension.log else "linear")


def _entries(study: "Study") -> list[Entry]:
    """What the leaderboard lists, by number, with what the run folders add."""
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
        note="" if row.distinct else f"as {same_as}",
        loss=row.loss,
        same_as=same_as,
    )
    deviations = attrs.get("deviation")
    deviation = deviations[0] if deviations else None
    return run_records.completed(entry, runs, study.objectives[0], study.cfg.seeds, deviation)


def _worker(owner: Process | None) -> str:
    return f"{owner.host.partition('/')[0]} {owner.pid}" if owner else "unknown"


def shown(path: Path) -> str:
    """A path as one would type it here."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
