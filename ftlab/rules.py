"""Every rule that ties the fields of a configuration together. Never imports torch.

Rules that need weights or data (module names, columns) are checked where those are read.
"""

import math
import string
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ftlab import declared, sources, stages, tasks, trackers
from ftlab.config import (
    DTYPES,
    MOST_DATABASES,
    OPTIMIZERS,
    PRUNERS,
    SAMPLERS,
    SCHEDULES,
    TARGET_SETS,
    EvalConfig,
    ExperimentConfig,
    known_keys,
)
from ftlab.data import TABLE
from ftlab.errors import ConfigError
from ftlab.options import options_of, problems
from ftlab.registry import OWN, ambiguous
from ftlab.tasks import Task

# Numbers beyond these mean nothing, and end deep inside a library: of any key, and of some.
MOST_WHOLE = 2**31 - 1
MOST_REAL = 3.4e38  # of float32
MOST = {
    "seed": 2**32 - 1,
    "data.split_seed": 2**63 - 1,
    "sweep.sampler_seed": 2**63 - 1,
    "lora.r": 65_536,
    "lora.lora_alpha": 1e9,
    "trainer.lr": 1e30,  # AdamW divides it by 1 - beta1, in float32
    "trainer.weight_decay": 1e6,
    "trainer.epochs": 1e6,
    "trainer.global_batch_size": 1_000_000,
    "eval.max_new_tokens": 1_000_000,
    "sweep.workers": 1_024,
    "sweep.trial_limit_s": 1e9,
}


def check(cfg: ExperimentConfig) -> ExperimentConfig:
    """Raise one ConfigError that lists every broken rule; return `cfg` unchanged."""
    found: list[str] = [problem for key, value in _leaves(cfg) for problem in _no_value(key, value)]

    def rule(holds: bool, key: str, value: Any, text: str) -> None:
        if not holds:
            found.append(f"{key}={value} {text}")

    def one_of(key: str, value: Any, allowed: Any) -> None:
        rule(value in allowed, key, value, f"must be one of {', '.join(map(str, allowed))}")

    for problem in _unknown_parts(cfg):  # other rules ask them
        raise ConfigError(*found, problem)
    _check_model(cfg, rule, one_of)
    _check_lora(cfg, rule, one_of)
    _check_data(cfg, rule, one_of)
    _check_trainer(cfg, rule, one_of)
    _check_sweep(cfg, rule, one_of)
    found += _of_options(cfg)
    found += _of_trackers(cfg)
    if found:
        raise ConfigError(*found)
    return cfg


def _unknown_parts(cfg: ExperimentConfig) -> Iterator[str]:
    for kind, name in ((tasks, cfg.data.task), (stages, cfg.trainer.stage)):
        if name not in kind.names():
            yield kind.unknown(name)
            return
    yield from declared.refused(cfg.data.task, cfg.trainer.stage)
    yield from _unknown_source(cfg)
    needs, gives = stages.get(cfg.trainer.stage).needs, sorted(tasks.get(cfg.data.task).gives)
    if needs not in gives:
        yield (
            f"trainer.stage={cfg.trainer.stage} trains on rows of kind {needs}, which data.task={cfg.data.task} does "
            f"not give: it gives {', '.join(gives)}"
        )


def _of_trackers(cfg: ExperimentConfig) -> list[str]:
    """What is wrong with the choice and the settings of trackers, a line each."""
    try:
        trackers.settings(cfg.tracker)
    except ConfigError as error:
        return list(error.problems)
    return []


def _unknown_source(cfg: ExperimentConfig) -> Iterator[str]:
    """Why there are no such rows; a source of a package must be there and in order."""
    task, name = tasks.get(cfg.data.task), cfg.data.source
    own = [*task.sources, TABLE]
    if name in own and name in sources.names():
        yield ambiguous(f"data.source={name}", [OWN, *(provider.package for provider in sources.providers()[name])])
    elif name in sources.names():
        sources.get(name)
    elif name not in own:
        makers = [other.name for other in tasks.usable() if name in other.sources]
        made = f"data.source={name} is made by data.task={' and '.join(makers)} alone: choose it, or other rows"
        yield made if makers else sources.unknown(name, own)


