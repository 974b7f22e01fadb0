"""A worker finishes exactly the wanted number of trials, whatever happens to one of them."""

import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import Trial, TrialState, create_trial

from ftlab.config import SweepConfig
from ftlab.errors import Stopped, TrainingError
from ftlab.process import Process, _started, this_host
from ftlab.summary import Summary
from ftlab.sweep import worker as module
from ftlab.sweep.events import Event
from ftlab.sweep.limits import Memory, Overdue, time_limit
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.trial import TrialRunner, search
from ftlab.sweep.worker import work
from ftlab.train.signals import StopSignal

Open = Callable[..., Study]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)


@pytest.fixture
def study(tmp_path: Path) -> Open:
    """A study over lora.r and trainer.lr, by default of 4 random trials; a second call joins the first's."""

    def open(*overrides: str, objectives: list[str] | None = None, fixed: list[str] | None = None, **cfg: Any) -> Study:
        space, _ = Space.read(list(overrides) or ["trainer.lr=tag(log,interval(1e-4,1e-2))"], {})
        cfg = {"n_trials": 4, "sampler": "random", **cfg}
        return Study.open("toy", tmp_path / "toy", SweepConfig(**cfg), space, objectives or ["eval/loss"], fixed or [])

    return open


def toy(trial: Trial) -> float:
    return float(trial.params["trainer.lr"])


def states(study: Study) -> list[str]:
    return [trial.state.name for trial in study.trials()]


def failed(study: Study) -> list[dict[str, Any]]:
    return [trial.user_attrs for trial in study.trials() if trial.state is TrialState.FAIL]


# --- the loop, on toy objectives --------------------------------------------------------------------------


def test_it_stops_at_the_wanted_number_and_tells_every_step(study: Open) -> None:
    events: list[Event] = []
    found = study()
    work(found, toy, events.append)
    assert states(found) == ["COMPLETE"] * 4
    assert [(event.kind, event.number) for event in events] == [
        (kind, number) for number in range(4) for kind in ("started", "ended")
    ]
    rows = [event.row for event in events if event.row]
    assert [row.value for row in rows] == [event.params["trainer.lr"] for event in events if event.kind == "started"]
    work(found, lambda trial: pytest.fail("a finished study ran a trial"))


def test_a_pruned_trial_counts(study: Open) -> None:
    def prune(trial: Trial) -> float:
        if trial.number == 1:
            trial.report(1.0, 2)
            raise optuna.TrialPruned
        return toy(trial)

    found = study(n_trials=3)
    work(found, prune)
    assert states(found) == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_a_failure_has_its_cause_and_the_sweep_goes_on(study: Open) -> None:
    def fail(trial: Trial) -> float:
        if trial.number == 1:
            raise RuntimeError("CUDA error: out of reach\nand more")
        return toy(trial)

    found = study(n_trials=3)
    work(found, fail)
    assert states(found) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert failed(found)[0]["cause"] == "RuntimeError: CUDA error: out of reach"
    text = (found.folder / "1/error.txt").read_text()
    assert "Traceback" in text
    assert "and more" in text


def test_a_score_that_is_not_a_number_is_a_failure_with_its_cause(study: Open) -> None:
    found = study(n_trials=2)
    work(found, lambda trial: math.nan if trial.number == 0 else toy(trial))
    assert states(found) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert failed(found)[0]["cause"] == "eval/loss of the finished trial is not a number (NaN): it has no score"
    assert "NaN" in (found.folder / "0/error.txt").read_text()


