"""The loop: token-correct gradients, resuming, the best weights, and stopping with a reason."""

import copy
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from encoding import encode
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ftlab import compose
from ftlab.config import OPTIMIZERS
from ftlab.data.encode import Encoded
from ftlab.data.prompts import PromptTokenizer
from ftlab.data.splits import Example
from ftlab.errors import Stopped, TrainingError
from ftlab.experiment import make_accelerator
from ftlab.fast.flat import Flat, Trainable
from ftlab.fast.plan import Setting
from ftlab.generate import generate
from ftlab.models import add_adapter, switch_activation_checkpointing
from ftlab.train import step as module
from ftlab.train.batches import lay_flat
from ftlab.train.checkpoint import Checkpoints, trainable
from ftlab.train.learner import Learner, Progress
from ftlab.train.loop import Trainer
from ftlab.train.signals import StopSignal
from ftlab.train.step import PlainStep, Switch

CPU = torch.device("cpu")


def row(seed: int, length: int, trained_from: int) -> Encoded:
    ids = torch.randint(0, 255, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Encoded(str(seed), ids, ((trained_from, length),))


ROWS = [row(i, 8 + 3 * (i % 5), 2 + i % 4) for i in range(20)]


@dataclass
class Scored:
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Run:
    """A trainer, and the lines that it reported."""

    trainer: Trainer
    learner: Learner
    model: Any
    stop: StopSignal
    records: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in trainable(self.model).values()])

    def train(self) -> Progress:
        return self.trainer.train(self.learner)

    def steps(self) -> list[int]:
        return [step for step, _ in self.records]


Make = Callable[..., Run]


def need(tokens: int, scored: int, share: float) -> float:
    """One byte per token, half of that with activation checkpointing."""
    return tokens * (1 - 0.5 * share)


def switched(model: Any) -> Switch | None:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return partial(switch_activation_checkpointing, base) if isinstance(base, PreTrainedModel) else None


@pytest.fixture
def make(small: list[str], make_llama: Any, tmp_path: Path) -> Make:
    """A trainer of an adapted random model. `scores` answers each evaluation; `at` names the folder."""

    def make(
        *overrides: str,
        scores: Callable[[int], float] | None = None,
        at: str = "checkpoints",
        rows: list[Encoded] = ROWS,
        model: Any = None,
        flat: bool = True,
    ) -> Run:
        cfg = compose([*small, "run_dir=x", *overrides])
        if model is None:
            torch.manual_seed(cfg.seed)
            model = add_adapter(make_llama().requires_grad_(False), cfg.lora)
        run = Run(None, None, model, StopSignal())  # type: ignore[arg-type]

        def evaluate(step: int) -> Scored:
            run.evaluated.append(step)
            value = scores(step) if scores else step / 100
            return Scored({"eval/sql_exact_match": value, "eval/loss": 1 - value, "at": step})

        accelerator = make_accelerator(cfg)
        tensors = trainable(model)
        trained = list(tensors.values())
        shared = Flat([[p] for p in trained]) if cfg.lora.r and Flat.fits(trained) else None
        run.trainer = Trainer(
            model,
            PlainStep(model, cfg.trainer, accelerator, need=need, together=flat, checkpoint=switched(model)),
            accelerator=accelerator,
            note=run.notes.append,
            stop=run.stop,
            trace=tmp_path / "profile" / "trace.json",
        )
        run.learner = Learner(
            Trainable(tensors, shared),
            rows,
            cfg,
            accelerator=accelerator,
            checkpoints=Checkpoints(tmp_path / at, cfg.trainer.keep, run.warnings.append),
            evaluate=evaluate,
            record=lambda metrics, step: run.records.append((step, metrics)),
        )
        run.trainer.step.attach(run.learner.trained)
        return run

    return make


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


# --- gradients --------------------------------------------------------------------------------------------


def gradients(run: Run, rows: list[Encoded], micro: int) -> tuple[float, torch.Tensor]:
    run.trainer.step.setting = Setting(micro, False, 0.0)
    loss = float(run.trainer._gradients(run.learner, rows))
    grads = [p.grad for p in trainable(run.model).values()]
    return loss, torch.cat([g.flatten().clone() for g in grads if g is not None])


