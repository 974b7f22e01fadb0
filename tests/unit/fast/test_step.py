"""The fast step as the training loop sees it: settings, gradients in place, out of memory in the middle of a step."""

from typing import Any

import pytest
import torch

from ftlab.config import TrainerConfig
from ftlab.fast.decoder import Decoder
from ftlab.fast.flat import Flat, Trainable
from ftlab.fast.plan import Setting
from ftlab.fast.step import FastStep
from ftlab.train.checkpoint import trainable
from ftlab.train.step import PlainStep


def need(tokens: int, scored: int, share: float) -> float:
    return tokens * (1 - 0.9 * share) + scored


def made(model: Any, *, gpu: bool = False, **cfg: Any) -> FastStep:
    """A step whose settings are chosen as on a GPU, where asked."""
    decoder = Decoder(model)
    memory = {name: cfg.pop(name) for name in ("limit",) if name in cfg}
    options = {"global_batch_size": 4} | cfg
    step = FastStep(decoder, TrainerConfig(**options), longest=30, need=need, **memory)
    step.attach(Trainable(trainable(model), Flat(decoder.parameters())))
    step.cuda = step.chooser.cuda = gpu
    return step


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what is free, in bytes."""

    def settle(bytes_: float) -> None:
        monkeypatch.setattr("ftlab.fast.plan.available", lambda device: bytes_)

    return settle


def test_on_a_cpu_rows_go_together_while_that_gains(kit: Any) -> None:
    model = kit.adapt(kit.make())
    for length, micro in ((20, 16), (300, 8), (1500, 2), (5000, 1)):
        step = made(model, global_batch_size=16)
        step.choose([kit.row(1, length, 1)] * 16)
        assert step.micro == micro
        step.flat.release()


def test_a_setting_of_the_configuration_is_kept(kit: Any, free: Any) -> None:
    model = kit.adapt(kit.make())
    step = made(model, gpu=True, micro_batch_size=2, activation_checkpointing=True)
    free(0.0)  # nothing fits
    step.choose(kit.rows())
    assert step.setting == Setting(2, False, 1.0)
    assert step.checkpointed == 3
    assert step.lighten() is None


def test_without_4_bit_weights_nothing_is_kept_dequantized(kit: Any, free: Any) -> None:
    step = made(kit.adapt(kit.make()), gpu=True, weight_cache=True)
    free(1e9)
    step.choose(kit.rows())
    assert not step.setting.keep_dequantized
    assert "dequantized" not in str(step)


def test_the_fastest_setting_is_shown(kit: Any, free: Any) -> None:
    step = made(kit.adapt(kit.make()), gpu=True)
    free(1e9)
    step.choose(kit.rows())
    assert step.setting == Setting(4, False, 0.0)
    assert str(step) == "fast step: 4 rows per micro-batch"
    step.chooser.cfg.micro_batch_size = 1
    free(need(27, 26, 0.75) + 0.01)
    step.choose(sorted(kit.rows(), key=lambda row: len(row.input_ids)))
    assert str(step) == "fast step: 1 rows per micro-batch, activation checkpointing of 2 of 3 layers"


def test_lightening_goes_through_smaller_needs_to_the_smallest(kit: Any, free: Any) -> None:
    step = made(kit.adapt(kit.make()), gpu=True)
    free(1e9)
    rows = sorted(kit.rows(), key=lambda row: len(row.input_ids))
    step.choose(rows)
    assert step.chooser.planner
    planner = step.chooser.planner
    needs = [planner.need(step.setting)]
    while told := step.lighten():
        assert told == step.setting.overrides(packed=False)
        needs.append(planner.need(step.setting))
    assert needs == sorted(set(needs), reverse=True)
    assert step.setting == Setting(1, False, 1.0)


def test_nothing_to_lighten_before_a_choice(kit: Any) -> None:
    assert made(kit.adapt(kit.make())).lighten() is None


def test_an_out_of_memory_inside_a_step_leaves_its_gradient_right(kit: Any, free: Any) -> None:
    """The second micro-batch runs out; the step is done again in smaller ones."""
    model, rows = kit.adapt(kit.make()), kit.rows()
    expected = kit.plain(model, rows)
    step = made(model, gpu=True)
    free(1e9)
    step.choose(sorted(rows, key=lambda row: len(row.input_ids)))
    step.cuda = False  # the work itself is a CPU's
    step._apply(Setting(2, False, 0.0))
    step.begin()
    step.accumulate(rows[:2], kit.trained(rows), 7, first=True)
    assert step.lighten()
    assert step.micro < 2 or step.checkpointed
    assert kit.fast(model, step, rows).error(expected) <= 1e-5


def test_gradients_of_the_step_before_are_gone(kit: Any) -> None:
    model, rows = kit.adapt(kit.make()), kit.rows()
    step = kit.step(model, 2)
    first = kit.fast(model, step, rows)
    step.flat.gradient.fill_(torch.nan)
    found = kit.fast(model, step, rows)
    assert found.same(first)


def test_a_step_reads_the_adapters_as_they_are_when_it_begins(kit: Any) -> None:
    model, rows = kit.adapt(kit.make()), kit.rows()
    step = kit.step(model)
    kit.fast(model, step, rows)
    with torch.no_grad():
        step.flat.parameter.mul_(0.5)
    found = kit.fast(model, step, rows)
    step.flat.release()
    assert found.error(kit.plain(model, rows)) <= 1e-5


def test_the_model_itself_is_left_as_it_was(kit: Any) -> None:
    model = kit.adapt(kit.make("llama, tied, biases"), lora_dropout=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    kit.fast(model, kit.step(model), kit.rows())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert torch.equal(torch.get_rng_state(), state)


def test_clipping_sees_the_norm_of_all_adapters_together(kit: Any) -> None:
    model, rows = kit.adapt(kit.make()), kit.rows()
    step = kit.step(model)
    found = kit.fast(model, step, rows)
    norm = torch.nn.utils.clip_grad_norm_([step.flat.parameter], 1e-3)
    torch.testing.assert_close(norm, torch.stack([g.norm() for g in found.of.values()]).norm())
    clipped = torch.stack([p.grad.norm() for p in step.flat.members if p.grad is not None]).norm()
    torch.testing.assert_close(clipped, torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_it_is_the_plain_steps_loss_and_gradient(kit: Any) -> None:
    """The two steps through the loop's own door."""
    from accelerate import Accelerator

    rows, trained = kit.rows(), kit.trained(kit.rows())
    found = []
    for kind in ("plain", "fast"):
        model = kit.adapt(kit.make("qwen3"))
        if kind == "fast":
            step: Any = made(model)
        else:
            flat = Flat([[p] for p in model.parameters() if p.requires_grad])
            step = PlainStep(model, TrainerConfig(global_batch_size=4), Accelerator(cpu=True), need=need)
            step.attach(Trainable(trainable(model), flat))
        step.choose(rows)
        step.begin()
        loss = step.accumulate(rows, trained, 3, first=True)
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        found.append((loss, gradients))
    (loss, gradients), (fast_loss, fast_gradients) = found
    torch.testing.assert_close(fast_loss, loss, rtol=1e-5, atol=0)
    assert all((fast_gradients[n] - g).norm() <= 1e-5 * g.norm() for n, g in gradients.items())


