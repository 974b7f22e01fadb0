"""Runs a sweep: reads its space, opens its study, and lets workers pull trials from it until enough are finished.

A single worker runs in this process. Several run as separate processes (`ftlab.sweep.join`), which a `Crew` starts and
supervises: here, or in the jobs that Hydra's launchers start elsewhere. Workers store their results in the study, so
nothing is lost with a worker, and a launcher returns only why a worker failed.
"""

import copy
import hashlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from optuna.exceptions import StorageInternalError

from ftlab import declared, provenance, rules
from ftlab.composition import Composition, composition
from ftlab.config import ExperimentConfig
from ftlab.errors import ConfigError, FtlabError, InputError, Stopped, TrainingError
from ftlab.process import this_host
from ftlab.redact import redact_message
from ftlab.shell import quoted
from ftlab.summary import Sources
from ftlab.sweep import samplers
from ftlab.sweep.identity import configuration, shared
from ftlab.sweep.join import WorkerOrder, join
from ftlab.sweep.preflight import check_values
from ftlab.sweep.rungs import rungs_of
from ftlab.sweep.salvage import refill
from ftlab.sweep.space import Space
from ftlab.sweep.storage import explained, networked, set_password_aside
from ftlab.sweep.study import CARD, Study, folder_name
from ftlab.sweep.worker import in_one_line
from ftlab.terminal import Terminal
from ftlab.train.signals import StopSignal

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
ELSEWHERE = ("submitit_slurm", "ray_aws")  # launchers whose workers run on other machines
POLL_S = 0.5
OVERDUE_CHECK_S = 2.0  # between two searches for workers over their time limit
RESTARTS = 3  # of a worker process that dies without an error of its own
STOPPING_S = 10.0  # for jobs without a trial, which may still wait in a queue, to end on their own


class SweepFailed(FtlabError):
    """Too many trials failed, or the workers cannot go on."""


def drive(arguments: Sequence[str], params: Any, config: DictConfig, launcher: Callable[..., Any]) -> None:
    """Start or resume the sweep of a `--multirun` command; of a finished one show the report.

    `arguments` are the command's overrides, `params` those of the sweep file, `config` what Hydra composed of both.

    Raises:
        ConfigError: the space or the settings are invalid, or differ from those of the study in the folder.
        SweepFailed: more than `sweep.max_failures` trials failed.
        Stopped: a signal arrived; the same command resumes the sweep.
    """
    terminal = Terminal()
    written: Any = OmegaConf.to_container(params, resolve=True) if OmegaConf.is_config(params) else params
    space, fixed = Space.read(arguments, written if isinstance(written, Mapping) else {})
    fixed = [text for text in fixed if not text.startswith("sweep.")]
    cfg = composition(fixed_of_sweep(arguments, fixed), config_dir=config_dir(config)).config
    if cfg.sweep.storage:
        cfg.sweep.storage = set_password_aside(cfg.sweep.storage)
        with read_write(config), open_dict(config):  # launchers save their configuration to files
            config.sweep.storage = cfg.sweep.storage
    name, folder = place(arguments, cfg, config)
    refuse_ignored(cfg, fixed, folder)

    def compose(more: Sequence[str]) -> Composition:
        return composition([*fixed, *more], config_dir=config_dir(config))

    if not (folder / CARD).is_file():  # an existing study has checked its space before
        check_values(space, lambda overrides: check_measured(compose(overrides).config, cfg))
    objectives = objectives_of(cfg)
    composed = configuration(compose, space)
    sources = sources_now(cfg, composed, space, known=(folder / CARD).is_file(), terminal=terminal)
    opened = Study.open(
        name,
        folder,
        cfg.sweep,
        space,
        objectives,
        fixed,
        composed=composed,
        sources=sources,
        rungs=rungs_of(cfg),
        refill=refill,
    )
    with closing(opened) as study, explained(study.storage_url):
        if study.salvaged:
            terminal.warn(study.salvaged)
        introduce(study, terminal)
        warn_of_files(study, config, terminal)
        if study.left():
            with StopSignal().caught() as stop, suppress(TrainingError):  # too many failures, which `conclude` reports
                work_on(study, cfg, config, terminal, stop, launcher)
        conclude(study, cfg, terminal)


def objectives_of(cfg: ExperimentConfig) -> list[str]:
    """The objectives of a sweep: `sweep.objectives`, or `objective`."""
    return cfg.sweep.objectives or [cfg.objective]