def test_micro_batches_give_the_gradient_of_the_mean_over_tokens(make: Make) -> None:
    """Rows carry different numbers of tokens: a mean of means would differ."""
    run, rows = make("lora.init_lora_weights=gaussian"), ROWS[:8]
    for p in trainable(run.model).values():
        torch.nn.init.normal_(p, std=0.05)
    total, tokens = torch.zeros(()), 0
    for one in rows:
        ids = torch.tensor([one.input_ids])
        logits = run.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, one.spans[0][0] - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, one.spans[0][0] :], reduction="sum")
        tokens += one.trained
    (total / tokens).backward()
    wanted = torch.cat([p.grad.flatten() for p in trainable(run.model).values() if p.grad is not None])
    run.trainer.step.begin()
    for micro in (1, 2, 4, 8, 3):
        loss, found = gradients(run, rows, micro)
        assert loss == pytest.approx(total.item() / tokens, rel=1e-5)
        assert (found - wanted).norm() / wanted.norm() < 1e-5


def test_auto_on_a_cpu_divides_the_global_batch(make: Make) -> None:
    for size in (1, 4, 6, 16):
        run = make(f"trainer.global_batch_size={size}", "trainer.micro_batch_size=auto")
        run.trainer.step.choose(ROWS[:size])
        assert size % run.trainer.step.micro == 0
    long = make("trainer.micro_batch_size=auto", rows=[row(i, 4000, 5) for i in range(4)])
    long.trainer.step.choose(long.learner.samples)
    assert long.trainer.step.micro == 1


def test_rows_that_interact_go_one_by_one(make: Make) -> None:
    step = make("trainer.micro_batch_size=4", flat=False).trainer.step
    step.choose(ROWS[:4])
    assert step.micro == 1


@dataclass
class SmallGpu:
    """A GPU as the planner sees it. Passes that need more than `fits` bytes run out of memory; the setting and the row
    count of every pass that was tried."""

    fits: float
    tried: list[tuple[Setting, int]] = field(default_factory=list)
    trainer: Trainer | None = None

    def holds(self, run: Run) -> Run:
        self.trainer = run.trainer
        run.trainer.step.chooser.cuda = True
        return run

    def settings(self) -> list[Setting]:
        return [setting for setting, _ in itertools.groupby(self.tried, key=lambda one: one[0])]


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], SmallGpu]:
    summed = module.summed_loss
    monkeypatch.setattr("ftlab.fast.plan.available", lambda device: 1e9)

    def made(fits: float) -> SmallGpu:
        gpu = SmallGpu(fits)

        def limited(model: Any, batch: Any) -> Any:
            assert gpu.trainer
            step = gpu.trainer.step
            base = model.get_base_model()
            assert base.is_activation_checkpointing == bool(step.setting.checkpointed_fraction)
            gpu.tried.append((step.setting, len(batch.lengths)))
            if need(batch.input_ids.numel(), 0, step.setting.checkpointed_fraction) > gpu.fits:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return summed(model, batch)

        monkeypatch.setattr(module, "summed_loss", limited)
        return gpu

    return made


OF_EIGHT = ("trainer.global_batch_size=8", "trainer.max_steps=2", "trainer.micro_batch_size=auto")


def test_out_of_memory_goes_to_lighter_settings_and_leaves_the_rows(
    make: Make, small_gpu: Callable[[float], SmallGpu]
) -> None:
    """In the planner's order, down to the first that fits; the weights are those of the batch as it was."""
    wanted = make(*OF_EIGHT, at="a")
    wanted.train()
    gpu = small_gpu(30.0)
    run = gpu.holds(make(*OF_EIGHT, at="b"))
    run.train()
    planner = run.trainer.step.chooser.planner
    assert planner
    needs = [planner.need(setting) for setting in gpu.settings()]
    assert needs == sorted(set(needs), reverse=True)
    assert gpu.settings()[0] == Setting(8, False, 0.0)
    assert gpu.settings()[1] == Setting(8, False, 1.0)
    last = run.trainer.step.setting
    assert last.micro < 8
    assert sum(rows for setting, rows in gpu.tried if setting == last) == 16
    assert [note for note in run.notes if "out of memory" in note][-1].endswith("the rows of the step stay the same")
    assert (run.weights() - wanted.weights()).norm() <= 1e-5 * wanted.weights().norm()
    assert run.trainer.step.chooser.had_oom
    assert not wanted.trainer.step.chooser.had_oom


