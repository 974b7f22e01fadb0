"""Studies on SQLite with a toy objective: counting, joining, resuming trials of dead processes."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import Trial, TrialState

from ftlab import process as process_module
from ftlab.composition import composition
from ftlab.config import SweepConfig, known_keys
from ftlab.errors import ConfigError, FtlabError, InputError
from ftlab.process import Process
from ftlab.sweep import identity, samplers, storage
from ftlab.sweep import study as study_module
from ftlab.sweep.join import WorkerOrder
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study, folder_name

GRID = ["lora.r=4,8,16", "quant=nf4,none"]
SEARCH = ["lora.r=4,8,16", "trainer.lr=tag(log,interval(1e-5,1e-3))"]

# Optuna's notice to those who ask for trials by hand, which here stands for workers that do so at once.
asks_by_hand = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")

# A worker that opens the study and hangs in its first trial after saying so.
HANGING = """
    import sys, time
    from pathlib import Path
    from ftlab.config import SweepConfig, known_keys
    from ftlab.sweep.space import Space
    from ftlab.sweep.study import Study

    space, _ = Space.read(sys.argv[2:], {})
    study = Study.open("toy", Path(sys.argv[1]), SweepConfig(n_trials=4), space, ["eval/loss"], [])

    def objective(trial):
        study.space.suggest(trial)
        trial.report(0.5, 10)
        print("running", trial.number, flush=True)
        time.sleep(60)

    study.reap()
    study.optuna.optimize(objective, n_trials=1)
