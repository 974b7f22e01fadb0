"""python -m ftlab eval run=DIR [data=OPTION] [KEY=VALUE ...]: score a finished run again.

run=DIR                a run folder, or the name of one in outputs/
split=validation       the split to score; default: test
data=OPTION            other data than the run's (eval=OPTION and quant=OPTION work in the same way)
eval.batch_size=8 ...  single keys of the configuration; all others are those of the run's config.yaml

Scores and answers are written to evaluations/ in the run folder.
"""

import json
import time
from typing import TYPE_CHECKING, Any

import yaml

from ftlab import config
from ftlab.commands import allowed_code
from ftlab.composition import composed_tree, suggestions, typed_from_tree
from ftlab.config import DataConfig, ExperimentConfig
from ftlab.disk import write_atomic
from ftlab.errors import InputError
from ftlab.out_of_memory import explain_oom, oom_remedies
from ftlab.redact import redact_tree
from ftlab.run_dir import RunDir, differences, find_run, tree_of
from ftlab.summary import Sources, finite

if TYPE_CHECKING:
    from ftlab.terminal import Terminal

GROUPS = ("data", "eval", "quant")
NODES = ("data.", "eval.", "quant.", "model.dtype", "model.attn_implementation", "model.id", "model.revision")


def main(arguments: dict[str, str]) -> int:
    """Score the run, print the scores next to its own, and write them below `evaluations/`.

    Raises:
        InputError: an evaluation does not use a key, or the folder holds no finished run.
        TrainingError: too little GPU memory.
    """
    if "run" not in arguments:
        raise InputError("eval needs a run: python -m ftlab eval run=DIR [data=OPTION] [eval.max_rows=N]")
    arguments = dict(arguments)
    folder = find_run(arguments.pop("run"))
    split = arguments.pop("split", "test")
    if split not in ("test", "validation"):
        raise InputError(f"split={split} must be test or validation")
    cfg = configuration(folder, arguments)
    folder.check_result("adapter" if cfg.lora.r else "model")
    return _evaluate(folder, cfg, split, arguments)


def configuration(folder: RunDir, arguments: dict[str, str]) -> ExperimentConfig:
    """Return the run's configuration after groups are replaced and then keys are set; all values are plain text.

    Raises:
        InputError: an unknown key or value.
    """
    tree, arguments = tree_of(folder), dict(arguments)
    code = allowed_code(arguments)
    for key in [key for key in arguments if key in GROUPS]:
        composed, before = composed_tree(key, arguments[key]), tree.get("data", {}).get("task", DataConfig.task)
        tree[key] = composed[key]
        if tree["data"].get("task", DataConfig.task) != before:  # another task has other metrics
            tree["objective"] = composed["objective"]
    for key, text in arguments.items():
        if key in GROUPS:
            continue
        if not key.startswith(NODES):
            takes = f"It takes run, split, {', '.join(GROUPS)} and keys below data, eval and quant"
            raise InputError(f"{key}={text} has no effect on an evaluation. {takes}")
        if not config.is_key(key):
            raise InputError(f"{key} is not a key of the configuration. Did you mean: {', '.join(suggestions(key))}?")
        _set(tree, key, text)
    return typed_from_tree(tree, code)


def _comparable(folder: RunDir, name: str, sources: Sources, rows: int, terminal: "Terminal") -> dict[str, float]:
    """Return the run's own scores on the split if they are of the same rows; print a note if the split has changed."""
    split = "test" if name == "test" else "validation"
    summary = folder.summary
    found = summary.known_sources
    before = {key: found[key] for key in (split if split in found else "data",) if key in found}
    counted = getattr(summary.data, f"{split}_rows") if summary.data else None
    different = differences(before, sources, "in the run")
    if different:
        terminal.note(f"{different[0]}: the run's own scores are of other rows and not shown")
    if different or not before or counted != rows:
        return {}
    return {key: value for key, value in summary.tuned.items() if key.startswith(f"{name}/")}


def _set(tree: dict[str, Any], key: str, text: str) -> None:
    """Set a key to a value given as text: numbers, true/false and null are read as YAML, anything else as text."""
    *path, last = key.split(".")
    node = tree
    for part in path:
        node = node.setdefault(part, {})  # an older run's record may lack it
        if not isinstance(node, dict):
            raise InputError(
                f"the run's config.yaml is damaged: {part}={node} should hold further keys. Copy it from .hydra/"
            )
    is_text = "str" in str(config.known_keys().get(key)) and key != "data.options" and text != "null"
    node[last] = text if is_text else yaml.safe_load(text)


def _stem(folder: RunDir) -> str:
    """Return the name of a new evaluation's files in the run folder: the time, and a number if that exists already."""
    (folder / "evaluations").mkdir(exist_ok=True)
    name = f"evaluations/{time.strftime('%Y%m%d-%H%M%S')}"
    stems = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(stem for stem in stems if not (folder / f"{stem}.json").exists())


def _evaluate(folder: RunDir, cfg: ExperimentConfig, split: str, arguments: dict[str, str]) -> int:
    from ftlab import data, models, tasks
    from ftlab.data.encode import warnings_of
    from ftlab.evaluate import Split, prediction_rows
    from ftlab.experiment import base_differs, load_finished, make_accelerator, quiet
    from ftlab.provenance import rows_record
    from ftlab.stages.stage import LoadedModel
    from ftlab.terminal import Terminal
    from ftlab.train.loss import rows_interact

    quiet()
    task = tasks.get(cfg.data.task)
    task.check_files(cfg)
    terminal = Terminal()
    splits = data.load(cfg.data, task)
    accelerator = make_accelerator(cfg)
    with terminal.phase("load"):
        tokenizer, model, decoder, reason = load_finished(folder.path, cfg, accelerator)
    if differs := base_differs(folder.base_sha256, cfg):
        terminal.warn(differs)
    if reason:
        terminal.note(f"slower path, {reason}")
    name = "test" if split == "test" else "eval"
    scored = Split(name, splits.test if split == "test" else splits.validation, tokenizer, cfg)
    for warning in warnings_of({split: scored.fitted}, cfg.data.max_length):
        terminal.warn(warning)
    rows = [row.input_ids for row in scored.encoded]
    for line in models.check_rows(model, tokenizer, rows, scored.prompts, cfg):
        terminal.note(line)
    with accelerator.autocast():
        flat = not models.carries_state(model) and not rows_interact(model, scored.encoded, accelerator.device)
    loaded = LoadedModel(model, decoder, accelerator, flat)
    memory = explain_oom("evaluate", *oom_remedies(cfg, "evaluate", trained=True))
    with terminal.phase("evaluate"), memory, terminal.progress(len(scored.rows), what="evaluate") as bar:
        scores = scored.score(loaded, lambda done: bar.update(done, {}), terminal.warn)
    before = _comparable(folder, name, rows_record(splits), len(scored.rows), terminal)
    terminal.scores(before, scores.metrics, {"tuned": scores.intervals}, columns=("run", "now"))
    stem = _stem(folder)
    record = {
        "written": time.time(),
        "step": folder.summary.step,
        "arguments": arguments,
        "metrics": scores.metrics,
        "intervals": scores.intervals,
        "rows": len(scored.rows),
        "data": cfg.data.name,
        "data_sha256": splits.sha256,
    }
    write_atomic(folder / f"{stem}.json", json.dumps(finite(redact_tree(record)), indent=2) + "\n")
    folder.write_rows(f"{stem}.jsonl", prediction_rows(scored, None, scores))
    terminal.note(f"written: {folder / stem}.json (scores) and .jsonl (answers)")
    return 0
