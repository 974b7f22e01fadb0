"""Training a loaded model on samples: its trainable tensors, the step that suits the model, and the loop."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from peft import PeftModel
from torch import nn

from ftlab import models
from ftlab.config import ExperimentConfig
from ftlab.data.encode import Sample
from ftlab.errors import ConfigError
from ftlab.fast.decoder import LOGITS_BYTES
from ftlab.fast.flat import Flat, Trainable
from ftlab.fast.plan import GIB
from ftlab.fast.recognise import adapter_groups
from ftlab.fast.step import FastStep
from ftlab.memory.batch import BYTES, batch_bytes
from ftlab.stages.stage import Hooks, LoadedModel
from ftlab.summary import StepSetting
from ftlab.train.checkpoint import Checkpoint, trainable
from ftlab.train.learner import Learner, Progress
from ftlab.train.loop import Trainer
from ftlab.train.step import Loss, PlainStep, Step, Switch


def fit(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    cfg: ExperimentConfig,
    hooks: Hooks,
    resume: Checkpoint | None,
    loss: Loss | None = None,
) -> Progress:
    """Train the model's trainable tensors on samples with the settings of `cfg.trainer`, or resume from a checkpoint.

    `loss(model, samples, device)` returns the loss summed over the samples' trained tokens. Without it the samples are
    rows (`Encoded`), and the loss is the cross entropy of their spans, which the fast step supports as well.

    Raises:
        ConfigError: the model does not support activation checkpointing, but the configuration requires it.
        TrainingError: training cannot continue; the last good checkpoint is kept.
        Stopped: a stop signal was received; the same call resumes.
    """
    trained = trainable_of(loaded.model, cfg)
    step = make_step(loaded, trained, samples, cfg, hooks, loss)
    trainer = Trainer(
        loaded.model,
        step,
        accelerator=loaded.accelerator,
        note=hooks.note,
        stop=hooks.stop,
        trace=hooks.trace,
        ranks=hooks.ranks,
    )
    learner = Learner(
        trained,
        samples,
        cfg,
        accelerator=loaded.accelerator,
        checkpoints=hooks.checkpoints,
        evaluate=hooks.evaluate,
        record=hooks.record,
    )
    hooks.ranks.broadcast(parameter.detach() for parameter in trained.parameters)
    if not hooks.ranks.alone:
        hooks.note(f"{hooks.ranks.world} processes share the rows of each step")
    if resume:
        learner.restore(resume)
        hooks.note(f"resumed from step {resume.step} of {learner.order.steps}")
    _warn_of_warmup(learner, hooks)
    with hooks.training(learner.order.steps, learner.progress.step, learner.order.epochs):
        try:
            return trainer.train(learner)
        finally:
            used = step.setting
            hooks.setting(
                StepSetting(used.micro, used.keep_dequantized, used.checkpointed_fraction, step.chooser.had_oom)
            )


def trainable_of(model: nn.Module, cfg: ExperimentConfig) -> Trainable:
    """Return the tensors to train: the model's adapter, in one buffer if possible, or all weights."""
    tensors = trainable(model)
    flat = Flat(adapter_groups(model)) if cfg.lora.r and Flat.fits(list(tensors.values())) else None
    return Trainable(tensors, flat)


def make_step(
    loaded: LoadedModel,
    trained: Trainable,
    samples: Sequence[Sample],
    cfg: ExperimentConfig,
    hooks: Hooks,
    loss: Loss | None = None,
) -> Step:
    """Return the fast step if it supports the model and the loss, else the plain step.

    Raises:
        ConfigError: the model does not support activation checkpointing, but the configuration requires it.
    """
    trainer = replace(cfg.trainer, global_batch_size=hooks.ranks.most(cfg.trainer.global_batch_size))
    dropout = cfg.lora.lora_dropout > 0
    need = partial(batch_bytes, loaded.model.config, BYTES[cfg.model.dtype], dropout=dropout)
    limit = hooks.vram_limit_gib * GIB if hooks.vram_limit_gib else math.inf
    if loaded.decoder is not None and trained.flat is not None and loss is None:
        longest = max(sample.tokens for sample in samples)
        need_in_chunks = partial(need, logits=LOGITS_BYTES)
        step: Step = FastStep(loaded.decoder, trainer, longest=longest, need=need_in_chunks, limit=limit)
    else:
        step = PlainStep(
            loaded.model,
            trainer,
            loaded.accelerator,
            need=need,
            loss=loss,
            together=loaded.flat,
            checkpoint=_checkpointing(loaded.model, cfg),
            limit=limit,
        )
    _warn_of_cache(step, cfg, hooks)
    return step


def _checkpointing(model: nn.Module, cfg: ExperimentConfig) -> Switch | None:
    """Return the function that switches the model's activation checkpointing; None if the model does not support it."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if getattr(base, "supports_gradient_checkpointing", False):
        return partial(models.switch_activation_checkpointing, base)
    if cfg.trainer.activation_checkpointing is True:
        raise ConfigError(
            f"trainer.activation_checkpointing=true: {type(base).__name__} does not support it; leave it at auto"
        )
    return None


def _warn_of_cache(step: Step, cfg: ExperimentConfig, hooks: Hooks) -> None:
    """Warn if the configuration asks for dequantized weights kept in memory, but there is nothing to dequantize or the
    step cannot keep it."""
    if cfg.trainer.weight_cache is not True or step.can_keep_dequantized:
        return
    why = "the slower path dequantizes 4-bit weights at each product"
    if not cfg.quant.load_in_4bit:
        why = "the base has no 4-bit weights (quant=nf4 or quant=fp4 makes them)"
    hooks.warn(f"trainer.weight_cache=true changes nothing: {why}")


def _warn_of_warmup(learner: Learner, hooks: Hooks) -> None:
    """Warn if the learning rate never reaches `trainer.lr`."""
    trainer, steps = learner.cfg.trainer, learner.order.steps
    if 0 < steps <= trainer.warmup_steps:
        hooks.warn(
            f"trainer.warmup_steps={trainer.warmup_steps:g} covers all {steps} steps: "
            f"the learning rate never reaches trainer.lr={trainer.lr:g}"
        )
