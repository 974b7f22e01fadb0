"""What a driver passes to its workers and shows its user before the first trial."""

import gc
import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ftlab import compose
from ftlab.config import SweepConfig, known_keys
from ftlab.errors import ConfigError, InputError
from ftlab.sweep import driver
from ftlab.sweep.driver import check_measured
from ftlab.sweep.join import WorkerOrder
from ftlab.sweep.rungs import rungs_of
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.trial import TrialRunner
from ftlab.sweep.worker import work
from ftlab.terminal import Terminal

BASIC = {"_target_": driver.BASIC_LAUNCHER}
REMEDY = "sweep.storage=postgresql://USER@HOST/DATABASE"


def study_of(folder: Path, fixed: list[str]) -> Study:
    space, _ = Space.read(["lora.r=4,8"], {})
    return Study.open("toy", folder, SweepConfig(), space, ["eval/loss"], fixed)


def warned(study: Study, launcher: str, node: Mapping[str, object]) -> str:
    config = OmegaConf.create({"hydra": {"runtime": {"choices": {"hydra/launcher": launcher}}, "launcher": node}})
    file = io.StringIO()
    driver.warn_of_files(study, config, Terminal(file, width=400))
    return file.getvalue()


@pytest.mark.parametrize("every", ["null", "7", "20", "50"])
def test_a_worker_is_told_the_rungs_that_it_would_find(every: str, tmp_path: Path) -> None:
    fixed = ["experiment=quickstart", "trainer.max_steps=20", f"eval.every={every}"]
    study, told = study_of(tmp_path, fixed), rungs_of(compose(fixed))
    assert told == TrialRunner(study).rungs()
    assert WorkerOrder.of(study, None, told).rungs == told


def test_rungs_of_epochs_are_for_the_data_to_say() -> None:
    assert rungs_of(compose(["experiment=quickstart", "trainer.epochs=1"])) is None


@pytest.mark.parametrize(
    ("launcher", "node"),
    [("submitit_slurm", {}), ("ray_aws", {}), ("ray", {"ray": {"init": {"address": "auto"}}})],
)
def test_workers_on_other_machines_want_a_server(launcher: str, node: dict[str, object], tmp_path: Path) -> None:
    study = study_of(tmp_path, [])
    assert REMEDY in warned(study, launcher, node)
    study.storage_url = "postgresql://me@host/db"
    assert warned(study, launcher, node) == ""


@pytest.mark.parametrize(("launcher", "node"), [("basic", BASIC), ("ray", {"ray": {"init": {"address": None}}})])
def test_workers_here_want_none(launcher: str, node: dict[str, object], tmp_path: Path) -> None:
    assert warned(study_of(tmp_path, []), launcher, node) == ""


def test_a_folder_that_other_machines_see_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "networked", lambda folder: "nfs4")
    said = warned(study_of(tmp_path, []), "basic", BASIC)
    assert "nfs4" in said
    assert REMEDY in said


def test_after_a_sweep_nothing_is_kept_from_being_collected(tmp_path: Path) -> None:
    work(study_of(tmp_path, []), lambda trial: float(trial.params["lora.r"]))
    assert gc.get_freeze_count() == 0


def test_the_data_of_a_study_are_read_before_it_is_made(tmp_path: Path) -> None:
    """Data that cannot be read are refused for a new study; an existing study may no longer need them."""
    cfg = compose(["experiment=quickstart", "data.train_rows=20", "data.test_rows=5"])
    composed, space = dict.fromkeys(known_keys(), 0), Space(())
    file = io.StringIO()
    found = driver.sources_now(cfg, composed, space, known=False, terminal=Terminal(file))
    assert found is not None
    assert (found["train"]["rows"], found["test"]["rows"]) == (20, 5)
    gone = compose(["data=jsonl", f"data.path={tmp_path / 'gone.jsonl'}"])
    with pytest.raises(InputError):
        driver.sources_now(gone, composed, space, known=False, terminal=Terminal(file))
    assert driver.sources_now(gone, composed, space, known=True, terminal=Terminal(file)) is None
    assert "cannot be compared" in file.getvalue()


def test_a_sweep_over_tasks_aims_at_what_all_of_them_measure() -> None:
    sql, match = (compose([f"data={name}"]) for name in ("sql_synth", "match_synth"))
    said = r"does not measure the sweep's objective=eval/sql_exact_match: .*eval/match_exact"
    with pytest.raises(ConfigError, match=said):
        check_measured(match, sql)
    loss = compose(["data=sql_synth", "objective=eval/loss"])
    check_measured(match, loss)
    check_measured(sql, compose(["data=sql_synth", "sweep.objectives=[eval/loss,train/seconds]"]))