"""


@pytest.fixture(scope="module")
def spaces() -> dict[str, Space]:
    return {"grid": Space.read(GRID, {})[0], "search": Space.read(SEARCH, {})[0]}


@pytest.fixture
def opened(tmp_path: Path, spaces: dict[str, Space]) -> Callable[..., Study]:
    def make(space: str | Space = "search", objectives: list[str] | None = None, **settings: Any) -> Study:
        folder = settings.pop("folder", tmp_path / "toy")
        fixed = settings.pop("fixed", ["model=tiny"])
        name = settings.pop("name", "toy")
        more = {key: settings.pop(key) for key in ("composed", "sources", "rungs") if key in settings}
        found = spaces[space] if isinstance(space, str) else space
        return Study.open(name, folder, SweepConfig(**settings), found, objectives or ["eval/loss"], fixed, **more)

    return make


def toy(study: Study) -> Callable[[Trial], float]:
    def objective(trial: Trial) -> float:
        return float(study.space.suggest(trial)["lora.r"] or 0)

    return objective


def work(study: Study, objective: Callable[[Trial], Any] | None = None, most: int = 50) -> None:
    for _ in range(most):
        study.reap()
        if not study.left():
            return
        study.optuna.optimize(objective or toy(study), n_trials=1, catch=(ValueError,))


def hanging(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """A worker in the middle of its trial."""
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HANGING), str(folder), *overrides],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline().startswith("running")
    return worker


def kill(worker: subprocess.Popen[str]) -> None:
    """SIGKILL; the zombie is left unread until it was looked at."""
    worker.send_signal(signal.SIGKILL)
    time.sleep(0.05)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = hanging(tmp_path / "toy", *SEARCH)
    yield process
    process.kill()
    process.communicate()


# --- counting and going on -----------------------------------------------------------------------------------


def test_a_grid_covers_every_point_once_in_order_and_ends(opened: Callable[..., Study]) -> None:
    study = opened("grid")
    assert study.target == study.left() == 6
    work(study)
    points = [study.space.overrides(t.params) for t in study.trials()]
    assert points == [[f"lora.r={r}", f"quant={q}"] for r in (4, 8, 16) for q in ("nf4", "none")]
    assert asdict(study.counts()) == {"complete": 6, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}


def test_a_resumed_grid_does_the_missing_points_only(opened: Callable[..., Study]) -> None:
    study = opened("grid", first=[{"lora.r": 16, "quant": "none"}, {"lora.r": 8}])
    work(study, most=3)
    again = opened("grid")
    work(again)
    points = {tuple(again.space.overrides(t.params)) for t in again.trials()}
    assert len(again.trials()) == len(points) == 6
    assert again.trials()[0].params == {"lora.r": 16, "quant": "none"}
    assert again.trials()[1].params["lora.r"] == 8


def test_a_grid_point_that_fails_of_itself_is_not_tried_again(opened: Callable[..., Study]) -> None:
    study = opened("grid")

    def objective(trial: Trial) -> float:
        if study.space.suggest(trial)["lora.r"] == 8:
            raise ValueError("out of memory")
        return 1.0

    work(study, objective)
    assert (study.counts().finished, study.counts().failed, study.left()) == (4, 2, 0)


def test_failed_points_run_again_once_the_budget_of_failures_is_raised(opened: Callable[..., Study]) -> None:
    broken = True

    def objective(trial: Trial) -> float:
        if study.space.suggest(trial)["lora.r"] == 8 and broken:
            raise ValueError("disk full")
        return 1.0

    study = opened("grid")
    work(study, objective)
    assert (study.left(), study.failed_points()) == (0, 2)
    assert opened("grid").left() == 0  # the same command changes nothing
    study = opened("grid", max_failures=7)
    assert study.left() == 2
    work(study, objective)  # the cause was not removed
    assert (study.counts().failed, study.left()) == (4, 0)
    broken = False
    study = opened("grid", max_failures=9)
    work(study, objective)
    assert study.counts().complete == 6
    assert len({study.space.index(t.params) for t in study.trials() if t.state is TrialState.COMPLETE}) == 6


def test_part_of_a_grid_is_a_sample_of_it(opened: Callable[..., Study]) -> None:
    study = opened("grid", sampler="grid", n_trials=3)
    work(study)
    found = [study.space.index(t.params) for t in study.trials()]
    assert len(set(found)) == 3
    assert found != [0, 1, 2]


def test_more_trials_go_on_and_fewer_are_finished(opened: Callable[..., Study]) -> None:
    work(opened(n_trials=3))
    assert opened(n_trials=5).left() == 2
    assert opened(n_trials=2).left() == 0


def test_a_restart_draws_what_the_sweep_would_have_drawn(opened: Callable[..., Study], tmp_path: Path) -> None:
    whole = opened(n_trials=6, folder=tmp_path / "whole")
    work(whole)
    for wanted in (2, 4, 6):
        broken = opened(n_trials=wanted)
        work(broken)
    rates = [t.params["trainer.lr"] for t in whole.trials()]
    assert [t.params["trainer.lr"] for t in broken.trials()] == rates
    assert len(set(rates)) == 6


def test_pruned_trials_count_and_failed_ones_do_not(opened: Callable[..., Study]) -> None:
    study = opened(n_trials=3)
    outcomes = iter([ValueError("nan"), optuna.TrialPruned(), None, None])

    def objective(trial: Trial) -> float:
        study.space.suggest(trial)
        outcome = next(outcomes)
        if outcome:
            raise outcome
        return 1.0

    work(study, objective)
    counts = study.counts()
    assert (counts.complete, counts.pruned, counts.failed) == (2, 1, 1)


@asks_by_hand
def test_the_trial_too_many_gives_itself_back(opened: Callable[..., Study]) -> None:
    study = opened(n_trials=2)
    asked = [study.optuna.ask() for _ in range(3)]
    assert [study.surplus(trial.number) for trial in asked] == [False, False, True]
    asked[2].set_user_attr("surplus", True)
    study.optuna.tell(asked[2], state=TrialState.FAIL)
    assert study.counts().failed == 0
    assert [row.number for row in study.leaderboard()] == [0, 1]


# --- opening ---------------------------------------------------------------------------------------------------


def test_two_drivers_at_once_make_one_study(tmp_path: Path) -> None:
    starts = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(HANGING).replace("time.sleep(60)", "return 1.0"),
                str(tmp_path / "toy"),
                *SEARCH,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ends = [start.communicate(timeout=60) for start in starts]
    assert [start.returncode for start in starts] == [0, 0, 0], ends
    assert Study.load(str(tmp_path / "toy")).counts().complete == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": "grid"}, ["quant", "trainer.lr", "not searched"]),
        ({"objectives": ["eval/sql_exact_match"]}, ["objectives", "eval/loss", "directions"]),
        ({"direction": "maximize"}, ["minimize in the study", "maximize now"]),
        ({"fixed": ["model=tiny", "trainer.max_steps=9"]}, ["trainer.max_steps=9"]),
        ({"seeds": 3}, ["sweep.seeds"]),
    ],
)
def test_another_sweep_of_the_same_name_is_refused(
    opened: Callable[..., Study], change: dict[str, Any], words: list[str]
) -> None:
    work(opened(n_trials=2))
    with pytest.raises(ConfigError) as caught:
        opened(**{"n_trials": 2, **change})
    assert all(word in str(caught.value) for word in [*words, "sweep.study=NAME"])
    assert len(opened(n_trials=2).trials()) == 2  # and nothing was left behind


def of_files(folder: Path, space: Space, lr: str = "1e-3", alpha: str = "16", **more: Any) -> dict[str, Any]:
    """The configuration of `experiment=mine`, whose file sets a value."""
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "lora").mkdir(exist_ok=True)
    values = {"trainer.lr": lr, "tracker.project": more.get("project", "p"), "data.path": "null"}
    nested = "".join(f"{k.partition('.')[0]}: {{{k.partition('.')[2]}: {v}}}\n" for k, v in values.items())
    head = "# @package _global_\ndefaults:\n  - quickstart\n  - _self_\n"
    (folder / "experiment" / "mine.yaml").write_text(head + nested)
    (folder / "lora" / "odd.yaml").write_text(f"defaults:\n  - r8\n  - _self_\nlora_alpha: {alpha}\n")
    compose = lambda overrides: composition(["experiment=mine", *overrides], config_dir=str(folder))  # noqa: E731
    return identity.configuration(compose, space)


def test_a_value_that_changed_in_a_file_is_another_sweep(opened: Callable[..., Study], tmp_path: Path) -> None:
    space = Space.read(["lora.r=4,8,16"], {})[0]
    first = of_files(tmp_path, space)
    assert "lora.r" not in first
    work(opened(space, composed=first))
    opened(space, composed=of_files(tmp_path, space, project="other"))  # where it is tracked may differ
    opened(space)  # a worker that joins
    with pytest.raises(ConfigError, match=r"trainer\.lr: 0\.001 in the study, 0\.002 now\n.*sweep\.study=NAME"):
        opened(space, composed=of_files(tmp_path, space, lr="2e-3"))


def test_an_option_that_changed_under_a_searched_group_is_another_sweep(
    opened: Callable[..., Study], tmp_path: Path
) -> None:
    space = Space.read(["trainer.lr=1e-3,1e-4", "quant=nf4,none"], {})[0]
    recorded = of_files(tmp_path, space)
    assert recorded["quant=nf4 quant.load_in_4bit"] is True
    assert "quant.load_in_4bit" not in recorded
    assert not any(key.startswith(("trainer.lr", "sweep.", "run_")) and "scheduler" not in key for key in recorded)
    opened(space, composed=recorded)
    edited = {**recorded, "quant=nf4 quant.load_in_4bit": False}
    with pytest.raises(ConfigError, match=r"quant=nf4 quant\.load_in_4bit: True in the study, False now"):
        opened(space, composed=edited)


def rows_of(**parts: str) -> dict[str, dict[str, Any]]:
    return {part: {"rows": 60, "sha256": text} for part, text in parts.items()}


def test_data_that_changed_under_a_study_are_refused(opened: Callable[..., Study]) -> None:
    opened(sources=rows_of(train="a", validation="b")).close()
    opened(sources=rows_of(train="a", validation="b")).close()
    with pytest.raises(ConfigError, match="validation: 60 rows in the study and now, but they differ") as caught:
        opened(sources=rows_of(train="a", validation="c"))
    assert "train:" not in str(caught.value)
    assert "restore the data, or give this one another name with sweep.study=NAME" in str(caught.value)


def test_a_study_of_before_hashes_were_kept_goes_on_and_keeps_them_from_now_on(opened: Callable[..., Study]) -> None:
    opened().close()
    opened(sources=rows_of(train="a")).close()
    with pytest.raises(ConfigError, match="train"):
        opened(sources=rows_of(train="b"))


ALL = {"train", "validation", "test", "template", "tokenizer"}


@pytest.mark.parametrize(
    ("searched", "own"),
    [
        ("lora.r", set()),
        ("data.validation", {"train", "validation", "test"}),
        ("data.prompt", {"template"}),
        ("data.max_length", set()),
        ("model.id", {"tokenizer"}),
        ("data.options.largest", {"train", "validation", "test"}),
    ],
)
def test_only_what_all_trials_share_must_stay_the_same(searched: str, own: set[str]) -> None:
    found = rows_of(data="d", **dict.fromkeys(ALL, "x"))
    composed = {key: 0 for key in known_keys() if key != searched}
    space, _ = Space.read([f"{searched}=1,2"], {})
    assert identity.shared(found, composed, space).keys() == ALL - own


def test_a_study_of_before_configurations_were_recorded_goes_on(opened: Callable[..., Study]) -> None:
    work(opened("grid"), most=2)
    study = opened("grid", composed={"trainer.lr": 1e-3})
    assert study.counts().finished == 2
    opened("grid", composed={"trainer.lr": 1e-3})
    with pytest.raises(ConfigError, match=r"trainer\.lr"):
        opened("grid", composed={"trainer.lr": 2e-3})


def test_a_key_that_a_newer_ftlab_added_is_no_difference_unless_it_was_set(opened: Callable[..., Study]) -> None:
    opened("grid", composed={"trainer.lr": 1e-3})
    opened("grid", composed={"trainer.lr": 1e-3, "lora.use_dora": False})
    with pytest.raises(ConfigError, match=r"lora\.use_dora: False in the study, True now"):
        opened("grid", composed={"trainer.lr": 1e-3, "lora.use_dora": True})


def test_what_changes_no_result_may_differ(opened: Callable[..., Study]) -> None:
    work(opened(n_trials=2))
    reordered = Space.read(["trainer.lr=tag(log,interval(1e-5,1e-3))", "lora.r=16,8,4"], {})[0]
    study = opened(reordered, n_trials=4, fixed=["tracker.wandb.mode=offline", "model=tiny"], sampler="random")
    work(study)
    assert study.counts().complete == 4


def test_a_folder_holds_one_study(opened: Callable[..., Study]) -> None:
    opened(n_trials=2)
    with pytest.raises(ConfigError, match=r"the study toy.*run_dir=DIR"):
        opened(name="other", n_trials=2)


def test_load_finds_folder_and_name_and_says_what_is_near(
    opened: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    work(opened(name="lr-search", folder=tmp_path / "outputs" / "lr-search", n_trials=2, workers=3))
    for text in ("lr-search", "outputs/lr-search", str(tmp_path / "outputs/lr-search")):
        study = Study.load(text)
        assert (study.name, study.left(), study.cfg.workers, study.fixed) == ("lr-search", 0, 3, ["model=tiny"])
    with pytest.raises(InputError, match="Did you mean: lr-search"):
        Study.load("lr_serch")


@pytest.mark.parametrize("name", ["lora_sql", "a-b", "r=8,lr@1e-3", "Größe", "x" * 100])
def test_names_are_folder_names(name: str) -> None:
    assert folder_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"), [("../../etc", "etc"), ("a b", "a-b"), ("a/b c", "a-b-c"), ("x" * 101, "x" * 100)]
)
def test_names_that_two_studies_could_share_are_refused(text: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"write sweep.study={name}$"):
        folder_name(text)


def test_a_name_without_letters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.study=\.\./"):
        folder_name("../")


def test_a_database_that_is_none_is_one_line(opened: Callable[..., Study], tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "study.db").write_text("not a database" * 100)
    with pytest.raises(InputError, match="not a database") as caught:
        opened()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"warm_start": "nowhere"},
        {"sampler": "grid"},
        {"pruner": "median", "rungs": [100]},
        {"storage": "postgresql://me@127.0.0.1:1/db"},
        {"storage": "sqlite:////nowhere/at/all/study.db"},
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    opened: Callable[..., Study], settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(FtlabError):
        opened(folder=tmp_path / "outputs" / "toy", **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_warm_start_of_something_else_leaves_no_study_in_the_database(
    opened: Callable[..., Study], tmp_path: Path
) -> None:
    opened("grid").close()
    url = f"sqlite:///{tmp_path}/shared.db"
    with pytest.raises(ConfigError, match="cannot be imported"):
        opened(name="two", folder=tmp_path / "two", storage=url, warm_start=str(tmp_path / "toy"))
    assert not (tmp_path / "two").exists()
    assert not (tmp_path / "shared.db").exists()


def test_a_refusal_leaves_what_was_there(opened: Callable[..., Study], tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "notes.txt").write_text("mine")
    with pytest.raises(InputError):
        opened(storage="postgresql://me@127.0.0.1:1/db")
    assert (tmp_path / "toy" / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_one_line(
    opened: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/toy cannot be written \(Not a directory\).*run_dir=DIR"):
        opened(folder=tmp_path / "file" / "toy")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # as in a folder that is for reading only
    with pytest.raises(InputError, match=r"toy cannot be written \(Permission denied\)"):
        opened()


def test_no_password_is_written(tmp_path: Path, opened: Callable[..., Study]) -> None:
    with pytest.raises(InputError) as caught:
        opened(storage="postgresql://me:hunter22@127.0.0.1:1/db", folder=tmp_path / "pg")
    assert "hunter22" not in str(caught.value)
    opened(fixed=["+hub.token=hunter2222"])
    assert b"hunter2" not in b"".join(file.read_bytes() for file in (tmp_path / "toy").iterdir())


@pytest.mark.parametrize("tail", ["me:hunter22@127.0.0.1:1/db", "me@127.0.0.1:1/db?password=hunter22"])
def test_a_worker_is_told_no_password(tail: str, opened: Callable[..., Study], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.PASSWORD, "")
    url = storage.set_password_aside(f"postgresql://{tail}")
    assert url == "postgresql://me@127.0.0.1:1/db"
    assert os.environ[storage.PASSWORD] == "hunter22"
    study = opened()
    study.cfg.storage = f"postgresql://{tail}"  # as a caller may who does not go through the command line
    assert "hunter22" not in json.dumps(asdict(WorkerOrder.of(study, None)))


def test_one_file_is_left_of_the_database(opened: Callable[..., Study], tmp_path: Path) -> None:
    study = opened("grid")
    work(study)
    study.close()
    assert [file.name for file in (tmp_path / "toy").glob("study.db*")] == ["study.db"]
    assert study.counts().complete == 6


@pytest.mark.parametrize(("kind", "journal"), [("ext4", "wal"), ("nfs4", "delete"), ("fuse.sshfs", "delete")])
def test_over_a_network_there_is_no_shared_log(
    kind: str, journal: str, opened: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [("/", "ext4"), (str(tmp_path), "tmpfs"), (str(tmp_path), kind), ("/dev/shm", "tmpfs")]
    found = [SimpleNamespace(mountpoint=place, fstype=fstype) for place, fstype in mounts]
    monkeypatch.setattr(storage.psutil, "disk_partitions", lambda all: found)
    opened("grid").close()
    with closing(sqlite3.connect(tmp_path / "toy" / "study.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == (journal,)


# --- what dead processes leave ----------------------------------------------------------------------------------


def test_a_killed_trial_is_taken_up_again(
    opened: Callable[..., Study], worker: subprocess.Popen[str], tmp_path: Path
) -> None:
    study = opened(n_trials=4, fixed=[])
    assert study.reap() == []  # its owner lives
    kill(worker)
    params = study.trials()[0].params
    assert study.reap() == [0]
    assert study.reap() == []
    counts = study.counts()
    assert (counts.running, counts.waiting, counts.failed) == (0, 1, 0)
    work(study)
    trials = study.trials()
    assert (trials[1].params, trials[1].user_attrs["original"]) == (params, 0)
    assert trials[1].intermediate_values == {}
    assert study.row(trials[1]).folder == str(tmp_path / "toy" / "1")
    assert study.counts().finished == 4
    assert len(study.leaderboard()) == 4


def test_retries_are_bounded(opened: Callable[..., Study], tmp_path: Path) -> None:
    for _ in range(2):
        worker = hanging(tmp_path / "toy", *SEARCH)
        kill(worker)
        study = opened(n_trials=4, retries=1, fixed=[])
        study.reap()
        worker.communicate()
    assert study.counts().waiting == 0
    assert study.counts().failed == 1
    failed = study.leaderboard()[-1]
    assert (failed.number, failed.user_attrs["original"]) == (1, 0)
    assert failed.cause == "its process died 2 times (killed, or the machine went down)"
    work(study)
    assert study.counts().finished == 4


def test_deaths_with_the_driver_cost_no_retry(
    opened: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "MOST_ORPHANED", 3)
    gone = subprocess.Popen(["true"])
    driver = Process(process_module.this_host(), gone.pid, "1").record()
    gone.wait()
    for death in range(4):
        worker = hanging(tmp_path / "toy", *SEARCH)
        study = opened(n_trials=4, retries=0, fixed=[])
        (trial,) = [t for t in study.trials() if t.state is TrialState.RUNNING]
        study._backend.set_trial_user_attr(trial._trial_id, "owner", trial.user_attrs["owner"] | {"above": [driver]})
        kill(worker)
        study.reap()
        worker.communicate()
        assert study.counts().waiting == (death < 3)
    failed = study.leaderboard()[-1]
    assert failed.cause == "its process died 4 times with its driver (killed, or the machine went down)"


def test_a_worker_that_is_stopped_is_killed_once_its_trial_is_over_its_time(
    opened: Callable[..., Study], worker: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "STOPPED_GRACE_S", 0.0)
    assert opened(n_trials=4, fixed=[], trial_limit_s=0.01).kill_overdue() == []  # it is slow, and still has its alarm
    worker.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)
    assert opened(n_trials=4, fixed=[]).kill_overdue() == []  # nobody said how long a trial may take
    assert opened(n_trials=4, fixed=[], trial_limit_s=3600).kill_overdue() == []
    study = opened(n_trials=4, fixed=[], trial_limit_s=0.01)
    assert study.kill_overdue() == [0]
    assert worker.wait(timeout=30) == -signal.SIGKILL
    assert study.reap() == [0]
    assert study.counts().waiting == 1


def test_a_reaper_that_died_between_is_made_up_for(opened: Callable[..., Study], worker: Any) -> None:
    study = opened(n_trials=4, fixed=[])
    kill(worker)
    study._fail_dead(study.trials()[0])  # and dies before it enqueues
    assert opened(n_trials=4, fixed=[]).reap() == []
    assert study.counts().waiting == 1


def test_a_killed_grid_trial_keeps_its_point(opened: Callable[..., Study], tmp_path: Path) -> None:
    worker = hanging(tmp_path / "toy", *GRID)
    kill(worker)
    study = opened("grid", fixed=[], n_trials=6)
    work(study)
    worker.communicate()
    assert len({study.space.index(t.params) for t in study.trials() if t.state is TrialState.COMPLETE}) == 6
    assert len(study.trials()) == 7


def test_a_trial_killed_before_it_said_who_runs_it_is_found(opened: Callable[..., Study]) -> None:
    study = opened(n_trials=2, first=[{"lora.r": 4}])
    gone = subprocess.Popen(["true"])
    owner = Process(process_module.this_host(), gone.pid, "1")
    gone.wait()
    backend = study._backend
    waiting = study.trials()[0]._trial_id
    backend.set_trial_system_attr(waiting, "claim:gone", owner.record())
    super(type(backend), backend).set_trial_state_values(waiting, TrialState.RUNNING)
    assert study.reap() == [0]
    work(study)
    assert study.trials()[1].params["lora.r"] == 4


def test_stopping_costs_no_retry(opened: Callable[..., Study]) -> None:
    study = opened(n_trials=2, retries=0)

    def objective(trial: Trial) -> float:
        study.space.suggest(trial)
        if trial.number < 2:
            study.stopped(trial)
            raise ValueError("SIGTERM")
        return 1.0

    work(study, objective)
    assert study.counts().failed == 0
    assert [t.user_attrs.get("original") for t in study.trials()] == [None, 0, 0, None]


@asks_by_hand
def test_what_this_process_left_by_replacing_itself_is_reaped_when_it_is_idle(opened: Callable[..., Study]) -> None:
    study = opened(n_trials=2)
    study.optuna.ask()
    assert study.reap() == []
    assert study.reap(idle=True) == [0]


def test_a_pid_that_was_given_out_again_is_dead() -> None:
    me = Process.me()
    assert not me.dead()
    assert Process(me.host, me.pid, "1").dead()
    assert not Process("elsewhere", me.pid, "1").dead()


@asks_by_hand
def test_silence_of_another_host_is_death_after_the_grace(opened: Callable[..., Study]) -> None:
    study = opened(n_trials=2, heartbeat_s=1, grace_s=1)
    trial = study.optuna.ask()
    trial.set_user_attr("owner", Process("elsewhere", 1, "1").record())
    assert study.reap() == []
    time.sleep(1.1)
    assert study.reap() == [0]
    assert study.counts().waiting == 1


# --- samplers and pruners -----------------------------------------------------------------------------------------


def test_a_grid_of_a_continuous_space_is_refused(opened: Callable[..., Study], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.lr.*choice\(\.\.\.\)"):
        opened(sampler="grid")
    assert not (tmp_path / "toy" / "study.db").exists()


@pytest.mark.parametrize("name", ["gp", "cmaes", "qmc"])
def test_a_missing_package_names_its_command(
    opened: Callable[..., Study], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match="pip install") as caught:
        opened(sampler=name)
    assert samplers.NEEDS[name][0] in str(caught.value)


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_samplers_search(opened: Callable[..., Study], name: str) -> None:
    study = opened(sampler=name, n_trials=8)
    work(study)
    assert study.counts().complete == 8
    assert len({t.params["trainer.lr"] for t in study.trials()}) == 8


@pytest.mark.parametrize(
    ("name", "direction"),
    [("median", "minimize"), ("median", "maximize"), ("successive_halving", "maximize"), ("hyperband", "maximize")],
)
def test_pruners_stop_the_worse_half(opened: Callable[..., Study], name: str, direction: str) -> None:
    objective_name = "eval/loss" if direction == "minimize" else "eval/sql_exact_match"
    study = opened(
        pruner=name, n_trials=16, sampler="tpe" if name == "hyperband" else "random", objectives=[objective_name]
    )
    rungs = [10, 20, 30, 90]
    study.set_pruner(rungs)

    def objective(trial: Trial) -> float:
        study.space.suggest(trial)
        loss = (trial.number * 7) % 12 + 1.0
        for rung in rungs:
            trial.report(study.reported(loss + 1 / rung), rung)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss if direction == "minimize" else -loss

    work(study, objective)
    pruned = [row for row in study.leaderboard() if row.state == "pruned"]
    best = study.best()
    assert len(pruned) >= 3
    assert best is not None
    assert min(best.rungs.values()) < min(min(row.rungs.values()) for row in pruned)  # losses, whatever the direction


def test_patience_holds_the_pruner_back() -> None:
    plain = samplers.pruner(SweepConfig(pruner="median"), [10, 20, 30, 40, 50])
    patient = samplers.pruner(SweepConfig(pruner="median", patience=2), [10, 20, 30, 40, 50])
    study = optuna.create_study(direction="minimize")
    for value in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        trial = study.ask()
        for rung in (10, 20, 30):
            trial.report(value, rung)
        study.tell(trial, value)
    worse = study.ask()
    worse.report(9.0, 10)
    worse.report(8.0, 20)
    frozen = study.get_trials()[-1]
    assert plain.prune(study, frozen)
    assert not patient.prune(study, frozen)


def test_a_pruner_without_rungs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval\.every"):
        samplers.pruner(SweepConfig(pruner="hyperband"), [])
    with pytest.raises(ConfigError, match="warmup_rungs=2"):
        samplers.pruner(SweepConfig(pruner="median", warmup_rungs=2), [10, 20])


@pytest.mark.parametrize(
    ("settings", "rungs", "words"),
    [
        ({}, [10], r"evaluated 1 times in training, the last time at its end, where nothing is left to prune: set"),
        ({"warmup_rungs": 1}, [10, 20], r"sweep\.warmup_rungs=1 uses up"),
        ({"patience": 1}, [10, 20, 30], r"sweep\.patience=1 uses up"),
    ],
)
def test_a_pruner_that_could_act_at_the_last_rung_only_is_refused(
    settings: dict[str, Any], rungs: list[int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        samplers.pruner(SweepConfig(pruner="median", **settings), rungs)
    samplers.pruner(SweepConfig(pruner="median", **settings), [*rungs, 90])


@asks_by_hand
def test_workers_that_start_together_do_not_learn_to_draw_the_same(opened: Callable[..., Study]) -> None:
    """Another driver may join at any time, so running trials count as tried whatever `sweep.workers` is."""
    study = opened(Space.read(["trainer.lr=interval(0.0,1.0)"], {})[0], n_trials=30, sampler="tpe")

    def objective(trial: Trial) -> float:
        return abs(float(study.space.suggest(trial)["trainer.lr"] or 0) - 0.5)

    study.optuna.optimize(objective, n_trials=12)
    drawn = [float(study.space.suggest(study.optuna.ask())["trainer.lr"] or 0) for _ in range(8)]
    assert max(drawn) - min(drawn) > 0.5  # without what runs: eight draws beside the best


@pytest.mark.parametrize("way", ["minimize", "maximize"])
def test_pruners_follow_the_direction_of_the_sweep(opened: Callable[..., Study], way: str) -> None:
    """A reversed direction of the objective applies to its rungs as well."""
    study = opened(pruner="median", n_trials=16, sampler="random", direction=way)
    study.set_pruner([10, 20])

    def objective(trial: Trial) -> float:
        study.space.suggest(trial)
        value = float((trial.number * 7) % 12)
        trial.report(study.reported(value), 10)
        if trial.should_prune():
            raise optuna.TrialPruned
        return value

    work(study, objective)
    rows = study.leaderboard()
    pruned = [row.rungs[10] for row in rows if row.state == "pruned"]
    best = study.best()
    assert best is not None
    assert best.value == (11 if way == "maximize" else 0)
    assert pruned
    assert all(value < 11 if way == "maximize" else value > 0 for value in pruned)
    assert study.rung_up == (way == "maximize")


def test_settings_that_do_not_go_together_are_refused(opened: Callable[..., Study]) -> None:
    both = ["eval/loss", "vram/peak_allocated_gib"]
    with pytest.raises(ConfigError, match="several objectives"):
        opened(pruner="median", objectives=both)
    with pytest.raises(ConfigError, match="seed by seed"):
        opened(pruner="wilcoxon", seeds=2)
    with pytest.raises(ConfigError, match="already varies seed"):
        opened(Space.read(["seed=1,2"], {})[0], seeds=2)
    with pytest.raises(ConfigError, match=r"lora\.r=5"):
        opened(first=[{"lora.r": 5}])


# --- results ----------------------------------------------------------------------------------------------------------


def test_the_leaderboard_is_best_first_and_json(opened: Callable[..., Study]) -> None:
    study = opened("grid", objectives=["eval/sql_exact_match"])
    work(study)
    rows = study.leaderboard()
    assert [row.value for row in rows] == [16, 16, 8, 8, 4, 4]
    assert [row.number for row in rows[:2]] == [4, 5]  # a tie goes to the lower number
    assert study.best() == rows[0]
    assert [row.number for row in study.front()] == [4, 5]
    assert json.loads(json.dumps([asdict(row) for row in rows]))[0]["params"] == {"lora.r": 16, "quant": "nf4"}


def test_the_front_holds_what_nothing_beats(opened: Callable[..., Study]) -> None:
    study = opened("grid", objectives=["eval/sql_exact_match", "vram/peak_allocated_gib"])
    assert study.directions == ["maximize", "minimize"]

    def objective(trial: Trial) -> tuple[float, float]:
        params = study.space.suggest(trial)
        rank = float(params["lora.r"] or 0)
        return rank, rank + (params["quant"] == "none")

    work(study, objective)
    assert sorted(row.values or [] for row in study.front()) == [[4, 4], [8, 8], [16, 16]]
    assert [row.values for row in study.leaderboard()][:2] == [[16, 16], [8, 8]]


def test_the_best_of_several_objectives_is_on_the_front(opened: Callable[..., Study]) -> None:
    study = opened("grid", objectives=["eval/sql_exact_match", "vram/peak_allocated_gib"])
    work(study, lambda trial: (0.9, 10.0 - trial.number) if study.space.suggest(trial) else (0, 0))
    best = study.best()
    assert best is not None
    assert best.values == [0.9, 5.0]  # trial 0 has the match as well, and takes more memory
    assert [row.number for row in study.front()] == [best.number] == [study.leaderboard()[0].number]


def test_first_guesses_come_first_and_once(opened: Callable[..., Study]) -> None:
    guess = {"lora.r": 16, "trainer.lr": 2e-4}
    work(opened(first=[guess], n_trials=1))
    study = opened(first=[guess], n_trials=3)
    work(study)
    assert study.trials()[0].params == guess
    assert [t.params for t in study.trials()].count(guess) == 1


def test_a_warm_start_teaches_without_counting(opened: Callable[..., Study], tmp_path: Path) -> None:
    work(opened(n_trials=3))
    settings = {"name": "two", "folder": tmp_path / "two", "warm_start": str(tmp_path / "toy"), "n_trials": 2}
    for _ in range(2):
        study = opened(**settings)
    assert (study.counts().finished, study.left(), len(study.optuna.trials)) == (0, 2, 3)
    work(study)
    assert study.counts().finished == 2
    assert {t.user_attrs.get("from") for t in study.optuna.trials} == {"toy/0", "toy/1", "toy/2", None}
    with pytest.raises(ConfigError, match="cannot be imported"):
        opened("grid", **{**settings, "name": "three", "folder": tmp_path / "three"})


def test_what_was_taken_over_is_never_the_best(opened: Callable[..., Study], tmp_path: Path) -> None:
    work(opened(n_trials=3), lambda trial: float(opened(n_trials=3).space.suggest(trial)["lora.r"] or 0) - 100)
    study = opened(name="two", folder=tmp_path / "two", warm_start=str(tmp_path / "toy"), n_trials=2)
    assert (study.best(), study.leaderboard(), study.front()) == (None, [], [])
    work(study)
    best = study.best()
    assert best is not None
    assert (best.value or 0) > 0
    assert len(study.leaderboard()) == 2
    known = study.optuna.trials[0].params
    guessing = opened(
        name="two", folder=tmp_path / "two", warm_start=str(tmp_path / "toy"), n_trials=3, first=[known, known]
    )
    work(guessing)  # a guess is run here, though it was run there
    assert [trial.params for trial in guessing.trials()].count(known) == 1


def test_a_grid_runs_all_its_points_whatever_was_taken_over(opened: Callable[..., Study], tmp_path: Path) -> None:
    work(opened("grid"))
    study = opened("grid", name="two", folder=tmp_path / "two", warm_start=str(tmp_path / "toy"))
    assert study.left() == 6
    work(study)
    assert study.counts().complete == 6
    assert {study.space.index(trial.params) for trial in study.trials()} == set(range(6))
    assert "sweep.sampler=grid learns nothing from them" in study.notes[0]


def test_a_warm_start_says_how_many_and_what_differs(opened: Callable[..., Study], tmp_path: Path) -> None:
    study = opened(n_trials=3, composed={"trainer.max_steps": 4})
    work(study)
    two = {"name": "two", "folder": tmp_path / "two", "warm_start": str(tmp_path / "toy")}
    same = opened(**two, composed={"trainer.max_steps": 4})
    assert same.notes == [
        f"3 trials imported from {tmp_path}/toy (3 complete, 0 pruned): the sampler learns from them; "
        "they are not counted or ranked here"
    ]
    three = {**two, "name": "three", "folder": tmp_path / "three", "seeds": 2, "fixed": ["model=tiny", "seed=3"]}
    other = opened(**three, composed={"trainer.max_steps": 8})
    assert "trainer.max_steps: 4 in the study, 8 now" in other.notes[1]
    assert "seed=3 now, not in the study" in other.notes[1]
    assert "sweep.seeds: 1 in the study, 2 now" in other.notes[1]
    opened(name="empty", folder=tmp_path / "empty")
    none = opened(name="four", folder=tmp_path / "four", warm_start=str(tmp_path / "empty"))
    assert none.notes[0].startswith("0 trials imported from")


def test_rungs_of_another_metric_are_not_imported(opened: Callable[..., Study], tmp_path: Path) -> None:
    study = opened(n_trials=2, rung_metric="eval/sql_valid")

    def objective(trial: Trial) -> float:
        study.space.suggest(trial)
        trial.report(0.5, 10)
        if trial.number == 1:
            raise optuna.TrialPruned
        return 1.0

    work(study, objective)
    for name, metric, taken in (("two", "eval/loss", 1), ("three", "eval/sql_valid", 2)):
        settings = {"name": name, "folder": tmp_path / name, "warm_start": str(tmp_path / "toy")}
        assert len(opened(**settings, rung_metric=metric).optuna.trials) == taken


def test_a_pruner_compares_with_trials_of_its_own_study_only(opened: Callable[..., Study], tmp_path: Path) -> None:
    settings = {"pruner": "median", "sampler": "random"}

    def scoring(value: float) -> Callable[[Trial], float]:
        def objective(trial: Trial) -> float:
            study.space.suggest(trial)
            for step in range(6):
                trial.report(value + step / 100, step)
                if step < 5 and trial.should_prune():
                    raise optuna.TrialPruned
            return value

        return objective

    study = opened(n_trials=8, **settings)
    study.set_pruner([0, 1, 2, 3, 4, 5])
    work(study, scoring(0.1))
    study = opened(name="two", folder=tmp_path / "two", warm_start=str(tmp_path / "toy"), n_trials=4, **settings)
    study.set_pruner([0, 1, 2, 3, 4, 5])
    work(study, scoring(0.9))  # worse than all imported trials
    assert (study.counts().complete, study.counts().pruned) == (4, 0)


@asks_by_hand
def test_a_pruner_that_asks_for_the_best_gets_the_best_of_its_own_study(
    opened: Callable[..., Study], tmp_path: Path
) -> None:
    """Like the Wilcoxon pruner, which needs scipy."""
    asked: list[float | None] = []

    class Asks(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            asked.append(study.best_trial.value)
            return False

    def scoring(least: float) -> Callable[[Trial], float]:
        return lambda trial: least + trial.number / 100 if study.space.suggest(trial) else 0.0

    study = opened(n_trials=2)
    work(study, scoring(0.1))
    study = opened(name="two", folder=tmp_path / "two", warm_start=str(tmp_path / "toy"), n_trials=2)
    study.optuna.pruner = samplers.Own(Asks())
    with pytest.raises(ValueError, match="empty"):
        study.optuna.ask().should_prune()
    work(study, scoring(0.9))
    study.optuna.ask().should_prune()
    best = study.best()
    assert best is not None
    assert asked == [best.value]
    assert (best.value or 0) > 0.9


def test_optuna_is_not_loaded_before_a_sweep() -> None:
    code = "import sys, ftlab.sweep, ftlab.sweep.space; sys.exit('optuna' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0