def test_values_are_lent_by_the_run_itself(study: Open) -> None:
    """A duplicate has no folder, to which a third trial could point."""
    found = study("lora.r=choice(4,8)", n_trials=4)
    space = found.space.distributions()
    shared = {"state": TrialState.COMPLETE, "params": {"lora.r": 4}, "distributions": space, "value": 4.0}
    found.optuna.add_trial(optuna.trial.create_trial(**shared, user_attrs={"same_as": 1}))  # began first, ended last
    found.optuna.add_trial(optuna.trial.create_trial(**shared))
    found.optuna.enqueue_trial({"lora.r": 4})
    found.optuna.enqueue_trial({"lora.r": 4})
    work(found, lambda trial: pytest.fail("ran again"))
    assert [trial.user_attrs.get("same_as") for trial in found.trials()] == [1, None, 1, 1]


def test_too_many_failures_end_the_sweep_for_good(study: Open) -> None:
    runs = []

    def fail(trial: Trial) -> float:
        runs.append(trial.number)
        raise RuntimeError(f"wrong {trial.number}")

    for _ in range(2):
        with pytest.raises(TrainingError, match=r"3 trials failed \(sweep\.max_failures=2\).*RuntimeError: wrong 2"):
            work(study(max_failures=2), fail)
    assert runs == [0, 1, 2]
    work(study(max_failures=5), toy)
    assert study().counts().finished == 4


def test_a_known_configuration_is_not_run_again(study: Open) -> None:
    runs = []

    def count(trial: Trial) -> float:
        runs.append(trial.params["lora.r"])
        trial.report(float(len(runs)), 2)
        if trial.params["lora.r"] == 8:
            raise optuna.TrialPruned
        return float(trial.params["lora.r"])

    found = study("lora.r=choice(4,8)", n_trials=8)
    work(found, count)
    assert sorted(runs) == [4, 8]
    duplicates = [trial for trial in found.trials() if "same_as" in trial.user_attrs]
    assert len(duplicates) == 6
    for trial in duplicates:
        own = found.trials()[trial.user_attrs["same_as"]]
        assert (own.params, own.state, own.values) == (trial.params, trial.state, trial.values)
        assert own.intermediate_values == trial.intermediate_values


def test_several_objectives_keep_all_their_values(study: Open) -> None:
    found = study(objectives=["eval/sql_exact_match", "vram/peak_allocated_gib"], n_trials=2)
    work(found, lambda trial: (0.5, toy(trial)))
    assert [trial.values for trial in found.trials()] == [[0.5, t.params["trainer.lr"]] for t in found.trials()]


