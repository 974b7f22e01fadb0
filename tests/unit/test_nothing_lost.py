"""A run touches nothing that is not its own, and nothing at all before everything is checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.errors import ConfigError, FtlabError, RunDirError

Fit = Callable[..., Any]


@pytest.mark.parametrize("force", ["force=false", "force=true"])
@pytest.mark.parametrize("names", [["config.yaml", "model/w.bin"], ["wandb/k"], ["adapter/a", "checkpoints/mine.pt"]])
def test_files_of_others_are_refused_and_stay(fit: Fit, tmp_path: Path, names: list[str], force: str) -> None:
    for name in names:
        (tmp_path / "foreign" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "foreign" / name).write_text("a: 1")
    with pytest.raises(RunDirError, match="which no run of ftlab wrote"):
        fit(force, run_dir=tmp_path / "foreign")
    assert all((tmp_path / "foreign" / name).read_text() == "a: 1" for name in names)


def test_force_gives_up_a_run_only_when_the_new_one_is_sound(fit: Fit, tmp_path: Path) -> None:
    fit(run_dir=tmp_path / "run")
    before = (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()
    with pytest.raises(FtlabError, match="nonexist"):
        fit("force=true", "model.id=/nonexist", run_dir=tmp_path / "run")
    assert (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes() == before
    assert fit("force=true", "trainer.lr=2e-3", run_dir=tmp_path / "run").summary["status"] == "finished"


def test_bad_input_leaves_no_folder(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(FtlabError):
        fit("lora.target_modules=[wrong]", run_dir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_without_a_checkpoint_may_be_configured_anew(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(FtlabError, match=r"=(nan|inf)"):
        fit("trainer.lr=1e30", "trainer.max_grad_norm=0", "trainer.save_every=50", run_dir=tmp_path / "run")
    assert fit("trainer.lr=1e-3", run_dir=tmp_path / "run").summary["status"] == "finished"


def test_a_last_step_that_diverges_is_no_result(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(FtlabError, match=r"eval/loss=(nan|inf)"):
        fit("trainer.lr=1e30", "trainer.max_steps=1", "trainer.warmup_steps=0", run_dir=tmp_path / "run")
    assert not (tmp_path / "run/adapter").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.weight_decay", -1),
        ("trainer.adam_beta1", 2),
        ("trainer.adam_beta2", -0.1),
        ("trainer.adam_epsilon", -1),
        ("trainer.lr", float("inf")),
        ("lora.lora_alpha", float("inf")),
    ],
)
def test_values_the_optimizer_would_refuse_are_refused_before(small: list[str], key: str, value: float) -> None:
    from ftlab import compose, run

    with pytest.raises(ConfigError, match=key):
        compose([*small, f"{key}={value}"])
    cfg = compose(small)
    node, _, name = key.partition(".")
    setattr(getattr(cfg, node), name, value)
    with pytest.raises(ConfigError, match=key):
        run(cfg)


def test_settings_that_would_do_nothing_are_refused() -> None:
    from ftlab import compose

    with pytest.raises(ConfigError, match=r"data\.path=x is not read by generated data"):
        compose(["experiment=quickstart", "data.path=x"])
    with pytest.raises(ConfigError, match=r"early_stopping=1 needs evaluations"):
        compose(["experiment=quickstart", "trainer.early_stopping=1"])
