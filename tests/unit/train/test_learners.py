"""Several learners on one model: each ends as if it had been trained alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig

from ftlab import compose
from ftlab.config import ExperimentConfig
from ftlab.data.encode import Encoded
from ftlab.experiment import make_accelerator
from ftlab.fast.flat import Flat, Trainable
from ftlab.models import add_adapter
from ftlab.train.checkpoint import Checkpoints, trainable
from ftlab.train.learner import Learner
from ftlab.train.loop import Trainer
from ftlab.train.signals import StopSignal
from ftlab.train.step import PlainStep

STEPS = 4


def rows(seed: int) -> list[Encoded]:
    draw = torch.Generator().manual_seed(seed)
    lengths = [8 + 3 * (i % 5) for i in range(12)]
    drawn = [torch.randint(0, 255, (length,), generator=draw).tolist() for length in lengths]
    return [Encoded(str(i), ids, ((2 + i % 4, len(ids)),)) for i, ids in enumerate(drawn)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are then made in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Stand:
    """One base with a trainer; adapters are added to it by name, each with a learner of its own."""

    def __init__(self, base: Any, small: list[str], folder: Path) -> None:
        self.base, self.small, self.folder = base, small, folder
        self.model: Any = None

    def cfg(self, name: str) -> ExperimentConfig:
        """Two adapters that differ in rank, learning rate, optimizer, dropout, seed, length and order of rows."""
        mine = {
            "one": ["lora.r=4", "trainer.lr=1e-2", "seed=1", "lora.lora_dropout=0.3", "trainer.max_grad_norm=0.1"],
            "two": ["lora.r=7", "trainer.lr=3e-3", "seed=2", "lora.lora_dropout=0.1", "trainer.optim=adamw_8bit"],
        }[name]
        steps = [f"trainer.max_steps={STEPS}", "trainer.micro_batch_size=2", "eval.every=2"]
        return compose([*self.small, *steps, *mine, "run_dir=x"])

    def learner(self, name: str, rows: list[Encoded]) -> Learner:
        """Add an adapter, as a run adds its own."""
        cfg = self.cfg(name)
        torch.manual_seed(cfg.seed)
        if self.model is None:
            self.model = add_adapter(self.base, cfg.lora)
            self.accelerator = make_accelerator(cfg)
            step = PlainStep(self.model, cfg.trainer, self.accelerator, need=lambda *_: 0.0)
            self.trainer = Trainer(
                self.model, step, accelerator=self.accelerator, note=lambda line: None, stop=StopSignal(),
                trace=self.folder / "trace.json",
            )  # fmt: skip
            adapter = "default"
        else:
            first = self.model.peft_config["default"]
            config = LoraConfig(
                task_type="CAUSAL_LM", r=cfg.lora.r, lora_alpha=cfg.lora.lora_alpha,
                lora_dropout=cfg.lora.lora_dropout, target_modules=first.target_modules,
            )  # fmt: skip
            adapter = name
            self.model.add_adapter(adapter, config)
        self.model.set_adapter(adapter)
        tensors = trainable(self.model)
        return Learner(
            Trainable(tensors, Flat([[p] for p in tensors.values()]), lambda: self.model.set_adapter(adapter)),
            rows,
            cfg,
            accelerator=self.accelerator,
            checkpoints=Checkpoints(self.folder / name, 2, pytest.fail),
            evaluate=lambda step: SimpleNamespace(metrics={cfg.objective: step / 100}, intervals={}),
            record=lambda metrics, step: None,
        )


Make = Callable[[str], Stand]


@pytest.fixture
def stand(make_llama: Any, small: list[str], tmp_path: Path) -> Make:
    return lambda name: Stand(make_llama().requires_grad_(False), small, tmp_path / name)


def weights(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.trained.tensors.values()])


def test_two_adapters_of_different_rank_trained_in_turns_each_end_as_if_alone(stand: Make) -> None:
    names = ("one", "two")
    alone = {}
    for name in names:
        here = stand(f"alone-{name}")
        alone[name] = here.learner(name, rows(len(name)))
        before = weights(alone[name]).clone()
        here.trainer.train(alone[name])
        assert not torch.equal(weights(alone[name]), before)
    together = stand("together")
    learners = {name: together.learner(name, rows(len(name))) for name in names}
    together.trainer.prepare(*learners.values())
    assert weights(learners["one"]).numel() != weights(learners["two"]).numel()
    for _ in range(STEPS):
        for learner in learners.values():
            together.trainer.update(learner)
    for name, learner in learners.items():
        assert torch.equal(weights(learner), weights(alone[name])), name
        theirs, mine = alone[name].optimizer.state_dict()["state"], learner.optimizer.state_dict()["state"]
        assert all(torch.equal(value, mine[0][key]) for key, value in theirs[0].items() if torch.is_tensor(value))
        assert learner.progress.tokens == alone[name].progress.tokens
        assert learner.schedule.get_last_lr() == alone[name].schedule.get_last_lr()


def test_a_learners_checkpoint_from_between_turns_resumes_alone(stand: Make) -> None:
    """What was saved in company restores into a run of its own, and ends the same."""
    whole = stand("whole")
    wanted = whole.learner("one", rows(3))
    whole.trainer.train(wanted)
    together = stand("together")
    learners = [together.learner("one", rows(3)), together.learner("two", rows(3))]
    together.trainer.prepare(*learners)
    for _ in range(2):
        for learner in learners:
            together.trainer.update(learner)
    together.trainer.update(learners[0])
    learners[0].save()
    again = stand("again")
    resumed = again.learner("one", rows(3))
    checkpoint = learners[0].checkpoints.newest()
    assert checkpoint
    resumed.restore(checkpoint)
    again.trainer.train(resumed)
    assert resumed.began_at == 3
    assert torch.equal(weights(resumed), weights(wanted))