def test_three_workers_finish_exactly_the_trials_wanted(study: Open) -> None:
    found = study("lora.r=range(1,13)", n_trials=9, sampler="tpe")

    def slow(trial: Trial) -> float:
        time.sleep(0.02)
        if trial.params["lora.r"] == 3:
            raise RuntimeError("no such rank")
        return float(trial.params["lora.r"])

    def one() -> None:
        work(study("lora.r=range(1,13)", n_trials=9, sampler="tpe"), slow)

    processes = [multiprocessing.get_context("fork").Process(target=one) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    counts = found.counts()
    assert (counts.finished, counts.running) == (9, 0)
    not_run = {"same_as", "surplus", "cause"}
    ran = [trial.params["lora.r"] for trial in found.trials() if not_run.isdisjoint(trial.user_attrs)]
    assert len(ran) == len(set(ran))


def test_a_configuration_that_two_draw_at_the_same_moment_is_run_once(
    study: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The one that was asked for first draws last, when the other runs already."""
    context = multiprocessing.get_context("fork")
    second, drawn = context.Event(), context.Event()
    suggest = Space.suggest

    def late(space: Space, trial: Trial) -> dict[str, Any]:
        if trial.number == 0:
            second.set()
            assert drawn.wait(30)
        return suggest(space, trial)

    def slow(trial: Trial) -> float:
        (tmp_path / f"ran-{trial.number}").touch()
        drawn.set()
        time.sleep(0.3)
        return 1.0

    monkeypatch.setattr(Space, "suggest", late)
    monkeypatch.setattr(module, "MOST_REDRAWS", 0)
    found = study("lora.r=choice(4,8)", n_trials=2)
    for _ in range(2):
        found.optuna.enqueue_trial({"lora.r": 4})
    first = context.Process(target=lambda: work(study("lora.r=choice(4,8)", n_trials=2), slow))
    first.start()
    assert second.wait(30)
    work(found, slow)
    first.join(60)
    assert [path.name for path in tmp_path.glob("ran-*")] == ["ran-1"]
    assert found.trials()[0].user_attrs["same_as"] == 1


def test_a_configuration_is_free_again_where_its_holder_failed(study: Open) -> None:
    ran: list[int] = []

    def fail_first(trial: Trial) -> float:
        ran.append(trial.number)
        if len(ran) == 1:
            raise RuntimeError("CUDA error")
        return 1.0

    found = study("lora.r=choice(4,8)", n_trials=2)
    for _ in range(3):
        found.optuna.enqueue_trial({"lora.r": 4})
    work(found, fail_first)
    assert ran == [0, 1]
    assert [trial.user_attrs.get("same_as") for trial in found.trials()] == [None, None, 1]


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(20))
def test_workers_that_draw_from_few_configurations_run_none_twice(
    study: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repetition: int
) -> None:
    """With pauses where one may overtake another."""
    suggest, options = Space.suggest, {"n_trials": 9, "sampler": "tpe", "sampler_seed": repetition}

    def late(space: Space, trial: Trial) -> dict[str, Any]:
        time.sleep(random.uniform(0, 0.1))
        return suggest(space, trial)

    def slow(trial: Trial) -> float:
        (tmp_path / f"ran-{trial.params['lora.r']}-{trial.number}").touch()
        time.sleep(random.uniform(0, 0.06))
        return float(trial.params["lora.r"])

    def one(number: int) -> None:
        random.seed(repetition * 10 + number)
        work(study("lora.r=range(1,13)", **options), slow)

    monkeypatch.setattr(Space, "suggest", late)
    found = study("lora.r=range(1,13)", **options)
    processes = [multiprocessing.get_context("fork").Process(target=one, args=(n,)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    ran = [path.name.split("-")[1] for path in tmp_path.glob("ran-*")]
    assert len(ran) == len(set(ran))
    assert found.counts().finished == 9


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # a trial asked for by hand
def test_a_configuration_under_way_elsewhere_is_waited_for(study: Open) -> None:
    found = study("lora.r=choice(4,8)", n_trials=2)
    other = found.optuna.ask()
    value = other.suggest_categorical("lora.r", (4, 8))
    elsewhere = Process(this_host(), os.getppid(), _started(os.getppid()) or "")
    other.set_user_attr("owner", elsewhere.record())
    found.optuna.enqueue_trial({"lora.r": value})
    runs = []

    def tell() -> None:
        while states(found).count("FAIL") < module.MOST_REDRAWS:
            time.sleep(0.01)
        time.sleep(0.1)
        found.optuna.tell(other, 0.25)

    teller = threading.Thread(target=tell)
    teller.start()
    for _ in range(module.MOST_REDRAWS):  # draws that do not differ
        found.optuna.enqueue_trial({"lora.r": value})
    work(found, lambda trial: runs.append(trial.number) or 1.0)
    teller.join()
    assert runs == []
    assert found.counts().finished == 2
    assert found.trials()[-1].user_attrs["same_as"] == other.number


# --- signals and time -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Stopped("SIGTERM: stopped"), KeyboardInterrupt()])
def test_a_signal_leaves_the_trial_to_the_next_start(study: Open, error: BaseException) -> None:
    seen: list[tuple[int, str, int, float]] = []

    def stop(trial: Trial) -> float:
        folder = module.folder_of(found, trial)
        folder.mkdir(exist_ok=True)
        (folder / "begun").touch(exist_ok=True)
        seen.append((trial.number, folder.name, (folder / "begun").stat().st_ino, trial.params["trainer.lr"]))
        if len(seen) == 2:
            raise error
        return toy(trial)

    found = study(n_trials=3, retries=0)
    with pytest.raises(Stopped, match="run the same command again to resume"):
        work(found, stop)
    assert found.counts().running == 0
    work(study(n_trials=3, retries=0), stop)
    assert found.counts() == module.Study.counts(found)
    assert (found.counts().finished, found.counts().failed) == (3, 0)
    assert seen[2][2:] == seen[1][2:]  # the same parameters, and what lay in the folder
    assert seen[2][0] != seen[1][0]
    assert [str(number) for number, *_ in seen] == [name for _, name, *_ in seen]
    assert not (found.folder / seen[1][1]).exists()


def test_a_signal_between_two_trials_stops_there(study: Open) -> None:
    stop = StopSignal()

    def then_stop(trial: Trial) -> float:
        stop.name = "SIGTERM"
        return toy(trial)

    found = study()
    with pytest.raises(Stopped, match="SIGTERM"):
        work(found, then_stop, stop=stop)
    assert states(found) == ["COMPLETE"]


def test_a_trial_over_its_time_fails(study: Open) -> None:
    def slow(trial: Trial) -> float:
        try:
            time.sleep(5 if trial.number == 0 else 0)
        except Exception:  # as a library may do
            pytest.fail("the time limit was swallowed")
        return toy(trial)

    began = time.perf_counter()
    found = study(n_trials=2, trial_limit_s=0.2)
    work(found, slow)
    assert time.perf_counter() - began < 4
    assert states(found) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert failed(found)[0]["cause"] == "it took longer than sweep.trial_limit_s=0.2"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_trial_that_hangs_is_recorded_and_the_process_starts_anew(study: Open) -> None:
    restarted = threading.Event()
    found = study(n_trials=1, trial_limit_s=0.1)

    def hang(trial: Trial) -> float:
        while trial.number == 0:
            try:
                assert restarted.wait(20)
                break
            except Overdue:  # as a call that does not return
                continue
        return toy(trial)

    def restart() -> None:
        assert states(found) == ["FAIL"]  # recorded before the process is gone
        restarted.set()

    work(found, hang, restart=restart, grace_s=0.1)
    assert states(found) == ["FAIL", "COMPLETE"]
    assert failed(found)[0]["cause"].startswith("it hung")
    assert "in hang" in (found.folder / "0/error.txt").read_text()


def test_the_time_limit_is_off_outside_its_block() -> None:
    fired = []
    with time_limit(0.05, lambda: fired.append(1), 0.05):
        pass
    with pytest.raises(Overdue), time_limit(0.05, lambda: fired.append(1), 0.5):
        time.sleep(2)
    time.sleep(0.2)
    assert fired == []


def test_a_process_begun_anew_is_the_same_command(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom ftlab.sweep.limits import start_again\n"
        f"file = {str(tmp_path / 'pids')!r}\nopen(file, 'a').write(f'{{os.getpid()}} {{sys.argv[1:]}}\\n')\n"
        "if len(open(file).readlines()) < 2:\n    start_again()\n"
    )
    subprocess.run([sys.executable, "-c", code, "a b", "c"], check=True, timeout=60)
    first, second = (tmp_path / "pids").read_text().splitlines()
    assert first == second


# --- memory -----------------------------------------------------------------------------------------------


class Gpu:
    """A GPU whose free memory is what is set; `kept` GiB of it belong to a base."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.kept, self.dropped = 80.0, 0.0, 0
        monkeypatch.setattr("ftlab.sweep.limits._gpu", lambda: self)

    def mem_get_info(self) -> tuple[float, float]:
        return self.free * (1 << 30), 80.0 * (1 << 30)

    def is_initialized(self) -> bool:
        return True

    def empty_cache(self) -> None:
        pass

    def held_gib(self) -> float:
        return self.kept

    def drop(self) -> None:
        self.free, self.kept, self.dropped = self.free + self.kept, 0.0, self.dropped + 1


def test_a_trial_that_keeps_memory_has_its_process_replaced(study: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, restarts = Gpu(monkeypatch), []

    def leak(trial: Trial) -> float:
        gpu.free, gpu.kept = (60.0, 14.0) if trial.number == 1 else (gpu.free, gpu.kept)
        return toy(trial)

    def restart() -> None:
        restarts.append(states(found))
        raise SystemExit

    found = study(n_trials=3)
    with pytest.raises(SystemExit):
        work(found, leak, memory=Memory(gpu), restart=restart)
    assert restarts == [["COMPLETE", "COMPLETE"]]
    assert gpu.dropped == 1
    attrs = [trial.user_attrs for trial in found.trials()]
    assert [(a["free_gib_before"], a["free_gib_after"]) for a in attrs] == [(80.0, 80.0), (80.0, 74.0)]


def test_a_kept_base_is_no_lost_memory(study: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)

    def keep(trial: Trial) -> float:
        gpu.free, gpu.kept = 66.0, 14.0
        return toy(trial)

    work(study(n_trials=2), keep, memory=Memory(gpu), restart=lambda: pytest.fail("replaced"))
    assert gpu.dropped == 0


# --- experiments ------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(study: Open, small: list[str]) -> Open:
    """A study of small experiments."""
    return lambda *overrides, fixed=(), **cfg: study(*overrides, fixed=[*small, *fixed], **cfg)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_trials_are_runs_with_their_parameters(sweep: Open) -> None:
    events: list[Event] = []
    found = sweep("lora.r=choice(2,4)", n_trials=2, sampler="grid", fixed=["objective=eval/loss"])
    search(found, events.append)
    for number, trial in enumerate(found.trials()):
        folder = found.folder / str(number)
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["status"], summary["run_name"]) == ("finished", f"toy-{number}")
        assert trial.value == summary["tuned"]["eval/loss"]
        adapter = json.loads((folder / "adapter/adapter_config.json").read_text())
        assert adapter["r"] == trial.params["lora.r"]
        told = {line["step"]: line["eval/loss"] for line in lines(folder) if "eval/loss" in line}
        assert trial.intermediate_values == told
        assert [(e.step, e.value) for e in events if e.kind == "rung" and e.number == number] == list(told.items())
        text = (folder / "config.yaml").read_text()
        assert "group: toy" in text
        assert "train ..." in (folder / "output.txt").read_text()


def test_a_bad_trial_is_pruned_within_one_evaluation(sweep: Open) -> None:
    found = sweep(
        "trainer.lr=choice(1e-2,2e-2,1e-9)",
        n_trials=3,
        sampler="grid",
        pruner="median",
        fixed=["trainer.max_steps=8", "objective=eval/loss"],
    )
    search(found)
    assert states(found) == ["COMPLETE", "COMPLETE", "PRUNED"]
    folder = found.folder / "2"
    assert json.loads((folder / "summary.json").read_text())["status"] == "pruned"
    assert max(line["step"] for line in lines(folder)) == 2
    assert list(found.trials()[2].intermediate_values) == [2]
    assert not (folder / "checkpoints").exists()
    assert (found.folder / "0/checkpoints").exists()


def test_at_the_tracker_trials_have_their_group_parameters_and_end(
    sweep: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = sweep("lora.r=choice(2,4)", n_trials=1, sampler="grid", fixed=["tracker=wandb"])
    search(found)
    wandb.teardown()  # its service closes a file a moment after the run has ended
    (part,) = (found.folder / "0/wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    runs = [record["run"] for record in map(json.loads, text.splitlines()) if record["type"] == "run"]
    assert (runs[0]["run_group"], runs[0]["job_type"], runs[0]["display_name"]) == ("toy", "trial", "toy-0")
    assert runs[0]["config"]["update"]["lora"]["r"] == 2
    assert runs[-1]["tags"] == ["finished"]


def test_the_pruner_hears_losses_upside_down_where_more_is_better(sweep: Open) -> None:
    found = sweep("lora.r=choice(2,4)", objectives=["eval/sql_exact_match"], n_trials=1)
    search(found)
    trial = found.trials()[0]
    assert all(value < 0 for value in trial.intermediate_values.values())
    assert all(value > 0 for value in found.row(trial).rungs.values())


def test_failing_experiments_have_their_causes_and_the_sweep_goes_on(sweep: Open) -> None:
    found = sweep(
        "trainer.lr=choice(1e-2,1e30)", "lora.target_modules=choice(all-linear,[q_prj])", n_trials=4, sampler="grid",
    )  # fmt: skip
    search(found)
    rows = {(t.params["trainer.lr"], t.params["lora.target_modules"]): t for t in found.trials()}
    assert [key for key, trial in rows.items() if trial.state is TrialState.COMPLETE] == [(1e-2, "all-linear")]
    assert "nan" in rows[1e30, "all-linear"].user_attrs["cause"]
    assert "nearest: q_proj" in rows[1e-2, "[q_prj]"].user_attrs["cause"]
    assert rows[1e30, "all-linear"].user_attrs["vram_peak_gib"] == 0.0
    assert found.counts().failed == 3
    failures = [trial.number for trial in rows.values() if trial.state is TrialState.FAIL]
    assert all((found.folder / str(number) / "error.txt").is_file() for number in failures)


def test_seeds_are_runs_of_their_own_and_their_mean_counts(sweep: Open) -> None:
    found = sweep("lora.r=choice(2,4)", n_trials=1, seeds=2, fixed=["objective=eval/loss", "seed=5"])
    search(found)
    trial = found.trials()[0]
    files = [found.folder / f"0/seed-{seed}/summary.json" for seed in (5, 6)]
    losses = [json.loads(file.read_text())["objective"]["value"] for file in files]
    assert losses[0] != losses[1]
    assert trial.value == pytest.approx(sum(losses) / 2)
    assert trial.user_attrs["deviation"] == [pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)]
    assert list(trial.intermediate_values) == [2, 4]


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_configuration_too_large_is_not_run(sweep: Open, sampler: str) -> None:
    first = [{"lora.r": 2}, {"lora.r": 4}]
    found = sweep("lora.r=choice(2,4)", n_trials=2, sampler=sampler, vram_limit_gib=3, first=first)
    search(found, estimate=lambda cfg: float(cfg.lora.r))
    assert states(found) == ["COMPLETE", "PRUNED"]
    assert found.trials()[1].user_attrs["cause"] == "needs at least 4.0 GiB, above sweep.vram_limit_gib=3: not run"
    assert not (found.folder / "1/metrics.jsonl").exists()


def test_values_of_a_summary() -> None:
    summary = {
        "status": "finished",
        "tuned": {"eval/loss": 0.5},
        "seconds": {"train": 3.5},
        "vram": {"train": {"allocated": 2.0, "reserved": 9.0}, "eval": {"allocated": 4.0}},
    }
    names = ("eval/loss", "train/seconds", "vram/peak_allocated_gib")
    assert [Summary.of(summary).metrics[name] for name in names] == [0.5, 3.5, 4.0]
    assert Summary.of({"vram": {}}).metrics["vram/peak_allocated_gib"] == 0.0


def test_the_base_is_loaded_once(sweep: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftlab import models

    loads, load = [], models.load_base
    monkeypatch.setattr(models, "load_base", lambda *a, **k: loads.append(1) or load(*a, **k))
    search(sweep("lora.r=choice(2,4)", n_trials=2, sampler="grid"))
    assert len(loads) == 1


SCRIPT = """
import json, sys
from pathlib import Path
from ftlab.config import SweepConfig
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.trial import search
folder, fixed = Path(sys.argv[1]), json.loads(sys.argv[2])
space, _ = Space.read(["lora.r=choice(2,4,8)"], {})
study = Study.open("toy", folder, SweepConfig(n_trials=3, sampler="grid"), space, ["eval/loss"], fixed)
search(study)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], "subprocess.Popen[bytes]"]]:
    """A worker in a separate process."""
    began: list[subprocess.Popen[bytes]] = []

    def start(fixed: list[str]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "toy"), json.dumps(fixed)]
        began.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return began[-1]

    yield start
    for process in began:
        process.kill()
        process.wait()


def test_a_killed_worker_is_followed_by_one_that_goes_on(start: Any, small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    fixed = [*small, "trainer.max_steps=12", "trainer.save_every=1", "eval.every=4", "trainer.keep=12"]
    process = start(fixed)
    until = time.monotonic() + 100
    while not (folder / "1/checkpoints/step-000005/manifest.json").exists():
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    process = start(fixed)
    output = process.communicate(timeout=100)[0].decode()
    assert process.returncode == 0, output

    found = Study.load(str(folder))
    counts = found.counts()
    assert (counts.complete, counts.failed, counts.running, counts.waiting) == (3, 0, 0, 0)
    assert len([path for path in folder.iterdir() if path.name.isdigit()]) == 3
    again = next(trial for trial in found.trials() if trial.user_attrs.get("original") == 1)
    assert list(again.intermediate_values) == [4, 8, 12]
    assert {int(path.name) for path in folder.iterdir() if path.name.isdigit()} == {
        trial.number for trial in found.trials() if trial.state is TrialState.COMPLETE
    }
    mine = Path(found.row(again).folder)
    assert mine == folder / str(again.number)
    assert "resumed from step" in (mine / "output.txt").read_text()
    assert json.loads((mine / "summary.json").read_text())["run_name"] == f"toy-{again.number}"
    steps = [line["step"] for line in lines(mine) if "train/loss" in line]
    assert steps == list(range(1, 13))  # none lost, none twice


def test_a_signal_in_a_trial_leaves_its_checkpoint_to_the_next_start(sweep: Open) -> None:
    def signalled(event: Event) -> None:
        if (event.kind, event.number, event.step) == ("rung", 0, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    options: dict[str, Any] = {"n_trials": 1, "fixed": ["trainer.max_steps=6"]}
    with pytest.raises(Stopped):
        search(sweep("lora.r=choice(2,4)", **options), signalled)
    found = sweep("lora.r=choice(2,4)", **options)
    search(found)
    assert (found.counts().complete, found.counts().failed) == (1, 0)
    assert "resumed from step 2 of 6" in (found.folder / "1/output.txt").read_text()
    assert list(found.trials()[-1].intermediate_values) == [2, 4, 6]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # a trial asked for by hand
def test_a_trial_killed_after_its_last_step_is_not_trained_again(sweep: Open) -> None:
    found = sweep("lora.r=choice(2,4)", n_trials=1)
    trials = TrialRunner(found)
    ended = found.optuna.ask()
    value = trials(ended)  # and the worker dies before it reports the value
    found.stopped(ended)
    before = lines(found.folder / "0")
    work(found, trials)
    again = found.trials()[-1]
    assert (again.value, again.user_attrs["original"]) == (value, 0)
    assert list(again.intermediate_values) == [2, 4]
    assert lines(found.folder / "1") == before


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # a trial asked for by hand
def test_a_study_of_an_older_ftlab_keeps_the_folders_of_its_trials(study: Open) -> None:
    """An older ftlab named a resumed trial's folder by its first attempt."""
    found = study(n_trials=2)
    (found.folder / "0").mkdir()
    params = {"trainer.lr": 1e-3}
    trial = create_trial(
        state=TrialState.COMPLETE,
        value=1.0,
        params=params,
        distributions=found.space.distributions(),
        user_attrs={"original": 0, "retries": 1},
    )
    found.optuna.ask()
    found.optuna.add_trial(trial)
    assert module.folder_of(found, found.trials()[1]) == found.folder / "0"
    assert found.row(found.trials()[1]).folder == str(found.folder / "0")
