"""The typed schema of an experiment and every rule that ties its fields together. Never imports torch.

Field names are the consuming library's own keywords (PEFT's `LoraConfig`, transformers'
`BitsAndBytesConfig`), so that mapping them is mechanical.
"""

import math
import string
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from ftlab.errors import ConfigError

TARGET_SETS = ("all-linear", "attention", "mlp", "qv")
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit")
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")
DTYPES = ("bfloat16", "float16", "float32")

# Metric keys an objective may name, and whether more is better.
OBJECTIVES = {
    "eval/sql_exact_match": True,
    "eval/sql_string_match": True,
    "eval/sql_ast_match": True,
    "eval/sql_exec_match": True,
    "eval/sql_valid": True,
    "eval/loss": False,
}
# What a sweep may also aim at, of a run's summary: less is better.
COSTS = ("vram/peak_allocated_gib", "train/seconds")
SAMPLERS = ("auto", "tpe", "random", "grid", "qmc", "gp", "cmaes")
PRUNERS = ("none", "median", "successive_halving", "hyperband", "wilcoxon")
# Metrics of SQL that count rows; all others of SQL are rates.
COUNTS = ("sql_gold_broken", "sql_vacuous")
MOST_DATABASES = 1000

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


@dataclass
class ModelConfig:
    """Which base weights, and how they are loaded."""

    name: str = MISSING  # short label, used in run names and tables
    id: str = MISSING  # a Hub id, a local folder, or `embedded:tiny`
    revision: Optional[str] = None
    dtype: str = "bfloat16"
    attn_implementation: str = "sdpa"
    trust_remote_code: bool = False
    package: Optional[str] = None  # pinned Python package that carries the same weights as GGUF


@dataclass
class QuantConfig:
    """Fields of transformers' BitsAndBytesConfig; both flags off means no quantisation."""

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: str = "bfloat16"
    llm_int8_threshold: float = 6.0


@dataclass
class LoraConfig:
    """Fields of PEFT's LoraConfig; `r: 0` means no adapter, all weights are trained."""

    r: int = 16
    lora_alpha: float = 32
    lora_dropout: float = 0.0
    target_modules: Any = "all-linear"  # one of TARGET_SETS or a list of module names
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: Any = True  # true, gaussian, pissa, pissa_niter_N
    modules_to_save: Optional[List[str]] = None
    init_from: Optional[str] = None  # a run folder or an adapter folder to go on from


@dataclass
class ColumnsConfig:
    """Names of the data set's columns. `group` may be absent from the data: the context then groups rows."""

    question: str = "question"
    context: str = "context"
    answer: str = "answer"
    group: str = "db_id"


@dataclass
class DataConfig:
    """Where rows come from, how they are split, and how a row becomes a prompt."""

    name: str = MISSING
    source: str = MISSING  # sql_synth or table (files and Hub data sets)
    path: Optional[str] = None  # a folder with train*/test* files, or one file
    hub_id: Optional[str] = None
    hub_revision: Optional[str] = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    prompt: str = "### Schema:\n{context}\n\n### Question:\n{question}\n\n### SQL:\n"
    max_length: int = 512  # tokens of prompt, answer and end marker together
    max_field_bytes: int = 1_000_000  # a question, context or answer with more, in UTF-8, is refused
    train_rows: Optional[int] = None  # at most so many rows are trained on
    validation: float = 200  # rows, or a fraction below 1, taken from train by group
    test_size: float = 0.1  # rows, or a fraction below 1, where the data has no test split of its own
    test_rows: Optional[int] = None  # at most so many rows in the test split
    split_seed: int = 0


@dataclass
class TrainerConfig:
    """The optimisation. Batch sizes count rows, steps count optimizer steps."""

    lr: float = 2e-4
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03  # steps, or a fraction of all steps below 1
    optim: str = "adamw"
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    max_steps: Optional[int] = None  # replaces `epochs` where set
    epochs: float = 1.0
    global_batch_size: int = 16
    micro_batch_size: Any = "auto"  # rows a forward pass; auto: the largest that fits
    activation_checkpointing: Any = "auto"  # true, false; auto: where memory asks for it
    weight_cache: Any = "auto"  # true, false; auto: the fast path holds 4-bit weights unpacked where memory allows
    loss_on: str = "completion"  # completion or all
    log_every: int = 10
    save_every: int = 200
    keep: int = 2  # checkpoints kept beside the best one
    load_best: bool = True  # end with the adapter of the best evaluation
    early_stopping: Optional[int] = None  # evaluations without a better objective before stopping
    profile: int = 0  # steps written as a torch trace


@dataclass
class EvalConfig:
    """Evaluation by generation: `every` steps on validation, once before and once after on test."""

    every: Optional[int] = 200  # null: only after the last step
    max_rows: Optional[int] = 200  # rows scored of each split; null: all
    batch_size: Any = "auto"  # prompts answered at a time
    max_new_tokens: int = 128
    databases: int = 32  # made-up databases that an answer other than the gold one is executed on
    extract_sql: bool = False  # score the query inside a fence, tags or prose (ftlab.sql.extract)
    rows_dir: Optional[str] = None  # a folder of <group>.sqlite with real rows, to be executed on too


@dataclass
class TrackerConfig:
    """Where metrics go beside metrics.jsonl."""

    name: str = MISSING  # wandb or none
    project: str = "ftlab"
    entity: Optional[str] = None
    mode: str = "auto"  # auto: online with a key, otherwise offline; or online, offline
    group: Optional[str] = None
    job_type: Optional[str] = None
    tags: List[str] = field(default_factory=list)