def check_measured(trial: ExperimentConfig, sweep: ExperimentConfig) -> None:
    """Check that a trial measures the objectives and the rung metric of its sweep.

    Raises:
        ConfigError: it does not, because it has another task or stage.
    """
    measured = {*rules.objectives(trial), *declared.costs()}
    for key, names in (("objective", objectives_of(sweep)), ("sweep.rung_metric", [sweep.sweep.rung_metric])):
        missing = [name for name in names if name not in measured]
        if missing:
            raise ConfigError(
                f"does not measure the sweep's {key}={','.join(missing)}: name one that all trials measure "
                f"({', '.join(rules.objectives(trial))})"
            )


def sources_now(
    cfg: ExperimentConfig, composed: Mapping[str, Any], space: Space, *, known: bool, terminal: Terminal
) -> Sources | None:
    """Hashes of the rows, the template and the tokenizer that all trials share. If the data of a `known` study can no
    longer be read, they are not compared, and a note says so.

    Raises:
        InputError: the data of a new study cannot be read.
    """
    try:
        return shared(provenance.read(cfg), composed, space)
    except InputError as error:
        if not known:
            raise
        terminal.note(f"the data cannot be compared with that of the study: {str(error).splitlines()[0]}")
        return None


def fixed_of_sweep(arguments: Sequence[str], fixed: Sequence[str]) -> list[str]:
    """The overrides that all trials share, including those of the sweep itself."""
    return [*fixed, *(text for text in arguments if text.startswith("sweep."))]


def place(arguments: Sequence[str], cfg: ExperimentConfig, config: DictConfig) -> tuple[str, Path]:
    """The name and the folder of the command's study."""
    name = folder_name(cfg.sweep.study or config.hydra.runtime.choices.get("sweep") or named_by(arguments))
    given = any(text.startswith("hydra.sweep.dir=") for text in config.hydra.overrides.hydra)
    return name, Path(config.hydra.sweep.dir).expanduser() if given else Path("outputs") / name


def refuse_ignored(cfg: ExperimentConfig, fixed: Sequence[str], folder: Path) -> None:
    """Refuse settings that apply to a single run and that a sweep would ignore.

    Raises:
        ConfigError: `force` or `run_name` is set.
    """
    problems = []
    if cfg.force:
        problems.append(
            "force=true replaces a single run, but a sweep resumes its study: "
            f"delete {folder}/ to start over, or name another study with sweep.study=NAME"
        )
    if any(text.lstrip("+").startswith("run_name=") for text in fixed):
        problems.append("run_name names a single run, but trials are named after their study: use sweep.study=NAME")
    if problems:
        raise ConfigError(*problems)


def named_by(arguments: Sequence[str]) -> str:
    """A name for a sweep without a file: a hash of its overrides, whatever their order."""
    kept = sorted(text for text in arguments if not text.startswith(("sweep.", "run_dir=")))
    return f"sweep-{hashlib.sha256(chr(10).join(kept).encode()).hexdigest()[:8]}"


def config_dir(config: DictConfig) -> str | None:
    """The folder given by `--config-dir`."""
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            return str(source.path)
    return None


# --- workers ------------------------------------------------------------------------------------------------


def work_on(
    study: Study,
    cfg: ExperimentConfig,
    config: DictConfig,
    terminal: Terminal,
    stop: StopSignal,
    launcher: Callable[..., Any],
) -> None:
    """Run trials until the study has enough: in this process, in local processes, or through a Hydra launcher."""
    from ftlab.sweep.board import Board

    workers, order = study.cfg.workers, WorkerOrder.of(study, config_dir(config), rungs_of(cfg))
    with Board(study, terminal).open() as board:
        if config.hydra.launcher.get("_target_") != BASIC_LAUNCHER:
            Launch(study, order, config, terminal, stop, launcher).work(board.refresh)
        elif workers == 1:
            join(order, stop, study, board.on_event)
        else:
            Crew(study, order, range(workers), lambda: stop.name).work(board.refresh)


