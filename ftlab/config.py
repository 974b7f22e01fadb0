"""The typed schema of an experiment; `ftlab.rules` checks its values. Never imports torch.

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
OPTIONS = ("data.options.", "trainer.options.")  # prefixes of the settings that a task, source or stage defines


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
    init_from: Optional[str] = None  # a run folder or an adapter folder whose adapter the training starts from


@dataclass
class ColumnsConfig:
    """Names of the data set's columns. `group` may be absent from the data: rows are then grouped by
    their context."""

    question: str = "question"
    context: str = "context"
    answer: str = "answer"
    group: str = "db_id"


@dataclass
class DataConfig:
    """Where rows come from, how they are split, and how a row becomes a prompt."""

    name: str = MISSING
    source: str = MISSING  # table (files and Hub data sets), rows that the task generates, or a package's source
    path: Optional[str] = None  # a folder with train*/test* files, or one file
    hub_id: Optional[str] = None
    hub_revision: Optional[str] = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    prompt: str = "### Schema:\n{context}\n\n### Question:\n{question}\n\n### SQL:\n"
    max_length: int = 512  # tokens of prompt, answer and end marker together
    max_field_bytes: int = 1_000_000  # a question, context or answer of more UTF-8 bytes is refused
    train_rows: Optional[int] = None  # the most rows to train on; null: all
    validation: float = 200  # rows, or a fraction below 1, taken from train by group
    test_size: float = 0.1  # rows, or a fraction below 1, where the data has no test split of its own
    test_rows: Optional[int] = None  # the most rows in the test split; null: all
    split_seed: int = 0
    task: str = "sql"  # how rows are read and answers judged: see ftlab/tasks/
    options: Dict[str, Any] = field(default_factory=dict)  # settings that the task and the source define


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
    max_steps: Optional[int] = None  # replaces `epochs` if set
    epochs: float = 1.0
    global_batch_size: int = 16
    micro_batch_size: Any = "auto"  # rows per forward pass; auto: the largest that fits
    activation_checkpointing: Any = "auto"  # true, false; auto: if memory requires it
    weight_cache: Any = "auto"  # true, false; auto: keep dequantized 4-bit weights if memory allows
    loss_on: str = "completion"  # completion or all
    log_every: int = 10
    save_every: int = 200
    keep: int = 2  # checkpoints to keep besides the best one
    load_best: bool = True  # the final adapter is that of the best evaluation
    early_stopping: Optional[int] = None  # evaluations without improvement before training stops
    profile: int = 0  # training steps to record as a torch profiler trace
    options: Dict[str, Any] = field(default_factory=dict)  # settings that the stage defines


@dataclass
class EvalConfig:
    """Evaluation by generation: on validation `every` so many steps, on test once before and once after training."""

    every: Optional[int] = 200  # null: only after the last step
    max_rows: Optional[int] = 200  # the most rows to score of each split; null: all
    batch_size: Any = "auto"  # prompts per generated batch
    max_new_tokens: int = 128
    databases: int = 32  # generated databases to execute an answer on that differs from the gold one
    extract_sql: bool = False  # score the query inside a fence, tags or prose (ftlab.sql.extract)
    rows_dir: Optional[str] = None  # a folder of <group>.sqlite with real rows; answers are executed on them too


@dataclass
class TrackerConfig:
    """Settings that all trackers share. Those of one tracker are under `tracker.NAME`."""

    project: str = "ftlab"
    group: Optional[str] = None
    tags: List[str] = field(default_factory=list)


@dataclass
class SweepConfig:
    """How a sweep searches; read with --multirun only. The search space is in `hydra.sweeper.params` and on the
    command line."""

    study: Optional[str] = None  # its name; null: the sweep file's, or a hash of the overrides
    n_trials: Optional[int] = None  # finished trials to reach, pruned ones included; null: the whole grid, or 20
    sampler: str = "auto"  # auto: grid if every dimension is a list, otherwise tpe
    sampler_seed: int = 0
    pruner: str = "none"
    patience: Optional[int] = None  # rungs without improvement that the pruner tolerates
    warmup_rungs: int = 0  # rungs before the pruner acts
    rung_metric: str = "eval/loss"  # what each validation evaluation reports to the pruner
    objectives: List[str] = field(default_factory=list)  # empty: `objective`; several: a Pareto front
    direction: Any = None  # maximize, minimize or a list of them; null: as the metrics are defined
    seeds: int = 1  # runs of each configuration, with seeds from `seed` on; a trial's value is their mean
    first: List[Any] = field(default_factory=list)  # configurations to run first, each a map of swept keys
    warm_start: Optional[str] = None  # a study over the same space whose finished trials are imported
    vram_limit_gib: Optional[float] = None  # GPU memory of training; configurations forecast to need more are not run
    trial_limit_s: Optional[float] = None  # seconds that a trial may take
    max_failures: int = 5  # failed trials after which the sweep stops
    retries: int = 2  # times that an interrupted trial is resumed
    workers: int = 1
    storage: Optional[str] = None  # a database URL; null: study.db in the study's folder
    heartbeat_s: int = 60  # seconds between a trial's heartbeats to other hosts
    grace_s: int = 180  # seconds without a heartbeat after which other hosts consider a trial dead
    keep_pruned: bool = False  # keep the checkpoints of pruned trials


@dataclass
class ExperimentConfig:
    """A complete experiment. `rules.check` holds for every instance that `compose` returns."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    # TrackerConfig, and a node for each chosen tracker under its name; `trackers.settings` checks their types.
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
    """Whether a dotted key is in the schema or is a setting that a task, source or stage defines
    (`data.options.NAME`)."""
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
