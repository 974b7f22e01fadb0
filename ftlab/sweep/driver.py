"""Runs a sweep: reads its space, opens its study, and has workers pull trials from it until enough are finished.

One worker is this process itself. Several are processes of their own (`ftlab.sweep.join`), started and looked after
by a `Crew`: here, or in the jobs that Hydra's launchers start elsewhere. What a worker found is in the study, so that
nothing is lost with it, and nothing comes back through a launcher but why it failed.
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
WATCH_S = 2.0
RESTARTS = 3  # of a worker process that dies without saying why
STOPPING_S = 10.0  # for jobs that have no trial, and may still wait in a queue, to end on their own


class SweepFailed(FtlabError):
    """Too many trials failed, or the workers cannot go on."""


def drive(arguments: Sequence[str], params: Any, config: DictConfig, launcher: Callable[..., Any]) -> None:
    """Run the sweep of a `--multirun` command, or go on with it; a finished one is reported.

    `arguments` are the command's overrides, `params` those of the sweep file, `config` what Hydra composed of both.

    Raises:
        ConfigError: a space or settings that make no sense, or that are not those of the study in the folder.
        SweepFailed: more than `sweep.max_failures` trials failed.
        Stopped: a signal came; the same command goes on.
    """
    terminal = Terminal()
    written: Any = OmegaConf.to_container(params, resolve=True) if OmegaConf.is_config(params) else params
    space, fixed = Space.read(arguments, written if isinstance(written, Mapping) else {})
    fixed = [text for text in fixed if not text.startswith("sweep.")]
    cfg = composition(fixed_of_sweep(arguments, fixed), config_dir=config_dir(config)).config
    if cfg.sweep.storage:
        cfg.sweep.storage = set_password_aside(cfg.sweep.storage)
        with read_write(config), open_dict(config):  # launchers write down what they are given
            config.sweep.storage = cfg.sweep.storage
    name, folder = place(arguments, cfg, config)
    refuse_ignored(cfg, fixed, folder)

    def compose(more: Sequence[str]) -> Composition:
        return composition([*fixed, *more], config_dir=config_dir(config))

    if not (folder / CARD).is_file():  # afterwards the space is known to be the study's own
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
            with StopSignal().caught() as stop, suppress(TrainingError):  # too many failures: the conclusion says so
                work_on(study, cfg, config, terminal, stop, launcher)
        conclude(study, cfg, terminal)


def objectives_of(cfg: ExperimentConfig) -> list[str]:
    """What a sweep aims at."""
    return cfg.sweep.objectives or [cfg.objective]


def check_measured(trial: ExperimentConfig, sweep: ExperimentConfig) -> None:
    """A trial measures what its sweep aims at and prunes by.

    Raises:
        ConfigError: it does not, since its task or its stage is another.
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
    """Hashes of the rows, the template and the tokenizer that all trials share. Where those of a `known` study cannot
    be read any more, a line says that they are not compared.

    Raises:
        InputError: those of a new study cannot be read.
    """
    try:
        return shared(provenance.read(cfg), composed, space)
    except InputError as error:
        if not known:
            raise
        terminal.note(f"whether the data are still those of the study is not known: {str(error).splitlines()[0]}")
        return None


def fixed_of_sweep(arguments: Sequence[str], fixed: Sequence[str]) -> list[str]:
    """The overrides that every trial shares, those of the sweep itself included."""
    return [*fixed, *(text for text in arguments if text.startswith("sweep."))]


def place(arguments: Sequence[str], cfg: ExperimentConfig, config: DictConfig) -> tuple[str, Path]:
    """The name and the folder of the study that the command means."""
    name = folder_name(cfg.sweep.study or config.hydra.runtime.choices.get("sweep") or named_by(arguments))
    given = any(text.startswith("hydra.sweep.dir=") for text in config.hydra.overrides.hydra)
    return name, Path(config.hydra.sweep.dir).expanduser() if given else Path("outputs") / name


def refuse_ignored(cfg: ExperimentConfig, fixed: Sequence[str], folder: Path) -> None:
    """Refuse what a single run acts on and a sweep would not.

    Raises:
        ConfigError: `force` or `run_name` is set.
    """
    problems = []
    if cfg.force:
        problems.append(
            "force=true replaces a single run, and a sweep goes on with its study: "
            f"delete {folder}/ to begin anew, or name another study with sweep.study=NAME"
        )
    if any(text.lstrip("+").startswith("run_name=") for text in fixed):
        problems.append("run_name names a single run, and a sweep names its trials by its study: use sweep.study=NAME")
    if problems:
        raise ConfigError(*problems)