class Crew:
    """Worker processes on this machine, one per GPU; a dead one is replaced while there is work.

    `numbers` are those of the workers here, among `peers` that share the machine's cores and GPUs. `stopped` returns a
    reason to end the workers, such as the name of a signal, or an empty string.
    """

    def __init__(
        self,
        study: Study,
        order: WorkerOrder,
        numbers: Iterable[int],
        stopped: Callable[[], str],
        peers: int | None = None,
    ) -> None:
        self.study, self.order, self.stopped = study, order, stopped
        self.restarts = dict.fromkeys(numbers, RESTARTS)
        self.peers = peers or len(self.restarts)
        self.gpus = visible_gpus()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.checked = 0.0

    def work(self, refresh: Callable[[], None] = lambda: None) -> None:
        """Start the workers and wait until no work is left.

        Raises:
            Stopped: `stopped` returned a reason.
        """
        try:
            for number in self.restarts:
                self.processes[number] = self.start(number)
            while self.processes and not self.stopped():
                time.sleep(POLL_S)
                with suppress(StorageInternalError):  # the database is busy; retry at the next poll
                    refresh()
                    self.kill_overdue()
                self.replace_dead()
        finally:
            self.end()
        if self.stopped():
            raise Stopped(f"{self.stopped()}: the running trials are saved; run the same command again to resume")

    def start(self, number: int) -> "subprocess.Popen[bytes]":
        """Start one worker."""
        environment = {**os.environ, **self.order.environment()}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // self.peers)))
        with open(self.study.folder / f"worker-{number}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "ftlab.sweep.join"],
                cwd=self.order.cwd,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def kill_overdue(self) -> None:
        """Every `OVERDUE_CHECK_S`, kill workers over their time limit that cannot end their trials themselves."""
        if time.monotonic() - self.checked > OVERDUE_CHECK_S:
            self.checked = time.monotonic()
            self.study.kill_overdue()

    def replace_dead(self) -> None:
        """Remove workers that are done, and replace those that died."""
        for number, process in list(self.processes.items()):
            code = process.poll()
            if code is None:
                continue
            if code and self.study.left():
                self.study.reap()
                if self.restarts[number] and not gave_up(self.study):
                    self.restarts[number] -= 1
                    self.processes[number] = self.start(number)
                    continue
            del self.processes[number]

    def end(self) -> None:
        """Ask workers that still run to stop, and wait for their checkpoints."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)  # else a stopped process would not get the signal
        for process in self.processes.values():
            process.wait()


@dataclass(frozen=True)
class Job:
    """The task that a launcher runs, possibly on another machine: a crew of one worker."""

    order: WorkerOrder
    workers: int
    host: str  # of the driver: jobs there share its cores and GPUs
    stop_file: Path  # created by the driver when workers must end

    def __call__(self, cfg: Any) -> str:
        """Run the worker. Returns why it failed; an empty string if it ended normally."""
        from hydra.core.hydra_config import HydraConfig

        try:
            with StopSignal().caught() as stop:
                number = int(HydraConfig.get().job.num)
                stopped = lambda: stop.name or ("the driver" if self.stop_file.exists() else "")  # noqa: E731
                peers = self.workers if this_host() == self.host else 1
                with closing(self.order.open()) as study:  # launchers may keep or kill their processes
                    Crew(study, self.order, [number], stopped, peers).work()
        except FtlabError as error:
            return redact_message(str(error))
        return ""


class Launch:
    """Workers that one of Hydra's launchers starts."""

    def __init__(
        self,
        study: Study,
        order: WorkerOrder,
        config: DictConfig,
        terminal: Terminal,
        stop: StopSignal,
        launcher: Callable[..., Any],
    ) -> None:
        self.study, self.terminal, self.stop, self.launcher = study, terminal, stop, launcher
        self.name = config.hydra.runtime.choices.get("hydra/launcher")
        self.workers = study.cfg.workers
        self.folder = study.folder.resolve()
        self.config = for_launcher(config, self.folder, self.workers)
        self.job = Job(
            order=order,
            workers=self.workers,
            host=this_host(),
            stop_file=self.folder / f".stop-{uuid.uuid4().hex[:8]}",
        )
        self.started = 0

    def work(self, refresh: Callable[[], None]) -> None:
        """Start the workers and wait for them. Most launchers end all their jobs when one dies. The trials are in the
        study, so new workers continue as long as that makes progress.

        Raises:
            SweepFailed: workers died without starting a trial.
            Stopped: a signal arrived.
        """
        while self.study.left() and not gave_up(self.study):
            before = len(self.study.trials())
            causes = self.launched(max(1, self.workers - self.study.counts().running), refresh)
            if self.stop:
                raise Stopped(f"{self.stop.name}: the running trials are saved; run the same command again to resume")
            if not causes:
                return
            self.study.reap()
            if len(self.study.trials()) == before:
                raise SweepFailed(f"hydra/launcher={self.name} cannot run workers: {causes[0]}")
            self.terminal.warn(f"a worker of hydra/launcher={self.name} died ({causes[0]}): another one continues")

    def launched(self, count: int, refresh: Callable[[], None]) -> list[str]:
        """Run `count` jobs to their end. Returns the causes of those that failed."""
        causes: list[str] = []
        launcher = self.launcher(task_function=self.job, config=self.config)
        overrides = [f"hydra.sweep.dir={quoted(str(self.folder))}", "hydra.sweep.subdir=."]

        def launch() -> None:
            try:
                jobs = launcher.launch([overrides] * count, initial_job_idx=self.started)
                causes.extend(cause for job in jobs if (cause := job.return_value))
            except Exception as error:  # each launcher raises its own errors
                causes.append(in_one_line(error))

        # In a thread, since launchers wait for their jobs, and some install signal handlers in the main thread.
        thread = threading.Thread(target=launch, daemon=True)
        thread.start()
        while thread.is_alive() and not self.stop:
            time.sleep(POLL_S)
            with suppress(StorageInternalError):
                refresh()
        if self.stop:
            self.end(thread)
        self.started += count
        return causes

    def end(self, thread: threading.Thread) -> None:
        """Ask the workers to stop, wherever they run, and wait for those that have a trial."""
        self.job.stop_file.touch()
        deadline = time.monotonic() + STOPPING_S
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(POLL_S)
            if self.study.counts().running:
                deadline = time.monotonic() + STOPPING_S


def for_launcher(config: DictConfig, folder: Path, workers: int) -> DictConfig:
    """Hydra's configuration, changed to run `workers` jobs at once with their files in `folder`. Settings that the user
    chose are kept."""
    config = copy.deepcopy(config)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(folder), "."
        launcher = config.hydra.launcher
        if launcher.get("n_jobs") == -1:  # joblib's default: one job per core
            launcher.n_jobs = workers
        init = launcher.get("ray", {}).get("init")
        if init is not None and init.get("address") is None:  # a local cluster uses one core per worker
            init.num_cpus = init.get("num_cpus") or max(workers, os.cpu_count() or 1)
            init.setdefault("include_dashboard", False)
            init.setdefault("logging_level", logging.ERROR)
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # turns off Ray's telemetry
    return config


def visible_gpus() -> list[str]:
    """One entry for CUDA_VISIBLE_DEVICES per GPU; empty without a GPU. Does not import torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def gave_up(study: Study) -> bool:
    """Whether more trials failed than `sweep.max_failures` allows."""
    return study.counts().failed > study.cfg.max_failures


# --- messages -----------------------------------------------------------------------------------------------


def introduce(study: Study, terminal: Terminal) -> None:
    """Print what is searched, how, and where the study is."""
    if importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper"):
        terminal.note("hydra-optuna-sweeper is installed too; ftlab's own sweeper runs (hydra/sweeper=ftlab)")
    cfg, counts = study.cfg, study.counts()
    terminal.note(f"study        {study.name} in {study.folder}/")
    for dimension in study.space.dimensions:
        terminal.note(f"space        {dimension.key} = {dimension.describe()}")
    aims = ", ".join(f"{way} {name}" for name, way in zip(study.objectives, study.directions, strict=True))
    terminal.note(f"objective    {aims}" + (f", mean of {cfg.seeds} seeds" if cfg.seeds > 1 else ""))
    pruned = "no pruning" if cfg.pruner == "none" else f"{cfg.pruner} prunes on {cfg.rung_metric}"
    terminal.note(f"search       {samplers.chosen(cfg, study.space)}, {study.target} trials, {pruned}")
    for note in study.notes:
        terminal.note(f"warm start   {note}")
    if counts.finished:
        terminal.note(f"so far       {counts.finished} finished ({counts.pruned} pruned), {counts.failed} failed")


def warn_of_files(study: Study, config: DictConfig, terminal: Terminal) -> None:
    """Warn if several machines may share a database file, which SQLite does not support."""
    launcher = config.hydra.runtime.choices.get("hydra/launcher")
    cluster = config.hydra.launcher.get("ray", {}).get("init", {}).get("address") is not None
    remedy = "use a database server with sweep.storage=postgresql://USER@HOST/DATABASE"
    if not study.storage_url.startswith("sqlite"):
        return
    if launcher in ELSEWHERE or cluster:
        terminal.warn(f"hydra/launcher={launcher}: workers on several machines must not share SQLite's file: {remedy}")
    elif kind := networked(study.folder):
        terminal.warn(f"{study.folder} is on {kind}, where drivers on two machines would corrupt study.db: {remedy}")


def conclude(study: Study, cfg: ExperimentConfig, terminal: Terminal) -> None:
    """Report the study, and check that the sweep is complete.

    Raises:
        SweepFailed: it is not.
    """
    from ftlab.sweep import tracked
    from ftlab.sweep.study_report import report_study

    tracked.record(study, report_study(study, terminal), cfg.tracker, terminal)
    left = study.left()
    if left and gave_up(study):
        causes = sorted({row.cause or "unknown" for row in study.leaderboard() if row.state == "failed"})
        raise SweepFailed(
            f"gave up after {study.counts().failed} failed trials (sweep.max_failures={study.cfg.max_failures}): "
            + "; ".join(causes)
        )
    if not left and not study.counts().finished:
        causes = sorted({row.cause or "unknown" for row in study.leaderboard() if row.state == "failed"})
        raise SweepFailed(f"no trial is complete or pruned, all failed: {'; '.join(causes)}")
    if left:
        raise SweepFailed(f"{left} trials are missing: the workers ended early, see {study.folder}/worker-*.log")