def test_a_gpu_that_is_too_small_is_an_error_with_figures_and_a_length_that_fits(kit: Any, free: Any) -> None:
    step = made(kit.adapt(kit.make()), gpu=True)
    assert step.chooser.oom_report() == ""  # nothing was tried yet
    free(12.0)
    step.choose(kit.rows())
    told = step.chooser.oom_report()
    assert step.chooser.planner
    assert step.chooser.planner.smallest().overrides(packed=False) in told
    assert "weight_cache" not in told
    assert "data.max_length=8 would fit" in told


def test_graphs_are_given_up_before_a_setting_is(kit: Any, free: Any) -> None:
    """Their memory may be all that is missing."""

    class Graphs(list[int]):
        def drop(self, *, forget: bool = False) -> None:
            self.clear()

    step = made(kit.adapt(kit.make()), gpu=True)
    free(1e9)
    step.choose(kit.rows())
    before, step.graphs = step.setting, Graphs([1, 2])  # type: ignore[assignment]
    assert "captured anew" in str(step.lighten())
    assert step.setting == before
    step.graphs.extend([1, 2])  # type: ignore[union-attr]
    assert step.lighten() is not None
    assert step.setting != before
    assert step.chooser.had_oom


def test_what_a_sweep_allows_bounds_the_choice_as_little_memory_does(kit: Any, free: Any) -> None:
    rows = sorted(kit.rows(), key=lambda row: len(row.input_ids))
    chosen = []
    for few in (30.0, 60.0, 90.0, 500.0):
        free(few)
        short = made(kit.adapt(kit.make()), gpu=True)
        short.choose(rows)
        free(1e9)
        limited = made(kit.adapt(kit.make()), gpu=True, limit=few)
        limited.choose(rows)
        assert limited.setting == short.setting
        chosen.append(limited.setting)
    assert len(set(chosen)) > 1
    assert f"sweep.vram_limit_gib={500 / 2**30:g}" in limited.chooser.oom_report()


def test_remedies_name_only_what_is_not_on_yet(kit: Any, free: Any) -> None:
    free(0.0)
    for cfg, wanted in (
        ({}, []),
        ({"micro_batch_size": 2}, ["trainer.micro_batch_size=auto"]),
        ({"micro_batch_size": 1}, []),
        ({"activation_checkpointing": True}, []),
        ({"activation_checkpointing": False}, ["trainer.activation_checkpointing=auto"]),
    ):
        step = made(kit.adapt(kit.make()), gpu=True, **cfg)
        step.choose(kit.rows())
        assert step.chooser.remedies(step.setting) == wanted
