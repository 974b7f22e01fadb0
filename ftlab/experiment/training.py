"""The training of a run: a step that suits the model, the loop, and what both report."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from peft import PeftModel
from torch import nn

from ftlab import models
from ftlab.data.encode import Encoded
from ftlab.errors import ConfigError
from ftlab.evaluate import Scores
from ftlab.experiment.base import Loaded
from ftlab.experiment.evaluations import Evaluations
from ftlab.experiment.parts import Run
from ftlab.experiment.prepare import Prepared
from ftlab.experiment.records import Records
from ftlab.fast.decoder import LOGITS_BYTES
from ftlab.fast.flat import Flat
from ftlab.fast.plan import GIB
from ftlab.fast.recognise import adapter_groups
from ftlab.fast.step import FastStep
from ftlab.summary import StepSetting
from ftlab.train.checkpoint import Checkpoint
from ftlab.train.loop import Trainer
from ftlab.train.step import PlainStep, Step, Switch
from ftlab.vram import BYTES, batch_bytes


def train(
    run: Run,
    records: Records,
    evaluations: Evaluations,
    loaded: Loaded,
    prepared: Prepared,
    resumed: Checkpoint | None,
) -> Scores:
    """Train; the validation scores of the weights that are left in the model."""
    cfg, summary, terminal = run.cfg, records.summary, run.terminal
    step = make_step(run, loaded, prepared.train.rows)
    trainer = Trainer(
        loaded.model,
        prepared.train.rows,
        cfg,
        step=step,
        accelerator=run.accelerator,
        checkpoints=run.checkpoints,
        evaluate=partial(evaluations.on_validation, loaded),
        record=records.step,
        note=terminal.note,
        stop=run.stop,
        trace=run.folder / "profile" / "trace.json",
        ranks=run.ranks,
    )
    if not run.ranks.alone:
        terminal.note(f"{run.ranks.world} processes share the rows of each step")
        summary.processes = run.ranks.world
    if resumed:
        trainer.restore(resumed)
        terminal.note(f"resumed from step {resumed.step} of {trainer.plan.steps}")
    summary.planned_steps = trainer.plan.steps
    evaluations.report_again()
    if 0 < trainer.plan.steps <= cfg.trainer.warmup_steps:
        terminal.warn(
            f"trainer.warmup_steps={cfg.trainer.warmup_steps:g} covers all {trainer.plan.steps} steps: "
            f"the learning rate never reaches trainer.lr={cfg.trainer.lr:g}"
        )
    with records.training(trainer.plan.steps, trainer.progress.step), _setting_recorded(step, records):
        progress = trainer.train()
    summary.seconds["train"] = round(progress.seconds, 3)
    summary.step, summary.best_step, summary.epochs = progress.step, progress.best, trainer.plan.epochs
    return Scores(progress.metrics, progress.intervals)


def make_step(run: Run, loaded: Loaded, rows: list[Encoded]) -> Step:
    """The fast step where the model is known to it, else the plain one.

    Raises:
        ConfigError: activation checkpointing of a model that cannot do it.
    """
    cfg, model = run.cfg, loaded.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = Flat(adapter_groups(model)) if cfg.lora.r and Flat.fits(trained) else None
    trainer = replace(cfg.trainer, global_batch_size=run.ranks.most(cfg.trainer.global_batch_size))
    dropout = cfg.lora.lora_dropout > 0
    need = partial(batch_bytes, model.config, BYTES[cfg.model.dtype], dropout=dropout)
    limit = run.trial.vram_limit_gib * GIB if run.trial and run.trial.vram_limit_gib else math.inf
    if loaded.decoder is not None and flat is not None:
        longest = max(row.tokens for row in rows)
        in_parts = partial(need, logits=LOGITS_BYTES)
        step: Step = FastStep(loaded.decoder, flat, trainer, longest=longest, need=in_parts, limit=limit)
    else:
        step = PlainStep(
            model,
            trainer,
            run.accelerator,
            flat,
            need=need,
            together=loaded.flat,
            checkpoint=_checkpointing(run, model),
            limit=limit,
        )
    _warn_unused(run, step)
    return step


def _checkpointing(run: Run, model: nn.Module) -> Switch | None:
    """What switches the model's activation checkpointing, where it has one."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if getattr(base, "supports_gradient_checkpointing", False):
        return partial(models.switch_activation_checkpointing, base)
    if run.cfg.trainer.activation_checkpointing is True:
        raise ConfigError(
            f"trainer.activation_checkpointing=true: {type(base).__name__} cannot compute its layers twice; "
            "leave it at auto"
        )
    return None


def _warn_unused(run: Run, step: Step) -> None:
    """One line where the configuration asks for dequantized weights kept in memory, and there is nothing to dequantize
    or no way to keep it."""
    if run.cfg.trainer.weight_cache is not True or step.keeps_unpacked:
        return
    why = "the slower path unpacks 4-bit weights at each product"
    if not run.cfg.quant.load_in_4bit:
        why = "the base has no 4-bit weights (quant=nf4 or quant=fp4 makes them)"
    run.terminal.warn(f"trainer.weight_cache=true changes nothing: {why}")


@contextmanager
def _setting_recorded(step: Step, records: Records) -> Iterator[None]:
    """The summary tells how rows went through the model, also of a run that ends early."""
    try:
        yield
    finally:
        records.summary.setting = StepSetting(**asdict(step.setting), ran_out=step.chooser.ran_out)