def named_by(arguments: Sequence[str]) -> str:
    """A name for a sweep without a file: the same overrides, whatever their order, are the same study."""
    kept = sorted(text for text in arguments if not text.startswith(("sweep.", "run_dir=")))
    return f"sweep-{hashlib.sha256(chr(10).join(kept).encode()).hexdigest()[:8]}"


def config_dir(config: DictConfig) -> str | None:
    """The folder that `--config-dir` named."""
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
    """Have trials run until the study has enough: in this process, in processes here, or through Hydra's launcher."""
    from ftlab.sweep.board import Board

    workers, order = study.cfg.workers, WorkerOrder.of(study, config_dir(config), rungs_of(cfg))
    with Board(study, terminal).open() as board:
        if config.hydra.launcher.get("_target_") != BASIC_LAUNCHER:
            Launch(study, order, config, terminal, stop, launcher).work(board.refresh)
        elif workers == 1:
            join(order, stop, study, board.hear)
        else:
            Crew(study, order, range(workers), lambda: stop.name).work(board.refresh)


class Crew:
    """Worker processes on this machine, one a GPU; a dead one is replaced while there is work.

    `numbers` are those of the workers here, among `peers` that share the machine's cores and GPUs. `stopped` says why
    they must end, in a word; nothing as long as they need not.
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
        self.watched = 0.0

    def work(self, refresh: Callable[[], None] = lambda: None) -> None:
        """Start the workers and wait until they have nothing left to do.

        Raises:
            Stopped: they had to end.
        """
        try:
            for number in self.restarts:
                self.processes[number] = self.start(number)
            while self.processes and not self.stopped():
                time.sleep(POLL_S)
                with suppress(StorageInternalError):  # a busy database; the next look is soon
                    refresh()
                    self.watch()
                self.look_after()
        finally:
            self.end()
        if self.stopped():
            raise Stopped(f"{self.stopped()}: every trial under way is on disk; the same command goes on")

    def start(self, number: int) -> "subprocess.Popen[bytes]":
        """One worker."""
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

    def watch(self) -> None:
        """Now and then, end workers that no longer end their trials themselves."""
        if time.monotonic() - self.watched > WATCH_S:
            self.watched = time.monotonic()
            self.study.end_frozen()

    def look_after(self) -> None:
        """Forget workers that are done, replace those that died."""
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
            process.send_signal(signal.SIGCONT)  # one that was stopped would never hear of it
        for process in self.processes.values():
            process.wait()


@dataclass(frozen=True)
class Job:
    """What a launcher starts, maybe on another machine: a crew of one."""

    order: WorkerOrder
    workers: int
    host: str  # of the driver: jobs there share its cores and GPUs
    stop_file: Path  # the driver makes it when workers must end

    def __call__(self, cfg: Any) -> str:
        """Why the worker could not go on; nothing where it came to its end."""
        from hydra.core.hydra_config import HydraConfig

        try:
            with StopSignal().caught() as stop:
                number = int(HydraConfig.get().job.num)
                stopped = lambda: stop.name or ("the driver" if self.stop_file.exists() else "")  # noqa: E731
                peers = self.workers if this_host() == self.host else 1
                with closing(self.order.open()) as study:  # launchers keep their processes, or kill them
                    Crew(study, self.order, [number], stopped, peers).work()
        except FtlabError as error:
            return redact_message(str(error))
        return ""


class Launch:
    """Workers where one of Hydra's launchers starts them."""

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
        """Start the workers and wait for them. Most launchers give up all their jobs when one dies, whose trials are
        in the study; new ones go on as long as that gets further.

        Raises:
            SweepFailed: workers died without beginning a trial.
            Stopped: a signal came.
        """
        while self.study.left() and not gave_up(self.study):
            before = len(self.study.trials())
            causes = self.launched(max(1, self.workers - self.study.counts().running), refresh)
            if self.stop:
                raise Stopped(f"{self.stop.name}: every trial under way is on disk; the same command goes on")
            if not causes:
                return
            self.study.reap()
            if len(self.study.trials()) == before:
                raise SweepFailed(f"hydra/launcher={self.name} cannot run workers: {causes[0]}")
            self.terminal.warn(f"a worker of hydra/launcher={self.name} died ({causes[0]}): another one goes on")

    def launched(self, count: int, refresh: Callable[[], None]) -> list[str]:
        """Run jobs to their end; the causes of those that came to none."""
        causes: list[str] = []
        launcher = self.launcher(task_function=self.job, config=self.config)
        overrides = [f"hydra.sweep.dir={quoted(str(self.folder))}", "hydra.sweep.subdir=."]

        def launch() -> None:
            try:
                jobs = launcher.launch([overrides] * count, initial_job_idx=self.started)
                causes.extend(cause for job in jobs if (cause := job.return_value))
            except Exception as error:  # each launcher has its own
                causes.append(in_one_line(error))

        # In a thread, since launchers wait for their jobs, and some take over signals where they can.
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
        """Have the workers stop, wherever they are, and wait for those that have a trial."""
        self.job.stop_file.touch()
        deadline = time.monotonic() + STOPPING_S
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(POLL_S)
            if self.study.counts().running:
                deadline = time.monotonic() + STOPPING_S


