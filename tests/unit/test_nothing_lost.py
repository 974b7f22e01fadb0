"""A run touches nothing that is not its own, and nothing at all before everything is checked."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.composition import composition
from ftlab.errors import ConfigError, FtlabError, RunDirError, Stopped
from ftlab.run_dir import RunDir

Fit = Callable[..., Any]


@pytest.fixture(scope="session")
def stopped(small: list[str], tmp_path_factory: pytest.TempPathFactory, terminal_of: Any) -> Path:
    """The folder of a small run that a signal stopped after step 2 of 4. Only to read."""
    from ftlab import run

    folder = tmp_path_factory.mktemp("stopped") / "run"
    terminal = terminal_of()
    terminal.on_update = lambda step, metrics: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
    with pytest.raises(Stopped):
        run(composition([*small, f"run_dir={folder}"]), terminal)
    return folder


@pytest.mark.parametrize("force", ["force=false", "force=true"])
@pytest.mark.parametrize("names", [["config.yaml", "model/w.bin"], ["wandb/k"], ["adapter/a", "checkpoints/mine.pt"]])
def test_files_of_others_are_refused_and_stay(fit: Fit, tmp_path: Path, names: list[str], force: str) -> None:
    for name in names:
        (tmp_path / "foreign" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "foreign" / name).write_text("a: 1")
    with pytest.raises(RunDirError, match="which ftlab did not write"):
        fit(force, run_dir=tmp_path / "foreign")
    assert all((tmp_path / "foreign" / name).read_text() == "a: 1" for name in names)


def test_force_gives_up_a_run_only_when_the_new_one_is_sound(fit: Fit, tmp_path: Path) -> None:
    fit(run_dir=tmp_path / "run")
    before = (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()
    with pytest.raises(FtlabError, match="nonexist"):
        fit("force=true", "model.id=/nonexist", run_dir=tmp_path / "run")
    assert (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes() == before
    assert fit("force=true", "trainer.lr=2e-3", run_dir=tmp_path / "run").summary.status == "finished"


def test_a_kill_at_any_removal_leaves_a_run_that_can_go_on_or_be_replaced(
    finished: Path, small: list[str], killed_at: Callable[..., bool], tmp_path: Path
) -> None:
    """Half cleared by `force`, a folder is still a run's: no message says that ftlab did not write it."""
    folder = RunDir(tmp_path / "run")
    mine, other = (composition([*small, f"run_dir={folder.path}", *more]).tree for more in ([], ["trainer.lr=5e-3"]))
    for number in range(1, 99):
        shutil.rmtree(folder.path, ignore_errors=True)
        shutil.copytree(finished, folder.path)
        killed = killed_at(number, folder.clear)
        folder.check_same(mine)
        folder.check_same(other, force=True)
        if folder.done(4):
            assert (folder / "adapter/adapter_model.safetensors").is_file()
        elif list(folder.path.glob("checkpoints/*")):
            with pytest.raises(RunDirError, match=r"trainer\.lr"):  # checkpoints of another configuration
                folder.check_same(other)
        folder.clear()
        assert not folder.path.exists() or not list(folder.path.iterdir())
        if not killed:
            break
    assert 20 < number < 98


def test_killed_while_it_is_cleared_the_same_command_ends_as_ever(
    fit: Fit, killed_at: Callable[..., bool], tmp_path: Path
) -> None:
    fit()
    assert killed_at(9, RunDir(tmp_path / "run").clear)
    assert fit("force=true", "trainer.lr=5e-3").summary.status == "finished"
    assert fit("trainer.lr=5e-3").summary.status == "finished"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def high_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0x80
    file.write_bytes(data)


def keyless(file: Path) -> None:
    file.write_text('{"status": "finished"}')


def removed(file: Path) -> None:
    file.unlink()


DAMAGES = [
    *[(name, how) for name in ("config.yaml", ".hydra/config.yaml") for how in (cut, emptied, high_bit, removed)],
    *[("summary.json", how) for how in (cut, emptied, high_bit, keyless, removed)],
    *[("metrics.jsonl", how) for how in (high_bit, removed)],
    *[(".hydra/overrides.yaml", how) for how in (emptied, removed)],
    *[("predictions.jsonl", how) for how in (cut, high_bit, removed)],
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=lambda part: getattr(part, "__name__", part))
def test_damaged_records_are_named_and_kept_and_the_run_ends_as_ever(
    name: str, damage: Callable[[Path], None], stopped: Path, finished: Path, fit: Fit, terminal: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    damage(folder / name)
    left = (folder / name).read_bytes() if (folder / name).exists() else None
    assert fit(run_dir=folder).summary.status == "finished"
    assert "resumed from step 2 of 4" in terminal.notes
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (finished / adapter).read_bytes()
    kept = folder / f"{name}.damaged-1"
    if left is not None and not name.startswith(("predictions", ".hydra/over")):  # which are made anew
        (told,) = [line for line in terminal.warnings if f"{name} is damaged" in line]
        assert kept.name in told
        assert kept.read_bytes() == left
    else:
        assert not kept.exists()
        assert not [line for line in terminal.warnings if "damaged" in line]


@pytest.mark.parametrize("damage", [cut, keyless, removed])
def test_a_finished_run_without_its_summary_is_finished_again(
    damage: Callable[[Path], None], finished: Path, fit: Fit, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    damage(folder / "summary.json")
    again = fit(run_dir=folder).summary
    before = json.loads((finished / "summary.json").read_text())
    assert (again.status, again.base, again.tuned) == ("finished", before["base"], before["tuned"])


def test_damage_is_no_way_around_another_configuration(stopped: Path, fit: Fit, tmp_path: Path) -> None:
    """A file cut off may look like the configuration of another command."""
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    cut(folder / "config.yaml")
    with pytest.raises(RunDirError, match=r"trainer\.lr: 0\.01 in the folder"):
        fit("trainer.lr=5e-3", run_dir=folder)
    assert not list(folder.glob("*.damaged-*"))


def test_bad_input_leaves_no_folder(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(FtlabError):
        fit("lora.target_modules=[wrong]", run_dir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_without_a_checkpoint_may_be_configured_anew(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(FtlabError, match=r"=(nan|inf)"):
        fit("trainer.lr=1e30", "trainer.max_grad_norm=0", "trainer.save_every=50", run_dir=tmp_path / "run")
    assert fit("trainer.lr=1e-3", run_dir=tmp_path / "run").summary.status == "finished"


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

    with pytest.raises(ConfigError, match=r"data\.path=x is not used by generated data"):
        compose(["experiment=quickstart", "data.path=x"])
    with pytest.raises(ConfigError, match=r"early_stopping=1 needs evaluations"):
        compose(["experiment=quickstart", "trainer.early_stopping=1"])
