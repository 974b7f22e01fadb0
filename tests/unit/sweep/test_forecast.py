"""Measured peaks of a study's trials correct the closed form: both ways, for configurations like theirs, and nothing
else does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import Trial

from ftlab import compose
from ftlab.composition import composition
from ftlab.config import ExperimentConfig, SweepConfig
from ftlab.errors import Stopped, WeightsError
from ftlab.fast.plan import Chooser, Setting
from ftlab.memory import estimate as closed_form
from ftlab.memory import meter as meter_module
from ftlab.run_dir import RunDir
from ftlab.summary import Summary
from ftlab.sweep.forecast import Forecast
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.trial import search
from ftlab.sweep.worker import folder_of, work

Config = Callable[..., ExperimentConfig]
Ran = Callable[..., None]

SPACE = ["lora.r=choice(2,4,8,16)", "seed=range(0,9)"]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study with random sampling, whose number of trials is set when they are run."""
    space, _ = Space.read(SPACE, {})
    return Study.open("toy", tmp_path / "toy", SweepConfig(sampler="random", n_trials=1), space, ["eval/loss"], [])


@pytest.fixture
def config(small: list[str]) -> Config:
    return lambda *more: compose([*small, "run_dir=x", *more])


@pytest.fixture
def ran(study: Study, small: list[str]) -> Ran:
    """One more trial, with overrides, a status, the setting in which it trained (the leanest unless given), and what
    the closed form is to be multiplied by in its batch's part."""

    def ran(
        factor: float,
        *more: str,
        status: str = "finished",
        phase: str = "train",
        below: str = ".",
        setting: Setting | None = None,
        ran_out: bool = False,
    ) -> None:
        def run(trial: Trial) -> float:
            run = RunDir(folder_of(study, trial) / below)
            (run.path / ".hydra").mkdir(parents=True)
            whole = composition([*small, f"run_dir={run.path}", *more])
            run.record(whole)
            taken = setting or closed_form.leanest(whole.config)
            peak = times(factor, whole.config, taken)
            record = {
                "micro": taken.micro,
                "cached": taken.keep_dequantized,
                "share": taken.checkpointed_fraction,
                "ran_out": ran_out,
            }
            Summary.of({"status": status, "vram": {phase: {"allocated": peak}}, "setting": record}).write(
                run / "summary.json"
            )
            if status == "failed":
                raise RuntimeError("no memory")
            if status == "pruned":
                raise optuna.TrialPruned
            return 1.0

        counts = study.counts()
        study.target = counts.finished + (status != "failed")
        if status == "failed":
            study.cfg.max_failures = counts.failed
            study.target += 1
            with pytest.raises(Exception, match="1 trials failed"):
                work(study, run)
        else:
            work(study, run)

    return ran


def times(factor: float, cfg: ExperimentConfig, setting: Setting | None = None) -> float:
    """GiB with the batch's part of the closed form multiplied by a factor."""
    parts = closed_form.parts(cfg, setting)
    return parts.fixed + factor * parts.batch


def test_nothing_measured_leaves_the_closed_form(study: Study, config: Config) -> None:
    assert Forecast(study)(config()) == closed_form.estimate(config())


@pytest.mark.parametrize("factor", [0.3, 2.5])
def test_a_peak_corrects_the_estimate_down_and_up(study: Study, config: Config, ran: Ran, factor: float) -> None:
    forecast = Forecast(study)
    before = forecast(config())
    ran(factor)
    assert forecast(config()) == pytest.approx(times(factor, config()))
    assert (forecast(config()) < before) == (factor < 1)


def test_what_is_there_at_every_step_is_not_corrected(study: Study, config: Config, ran: Ran) -> None:
    """A larger adapter's weights, gradients and optimizer state are known exactly."""
    ran(3.0, "lora.r=2")
    more = closed_form.parts(config("lora.r=64")).fixed - closed_form.parts(config("lora.r=2")).fixed
    assert more > 0
    forecast = Forecast(study)
    assert forecast(config("lora.r=64")) - forecast(config("lora.r=2")) == pytest.approx(more)


@pytest.mark.parametrize("key", ["trainer.micro_batch_size", "data.max_length"])
def test_the_correction_grows_with_the_batch(study: Study, config: Config, ran: Ran, key: str) -> None:
    few, many = {"trainer.micro_batch_size": (1, 4), "data.max_length": (64, 128)}[key]
    ran(2.0, f"{key}={few}")
    larger = config(f"{key}={many}")
    assert Forecast(study)(larger) == pytest.approx(times(2.0, larger))