@dataclass
class SweepConfig:
    """How a sweep searches; read with --multirun only. Its space stands in `hydra.sweeper.params` and on the command
    line."""

    study: Optional[str] = None  # its name; null: the sweep file's, or a hash of the overrides
    n_trials: Optional[int] = None  # finished trials wanted, pruned ones included; null: the whole grid, else 20
    sampler: str = "auto"  # auto: the grid where every dimension is a list, else tpe
    sampler_seed: int = 0
    pruner: str = "none"
    patience: Optional[int] = None  # rungs without improvement that the pruner waits for
    warmup_rungs: int = 0  # rungs before the pruner acts
    rung_metric: str = "eval/loss"  # what each validation evaluation reports to the pruner
    objectives: List[str] = field(default_factory=list)  # empty: `objective`; several: a Pareto front
    direction: Any = None  # maximize, minimize or a list of them; null: as the metrics are defined
    seeds: int = 1  # runs of each configuration, over seeds from `seed` on; their mean counts
    first: List[Any] = field(default_factory=list)  # configurations to begin with, each a map of swept keys
    warm_start: Optional[str] = None  # a study over the same space whose finished trials are taken over
    vram_limit_gib: Optional[float] = None  # what training may allocate; configurations that cannot are not run
    trial_limit_s: Optional[float] = None  # seconds that a trial may take
    max_failures: int = 5  # failed trials after which the sweep gives up
    retries: int = 2  # times that an interrupted trial is taken up again
    workers: int = 1
    storage: Optional[str] = None  # a database URL; null: study.db in the study's folder
    heartbeat_s: int = 60  # how often a trial shows other hosts that it lives
    grace_s: int = 180  # silence after which other hosts take it for dead
    keep_pruned: bool = False  # keep the checkpoints of pruned trials


@dataclass
class ExperimentConfig:
    """One experiment, complete. `check` holds for every instance that `compose` returns."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 0
    objective: str = "eval/sql_exact_match"
    run_name: str = MISSING
    run_dir: str = MISSING
    force: bool = False


def is_rate(key: str) -> bool:
    """Whether a metric is a share of rows, of which more is better."""
    return "/sql_" in key and not key.endswith(COUNTS)


def register() -> None:
    """Make the schema the first entry of config.yaml's defaults list."""
    ConfigStore.instance().store(name="config_schema", node=ExperimentConfig)


def known_keys(node: Any = ExperimentConfig, prefix: str = "") -> Dict[str, Any]:
    """Every dotted key of the schema with its annotated type; inner nodes included."""
    found: Dict[str, Any] = {}
    for f in fields(node):
        found[prefix + f.name] = f.type
        if is_dataclass(f.type):
            found.update(known_keys(f.type, f"{prefix}{f.name}."))
    return found


def check(cfg: ExperimentConfig) -> ExperimentConfig:
    """Raise one ConfigError that lists every broken rule; return `cfg` unchanged.

    Rules that need weights or data (module names, columns) are checked where those are read.
    """
    problems: List[str] = [problem for key, value in _leaves(cfg) for problem in _no_value(key, value)]

    def rule(holds: bool, key: str, value: Any, text: str) -> None:
        if not holds:
            problems.append(f"{key}={value} {text}")

    def one_of(key: str, value: Any, allowed: Any) -> None:
        rule(value in allowed, key, value, f"must be one of {', '.join(map(str, allowed))}")

    _check_model(cfg, rule, one_of)
    _check_lora(cfg, rule, one_of)
    _check_data(cfg, rule, one_of)
    _check_trainer(cfg, rule, one_of)
    _check_sweep(cfg.sweep, rule, one_of)
    if problems:
        raise ConfigError(*problems)
    return cfg


def _leaves(node: Any, prefix: str = "") -> Iterator[Tuple[str, Any]]:
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
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
    data = cfg.data
    one_of("data.source", data.source, ("sql_synth", "table"))
    names = {name for _, name, _, _ in _template_fields(data.prompt)}
    columns = cfg.data.columns
    shown = {"question": columns.question, "context": columns.context}
    for role, name in shown.items():
        rule(
            name != columns.answer or f"{{{role}}}" not in cfg.data.prompt,
            "data.columns.answer",
            columns.answer,
            f"is data.columns.{role} too: the prompt would hold the answer; name another column",
        )
    rule("question" in names, "data.prompt", repr(data.prompt), "must hold {question}")
    rule(
        names <= {"question", "context"},
        "data.prompt",
        repr(data.prompt),
        "may hold {question} and {context} only; write {{ and }} for braces",
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
        data.source != "sql_synth" or data.path is None,
        "data.path",
        data.path,
        "is not read by generated data: choose data=jsonl or data=sql_create_context",
    )
    if data.source == "table" and not data.path:
        rule(
            bool(data.hub_id),
            "data.path",
            data.path,
            "must name a file or folder: data.path=FILE (or data.hub_id=ORG/NAME for a Hub data set)",
        )


def _template_fields(template: str) -> List[Any]:
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
    one_of("objective", cfg.objective, tuple(OBJECTIVES))
    one_of("tracker.name", cfg.tracker.name, ("wandb", "none"))
    one_of("tracker.mode", cfg.tracker.mode, ("auto", "online", "offline"))
    name = Path(cfg.run_name)
    inside = name.parts and not name.is_absolute() and ".." not in name.parts
    rule(
        bool(inside),
        "run_name",
        cfg.run_name,
        "must name a folder inside outputs/; name any other with run_dir=DIR",
    )


def _check_sweep(sweep: SweepConfig, rule: Any, one_of: Any) -> None:
    one_of("sweep.sampler", sweep.sampler, SAMPLERS)
    one_of("sweep.pruner", sweep.pruner, PRUNERS)
    one_of("sweep.rung_metric", sweep.rung_metric, OBJECTIVES)
    for name in sweep.objectives:
        one_of("sweep.objectives", name, (*OBJECTIVES, *COSTS))
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