def _of_options(cfg: ExperimentConfig) -> list[str]:
    """What is wrong with the settings that task, source and stage bring themselves, a line each."""
    task, stage, source = tasks.get(cfg.data.task), stages.get(cfg.trainer.stage), cfg.data.source
    of_data = {f"data.task={task.name}": task.options}
    if source in sources.names():
        of_data[f"data.source={source}"] = options_of(sources.get(source))
    found = problems(of_data, cfg.data.options, "data.options")
    found += problems({f"trainer.stage={stage.name}": options_of(stage)}, cfg.trainer.options, "trainer.options")
    return found or task.check(cfg)


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for f in fields(node):
        value = getattr(node, f.name)
        if "keys" in f.metadata:  # a mapping of keys that a dataclass declares, and of others
            for key, shared in value.items():
                yield f"{prefix}{f.name}.{key}", shared
        elif is_dataclass(value):
            yield from _leaves(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value


def _no_value(key: str, value: Any) -> Iterator[str]:
    """What no key may be, whatever it means: an infinite or absurd number, a text without a character."""
    if isinstance(value, list):
        for item in value:
            yield from _no_value(key, item)
    if isinstance(value, str) and not value.strip():
        null = " (null: none)" if "Optional" in str(known_keys().get(key)) else ""
        yield f"{key}={value!r} is empty: give it a value{null}, or leave {key}= out"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    most = MOST.get(key, MOST_WHOLE if isinstance(value, int) else MOST_REAL)
    if not math.isfinite(value):
        yield f"{key}={value} must be a finite number"
    elif abs(value) > most:
        bound = f"{most:g}" if isinstance(most, float) else f"{most:,}"
        yield f"{key}={value} must lie between -{bound} and {bound}"


def _check_model(cfg: ExperimentConfig, rule: Any, one_of: Any) -> None:
    one_of("model.dtype", cfg.model.dtype, DTYPES)
    one_of("quant.bnb_4bit_quant_type", cfg.quant.bnb_4bit_quant_type, ("nf4", "fp4"))
    one_of("quant.bnb_4bit_compute_dtype", cfg.quant.bnb_4bit_compute_dtype, DTYPES)
    rule(
        not (cfg.quant.load_in_4bit and cfg.quant.load_in_8bit),
        "quant.load_in_8bit",
        True,
        "excludes quant.load_in_4bit=True: choose quant=int8 or quant=nf4",
    )


def _check_lora(cfg: ExperimentConfig, rule: Any, one_of: Any) -> None:
    lora, quantised = cfg.lora, cfg.quant.load_in_4bit or cfg.quant.load_in_8bit
    rule(lora.r >= 0, "lora.r", lora.r, "must be 0 (full fine-tuning, lora=none) or more")
    rule(
        lora.r > 0 or not quantised,
        "lora.r",
        lora.r,
        "trains all weights, which quantised weights do not allow: add quant=none, or choose lora=r16",
    )
    rule(
        lora.r > 0 or not lora.init_from,
        "lora.init_from",
        lora.init_from,
        "needs an adapter: choose lora=r16",
    )
    rule(lora.r == 0 or lora.lora_alpha > 0, "lora.lora_alpha", lora.lora_alpha, "must be above 0")
    rule(0 <= lora.lora_dropout < 1, "lora.lora_dropout", lora.lora_dropout, "must lie in [0, 1)")
    one_of("lora.bias", lora.bias, ("none", "all", "lora_only"))
    targets = lora.target_modules
    if isinstance(targets, str):
        rule(
            targets in TARGET_SETS,
            "lora.target_modules",
            targets,
            f"must be one of {', '.join(TARGET_SETS)}, or a list: 'lora.target_modules=[{targets}]'",
        )
    else:
        listed = isinstance(targets, list) and targets and all(isinstance(t, str) for t in targets)
        rule(bool(listed), "lora.target_modules", targets, "must be a set's name or a list of module names")
    init = str(lora.init_lora_weights)
    pissa = init.startswith("pissa")
    steps = init.removeprefix("pissa_niter_")
    known = init in ("True", "gaussian", "pissa") or (steps != init and steps.isdigit())
    rule(known, "lora.init_lora_weights", init, "must be true, gaussian, pissa or pissa_niter_N")
    rule(
        not (pissa and quantised),
        "lora.init_lora_weights",
        init,
        "splits the base weights, which quantised weights do not allow: add quant=none",
    )
    for other, on in (("use_rslora", lora.use_rslora), ("use_dora", lora.use_dora)):
        rule(
            not (pissa and on),
            f"lora.{other}",
            on,
            "cannot be saved as a plain adapter together with PiSSA: choose one of the two",
        )


def _check_data(cfg: ExperimentConfig, rule: Any, one_of: Any) -> None:
    data, task = cfg.data, tasks.get(cfg.data.task)
    there = [field.name for field in fields(data.columns)]
    for role in task.roles:
        if role.name not in there:
            raise ConfigError(f"data.task={task.name} reads a column {role.name}; data.columns has {', '.join(there)}")
    _check_eval_keys(cfg, task, rule)
    names = {name for _, name, _, _ in _template_fields(data.prompt)}
    columns = data.columns
    answers = {getattr(columns, role.name): role.name for role in task.roles if role.in_prompt == "never"}
    for role in (role for role in task.roles if role.in_prompt != "never"):
        name = getattr(columns, role.name)
        rule(
            name not in answers or role.name not in names,
            f"data.columns.{answers.get(name)}",
            name,
            f"is data.columns.{role.name} too: the prompt would hold the answer; name another column",
        )
        held = role.in_prompt != "always" or role.name in names
        rule(held, "data.prompt", repr(data.prompt), f"must hold {{{role.name}}}")
    shown = [role.name for role in task.roles if role.in_prompt != "never"]
    rule(
        names <= set(shown),
        "data.prompt",
        repr(data.prompt),
        f"may hold {' and '.join(f'{{{name}}}' for name in shown)} only; write {{{{ and }}}} for braces",
    )
    rule(data.max_length >= 8, "data.max_length", data.max_length, "must be at least 8 tokens")
    rule(data.max_field_bytes >= 1, "data.max_field_bytes", data.max_field_bytes, "must be at least 1 byte")
    rule(
        data.validation > 0,
        "data.validation",
        data.validation,
        "must be above 0: rows, or a fraction below 1",
    )
    rule(data.test_size > 0, "data.test_size", data.test_size, "must be above 0: rows, or a fraction below 1")
    for key in ("train_rows", "test_rows"):
        value = getattr(data, key)
        rule(value is None or value >= 1, f"data.{key}", value, "must be null or at least 1")
    rule(
        data.source not in task.sources or data.path is None,
        "data.path",
        data.path,
        f"is not read by generated data: choose data=jsonl or another option whose data.source is {TABLE}",
    )
    if data.source == TABLE and not data.path:
        rule(
            bool(data.hub_id),
            "data.path",
            data.path,
            "must name a file or folder: data.path=FILE (or data.hub_id=ORG/NAME for a Hub data set)",
        )


def _check_eval_keys(cfg: ExperimentConfig, task: Task, rule: Any) -> None:
    """What the judge of another task reads means nothing here."""
    own = {key: other.name for other in tasks.own() for key in other.eval_keys}
    for key in own.keys() - set(task.eval_keys):
        value = getattr(cfg.eval, key)
        default = getattr(EvalConfig, key)
        rule(value == default, f"eval.{key}", value, f"is read by data.task={own[key]} alone: leave it out")


def _template_fields(template: str) -> list[Any]:
    try:
        return [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(
            f"data.prompt={template!r} is no template ({error}); write {{{{ and }}}} for braces"
        ) from None


def _check_trainer(cfg: ExperimentConfig, rule: Any, one_of: Any) -> None:
    trainer, evaluation = cfg.trainer, cfg.eval
    one_of("trainer.optim", trainer.optim, OPTIMIZERS)
    one_of("trainer.lr_scheduler_type", trainer.lr_scheduler_type, SCHEDULES)
    one_of("trainer.loss_on", trainer.loss_on, ("completion", "all"))
    rule(trainer.lr > 0, "trainer.lr", trainer.lr, "must be above 0")
    rule(trainer.weight_decay >= 0, "trainer.weight_decay", trainer.weight_decay, "must be 0 or more")
    rule(trainer.adam_epsilon > 0, "trainer.adam_epsilon", trainer.adam_epsilon, "must be above 0")
    for key in ("adam_beta1", "adam_beta2"):
        rule(0 <= getattr(trainer, key) < 1, f"trainer.{key}", getattr(trainer, key), "must lie in [0, 1)")
    rule(trainer.warmup_steps >= 0, "trainer.warmup_steps", trainer.warmup_steps, "must be 0 or more")
    rule(trainer.max_grad_norm >= 0, "trainer.max_grad_norm", trainer.max_grad_norm, "must be 0 (off) or more")
    rule(
        trainer.max_steps is None or trainer.max_steps >= 0,
        "trainer.max_steps",
        trainer.max_steps,
        "must be null (use trainer.epochs) or 0 and more",
    )
    rule(
        trainer.epochs > 0,
        "trainer.epochs",
        trainer.epochs,
        "must be above 0; trainer.max_steps=0 trains nothing",
    )
    for key in ("global_batch_size", "log_every", "save_every", "keep"):
        rule(getattr(trainer, key) >= 1, f"trainer.{key}", getattr(trainer, key), "must be at least 1")
    rule(trainer.profile >= 0, "trainer.profile", trainer.profile, "must be 0 (off) or a number of steps")
    micro = trainer.micro_batch_size
    if isinstance(micro, int) and not isinstance(micro, bool) and micro >= 1:
        rule(
            trainer.global_batch_size % micro == 0,
            "trainer.global_batch_size",
            trainer.global_batch_size,
            f"must be a multiple of trainer.micro_batch_size={micro}",
        )
    else:
        rule(micro == "auto", "trainer.micro_batch_size", micro, "must be auto or a whole number of at least 1")
    for key in ("activation_checkpointing", "weight_cache"):
        one_of(f"trainer.{key}", getattr(trainer, key), (True, False, "auto"))
    patience = trainer.early_stopping
    rule(patience is None or patience >= 1, "trainer.early_stopping", patience, "must be null or at least 1")
    for key in ("every", "max_rows"):
        value = getattr(evaluation, key)
        rule(value is None or value >= 1, f"eval.{key}", value, "must be null or at least 1")
    rule(evaluation.max_new_tokens >= 1, "eval.max_new_tokens", evaluation.max_new_tokens, "must be at least 1")
    size = evaluation.batch_size
    whole = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    rule(size == "auto" or whole, "eval.batch_size", size, "must be auto or a whole number of at least 1")
    databases = evaluation.databases
    rule(1 <= databases <= MOST_DATABASES, "eval.databases", databases, f"must lie in 1 to {MOST_DATABASES}")
    rule(0 <= cfg.seed < 2**32, "seed", cfg.seed, "must lie in [0, 2**32)")
    rule(
        patience is None or evaluation.every is not None,
        "trainer.early_stopping",
        patience,
        "needs evaluations during training: set eval.every=STEPS",
    )
    one_of("objective", cfg.objective, objectives(cfg))
    name = Path(cfg.run_name)
    inside = name.parts and not name.is_absolute() and ".." not in name.parts
    rule(
        bool(inside),
        "run_name",
        cfg.run_name,
        "must name a folder inside outputs/; name any other with run_dir=DIR",
    )


def objectives(cfg: ExperimentConfig) -> tuple[str, ...]:
    """Keys of what the configuration's task and stage measure on validation, the headline first."""
    stage = stages.get(cfg.trainer.stage)
    if not stage.answers:  # nothing for the task to judge
        return tuple(f"eval/{metric.name}" for metric in stage.metrics if metric.objective)
    head = f"eval/{tasks.get(cfg.data.task).headline}"
    return tuple(dict.fromkeys([head, *declared.objectives(cfg.data.task, cfg.trainer.stage)]))


def _check_sweep(cfg: ExperimentConfig, rule: Any, one_of: Any) -> None:
    sweep, keys = cfg.sweep, objectives(cfg)
    one_of("sweep.sampler", sweep.sampler, SAMPLERS)
    one_of("sweep.pruner", sweep.pruner, PRUNERS)
    one_of("sweep.rung_metric", sweep.rung_metric, keys)
    for name in sweep.objectives:
        one_of("sweep.objectives", name, (*keys, *declared.costs()))
    twice = sorted({name for name in sweep.objectives if sweep.objectives.count(name) > 1})
    rule(not twice, "sweep.objectives", sweep.objectives, f"names {', '.join(twice)} twice: name each objective once")
    rule(
        len(sweep.objectives) < 2 or sweep.pruner == "none",
        "sweep.pruner",
        sweep.pruner,
        "cannot prune a search for several objectives, for which Optuna has no order: choose sweep.pruner=none",
    )
    rule(
        sweep.patience is None or sweep.pruner != "none",
        "sweep.patience",
        sweep.patience,
        "delays a pruner, and there is none: choose sweep.pruner=median",
    )
    directions = sweep.direction if isinstance(sweep.direction, list) else [sweep.direction]
    for direction in directions:
        one_of("sweep.direction", "null" if direction is None else direction, ("maximize", "minimize", "null"))
    rule(
        sweep.direction is None or len(directions) == max(1, len(sweep.objectives)),
        "sweep.direction",
        sweep.direction,
        f"must name one direction for each of the {max(1, len(sweep.objectives))} objectives",
    )
    for key in ("n_trials", "seeds", "workers", "heartbeat_s", "max_failures", "patience"):
        value = getattr(sweep, key)
        rule(value is None or value >= 1, f"sweep.{key}", value, "must be at least 1")
    for key in ("retries", "warmup_rungs"):
        rule(getattr(sweep, key) >= 0, f"sweep.{key}", getattr(sweep, key), "must be 0 or more")
    for key in ("vram_limit_gib", "trial_limit_s"):
        value = getattr(sweep, key)
        rule(value is None or value > 0, f"sweep.{key}", value, "must be above 0")
    rule(
        sweep.grace_s >= 2 * sweep.heartbeat_s,
        "sweep.grace_s",
        sweep.grace_s,
        f"must be at least twice sweep.heartbeat_s={sweep.heartbeat_s}",
    )
    study = sweep.study or "x"
    rule(
        study not in (".", "..") and "/" not in study and "\\" not in study and study.isprintable(),
        "sweep.study",
        sweep.study,
        "must be a name, not a path: run_dir=DIR names the study's folder",
    )