def test_the_nearest_batch_corrects(study: Study, config: Config, ran: Ran) -> None:
    """What a run takes beside its batch weighs most in a small one, and must not have large ones refused."""
    ran(9.0, "trainer.micro_batch_size=1")
    ran(1.2, "trainer.micro_batch_size=16", "trainer.global_batch_size=32")
    forecast = Forecast(study)
    for rows, factor in ((2, 9.0), (8, 1.2), (32, 1.2)):
        cfg = config(f"trainer.micro_batch_size={rows}", "trainer.global_batch_size=32")
        assert forecast(cfg) == pytest.approx(times(factor, cfg)), rows


def test_equal_configurations_go_by_the_largest_peak(study: Study, config: Config, ran: Ran) -> None:
    for factor in (1.5, 2.0, 1.8):
        ran(factor)
    assert Forecast(study)(config()) == pytest.approx(times(2.0, config()))


@pytest.mark.parametrize(
    "feature",
    [
        "trainer.activation_checkpointing=false",
        "quant=nf4",
        "lora.target_modules=qv",
    ],
)
def test_a_configuration_of_another_kind_corrects_only_its_own(
    study: Study, config: Config, ran: Ran, feature: str
) -> None:
    ran(4.0, feature)
    forecast = Forecast(study)
    assert forecast(config()) == pytest.approx(times(4.0, config()))  # nothing nearer is known
    ran(0.5)
    assert forecast(config()) == pytest.approx(times(0.5, config()))
    assert forecast(config(feature)) == pytest.approx(times(4.0, config(feature)))


def test_pruned_trials_teach(study: Study, config: Config, ran: Ran) -> None:
    ran(2.0, status="pruned")
    assert Forecast(study)(config()) == pytest.approx(times(2.0, config()))


def test_each_seed_of_a_trial_teaches(study: Study, config: Config, ran: Ran) -> None:
    ran(2.0, below="seed-5")
    assert Forecast(study)(config()) == pytest.approx(times(2.0, config()))


@pytest.mark.parametrize(
    "setting", [Setting(4, False, 0.0), Setting(2, True, 0.0), Setting(4, True, 0.25), Setting(1, False, 1.0)]
)
def test_a_peak_is_set_beside_what_its_own_setting_needs(
    study: Study, config: Config, ran: Ran, setting: Setting
) -> None:
    """Trials rarely choose the leanest setting, by which they are refused. The size of dequantized weights is known
    exactly, and they are not part of the batch."""
    auto = ("quant=nf4", "trainer.micro_batch_size=auto")
    ran(1.5, *auto, setting=setting)
    assert Forecast(study)(config(*auto)) == pytest.approx(times(1.5, config(*auto)))


def test_runs_whose_memory_ran_out_on_the_way_teach_nothing(study: Study, config: Config, ran: Ran) -> None:
    """Their peak belongs to a setting that did not fit."""
    ran(9.0, ran_out=True)
    assert Forecast(study)(config()) == closed_form.estimate(config())


def test_runs_of_an_earlier_version_teach_nothing(study: Study, config: Config, ran: Ran) -> None:
    """They do not record the setting in which they trained."""
    ran(9.0)
    file = study.folder / "0/summary.json"
    summary = json.loads(file.read_text())
    del summary["setting"]
    file.write_text(json.dumps(summary))
    assert Forecast(study)(config()) == closed_form.estimate(config())


def test_failed_trials_teach_nothing(study: Study, config: Config, ran: Ran) -> None:
    """They may have ended before their first batch, or at the GPU's end."""
    ran(7.0, status="failed")
    assert study.counts().failed == 1
    assert Forecast(study)(config()) == closed_form.estimate(config())


def test_peaks_of_evaluations_teach_nothing(study: Study, config: Config, ran: Ran) -> None:
    ran(7.0, phase="eval")
    assert Forecast(study)(config()) == closed_form.estimate(config())


def test_a_trial_taken_up_after_its_training_teaches_nothing(study: Study, config: Config, ran: Ran) -> None:
    """Its process was stopped after the last step: what the next one measured is a load and an evaluation."""

    def stopped(trial: Trial) -> float:
        raise Stopped("SIGTERM: stopped")

    with pytest.raises(Stopped):
        work(study, stopped)
    ran(0.001)
    assert study.counts().finished == 1
    assert Forecast(study)(config()) == closed_form.estimate(config())