def for_launcher(config: DictConfig, folder: Path, workers: int) -> DictConfig:
    """Hydra's configuration with which as many workers run at once as are wanted, and leave their files in `folder`.
    What the user chose stays."""
    config = copy.deepcopy(config)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(folder), "."
        launcher = config.hydra.launcher
        if launcher.get("n_jobs") == -1:  # joblib: as many as there are cores
            launcher.n_jobs = workers
        init = launcher.get("ray", {}).get("init")
        if init is not None and init.get("address") is None:  # a local cluster takes one core a worker
            init.num_cpus = init.get("num_cpus") or max(workers, os.cpu_count() or 1)
            init.setdefault("include_dashboard", False)
            init.setdefault("logging_level", logging.ERROR)
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    return config


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES can name, one entry a GPU; none without a GPU. Does not import torch."""
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


# --- words --------------------------------------------------------------------------------------------------


def introduce(study: Study, terminal: Terminal) -> None:
    """What will be searched, how, and where it goes."""
    if importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper"):
        terminal.note("hydra-optuna-sweeper is installed too; ftlab's own sweeper runs (hydra/sweeper=ftlab)")
    cfg, counts = study.cfg, study.counts()
    terminal.note(f"study        {study.name} in {study.folder}/")
    for dimension in study.space.dimensions:
        terminal.note(f"space        {dimension.key} = {dimension.describe()}")
    aims = ", ".join(f"{way} {name}" for name, way in zip(study.objectives, study.directions, strict=True))
    terminal.note(f"objective    {aims}" + (f", mean of {cfg.seeds} seeds" if cfg.seeds > 1 else ""))
    pruned = "nothing is pruned" if cfg.pruner == "none" else f"{cfg.pruner} prunes on {cfg.rung_metric}"
    terminal.note(f"search       {samplers.chosen(cfg, study.space)}, {study.target} trials, {pruned}")
    for note in study.notes:
        terminal.note(f"warm start   {note}")
    if counts.finished:
        terminal.note(f"so far       {counts.finished} finished ({counts.pruned} pruned), {counts.failed} failed")


def warn_of_files(study: Study, config: DictConfig, terminal: Terminal) -> None:
    """Where a database in a file is shared, or may be, in a way that SQLite was not made for."""
    launcher = config.hydra.runtime.choices.get("hydra/launcher")
    cluster = config.hydra.launcher.get("ray", {}).get("init", {}).get("address") is not None
    remedy = "give them a server with sweep.storage=postgresql://USER@HOST/DATABASE"
    if not study.storage_url.startswith("sqlite"):
        return
    if launcher in ELSEWHERE or cluster:
        terminal.warn(f"hydra/launcher={launcher}: workers on several machines must not share SQLite's file: {remedy}")
    elif kind := networked(study.folder):
        terminal.warn(f"{study.folder} is on {kind}, where drivers on two machines would spoil study.db: {remedy}")


def conclude(study: Study, cfg: ExperimentConfig, terminal: Terminal) -> None:
    """The report, and whether the sweep came to its end.

    Raises:
        SweepFailed: it did not.
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
        raise SweepFailed(f"not one trial is complete or pruned, all failed: {'; '.join(causes)}")
    if left:
        raise SweepFailed(f"{left} trials are missing: the workers ended early, see {study.folder}/worker-*.log")
