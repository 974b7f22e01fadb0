"""A study: its folder, its database, and every rule about which trials count.

User attributes of a trial:

    owner         host, pid and start time of the process that runs it, and of its parents ("above")
    original      number of the first attempt
    attempts      numbers of all earlier attempts, whose folder this attempt takes over when it starts
    retries       how often its process died before while its parents lived
    orphaned      how often its process died before together with a parent, such as its driver
    interrupted   "killed", "orphaned" (both found dead) or "stopped" (by a signal): another attempt follows
    surplus       one more than needed, discarded
    cause         why it failed, in one line
    from          the trial of another study from which it was imported (warm start)
    loss          validation loss of its kept weights, the mean over seeds: breaks ties between equal values
    same_as       of a duplicate: number of the trial with equal parameters whose values it copied

Values are reported to the pruner by optimizer step, with the sign of the study's direction (`Study.reported`).
"""

import difflib
import json
import math
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from types import NoneType
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ftlab.config import SweepConfig
from ftlab.disk import write_atomic
from ftlab.errors import ConfigError, InputError, first_line
from ftlab.process import Process
from ftlab.redact import redact
from ftlab.summary import Sources
from ftlab.sweep import identity, samplers, storage
from ftlab.sweep.entry import Rank, best_of, finite, front, rank
from ftlab.sweep.limits import GRACE_S
from ftlab.sweep.samplers import failed, own, point_of
from ftlab.sweep.space import ParamValue, Space
from ftlab.sweep.storage import OwnedStorage, owners

CARD = "study.json"
LOCK = ".study.lock"
LOCK_TIMEOUT_S = 120.0
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
COUNTED = {"killed": "retries", "orphaned": "orphaned"}  # ways to die, and the attribute that counts each
MOST_ORPHANED = 10  # how many deaths together with the driver count like one death of the process alone
# Seconds over its time limit after which a process is killed: one that is stopped (SIGSTOP), and one that runs, which
# its own alarm and then its own watchdog should have ended.
STOPPED_GRACE_S, HUNG_GRACE_S = 2.0, 2 * GRACE_S


@dataclass(frozen=True)
class Counts:
    """Numbers of trials by state, without discarded, interrupted and imported trials."""

    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int

    @property
    def finished(self) -> int:
        """Trials that `sweep.n_trials` counts."""
        return self.complete + self.pruned


@dataclass(frozen=True)
class TrialRow:
    """One trial as a leaderboard shows it; `dataclasses.asdict` makes it JSON."""

    number: int
    state: str  # complete, pruned, failed, running, waiting
    value: float | None  # of the first objective
    values: list[float] | None
    params: dict[str, ParamValue]
    rungs: dict[int, float]  # sweep.rung_metric by optimizer step
    seconds: float | None  # run time of the last attempt
    cause: str | None
    folder: str
    user_attrs: dict[str, Any]

    @property
    def scored(self) -> bool:
        """Whether it is complete with finite values."""
        return finite(self.values)

    @property
    def loss(self) -> float | None:
        """Its validation loss; None in studies of older versions of ftlab."""
        return self.user_attrs.get("loss")

    @property
    def distinct(self) -> bool:
        """Whether it was run itself and is no duplicate of a trial with equal parameters."""
        return "same_as" not in self.user_attrs