def test_without_a_gpu_or_its_folder_a_trial_teaches_nothing(
    study: Study, config: Config, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(study, lambda trial: 1.0)  # left no folder
    ran(2.0)
    (study.folder / "1/config.yaml").write_text("trainer: {no_such_key: 1}\n")
    ran(2.0)
    (study.folder / "2/summary.json").write_text(json.dumps({"status": "finished", "vram": {}}))
    assert Forecast(study)(config()) == closed_form.estimate(config())
    ran(2.0)
    parts = closed_form.parts

    def gone(cfg: ExperimentConfig, setting: Setting | None = None) -> closed_form.Estimate:
        if cfg.run_dir != "x":
            raise WeightsError("the weights were tidied away")
        return parts(cfg, setting)

    monkeypatch.setattr(closed_form, "parts", gone)
    assert Forecast(study)(config()) == closed_form.estimate(config())


def test_a_trial_is_read_once(study: Study, config: Config, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(2.0)
    ran(2.0, phase="eval")
    forecast = Forecast(study)
    first = forecast(config())
    monkeypatch.setattr(RunDir, "summary", property(lambda self: pytest.fail("read again")))
    assert forecast(config()) == first


@pytest.fixture
def ten_times(monkeypatch: pytest.MonkeyPatch, small: list[str]) -> None:
    """As on a GPU, where training of one row at a time takes ten times what the closed form says of its batch."""
    cfg = compose([*small, "run_dir=x", "trainer.micro_batch_size=1"])
    peak = times(10, cfg, Setting(1, False, 0.0))

    def fold(meter: meter_module.Meter) -> None:
        if meter._active[-1:] == ["train"]:
            meter.peaks["train"] = dict.fromkeys(meter_module.KINDS, peak)

    monkeypatch.setattr(meter_module.Meter, "_fold", fold)


def searched(small: list[str], folder: Path, limit: float, *sizes: str) -> Study:
    """A study of micro-batches of these sizes, in this order, each in a trial."""
    space, _ = Space.read([f"trainer.micro_batch_size=choice({','.join(sizes)})"], {})
    first = [{"trainer.micro_batch_size": size if size == "auto" else int(size)} for size in sizes]
    cfg = SweepConfig(n_trials=len(sizes), sampler="random", first=first, vram_limit_gib=limit)
    return Study.open("toy", folder, cfg, space, ["eval/loss"], [*small, "trainer.activation_checkpointing=false"])


def test_a_sweep_refuses_what_its_own_peaks_say_does_not_fit(small: list[str], tmp_path: Path, ten_times: None) -> None:
    """The closed form lets all run; the first one takes ten times its batch, so that the largest is left out, and the
    one that may choose its size is not."""
    fixed = [*small, "run_dir=x", "trainer.activation_checkpointing=false"]
    sizes = {rows: compose([*fixed, f"trainer.micro_batch_size={rows}"]) for rows in (1, 2, 4)}
    limit = times(30, sizes[1])
    assert times(10, sizes[2]) < limit < times(10, sizes[4])
    assert closed_form.estimate(sizes[4]) < limit
    study = searched(small, tmp_path / "toy", limit, "1", "4", "auto")
    search(study, estimate=Forecast(study))
    complete, refused, chosen = study.trials()
    assert (complete.state.name, chosen.state.name) == ("COMPLETE", "COMPLETE")
    assert refused.state.name == "PRUNED"
    cause = f"needs at least {times(10, sizes[4]):.1f} GiB, above sweep.vram_limit_gib={limit:g}: not run"
    assert refused.user_attrs["cause"] == cause
    assert not (study.folder / "1/metrics.jsonl").exists()


def test_a_trial_chooses_its_setting_below_the_sweeps_limit(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner of a run that is not refused gets the limit."""
    limits: list[float] = []
    made = Chooser.__init__

    def told(self: Chooser, *args: Any, **kwargs: Any) -> None:
        limits.append(kwargs["limit"])
        made(self, *args, **kwargs)

    monkeypatch.setattr(Chooser, "__init__", told)
    study = searched(small, tmp_path / "toy", 7.5, "auto", "1")
    search(study)
    assert limits == [7.5 * 2**30] * 2
    setting = json.loads((study.folder / "0/summary.json").read_text())["setting"]
    assert setting == {"micro": 4, "cached": False, "share": 0.0, "ran_out": False}
