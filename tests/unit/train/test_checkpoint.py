"""Checkpoints are complete or absent, damage is found, and what is restored is what was saved."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftlab.config import OPTIMIZERS, TrainerConfig
from ftlab.errors import TrainingError
from ftlab.train.checkpoint import Checkpoints, first_damage, restore_rng, rng_state, trainable
from ftlab.train.optim import build_optimizer, build_schedule

FILES = ("manifest.json", "optimizer.pt", "state.json", "trainable.safetensors")


class Parts:
    """A model with a frozen layer, its optimizer and schedule, some steps old."""

    def __init__(self, folder: Path, keep: int = 2, optim: str = "adamw") -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 128), nn.Dropout(0.5), nn.Linear(128, 64))
        self.model[0].requires_grad_(False)
        cfg = TrainerConfig(optim=optim, lr=1e-2)
        self.optimizer = build_optimizer([p for p in self.model.parameters() if p.requires_grad], cfg)
        self.schedule = build_schedule(self.optimizer, cfg, 100)
        self.warnings: list[str] = []
        self.checkpoints = Checkpoints(folder, keep, self.warnings.append)
        self.step = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.model(torch.randn(4, 64)).square().mean().backward()
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.step += 1

    def save(self, best: int | None = None) -> None:
        self.checkpoints.save(trainable(self.model), self.optimizer, self.schedule, {"step": self.step}, best)

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """With checkpoints of steps 1 and 2."""
    made = Parts(tmp_path)
    for _ in range(2):
        made.train(1)
        made.save()
    return made


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def missing(file: Path) -> None:
    file.unlink()


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def test_a_checkpoint_has_these_files_and_only_trained_tensors(parts: Parts, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert names(tmp_path) == ["step-000001", "step-000002"]
    assert names(tmp_path / "step-000002") == sorted(FILES)
    assert set(load_file(tmp_path / "step-000002" / "trainable.safetensors")) == {"2.weight", "2.bias"}


@pytest.mark.parametrize("damage", [missing, half, empty, flipped])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_the_checkpoint_before_is_used(
    name: str, damage: Callable[[Path], None], parts: Parts, tmp_path: Path
) -> None:
    damage(tmp_path / "step-000002" / name)
    found = parts.checkpoints.newest()
    assert found
    assert found.step == 1
    assert len(parts.warnings) == 1
    assert "step-000002" in parts.warnings[0]
    if (name, damage) != ("manifest.json", flipped):  # a wrong digest accuses the file it stands for
        assert name in parts.warnings[0]


@pytest.mark.parametrize(
    "manifest", ["[]", "3", '{"a": 1}', '{"a": {}}', "null", '{"../../x": {"sha256": "", "bytes": 0}}']
)
def test_a_manifest_of_another_shape_is_damage(manifest: str, parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "step-000002" / "manifest.json").write_text(manifest)
    assert first_damage(tmp_path / "step-000002")


def test_an_empty_manifest_is_damage(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "step-000002" / "manifest.json").write_text("{}")
    assert first_damage(tmp_path / "step-000002")


def test_no_whole_checkpoint_means_none(parts: Parts, tmp_path: Path) -> None:
    for step in (1, 2):
        missing(tmp_path / f"step-00000{step}" / "state.json")
    assert parts.checkpoints.newest() is None
    assert len(parts.warnings) == 2
    assert Checkpoints(tmp_path / "absent", 2, parts.warnings.append).newest() is None


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_training_resumes_bit_for_bit(optim: str, tmp_path: Path) -> None:
    whole = Parts(tmp_path / "a", optim=optim)
    whole.train(3)
    whole.save()
    random_before = (random.random(), random.getstate())[1]
    whole.train(4)
    drawn = (random.random(), torch.rand(1).item())
    random.setstate(random_before)
    again = Parts(tmp_path / "a", optim=optim)
    found = again.checkpoints.newest()
    assert found
    assert found.restore(trainable(again.model), again.optimizer, again.schedule) == {"step": 3}
    again.train(4)
    assert torch.equal(again.weights(), whole.weights())
    assert again.schedule.get_last_lr() == whole.schedule.get_last_lr()
    assert drawn[1] == torch.rand(1).item()


def test_random_generators_come_back() -> None:
    saved, python = rng_state(), random.getstate()
    drawn = torch.rand(3), random.random()
    restore_rng(saved, [python[0], list(python[1]), python[2]])
    assert torch.equal(torch.rand(3), drawn[0])
    assert random.random() == drawn[1]


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_newest_are_kept(keep: int, left: list[int], tmp_path: Path) -> None:
    made = Parts(tmp_path, keep)
    for _ in range(5):
        made.train(1)
        made.save()
    assert names(tmp_path) == [f"step-00000{step}" for step in left]


def test_the_best_is_kept_beside_them(tmp_path: Path) -> None:
    made = Parts(tmp_path, keep=1)
    for _ in range(5):
        made.train(1)
        made.save(best=2 if made.step >= 2 else None)
    assert names(tmp_path) == ["step-000002", "step-000005"]


def test_what_a_killed_save_left_is_ignored_and_then_removed(parts: Parts, tmp_path: Path) -> None:
    left = tmp_path / "step-000003.part"
    left.mkdir()
    (left / "trainable.safetensors").write_bytes(b"half")
    (tmp_path / "step-other").mkdir()
    found = parts.checkpoints.newest()
    assert found
    assert found.step == 2
    assert parts.warnings == []
    parts.train(1)
    parts.save()
    assert names(tmp_path) == ["step-000002", "step-000003", "step-other"]


@pytest.mark.parametrize("when", ["before the rename", "while it is written"])
def test_a_step_saved_again_is_never_absent(
    when: str, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped inside an evaluation saves that step twice; a crash in the second must not cost the first."""

    def crash(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    if when == "before the rename":
        monkeypatch.setattr("ftlab.train.checkpoint.write_manifest", crash)
    else:
        monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        parts.save()
    found = parts.checkpoints.newest()
    assert found
    assert found.step == 2


@pytest.mark.parametrize("again", [False, True], ids=["the next step", "the same step"])
def test_with_one_kept_a_whole_one_is_there_at_every_moment(
    again: bool, killed_at: Callable[..., bool], tmp_path: Path
) -> None:
    for number in range(1, 99):
        made = Parts(tmp_path / str(number), keep=1)
        made.train(1)
        made.save()
        made.train(0 if again else 1)
        killed = killed_at(number, made.save)
        found = made.checkpoints.newest()
        assert found, f"none is left by a kill at change {number}"
        assert found.step in (1, made.step)
        made.save()
        assert names(made.checkpoints.folder) == [f"step-00000{made.step}"]
        if not killed:
            break
    assert 12 < number < 98


def test_a_damaged_newer_one_does_not_push_whole_ones_out(tmp_path: Path) -> None:
    made = Parts(tmp_path, keep=1)
    made.train(2)
    made.save()
    empty(tmp_path / "step-000002" / "state.json")
    made.step = 0
    made.train(1)
    made.save()
    found = made.checkpoints.newest()
    assert found
    assert found.step == 1


@pytest.mark.parametrize("call", ["torch.save", "ftlab.train.checkpoint.save_file", "os.fsync"])
def test_a_full_disk_leaves_the_checkpoint_before_and_no_part(
    call: str, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    parts.train(1)
    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(TrainingError, match=r"step-000003.*the disk is full: it needs about .* are free"):
            parts.save()
    assert names(tmp_path) == ["step-000001", "step-000002"]
    parts.save()
    assert names(tmp_path) == ["step-000002", "step-000003"]


def test_an_optimizer_of_another_version_is_an_error(parts: Parts, tmp_path: Path) -> None:
    parts.train(1)
    parts.save()
    held = [nn.Parameter(torch.zeros(4))]  # one tensor, where the checkpoint knows several
    optimizer = build_optimizer(held, TrainerConfig())
    checkpoint = parts.checkpoints.newest()
    assert checkpoint is not None
    with pytest.raises(TrainingError, match=r"another version of ftlab.*force=true"):
        checkpoint.restore(trainable(parts.model), optimizer, parts.schedule)