class Study:
    """An Optuna study with its search space, its progress, and the recovery of trials whose worker died."""

    def __init__(
        self,
        name: str,
        folder: Path,
        cfg: SweepConfig,
        space: Space,
        objectives: list[str],
        fixed: list[str],
        study: optuna.Study,
        backend: OwnedStorage,
    ) -> None:
        self.name, self.folder, self.cfg, self.space = name, folder, cfg, space
        self.objectives, self.fixed = objectives, fixed
        self.directions = [direction.name.lower() for direction in study.directions]
        self.storage_url = backend.url
        self.target = samplers.target(cfg, space)
        self.optuna, self._backend = study, backend
        self.forgiven = frozenset[int](study.user_attrs.get("forgiven", ()))  # failed, but their points may run again
        self.salvaged = ""  # what was restored after the database was damaged, and what was lost
        self.notes: list[str] = []  # on the warm start, for the user
        self._file_lock = _file_lock(folder)

    # --- opening ----------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        name: str,
        folder: Path,
        cfg: SweepConfig,
        space: Space,
        objectives: list[str],
        fixed: list[str],
        *,
        composed: Mapping[str, Any] | None = None,
        sources: Sources | None = None,
        rungs: Sequence[int] | None = None,
        refill: "Callable[[Study], str] | None" = None,
    ) -> "Study":
        """Create the study or join it; several processes may do so at once. Enqueues `sweep.first` and imports the
        trials of `sweep.warm_start`. A refused study leaves no files behind.

        `composed` (of `identity.configuration`) is compared to refuse fixed values that changed in a file, `sources`
        (of `identity.shared`) to refuse changed data. `rungs` are the optimizer steps of evaluations, if known, to
        refuse a pruner that would never act. `refill` restores the trials from their folders if a damaged database has
        to be set aside.

        Raises:
            ConfigError: settings that contradict each other, or a study of that name with another search.
            InputError: the database or the folder cannot be used.
        """
        name, folder = folder_name(name), Path(folder)
        directions = identity.directions_of(objectives, cfg.direction)
        wanted = identity.record(cfg, space, objectives, directions, fixed, composed, sources)
        identity.check(cfg, space, objectives)
        _check_card(folder, name, cfg.storage)
        lock = _file_lock(folder)
        samplers.sampler(cfg, space, lambda: _held(lock))
        samplers.check_pruner(cfg) if rungs is None else samplers.pruner(cfg, rungs)
        source = _warm_start_source(cfg, wanted)
        url = cfg.storage or storage.default_url(folder)
        with _made(folder), _held(lock), storage.explained(url):
            aside = _damaged_aside(folder) if refill and not cfg.storage else None
            backend = storage.connect(url, cfg.heartbeat_s, cfg.grace_s)
            study = optuna.create_study(study_name=name, storage=backend, directions=directions, load_if_exists=True)
            space = identity.agreed(study, space, wanted)
            _write_card(folder, name, cfg.storage)
            opened = cls(name, folder, cfg, space, objectives, fixed, study, backend)
            if aside and refill:
                opened.salvaged = f"{folder}/study.db was damaged and is kept as {aside.name}: {refill(opened)}"
            opened._ready(wanted, source)
        return opened

    @classmethod
    def load(cls, text: str) -> "Study":
        """An existing study, by its folder or its name in outputs/.

        Raises:
            InputError: there is none; similar names are suggested.
        """
        folder, card = _find(text)
        url = card["storage"] or storage.default_url(folder)
        if not card["storage"] and not (folder / "study.db").is_file():
            raise InputError(f"{folder} holds no study.db: its database was removed")
        with storage.explained(url):
            backend = storage.connect(url, 60, 180)
            try:
                study = optuna.load_study(study_name=card["name"], storage=backend)
            except KeyError:
                raise InputError(f"the database of {folder} holds no study named {card['name']}") from None
            with _records_read(folder):
                attrs = study.user_attrs
                if "space" not in attrs:
                    raise InputError(f"{folder}: the study was not made completely; run its sweep again")
                cfg = _config(attrs["config"], card["storage"])
                space = Space.from_record(attrs["space"])
                return cls(card["name"], folder, cfg, space, attrs["objectives"], attrs["overrides"], study, backend)

    def _ready(self, record: Mapping[str, Any], source: "Study | None") -> None:
        """Set up the sampler, `sweep.first` and the warm start; the lock is held."""
        before = self.optuna.user_attrs
        wanted = {"config": _config_record(self.cfg), "overrides": [*map(redact, self.fixed)], "n_trials": self.target}
        for key, value in {**wanted, **self._forgive(before)}.items():
            if before.get(key) != value:
                self.optuna.set_user_attr(key, value)
        self.optuna.sampler = samplers.sampler(self.cfg, self.space, self.lock, self.forgiven)
        self.enqueue_first()
        if source:
            self._import_trials(source, record)
            source.close()

    def _forgive(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes that let failed grid points run again once `sweep.max_failures` is higher than ever before: a user
        who raises it has removed the cause."""
        budget = before.get("budget", before.get("config", {}).get("max_failures", self.cfg.max_failures))
        if self.cfg.max_failures <= budget:
            return {"budget": budget}
        self.forgiven = frozenset(trial.number for trial in self.trials() if failed(trial))
        return {"budget": self.cfg.max_failures, "forgiven": sorted(self.forgiven)}

    def work_under(self, above: Sequence[Process]) -> None:
        """Record these parent processes in the trials of this process, which ends when they do."""
        self._backend.above = above

    def close(self) -> None:
        """Close the database connections; using the study again reconnects. The last process to close an SQLite file
        merges its log into it. A killed process leaves `study.db-wal` beside it, which the next one reads."""
        self._backend.engine.dispose()

    def set_pruner(self, rungs: list[int]) -> None:
        """Prune at these optimizer steps.

        Raises:
            ConfigError: too few for `sweep.pruner`.
        """
        self.optuna.pruner = samplers.pruner(self.cfg, rungs)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for this process; reentrant."""
        with _held(self._file_lock):
            yield

    # --- counting ---------------------------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """Every trial by number, without imported ones; not to be changed."""
        return [t for t in self.optuna.get_trials(deepcopy=False) if own(t)]

    def counts(self) -> Counts:
        """Trials by state, read from the database."""
        return _counts(self.trials())

    def left(self, counts: Counts | None = None) -> int:
        """The number of trials still to finish, from `counts` if given. A grid also ends when every point is done, or
        failed and not to be run again."""
        wanted = max(0, self.target - (counts or self.counts()).finished)
        if wanted and self._is_grid:
            over = [t for t in self.trials() if t.state.is_finished() and samplers.occupies(t, self.forgiven)]
            settled = {point_of(t, self.space) for t in over} - {None}
            wanted = min(wanted, (self.space.size() or 0) - len(settled))
        return wanted

    def failed_points(self) -> int:
        """The number of failed grid points, which run again only if `sweep.max_failures` is raised."""
        lost = [t for t in self.trials() if failed(t) and samplers.occupies(t, self.forgiven)]
        return len({point_of(t, self.space) for t in lost} - {None}) if self._is_grid else 0

    def exhausted(self) -> bool:
        """Whether a search without a grid has run every configuration of its space."""
        size = None if self._is_grid else self.space.size()
        if size is None or size > self.target:
            return False
        ran = {self.space.index(t.params) for t in self.trials() if t.state in FINISHED} - {None}
        return len(ran) == size

    @property
    def _is_grid(self) -> bool:
        return samplers.chosen(self.cfg, self.space) == "grid"

    def surplus(self, number: int) -> bool:
        """Whether a running trial is not needed, as when several workers ask for the last one at once: `target` other
        trials are finished or started earlier, or one of those has the same grid point."""
        trials = {t.number: t for t in self.trials()}
        before = [t for t in trials.values() if t.number < number]
        active = [t for t in before if t.state in (*FINISHED, TrialState.RUNNING)]
        after = [t for t in trials.values() if t.number > number and t.state in FINISHED]
        if len(active) + len(after) >= self.target:
            return True
        if not self._is_grid:
            return False
        mine = point_of(trials[number], self.space)
        rivals = [t for t in before if samplers.occupies(t, self.forgiven)] + after
        return mine is not None and mine in {point_of(t, self.space) for t in rivals}

    def equal(self, trial: Trial) -> FrozenTrial | None:
        """Another trial that runs or has run the same configuration; None if this trial is to run it, which is then
        reserved in the database.

        Trial numbers do not show who drew first, and reading the trials cannot show what others write meanwhile. So
        one trial reserves the configuration, until it fails or dies. A running trial without a reservation (of an
        older ftlab, or not made yet) has precedence over higher numbers.
        """
        name = _name(trial.params)
        # Read before the trials: if the holder has finished by then, its values are seen.
        holder = self._backend.holder(self.optuna._study_id, name)
        alike = [t for t in self.trials() if t.number != trial.number and t.params == trial.params]
        finished = [t for t in alike if t.state in FINISHED and "same_as" not in t.user_attrs]
        running = {t.number: t for t in alike if t.state is TrialState.RUNNING}
        if finished:
            return finished[0]
        if holder in running:
            return running[holder]
        if running and min(running) < trial.number:
            return running[min(running)]
        mine = self._backend.hold(self.optuna._study_id, name, trial.number, after=holder)
        return None if mine else self.equal(trial)

    # --- trials of dead workers -------------------------------------------------------------------------------

    def reap(self, *, idle: bool = False) -> list[int]:
        """Fail the running trials whose process is dead, and enqueue them again as `sweep.retries` allows. Returns the
        numbers of the failed trials. `idle`: this process runs no trial itself, whatever the database says.

        If a process dies between failing and enqueueing a trial, the next call enqueues it.
        """
        with self.lock():
            silent = set(self._backend.silent(self.optuna._study_id))
            trials = self.trials()
            dead = [t for t in trials if t.state is TrialState.RUNNING and self._dead(t, silent, idle)]
            reaped = [t.number for t in dead if self._fail_dead(t)]
            self._enqueue_again(self.trials() if reaped else trials)
            return reaped

    def stopped(self, trial: Trial) -> None:
        """Mark a running trial as stopped by a signal: the next `reap` enqueues it again without using up a retry."""
        trial.set_user_attr("interrupted", "stopped")

    def _dead(self, trial: FrozenTrial, silent: set[int], idle: bool) -> bool:
        known = owners(trial)
        here = [owner for owner in known if owner.here()]
        if idle and here and all(owner == Process.me() for owner in known):
            return True
        if any(not owner.dead() for owner in here):
            return False
        return trial._trial_id in silent or (bool(known) and len(here) == len(known))

    def _fail_dead(self, trial: FrozenTrial) -> bool:
        """Fail a trial whose process is dead; False if another process finished it meanwhile. A death together with a
        parent is not the trial's fault, yet a trial that takes its driver down every time must end as well."""
        backend, key = self._backend, trial._trial_id
        kind, most = "killed", self.cfg.retries
        if any(process.dead() for process in storage.above(trial)):
            kind, most = "orphaned", MOST_ORPHANED * (self.cfg.retries + 1)
        deaths = int(trial.user_attrs.get(COUNTED[kind], 0)) + 1
        try:
            if trial.user_attrs.get("interrupted") != "stopped":
                if deaths <= most:
                    backend.set_trial_user_attr(key, "interrupted", kind)
                else:
                    times = f"{deaths} times" if deaths > 1 else "once"
                    with_driver = " with its driver" if kind == "orphaned" else ""
                    cause = f"its process died {times}{with_driver} (killed, or the machine went down)"
                    backend.set_trial_user_attr(key, "cause", cause)
            return backend.set_trial_state_values(key, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False

    def kill_overdue(self) -> list[int]:
        """Kill processes of this host that are over `sweep.trial_limit_s` and do not end their trial themselves: they
        are stopped, as by SIGSTOP, or even their own watchdog hangs. Returns the numbers of their trials, which `reap`
        enqueues again."""
        limit = self.cfg.trial_limit_s
        running = [] if limit is None else [t for t in self.trials() if t.state is TrialState.RUNNING]
        ended = []
        for trial in running:
            owner, spent = next(iter(owners(trial)), None), _seconds(trial) or 0.0
            if limit is None or owner is None or owner == Process.me() or not owner.here() or owner.dead():
                continue
            if spent > limit + (STOPPED_GRACE_S if owner.frozen() else HUNG_GRACE_S):
                with suppress(OSError):  # it is just gone, or another user's
                    os.kill(owner.pid, signal.SIGKILL)
                    ended.append(trial.number)
        return ended

    def _enqueue_again(self, trials: list[FrozenTrial]) -> None:
        """Enqueue another attempt of every interrupted trial without one, if more trials are to finish."""
        followed = {t.system_attrs.get("retry_of") for t in trials}
        lost = [t for t in trials if _interrupted(t) and t.number not in followed]
        if lost and self.left():
            for trial in lost:
                self.optuna.add_trial(_successor(trial))

    # --- known configurations -----------------------------------------------------------------------------------

    def enqueue_first(self) -> None:
        """Enqueue the configurations of `sweep.first`, each once.

        Raises:
            ConfigError: a key or value outside the space.
        """
        guesses = [self.space.values(guess) for guess in self.cfg.first]
        with self.lock():
            known = [trial.system_attrs.get("fixed_params", trial.params) for trial in self.trials()]
            for guess in guesses:
                if guess not in known:
                    self.optuna.enqueue_trial(guess)
                    known.append(guess)

    def _import_trials(self, source: "Study", record: Mapping[str, Any]) -> None:
        """Import the finished runs of a warm-start source, and note their number and what differs. If the source
        reported another rung metric, its pruned trials are not comparable and are left out."""
        theirs = (source.cfg.rung_metric, source.cfg.pruner == "wilcoxon")
        alike = theirs == (self.cfg.rung_metric, self.cfg.pruner == "wilcoxon")
        states = FINISHED if alike else (TrialState.COMPLETE,)
        known = {t.user_attrs.get("from") for t in self.optuna.get_trials(deepcopy=False)}
        for trial in source.optuna.get_trials(deepcopy=False, states=states):
            origin = trial.user_attrs.get("from") or f"{source.name}/{trial.number}"
            duplicate = "same_as" in trial.user_attrs
            if not duplicate and origin not in known and not origin.startswith(f"{self.name}/"):
                self.optuna.add_trial(_imported(trial, origin, self.space))
        self._note_imported(identity.differences(source.optuna.user_attrs, record, COMPARED))

    def _note_imported(self, different: list[str]) -> None:
        taken = Counter(t.state for t in self.optuna.get_trials(deepcopy=False) if not own(t))
        parts = f"{taken[TrialState.COMPLETE]} complete, {taken[TrialState.PRUNED]} pruned"
        chosen = samplers.chosen(self.cfg, self.space)
        use = (
            "the sampler learns from them"
            if chosen in MODEL_BASED
            else f"sweep.sampler={chosen} learns nothing from them"
        )
        trials = f"{taken.total()} trial{'s' * (taken.total() != 1)}"
        self.notes.append(
            f"{trials} imported from {self.cfg.warm_start} ({parts}): {use}; they are not counted or ranked here"
        )
        if different:
            listed = "; ".join(line.strip() for line in different)
            self.notes.append(f"{self.cfg.warm_start} had other settings, so its scores may mislead: {listed}")

    # --- results ----------------------------------------------------------------------------------------------

    def reported(self, value: float) -> float:
        """A value of `sweep.rung_metric` as it is reported to the pruner, which assumes the study's direction: a loss
        is negated if the study maximises. The function is its own inverse. Wilcoxon gets the objective itself."""
        if self.cfg.pruner == "wilcoxon" or len(self.directions) > 1:
            return value
        return value if self.rung_up == (self.directions[0] == "maximize") else -value

    @property
    def rung_up(self) -> bool:
        """Whether a higher `sweep.rung_metric` is better; if it is an objective, the study's direction decides."""
        return identity.rises(self.cfg.rung_metric, self.objectives, self.directions)

    def row(self, trial: FrozenTrial) -> TrialRow:
        """A trial as a row of the leaderboard."""
        attrs = {key: value for key, value in trial.user_attrs.items() if key != "owner"}
        values = list(trial.values) if trial.state is TrialState.COMPLETE else None
        return TrialRow(
            number=trial.number,
            state="failed" if trial.state is TrialState.FAIL else trial.state.name.lower(),
            value=values[0] if values else None,
            values=values,
            params={key: trial.params[key] for key in self.space.keys if key in trial.params},
            rungs={step: self.reported(value) for step, value in sorted(trial.intermediate_values.items())},
            seconds=_seconds(trial),
            cause=attrs.get("cause"),
            folder=str(folder_of(self, trial)),
            user_attrs=attrs,
        )

    def leaderboard(self) -> list[TrialRow]:
        """All trials except imported ones: complete ones, best first (with several objectives the Pareto front first),
        then pruned ones by their last rung, then running, waiting and failed ones. Ties are broken by the lower
        validation loss, then by the lower number."""
        rows = [self.row(trial) for trial in self.trials() if trial.state is not TrialState.FAIL or failed(trial)]
        ahead = {row.number for row in front(rows, self.directions)}
        rows.sort(key=lambda row: (row.number not in ahead, *self._rank(row)))
        return sorted(rows, key=lambda row: (STATES.index(row.state), not row.scored))

    def best(self) -> TrialRow | None:
        """The best trial that is no duplicate, if one is complete."""
        return best_of(self.leaderboard(), self.directions)

    def front(self) -> list[TrialRow]:
        """The Pareto front without duplicates; with one objective the best trial and those equal to it."""
        return front(self.leaderboard(), self.directions)

    def _rank(self, row: TrialRow) -> Rank:
        if row.scored:
            return rank(row, self.directions)
        last = [self.reported(value) for value in row.rungs.values()][-1:]
        known = bool(last) and last[0] == last[0]
        cost = (-last[0] if self.directions[0] == "maximize" else last[0]) if known else math.inf
        return (cost,), math.inf, row.number


# Samplers that model earlier trials, and the records whose differences from a warm-start source are noted.
MODEL_BASED = ("tpe", "gp", "cmaes")
COMPARED = ("fixed", "configuration", "sources", "seeds", "rung_metric")
STATES = ("complete", "pruned", "running", "waiting", "failed")


# --- rules ---------------------------------------------------------------------------------------------------


def folder_name(text: str) -> str:
    """`text`, if it can name a study and its folder: at most 100 letters, digits and `._=+,@-`, no path.

    Raises:
        ConfigError: it cannot; a valid name is suggested. Changing it silently could merge two studies into one.
    """
    name = re.sub(r"[^\w.=+,@-]+", "-", text).strip(".-")[:100].rstrip(".-")
    if name != text:
        remedy = f"write sweep.study={name}" if name else "use letters and digits"
        raise ConfigError(f"sweep.study={text} cannot name a folder (100 letters, digits, ._=+,@- at most): {remedy}")
    return name


# --- files -----------------------------------------------------------------------------------------------------


def _file_lock(folder: Path) -> FileLock:
    # One object per path in this process, so that its holder may acquire it again.
    return FileLock((folder / LOCK).resolve(), timeout=LOCK_TIMEOUT_S, is_singleton=True)


@contextmanager
def _held(lock: FileLock) -> Iterator[None]:
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{lock.lock_file} has been held by another process for {LOCK_TIMEOUT_S} s: is a sweep hanging?"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Create the folder; if the block fails, remove the folders that were created."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        with suppress(OSError):
            if made and not any(path.name != LOCK for path in folder.iterdir()):
                (folder / LOCK).unlink(missing_ok=True)
            for place in made:
                place.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise InputError(f"{folder} cannot be written ({reason}): choose another folder with run_dir=DIR") from None
        raise


def _damaged_aside(folder: Path) -> Path | None:
    """Rename the damaged database of a folder. Returns the new path; None if there is none or it is whole."""
    database = folder / "study.db"
    if not database.is_file() or storage.damage(database) is None:
        return None
    return storage.set_damaged_aside(database)


@contextmanager
def _records_read(folder: Path) -> Iterator[None]:
    """Turn the various errors that a damaged record causes into one.

    Raises:
        InputError: the record of the study is damaged.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"{folder}: the study's record is damaged ({type(error).__name__}: {first_line(error)}): restore its "
            "database from a backup, or start a new study with sweep.study=NAME"
        ) from None


def _card(name: str, url: str | None) -> dict[str, Any]:
    """The record from which `Study.load` finds the study, without a password."""
    return {"name": name, "storage": storage.without_password(url) if url else None}


def _read_card(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("name"), str) and "storage" in found
    return found if whole and isinstance(found["storage"], (str, NoneType)) else None


def _check_card(folder: Path, name: str, url: str | None) -> None:
    """Refuse a second study in one folder, where the trial numbers of both would collide."""
    there = _read_card(folder)
    if there is not None and there != _card(name, url):
        where = f" in {there['storage']}" if there["storage"] else ""
        raise ConfigError(f"{folder} is the folder of the study {there['name']}{where}: name another with run_dir=DIR")


def _write_card(folder: Path, name: str, url: str | None) -> None:
    if _read_card(folder) is None:
        write_atomic(folder / CARD, json.dumps(_card(name, url), indent=2) + "\n")


def _find(text: str) -> tuple[Path, dict[str, Any]]:
    for folder in (Path(text).expanduser(), Path("outputs") / text):
        card = _read_card(folder)
        if card is not None:
            return folder, card
        if (folder / CARD).exists():
            raise InputError(f"{folder / CARD} cannot be read: start the same sweep again to write it anew")
    names = sorted(file.parent.name for file in Path("outputs").glob(f"*/{CARD}"))
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.4) or names[:3]
    hint = f"Did you mean: {', '.join(near)}?" if near else "outputs/ holds no study; a sweep makes one"
    raise InputError(f"{text} is no study: neither a folder with {CARD} nor a name in outputs/. {hint}")


def folder_of(study: Study, trial: Trial | FrozenTrial) -> Path:
    """The trial's folder, named by its number. An attempt that has not started has the folder of the attempt before it,
    and so have those that an older ftlab resumed."""
    own, earlier = study.folder / str(trial.number), _attempts(trial.user_attrs)
    if not earlier or own.exists():
        return own
    return next((place for number in reversed(earlier) if (place := study.folder / str(number)).exists()), own)


def take_folder(study: Study, trial: Trial | FrozenTrial) -> Path:
    """The folder of a trial that starts, renamed from that of an earlier attempt to its own number."""
    own = study.folder / str(trial.number)
    before = folder_of(study, trial)
    if before != own:
        before.rename(own)
    return own


def _attempts(attrs: Mapping[str, Any]) -> list[int]:
    """The numbers of the attempts before a trial; an older ftlab recorded the first one only. They become folder names,
    so anything but a number in the database is ignored."""
    found = attrs.get("attempts") or [attrs.get("original")]
    return [number for number in found if isinstance(number, int)] if isinstance(found, list) else []


def _config_record(cfg: SweepConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps({**asdict(cfg), "storage": None}))
    return found


def _config(record: Mapping[str, Any], url: str | None) -> SweepConfig:
    """The settings with which a study was last run; keys unknown to this version of ftlab are left out."""
    known = {field.name for field in fields(SweepConfig)}
    return SweepConfig(**{key: value for key, value in record.items() if key in known} | {"storage": url})


# --- trials ------------------------------------------------------------------------------------------------------


def _warm_start_source(cfg: SweepConfig, wanted: Mapping[str, Any]) -> "Study | None":
    """The study of `sweep.warm_start`, checked to have the same space and objectives.

    Raises:
        InputError: there is no such study.
        ConfigError: its space or its objectives differ.
    """
    if cfg.warm_start is None:
        return None
    source = Study.load(cfg.warm_start)
    problems = identity.differences(source.optuna.user_attrs, wanted, ("space", "objectives", "directions"))
    if problems:
        source.close()
        raise ConfigError(f"sweep.warm_start={cfg.warm_start} cannot be imported:\n" + "\n".join(problems))
    return source


def _name(params: Mapping[str, Any]) -> str:
    """A hash of a configuration's parameters, under which the database stores its reservation."""
    return sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()


def _counts(trials: list[FrozenTrial]) -> Counts:
    def number(state: TrialState) -> int:
        return sum(trial.state is state for trial in trials)

    return Counts(
        complete=number(TrialState.COMPLETE),
        pruned=number(TrialState.PRUNED),
        failed=sum(map(failed, trials)),
        running=number(TrialState.RUNNING),
        waiting=number(TrialState.WAITING),
    )


def _interrupted(trial: FrozenTrial) -> bool:
    attrs = trial.user_attrs
    return trial.state is TrialState.FAIL and bool(attrs.get("interrupted")) and not attrs.get("surplus")


def _successor(trial: FrozenTrial) -> FrozenTrial:
    """The next attempt of a trial: the same parameters, without the values reported to the pruner before."""
    attrs = trial.user_attrs
    kept: dict[str, Any] = {k: v for k, v in trial.system_attrs.items() if k in ("fixed_params", "point")}
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs={**kept, "retry_of": trial.number},
        user_attrs={
            "original": attrs.get("original", trial.number),
            "attempts": [*_attempts(attrs), trial.number],
            **{name: int(attrs.get(name, 0)) + (attrs["interrupted"] == kind) for kind, name in COUNTED.items()},
        },
    )


def _imported(trial: FrozenTrial, origin: str, space: Space) -> FrozenTrial:
    dropped = ("owner", "original", "attempts", *COUNTED.values(), "same_as")
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=trial.params,
        distributions=space.distributions(),
        intermediate_values=trial.intermediate_values,
        user_attrs={**{k: v for k, v in trial.user_attrs.items() if k not in dropped}, "from": origin},
    )


def _seconds(trial: FrozenTrial) -> float | None:
    if trial.datetime_start is None:
        return None
    spent: timedelta = (trial.datetime_complete or datetime.now()) - trial.datetime_start
    return round(spent.total_seconds(), 3)