def test_the_model_is_left_without_checkpointing(make: Make, small_gpu: Callable[[float], SmallGpu]) -> None:
    run = small_gpu(1e9).holds(make(*OF_EIGHT, "trainer.activation_checkpointing=true"))
    run.train()
    assert str(run.trainer.step) == (
        "plain step: PEFT's own forward pass, 8 rows per micro-batch, activation checkpointing of all layers"
    )
    assert not run.model.get_base_model().is_activation_checkpointing


def test_the_plain_step_chooses_from_the_memory_that_is_free(
    make: Make, small_gpu: Callable[[float], SmallGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = small_gpu(1e9)
    tokens = sum(len(row.input_ids) for row in sorted(ROWS, key=lambda row: len(row.input_ids))[-8:])
    for free, setting in (
        (tokens, Setting(8, False, 0.0)),
        (tokens / 2, Setting(8, False, 1.0)),
        (0.0, Setting(1, False, 1.0)),
    ):
        monkeypatch.setattr("ftlab.fast.plan.available", lambda device, free=free: free)
        step = gpu.holds(make(*OF_EIGHT)).trainer.step
        step.choose(sorted(ROWS, key=lambda row: len(row.input_ids)))
        assert step.setting == setting
    assert "trainer.micro_batch_size=1, trainer.activation_checkpointing=true" in step.chooser.oom_report()


@pytest.mark.parametrize("part", ["_clip", "scaled.step"])
@pytest.mark.parametrize("told", ["CUDA out of memory. Tried to allocate", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_out_of_memory_behind_the_gradient_goes_to_a_lighter_setting_too(
    make: Make, small_gpu: Callable[[float], SmallGpu], monkeypatch: pytest.MonkeyPatch, part: str, told: str
) -> None:
    """Clipping and the optimizer run once all the same: the weights are those of enough memory."""
    wanted = make(*OF_EIGHT, at="a")
    wanted.train()
    run = small_gpu(1e9).holds(make(*OF_EIGHT, at="b"))
    holder, name = (run.learner.scaled, "step") if part == "scaled.step" else (run.trainer, "_clip")
    real, times = getattr(holder, name), iter([True, True, False, False])

    def short(*arguments: Any) -> Any:
        if next(times):
            raise RuntimeError(told)
        return real(*arguments)

    monkeypatch.setattr(holder, name, short)
    run.train()
    assert run.trainer.step.setting != Setting(8, False, 0.0)
    assert sum("out of memory" in note for note in run.notes) == 2
    assert (run.weights() - wanted.weights()).norm() <= 1e-5 * wanted.weights().norm()


def test_an_error_that_is_none_of_memory_ends_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make()

    def broken() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(run.learner.scaled, "step", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        run.train()


@pytest.mark.parametrize(
    ("overrides", "named", "unnamed"),
    [
        (["trainer.micro_batch_size=4"], ["trainer.micro_batch_size=auto", "quant=nf4"], ["activation_checkpointing"]),
        (["trainer.micro_batch_size=auto"], ["data.max_length below 128"], ["micro_batch_size=auto", "weight_cache"]),
        (["trainer.micro_batch_size=1"], ["quant=nf4"], ["micro_batch_size=auto"]),
        (["quant=nf4"], ["data.max_length"], ["quant=nf4"]),
        (["trainer.activation_checkpointing=false"], ["trainer.activation_checkpointing=auto"], []),
        (["lora=pissa"], ["data.max_length"], ["quant=nf4"]),
        (["trainer.optim=adamw"], ["trainer.optim=paged_adamw_8bit"], []),
    ],
)
def test_too_little_memory_ends_with_remedies_that_are_not_on_yet(
    make: Make, small_gpu: Callable[[float], SmallGpu], overrides: list[str], named: list[str], unnamed: list[str]
) -> None:
    with pytest.raises(TrainingError, match="out of GPU memory") as caught:
        small_gpu(0.0).holds(make(*overrides)).train()
    remedies = str(caught.value).split("Try: ")[1]
    assert all(name in remedies for name in named)
    assert not any(name in remedies for name in unnamed)


# --- the same run again -----------------------------------------------------------------------------------

DROPOUT = "lora.lora_dropout=0.3"


def test_a_seed_gives_the_same_weights_bit_for_bit(make: Make) -> None:
    def trained(at: str, *overrides: str) -> torch.Tensor:
        run = make(DROPOUT, *overrides, at=at)
        run.train()
        return run.weights()

    first = trained("a")
    assert torch.equal(first, trained("b"))
    assert not torch.equal(first, trained("c", "seed=1"))


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_stopped_run_ends_as_if_it_had_not_been(make: Make, optim: str, at: int) -> None:
    options = (DROPOUT, f"trainer.optim={optim}", "trainer.max_steps=5", "trainer.log_every=2")
    whole = make(*options, at="a")
    wanted = whole.train()
    first = make(*options, at="b")
    step = first.trainer.update

    def stopping(learner: Learner) -> Any:
        metrics = step(learner)
        if first.learner.progress.step == at:
            first.stop.name = "SIGTERM"
        return metrics

    first.trainer.update = stopping  # type: ignore[method-assign]
    with pytest.raises(Stopped, match=f"SIGTERM: stopped after step {at}"):
        first.train()
    again = make(*options, at="b")
    checkpoint = again.learner.checkpoints.newest()
    assert checkpoint
    assert checkpoint.step == at
    again.learner.restore(checkpoint)
    progress = again.train()
    assert torch.equal(again.weights(), whole.weights())

    def timeless(runs: list[Run]) -> list[Any]:
        return [(s, {k: v for k, v in m.items() if not k.startswith("perf/")}) for run in runs for s, m in run.records]

    assert timeless([first, again]) == timeless([whole])
    assert (progress.best, progress.tokens) == (wanted.best, wanted.tokens)


def test_after_resuming_every_trained_tensor_must_get_a_gradient_too(make: Make) -> None:
    def loose(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.detach()

    make("trainer.max_steps=2").train()
    again = make("trainer.max_steps=3")
    for name, part in again.model.named_modules():
        if name.endswith("q_proj"):
            part.register_forward_hook(loose)
    again.learner.restore(again.learner.checkpoints.newest())  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no gradient reaches q_proj"):
        again.train()


def test_a_run_stopped_inside_an_evaluation_repeats_it(make: Make) -> None:
    def interrupted(step: int) -> float:
        raise Stopped("SIGINT")

    run = make(scores=interrupted)
    with pytest.raises(Stopped):
        run.train()
    again = make()
    checkpoint = again.learner.checkpoints.newest()
    assert checkpoint
    again.learner.restore(checkpoint)
    again.train()
    assert again.evaluated == [2, 4]


# --- evaluations ------------------------------------------------------------------------------------------


def test_evaluations_come_every_so_often_and_at_the_end(make: Make) -> None:
    for every, steps, wanted in (("2", 5, [2, 4, 5]), ("null", 5, [5]), ("3", 6, [3, 6]), ("9", 0, [0])):
        run = make(f"eval.every={every}", f"trainer.max_steps={steps}", at=f"{every}-{steps}")
        run.train()
        assert run.evaluated == wanted


def state_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"step-{step:06d}" / "trainable.safetensors")


def test_the_best_weights_are_kept_whatever_came_after(make: Make, tmp_path: Path) -> None:
    scores = {1: 0.1, 2: 0.9, 3: 0.9, 4: 0.2, 5: 0.3, 6: 0.8}
    run = make("eval.every=1", "trainer.max_steps=6", "trainer.keep=1", scores=scores.__getitem__)
    progress = run.train()
    assert (progress.best, progress.metrics["at"]) == (2, 2)
    assert saved_steps(tmp_path / "checkpoints") == [2, 6]
    best = state_of(tmp_path / "checkpoints", 2)
    assert all(torch.equal(p, best[name]) for name, p in trainable(run.model).items())
    assert any("step 2 scored best" in note for note in run.notes)


def test_equal_scores_are_ranked_by_loss(make: Make) -> None:
    run = make("eval.every=1")
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.0}
    run.learner.evaluate = lambda step: Scored({"eval/sql_exact_match": 0.0, "eval/loss": losses[step]})
    assert run.train().best == 2


def test_an_objective_may_be_better_when_lower(make: Make) -> None:
    run = make("eval.every=1", "objective=eval/loss")
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}
    run.learner.evaluate = lambda step: Scored({"eval/sql_exact_match": 0.0, "eval/loss": losses[step]})
    assert run.train().best == 2


def test_without_load_best_the_last_weights_stay(make: Make, tmp_path: Path) -> None:
    run = make("eval.every=1", "trainer.load_best=false", "trainer.keep=9", scores=lambda step: 1 / step)
    progress = run.train()
    last = state_of(tmp_path / "checkpoints", 4)
    assert all(torch.equal(p, last[name]) for name, p in trainable(run.model).items())
    assert progress.metrics["at"] == 4


def test_early_stopping_counts_evaluations_without_a_better_one(make: Make) -> None:
    scores = {1: 0.1, 2: 0.5, 3: 0.4, 4: 0.6, 5: 0.5, 6: 0.2, 7: 0.9}
    options = ("eval.every=1", "trainer.max_steps=7", "trainer.early_stopping=2")
    run = make(*options, scores=scores.__getitem__)
    progress = run.train()
    assert (progress.step, progress.best, progress.done) == (6, 4, True)
    assert any("early stop" in note for note in run.notes)
    again = make(*options, scores=scores.__getitem__)
    checkpoint = again.learner.checkpoints.newest()
    assert checkpoint
    again.learner.restore(checkpoint)
    assert again.train().step == 6


def test_the_model_trains_on_after_an_evaluation(make: Make) -> None:
    run = make("eval.every=1")
    modes: list[bool] = []
    step, evaluate = run.trainer.update, run.learner.evaluate

    def evaluating(at: int) -> Any:
        run.model.eval()
        return evaluate(at)

    def stepping(learner: Learner) -> Any:
        modes.append(run.model.training)
        return step(learner)

    run.learner.evaluate, run.trainer.update = evaluating, stepping  # type: ignore[method-assign]
    run.train()
    assert modes == [True] * 4


# --- records ----------------------------------------------------------------------------------------------


def test_the_logged_loss_is_the_mean_since_the_last_record(make: Make) -> None:
    each = make("trainer.max_steps=5", "trainer.log_every=1", at="a")
    each.train()
    some = make("trainer.max_steps=5", "trainer.log_every=2", at="b")
    some.train()
    losses = [metrics["train/loss"] for _, metrics in each.records]
    assert some.steps() == [2, 4, 5]
    assert [metrics["train/loss"] for _, metrics in some.records] == pytest.approx(
        [sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    )
    assert losses[-1] < losses[0]
    wanted = {"train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_second", "perf/tokens_per_second_mean"}
    assert all(metrics.keys() == wanted for _, metrics in each.records)


def test_tokens_a_second_are_those_since_the_last_record_beside_those_of_the_run(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that slows down shows it; a resumed one continues both."""
    now = [0.0]
    monkeypatch.setattr("ftlab.train.learner.time.perf_counter", lambda: now[0])

    def rates(run: Run, seconds: list[float]) -> list[tuple[float, float]]:
        step, tokens = run.trainer.update, [run.learner.progress.tokens]

        def stepping(learner: Learner) -> float:
            now[0] += seconds[run.learner.progress.step] / 2
            lr = step(learner)
            now[0] += seconds[run.learner.progress.step - 1] / 2
            tokens.append(run.learner.progress.tokens)
            return lr

        run.trainer.update = stepping  # type: ignore[method-assign]
        run.train()
        keys = ("perf/tokens_per_second", "perf/tokens_per_second_mean")
        return [(metrics[keys[0]], metrics[keys[1]]) for _, metrics in run.records]

    options = ("trainer.log_every=2", "trainer.save_every=3")
    run = make("trainer.max_steps=4", *options, at="a")
    each = [sum(len(ROWS[i].input_ids) for i in run.learner.order.indices(step)) for step in range(4)]
    fast, slow = rates(run, [1.0, 1.0, 10.0, 10.0])
    assert fast == pytest.approx((sum(each[:2]) / 2, sum(each[:2]) / 2))
    assert slow == pytest.approx((sum(each[2:]) / 20, sum(each) / 22))
    again = make("trainer.max_steps=4", *options, at="a")
    checkpoint = again.learner.checkpoints.at(3)
    assert checkpoint is not None
    again.learner.restore(checkpoint)
    assert rates(again, [1.0, 1.0, 10.0, 10.0]) == [pytest.approx(slow)]


def test_gradients_are_clipped_and_their_norm_before_is_logged(make: Make) -> None:
    def moved(limit: float) -> float:
        run = make("trainer.max_steps=1", f"trainer.max_grad_norm={limit}", at=str(limit))
        norms: list[float] = []

        def spy(*arguments: Any) -> None:
            grads = [p.grad for p in trainable(run.model).values() if p.grad is not None]
            norms.append(float(torch.stack([g.norm() for g in grads]).norm()))

        run.learner.optimizer.register_step_pre_hook(spy)
        run.train()
        assert run.records[0][1]["train/grad_norm"] > 0.01
        return norms[0]

    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(0) > 0.01


def test_a_profile_is_written(make: Make, tmp_path: Path) -> None:
    run = make("trainer.profile=2")
    run.train()
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert any("aten::" in str(event.get("name")) for event in trace["traceEvents"])
    assert any("trace of 2 steps" in note for note in run.notes)


# --- stopping with a reason -------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("eval.every=null", "trainer.save_every=1")
    summed = module.summed_loss

    def broken(model: Any, batch: Any) -> Any:
        return summed(model, batch) * (math.nan if run.learner.progress.step == 2 else 1)

    monkeypatch.setattr(module, "summed_loss", broken)
    with pytest.raises(TrainingError, match=r"loss=nan at step 3; the checkpoint of step 2 is kept.*trainer\.lr"):
        run.train()
    assert run.steps() == [1, 2]
    assert torch.isfinite(run.weights()).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update(make: Make, value: float) -> None:
    run = make()
    next(iter(trainable(run.model).values())).register_hook(lambda grad: grad * value)
    before = run.weights()
    with pytest.raises(TrainingError, match=r"gradient norm=\w+ at step 1; no checkpoint"):
        run.train()
    assert torch.equal(run.weights(), before)


# --- what is learnt ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_the_answer_and_its_end_are_learnt(
    make: Make, make_llama: Any, byte_tokens: Any, pad: str, loss_on: str
) -> None:
    tokenizer = copy.deepcopy(byte_tokens)
    tokenizer.pad_token = pad
    example = Example("1", "How many?", "CREATE TABLE t (a INT)", "SELECT 1", "d")
    rows = encode([example], tokenizer, "{question}:", 64, loss_on).rows
    targets = lay_flat(rows, CPU).targets.tolist()
    assert targets[-1] == tokenizer.eos_token_id
    assert len(targets) == (len("SELECT 1") + 1 if loss_on == "completion" else len(rows[0].input_ids) - 1)
    run = make(
        "lora=none", "trainer.max_steps=60", "trainer.lr=5e-3", "eval.every=null", "trainer.global_batch_size=2",
        model=make_llama(), rows=rows,
    )  # fmt: skip
    run.train()
    prompt = PromptTokenizer(tokenizer, "{question}:").prompts([(example.question, example.context)])[0]
    assert generate(run.model, tokenizer, [prompt], max_new_tokens=40, batch_size=1) == ["SELECT 1"]
