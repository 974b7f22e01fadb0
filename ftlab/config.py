"""The typed schema of an experiment; `ftlab.rules` says what its values may be. Never imports torch.

Field names are the consuming library's own keywords (PEFT's `LoraConfig`, transformers'
`BitsAndBytesConfig`), so that mapping them is mechanical.
"""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Dict, List, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

TARGET_SETS = ("all-linear", "attention", "mlp", "qv")
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit")
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")
DTYPES = ("bfloat16", "float16", "float32")

SAMPLERS = ("auto", "tpe", "random", "grid", "qmc", "gp", "cmaes")
PRUNERS = ("none", "median", "successive_halving", "hyperband", "wilcoxon")
MOST_DATABASES = 1000
OPTIONS = ("data.options.", "trainer.options.")  # what keys of settings begin with that parts bring themselves


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
    source: str = MISSING  # table (files and Hub data sets), rows that the task makes itself, or a package's own rows
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
    task: str = "sql"  # what rows are, how answers are judged: see ftlab/tasks/
    options: Dict[str, Any] = field(default_factory=dict)  # settings of the task's own, and of the source's


@dataclass
class TrainerConfig:
    """The optimisation. Batch sizes count rows, steps count optimizer steps."""

    stage: str = "sft"  # how the model is trained: see ftlab/stages/
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
    options: Dict[str, Any] = field(default_factory=dict)  # settings of the stage's own


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
    """What all trackers share. The settings of a chosen tracker stand beside it, under `tracker.NAME`."""

    project: str = "ftlab"
    group: Optional[str] = None
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
    """One experiment, complete. `rules.check` holds for every instance that `compose` returns."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    # TrackerConfig, and for each chosen tracker a node with its name: `trackers.settings` types it.
    tracker: Dict[str, Any] = field(default_factory=lambda: asdict(TrackerConfig()), metadata={"keys": TrackerConfig})
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 0
    objective: str = "eval/sql_exact_match"
    run_name: str = MISSING
    run_dir: str = MISSING
    force: bool = False


def register() -> None:
    """Make the schema the first entry of config.yaml's defaults list."""
    ConfigStore.instance().store(name="config_schema", node=ExperimentConfig)


def is_key(key: str) -> bool:
    """Whether a dotted key is one of the schema, or a setting that a part brings itself (`data.options.NAME`)."""
    return key in known_keys() or key.startswith(OPTIONS)


def known_keys(node: Any = ExperimentConfig, prefix: str = "") -> Dict[str, Any]:
    """Every dotted key of the schema with its annotated type; inner nodes included."""
    found: Dict[str, Any] = {}
    for f in fields(node):
        found[prefix + f.name] = f.type
        keys = f.metadata.get("keys", f.type)
        if is_dataclass(keys):
            found.update(known_keys(keys, f"{prefix}{f.name}."))
    return found
