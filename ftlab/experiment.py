"""One experiment, top to bottom: data, base, its scores, adapter, training, scores again, records."""

import importlib.util
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging as transformers_logging

from ftlab import data, models, provenance, trackers, weights
from ftlab.checksums import Checksums, changed
from ftlab.composition import Composition, to_tree
from ftlab.config import ExperimentConfig, check
from ftlab.data import Splits
from ftlab.data.encode import Encoded, EncodedSet, encode, warnings_of
from ftlab.disk import room_for
from ftlab.errors import ConfigError, Pruned, RunDirError, Stopped, WeightsError
from ftlab.evaluate import Scores, Split, check_rows_dir, prediction_rows, scores_of_base
from ftlab.fast.decoder import LOGITS_BYTES, Decoder
from ftlab.fast.flat import Flat
from ftlab.fast.plan import GIB
from ftlab.fast.recognise import adapter_groups, fast_path
from ftlab.fast.step import FastStep
from ftlab.generate import generation_config
from ftlab.launcher import check_launch
from ftlab.report import report, report_finished, report_pruned
from ftlab.run_dir import OWN_ANSWERS, Record, RunDir
from ftlab.shortage import lighter, within_memory
from ftlab.terminal import Terminal
from ftlab.trackers.jsonl import JsonlTracker
from ftlab.train.batches import RowOrder
from ftlab.train.checkpoint import Checkpoint, Checkpoints
from ftlab.train.loop import Metrics, Trainer
from ftlab.train.loss import leaks
from ftlab.train.ranks import Ranks
from ftlab.train.signals import StopSignal
from ftlab.train.step import PlainStep, Step, Switch
from ftlab.versions import versions
from ftlab.vram import BYTES, Meter, batch_bytes, peak_flops
from ftlab.weights import Located

PACKAGES = ("ftlab", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "hydra-core", "wandb")
SHOWN = ("exact_string", "ast_equal", "exec_equal", "valid")  # verdicts in the tracker's table of predictions
Watch = Callable[[Metrics, int], None]  # hears of a validation evaluation: its metrics, its step
PRECISION = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind; `objective` is the validation metric that the configuration names. The summary's
    `status` is finished, or pruned where the run's watch gave it up: the objective is then that of the last
    evaluation."""

    objective: float
    summary: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Trial:
    """A run as one of a sweep's, which chooses by validation scores: the test split is left alone, and so is the base,
    which scores the same in every trial; `evaluations/validation.jsonl` holds the answers on validation. The tracker
    is tagged with how the run ends.

    `watch` hears of each validation evaluation of the training, once: on resuming first of those that lie in
    metrics.jsonl. It may raise `Pruned`, which gives the run up, unless the training is over. `bases` lends the base
    and gets it back. `vram_limit_gib` is what torch may hold of the GPU while it trains; a setting that is estimated to
    need more is not chosen where another can be.
    """

    watch: Watch = lambda metrics, step: None
    bases: models.Bases = field(default_factory=models.Bases)
    vram_limit_gib: float | None = None


def run(
    experiment: ExperimentConfig | Composition, terminal: Terminal | None = None, trial: Trial | None = None
) -> Outcome:
    """Run an experiment, resume it, or report it where its folder holds it finished or pruned.

    Raises:
        InputError: configuration, data, weights or run folder cannot be used.
        TrainingError: training cannot go on; the last good checkpoint stays.
        Stopped: SIGTERM or SIGINT; the same call resumes.
    """
    composition = experiment if isinstance(experiment, Composition) else bare(experiment)
    with RunDir(composition.config.run_dir).claim() as folder:
        folder.check_same(composition.tree, composition.config.force)
        return run_in(folder, composition, terminal or Terminal(), trial)


def run_in(
    folder: RunDir,
    composition: Composition,
    terminal: Terminal,
    trial: Trial | None = None,
    ranks: Ranks | None = None,
) -> Outcome:
    """`run` in a folder that this process has claimed and checked. Of several `ranks` the others `follow`."""
    cfg = composition.config
    finished = None if cfg.force else folder.done(cfg.trainer.max_steps)
    if finished:
        provenance.check_reported(folder, cfg, terminal)
        report_finished(folder, finished, terminal)
        tell_before(folder, trial)
        return Outcome(float(finished["objective"]["value"]), finished, folder.path)
    pruned = None if cfg.force else folder.pruned(composition.tree)
    if pruned:
        provenance.check_reported(folder, cfg, terminal)
        report_pruned(folder, pruned, terminal)
        tell_before(folder, trial)
        return Outcome(float(pruned["objective"]["value"]), pruned, folder.path)
    with (ranks.stop if ranks else StopSignal()).caught() as stop:
        return Experiment(composition, folder, terminal, stop, trial, ranks).run()


def follow(composition: Composition, ranks: Ranks) -> None:
    """The part of every process but the first: quiet, and without records of its own."""
    folder = RunDir(composition.config.run_dir)
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings(action="ignore"):
        Experiment(composition, folder, Terminal(nowhere), ranks.stop, ranks=ranks).follow()


def evaluations(folder: RunDir) -> Iterator[tuple[Metrics, int]]:
    """The validation evaluations that metrics.jsonl holds, each with its step."""
    for row in folder.read_metrics():
        if row.get("eval/loss") is not None:
            yield {key: float(v) for key, v in row.items() if key.startswith("eval/") and v is not None}, row["step"]


def tell_before(folder: RunDir, trial: Trial | None) -> None:
    """A trial that has ended in its folder, but was killed before it said so: its watch hears of it again."""
    if trial is None:
        return
    for metrics, step in evaluations(folder):
        with suppress(Pruned):
            trial.watch(metrics, step)


def bare(cfg: ExperimentConfig) -> Composition:
    """A composition of a configuration made in Python, of which Hydra knows nothing."""
    return Composition(check(cfg), to_tree(cfg), {}, [], set())


@dataclass(frozen=True)
class Prepared:
    """All that is read and checked before weights load."""

    splits: Splits
    train: EncodedSet
    validation: Split
    test: Split
    tokenizer: PreTrainedTokenizerBase
    sources: Record  # hashes of all of it
    notes: list[str]  # what the architecture does otherwise than the configuration says

    def warnings(self, cfg: ExperimentConfig) -> list[str]:
        """What a person should hear of rows that were not taken as they are."""
        sets = {"train": self.train, "validation": self.validation.fitted, "test": self.test.fitted}
        return warnings_of(sets, cfg.data.max_length)


def prepare(cfg: ExperimentConfig) -> Prepared:
    """Read data and tokenizer and check adapter, attention and rows against the architecture.

    Raises:
        InputError: packages, data, tokenizer or module names that do not fit.
    """
    check_packages(cfg)
    check_rows_dir(cfg.eval)
    weights.check_code(cfg.model)
    splits = data.load(cfg.data)
    located = weights.find(cfg.model, what="tokenizer")
    tokenizer = models.load_tokenizer(located, cfg.model.trust_remote_code)
    bare = models.skeleton(located, cfg.model.trust_remote_code)
    notes = models.settled(bare, cfg)
    models.check_adapter(bare, cfg.lora)
    train = encode(splits.train, tokenizer, cfg.data.prompt, cfg.data.max_length, cfg.trainer.loss_on)
    validation = Split("eval", splits.validation, tokenizer, cfg)
    test = Split("test", splits.test, tokenizer, cfg)
    sources = provenance.record(splits, cfg, located.folder)
    rows = [row.input_ids for row in (*train.rows, *validation.encoded, *test.encoded)]
    notes += models.check_rows(bare, tokenizer, rows, [*validation.prompts, *test.prompts], cfg)
    return Prepared(splits, train, validation, test, tokenizer, sources, notes)


def check_packages(cfg: ExperimentConfig) -> None:
    """bitsandbytes must be there where the configuration needs it."""
    if importlib.util.find_spec("bitsandbytes") is not None:
        return
    remedy = "needs the package bitsandbytes: pip install bitsandbytes, or"
    if cfg.quant.load_in_4bit or cfg.quant.load_in_8bit:
        kind = cfg.quant.bnb_4bit_quant_type if cfg.quant.load_in_4bit else "int8"
        raise ConfigError(f"quant={kind} {remedy} choose quant=none")
    if cfg.trainer.optim != "adamw":
        raise ConfigError(f"trainer.optim={cfg.trainer.optim} {remedy} choose trainer.optim=adamw")


class Experiment:
    """One run under way: its parts, its records, and the order of things."""

    def __init__(
        self,
        composition: Composition,
        folder: RunDir,
        terminal: Terminal,
        stop: StopSignal,
        trial: Trial | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.composition, self.cfg = composition, composition.config
        self.folder, self.terminal, self.stop, self.trial = folder, terminal, stop, trial
        self.accelerator = make_accelerator(self.cfg)
        self.meter = Meter(self.accelerator.device)
        self.checkpoints = Checkpoints(folder / "checkpoints", self.cfg.trainer.keep, terminal.warn)
        self.tracker: trackers.Trackers | None = None
        self.began = time.perf_counter()
        self.told: set[int] = set()  # steps of the evaluations that the watch has heard of
        self.begun = False  # whether the folder is this run's
        self.base_before: dict[str, str] = {}  # sha256 of the base's files, in the record of the run that is resumed
        self.checksums: Checksums | None = None  # until they are known
        self.flat = True
        self.decoder: Decoder | None = None  # the model's layers, where the fast path knows them
        self.flops_per_token = 0.0
        self.model: nn.Module | None = None
        self.last: tuple[Scores, int] | None = None  # the last evaluation of the training, and its step
        self.summary = self._first_summary()

    def run(self) -> Outcome:
        """Run to the end; summary.json tells how it ended, whatever happens."""
        quiet()
        try:
            with room_for(f"run_dir={self.folder.path}", self.folder.path):
                return self._run()
        except Pruned as reason:
            return self._give_up(str(reason))
        except BaseException as error:
            self._ended_early(error)
            raise

    def _run(self) -> Outcome:
        cfg = self.cfg
        self.terminal.config(self.composition.tree, self.composition.changed)
        with self._phase("data"), self._at_once(), self.ranks.first_before_others():
            prepared = prepare(cfg)
        self.ranks.agree({"the data's sha256": prepared.splits.sha256})
        self._begin(prepared.sources)
        self._describe(prepared)
        resumed = self.checkpoints.newest()
        self.ranks.of_first(lambda: resumed and resumed.step)
        self._open_tracker(resumed)
        with self._phase("load"), self._at_once():
            located, base = self._load_base(prepared)
        if resumed or self.summary["base"]:
            self._know_base(resumed=True)
        base_scores = None if self.trial else self._base_scores(base, prepared)
        self._know_base()
        with self._within_memory("adapter"), self._at_once():
            self.model = model = self._adapted(base)
        with self.terminal.phase("train"), self.meter.phase("train"), self._within_memory("train"):
            tuned_validation = self._train(model, prepared, resumed)
        tuned = None if self.trial else self._score(model, prepared.test, "evaluate tuned on test")
        self._add_scores("tuned", tuned_validation)
        if tuned:
            self._add_scores("tuned", tuned)
        with self._within_memory("save"):
            self._save_result(model, prepared.tokenizer, located)
        if self.trial:
            best = self.summary["best_step"] if self.cfg.trainer.load_best else None
            self._keep_answers(self.summary["step"] if best is None else best)
            self._return_base()
        return self._finish(prediction_rows(prepared.test, base_scores, tuned) if tuned else [])

    def follow(self) -> None:
        """Train beside the first process, which does everything else.

        Raises:
            RunDirError: the checkpoint that the first process resumes from is not to be seen here.
            ConfigError: the data are others here.
        """
        quiet()
        with self.ranks.first_before_others():
            prepared = prepare(self.cfg)
        self.ranks.agree({"the data's sha256": prepared.splits.sha256})
        step = self.ranks.of_first(lambda: None)
        resumed = None if step is None else self.checkpoints.at(step)
        if step is not None and resumed is None:
            raise RunDirError(
                f"run_dir={self.cfg.run_dir}: process {self.ranks.rank} does not find the checkpoint of step {step}, "
                "from which the first one resumes: choose a run_dir=DIR on a file system that all hosts share"
            )
        with self._within_memory("load"):
            _, base = self._load_base(prepared)
        with self._within_memory("train"):
            self.model = self._adapted(base)
            self._train(self.model, prepared, resumed)

    # --- before training ------------------------------------------------------------------------------------

    def _begin(self, sources: Record) -> None:
        """Data and settings are sound: from here on the folder is written, and what an interrupted run left of
        its base scores is taken up.

        Raises:
            RunDirError: the folder's run was begun on other data.
        """
        unknown = self.folder.check_sources(sources, self.cfg.force)
        if unknown:
            self.terminal.note(
                f"{self.folder.path} holds no hash of {', '.join(unknown)} (it is damaged, or an older ftlab's): "
                "whether anything of it has changed is not known"
            )
        for line in [] if self.cfg.force else self.folder.set_damaged_aside(self.composition.tree):
            self.terminal.warn(line)
        self.folder.begin(self.composition, self.cfg.force, sources)
        self.begun = True
        before = self.folder.summary
        self.base_before = before.get("model", {}).get("sha256", {})
        self.summary |= {
            "started": before.get("started") or self.summary["started"],
            "base": before.get("base", {}),
            "intervals": {"base": before.get("intervals", {}).get("base", {}), "tuned": {}},
            "tracker_id": before.get("tracker_id"),
        }

    def _first_summary(self) -> dict[str, Any]:
        return {
            "status": "running",
            "run_name": self.cfg.run_name,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "objective": {"name": self.cfg.objective, "value": None},
            "base": {},
            "tuned": {},
            "intervals": {"base": {}, "tuned": {}},
            "tracker_id": None,
            "seconds": {},
            "vram": {},
            "versions": versions(PACKAGES),
            "device": device_name(self.accelerator.device),
        }

    def _describe(self, prepared: Prepared) -> None:
        splits, train = prepared.splits, prepared.train
        for note in (*splits.notes, *prepared.notes):
            self.terminal.note(note)
        for warning in prepared.warnings(self.cfg):
            self.terminal.warn(warning)
        self.summary |= {"data_sha256": splits.sha256, "sources": prepared.sources}
        self.summary["data"] = {
            "train_rows": len(train.rows),
            "validation_rows": len(prepared.validation.rows),
            "test_rows": len(prepared.test.rows),
            "truncated": train.truncated,
            "dropped": train.dropped,
            "validation_truncated": prepared.validation.fitted.truncated,
            "validation_dropped": prepared.validation.fitted.dropped,
            "test_truncated": prepared.test.fitted.truncated,
            "test_dropped": prepared.test.fitted.dropped,
        }

    def _open_tracker(self, resumed: Checkpoint | None) -> None:
        jsonl = JsonlTracker(self.folder / "metrics.jsonl")
        damaged = jsonl.truncate(resumed.step if resumed else -1)
        if damaged:
            self.terminal.warn(damaged)
        config = {**self.composition.tree, "data_sha256": self.summary["data_sha256"]}
        tracker = trackers.open(
            self.cfg.tracker,
            self.folder.path,
            self.cfg.run_name,
            config,
            self.summary["tracker_id"],
            self.terminal.warn,
        )
        self.tracker = trackers.Trackers(jsonl, tracker)
        self.summary["tracker_id"] = tracker.id
        self.folder.write_summary(self.summary)

    def _load_base(self, prepared: Prepared) -> tuple[Located, PreTrainedModel]:
        cfg = self.cfg
        with self.ranks.first_before_others():
            located = weights.find(cfg.model)
        self.checksums = Checksums(weights.base_files(located.folder)) if self.ranks.rank == 0 else None
        device = self.accelerator.device
        load = partial(self._loaded, located)
        base = self.trial.bases.take(self._base_key(located), load) if self.trial else load()
        self.summary["model"] = {
            "id": cfg.model.id,
            "revision": located.revision,
            "origin": located.origin,
            "sha256": self.base_before,
        }
        with self.accelerator.autocast():
            models.check_runs(base, cfg.model.id, cfg.quant)
            self.flat = not models.carries_state(base) and not leaks(base, prepared.train.rows, device)
        self.decoder = self._recognised(base)
        return located, base

    def _know_base(self, resumed: bool = False) -> None:
        """Put the hashes of the base's files on record, which has gone on beside the load; what is `resumed`, scores or
        training, must be of the same files.

        Raises:
            RunDirError: names the files that have changed.
            WeightsError: a file is gone.
        """
        if self.checksums is None:
            return
        try:
            found = self.checksums.result()
        except OSError as error:
            raise WeightsError(f"model.id={self.cfg.model.id}: its files cannot be read any more ({error})") from None
        differ = changed(self.base_before, found) if resumed else []
        if differ and self.base_before:
            raise RunDirError(
                f"run_dir={self.cfg.run_dir}: the base model.id={self.cfg.model.id} has changed since the run began "
                f"({', '.join(differ)}): put its old files back, choose another run_dir=DIR, or begin anew with "
                "force=true"
            )
        if differ:
            self.terminal.note("the run's record has no hash of its base: whether that has changed is not known")
        self.summary["model"]["sha256"] = found
        self.checksums = None

    def _recognised(self, model: nn.Module) -> Decoder | None:
        """The model's layers for the fast path, or None, with one line that says why."""
        decoder, reason = fast_path(model, self.accelerator.autocast)
        if reason:
            self.terminal.note(f"slower path, {reason}")
        return decoder

    def _loaded(self, located: Located) -> PreTrainedModel:
        cfg = self.cfg
        return models.load_base(located, cfg.model, cfg.quant, device=self.accelerator.device, full=cfg.lora.r == 0)

    def _base_key(self, located: Located) -> str:
        cfg = self.cfg
        return models.base_key(located, cfg.model, cfg.quant, cfg.lora.r == 0, str(self.accelerator.device))

    def _return_base(self) -> None:
        """The model is no longer needed; its base may serve the next trial."""
        model, self.model = self.model, None
        if self.trial and model and models.leaves_base(self.cfg.lora):
            self.trial.bases.give_back(model)

    def _base_scores(self, base: PreTrainedModel, prepared: Prepared) -> Scores:
        """The base's answers on test and their verdicts; those of an interrupted run are used again."""
        rows = self.folder.read_rows("predictions.jsonl")
        written, known = scores_of_base(rows), self.summary["base"]
        ids = [row.get("id") for row in rows]
        if written and ids == [row.id for row in prepared.test.rows] and "test/loss" in known and "eval/loss" in known:
            return written
        for split in (prepared.validation, prepared.test):
            scores = self._score(base, split, f"evaluate base on {split.title}")
            self._add_scores("base", scores)
        self._know_base()
        self.folder.write_rows("predictions.jsonl", prediction_rows(prepared.test, scores, None))
        self.folder.write_summary(self.summary)
        return scores

    def _adapted(self, base: PreTrainedModel) -> nn.Module:
        """The base in its adapter, or the base itself where all weights are trained."""
        set_seed(self.cfg.seed)
        model: nn.Module = models.add_adapter(base, self.cfg.lora) if self.cfg.lora.r else base
        trainable, total = models.count(model)
        self.summary |= {"trainable_parameters": trainable, "parameters": total}
        self.flops_per_token = flops_per_token(base, total, self.cfg)
        if self.decoder:
            self.decoder = self._recognised(model)
        if not self.flat and not self.decoder:  # the fast path keeps rows apart itself
            why = "LLM.int8() rounds by batch" if self.cfg.quant.load_in_8bit else "this architecture mixes rows"
            self.terminal.warn(f"rows of a flat batch would see each other ({why}): one row a forward pass")
        if models.adapts_tied_weights(base, model):
            self.terminal.warn(
                "the output layer shares its weights with the embedding; the adapter changes one of them"
            )
        self.terminal.note(f"{trainable:,} of {total:,} parameters are trained ({100 * trainable / total:.2f} %)")
        return model

    # --- training and evaluation ------------------------------------------------------------------------------

    def _train(self, model: nn.Module, prepared: Prepared, resumed: Checkpoint | None) -> Scores:
        """Train; the validation scores of the weights that are left in the model."""
        step = self._step(model, prepared.train.rows)
        trainer = Trainer(
            model,
            prepared.train.rows,
            self.cfg,
            step=step,
            accelerator=self.accelerator,
            checkpoints=self.checkpoints,
            evaluate=lambda step: self._validate(model, prepared.validation, step),
            record=self._record,
            note=self.terminal.note,
            stop=self.stop,
            trace=self.folder / "profile" / "trace.json",
            ranks=self.ranks,
        )
        if not self.ranks.alone:
            self.terminal.note(f"{self.ranks.world} processes share the rows of each step")
            self.summary["processes"] = self.ranks.world
        if resumed:
            trainer.restore(resumed)
            self.terminal.note(f"resumed from step {resumed.step} of {trainer.plan.steps}")
        self.summary["planned_steps"] = trainer.plan.steps
        self._tell_again()
        if 0 < trainer.plan.steps <= self.cfg.trainer.warmup_steps:
            self.terminal.warn(
                f"trainer.warmup_steps={self.cfg.trainer.warmup_steps:g} covers all {trainer.plan.steps} steps: "
                f"the learning rate never reaches trainer.lr={self.cfg.trainer.lr:g}"
            )
        with self.terminal.progress(trainer.plan.steps, trainer.progress.step) as self.bar, self._recorded(step):
            progress = trainer.train()
        self.summary["seconds"]["train"] = round(progress.seconds, 3)
        self.summary |= {"step": progress.step, "best_step": progress.best, "epochs": trainer.plan.epochs}
        return Scores(progress.metrics, progress.intervals)

    def _step(self, model: nn.Module, rows: list[Encoded]) -> Step:
        """The fast step where the model is known to it, else the plain one.

        Raises:
            ConfigError: activation checkpointing of a model that cannot do it.
        """
        cfg = self.cfg
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        flat = Flat(adapter_groups(model)) if cfg.lora.r and Flat.fits(trained) else None
        trainer = replace(cfg.trainer, global_batch_size=self.ranks.most(cfg.trainer.global_batch_size))
        dropout = cfg.lora.lora_dropout > 0
        need = partial(batch_bytes, model.config, BYTES[cfg.model.dtype], dropout=dropout)
        limit = self.trial.vram_limit_gib * GIB if self.trial and self.trial.vram_limit_gib else math.inf
        if self.decoder is not None and flat is not None:
            longest = max(row.tokens for row in rows)
            in_parts = partial(need, logits=LOGITS_BYTES)
            step: Step = FastStep(self.decoder, flat, trainer, longest=longest, need=in_parts, limit=limit)
        else:
            step = PlainStep(
                model,
                trainer,
                self.accelerator,
                flat,
                need=need,
                together=self.flat,
                checkpoint=self._checkpointing(model),
                limit=limit,
            )
        self._tell_unused(step)
        return step

    def _checkpointing(self, model: nn.Module) -> Switch | None:
        """What switches the model's activation checkpointing, where it has one."""
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        if getattr(base, "supports_gradient_checkpointing", False):
            return partial(models.switch_activation_checkpointing, base)
        if self.cfg.trainer.activation_checkpointing is True:
            raise ConfigError(
                f"trainer.activation_checkpointing=true: {type(base).__name__} cannot compute its layers twice; "
                "leave it at auto"
            )
        return None

    def _tell_unused(self, step: Step) -> None:
        """One line where the configuration asks for weights held unpacked, and there is nothing to unpack or no way to
        hold it."""
        if self.cfg.trainer.weight_cache is not True or step.keeps_unpacked:
            return
        why = "the slower path unpacks 4-bit weights at each product"
        if not self.cfg.quant.load_in_4bit:
            why = "the base has no 4-bit weights (quant=nf4 or quant=fp4 makes them)"
        self.terminal.warn(f"trainer.weight_cache=true changes nothing: {why}")

    @contextmanager
    def _recorded(self, step: Step) -> Iterator[None]:
        """The summary tells how rows went through the model, also of a run that ends early."""
        try:
            yield
        finally:
            self.summary["setting"] = asdict(step.setting) | {"ran_out": step.chooser.ran_out}

    def _record(self, metrics: Metrics, step: int) -> None:
        limit = (peak_flops(self.accelerator.device) or 0) * self.ranks.world
        if limit and "perf/tokens_per_second" in metrics:
            metrics = {
                **metrics,
                "perf/mfu": metrics["perf/tokens_per_second"] * self.flops_per_token / limit,
            }
        metrics = {**metrics, **self.meter.metrics()}
        self.bar.update(step, metrics)
        self._log(metrics, step)

    def _log(self, metrics: Metrics, step: int) -> None:
        if self.tracker:
            self.tracker.log(metrics, step)

    def _validate(self, model: nn.Module, split: Split, step: int) -> Scores:
        with self.meter.phase("eval"), self._clock("eval"), self._within_memory("evaluate on validation"):
            scores = split.score(model, self.decoder, self.accelerator, self.flat, self._heed_stop, self.terminal.warn)
        self.bar.update(step, scores.metrics)
        self._log(scores.metrics, step)
        self.last = scores, step
        if self.trial:
            (self.folder / "evaluations").mkdir(exist_ok=True)
            self.folder.write_rows(_answers(step), prediction_rows(split, None, scores))
        self._tell(scores.metrics, step)
        return scores

    def _tell(self, metrics: Metrics, step: int) -> None:
        """The watch hears of an evaluation; once training is over there is nothing left to give up. A loss that is
        no number is no score: training ends with its own error."""
        if self.trial is None or step in self.told or not math.isfinite(metrics["eval/loss"]):
            return
        self.told.add(step)
        with suppress(Pruned) if step >= self.summary["planned_steps"] else nullcontext():
            self.trial.watch(metrics, step)

    def _tell_again(self) -> None:
        """The watch of a resumed run hears first of the evaluations before, which it did not end."""
        for metrics, step in evaluations(self.folder) if self.trial else ():
            with suppress(Pruned):
                self._tell(metrics, step)

    def _score(self, model: nn.Module, split: Split, phase: str) -> Scores:
        with self._phase(phase), self.terminal.progress(len(split.rows), what="evaluate") as bar:

            def on_rows(done: int) -> None:
                bar.update(done, {})
                self._heed_stop(done)

            return split.score(model, self.decoder, self.accelerator, self.flat, on_rows, self.terminal.warn)

    def _at_once(self) -> AbstractContextManager[None]:
        """Where a signal need not wait; of several processes none may leave a meeting before its end."""
        return self.stop.at_once() if self.ranks.alone else nullcontext()

    def _heed_stop(self, done: int) -> None:
        if self.stop:
            raise Stopped(f"{self.stop.name}: stopped during an evaluation")

    # --- records --------------------------------------------------------------------------------------------

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A part of the run with its seconds and its memory peaks."""
        kind = "eval" if name.startswith("evaluate") else name
        with self.terminal.phase(name), self.meter.phase(kind), self._clock(kind), self._within_memory(name):
            yield

    def _within_memory(self, phase: str) -> AbstractContextManager[None]:
        return within_memory(phase, *lighter(self.cfg, phase))

    @contextmanager
    def _clock(self, kind: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.summary["seconds"]
            seconds[kind] = round(seconds.get(kind, 0.0) + time.perf_counter() - started, 3)

    def _add_scores(self, column: str, scores: Scores) -> None:
        self.summary[column] = {**self.summary[column], **scores.metrics}
        self.summary["intervals"][column] = {**self.summary["intervals"][column], **scores.intervals}

    def _save_result(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, located: Located) -> None:
        """adapter/ (or model/), whole or absent."""
        name = "adapter" if self.cfg.lora.r else "model"
        aside = self.folder / f"{name}.part"
        shutil.rmtree(aside, ignore_errors=True)
        needed = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        with room_for(f"{self.folder.path / name}", self.folder.path, needed):
            models.save_result(model, aside, self.cfg.model.id)
        prompt = {"template": self.cfg.data.prompt, "max_length": self.cfg.data.max_length}
        generation = generation_config(tokenizer, self.cfg.eval.max_new_tokens)
        models.save_beside(aside, tokenizer, prompt, generation, model_card(self.cfg, self.summary, located))
        shutil.rmtree(self.folder / name, ignore_errors=True)
        aside.rename(self.folder / name)

    def _finish(self, rows: list[dict[str, Any]]) -> Outcome:
        folder, summary = self.folder, self.summary
        value = summary["tuned"][self.cfg.objective]
        step = int(summary["step"])
        if not self.trial:
            folder.write_rows("predictions.jsonl", rows)
            self._log({key: v for key, v in summary["tuned"].items() if key.startswith("test/")}, step)
        summary |= {
            "status": "finished",
            "objective": {"name": self.cfg.objective, "value": value},
            "vram": self.meter.peaks,
        }
        summary["seconds"]["total"] = round(time.perf_counter() - self.began, 3)
        self._tell_lost_terminal()
        line = self._close_tracker(rows, step)
        folder.write_summary(summary)
        report(folder, summary, self.terminal, line)
        return Outcome(float(value), summary, folder.path)

    def _close_tracker(self, rows: list[dict[str, Any]], step: int) -> str | None:
        if self.tracker is None:
            return None
        columns = ["question", "gold", "base_pred", "pred", *SHOWN, *(f"base_{name}" for name in SHOWN), "reason"]
        if not self.trial:
            self.tracker.table("predictions", columns, [[row[c] for c in columns] for row in rows], step)
        numbers = {f"base/{key}": value for key, value in self.summary["base"].items()}
        kept = ("trainable_parameters", "parameters", "data_sha256", "model", "seconds", "vram", "objective")
        self.tracker.summary({**numbers, **self.summary["tuned"], **{key: self.summary[key] for key in kept}})
        self._tag()
        return self.tracker.close()

    def _tell_lost_terminal(self) -> None:
        if self.terminal.lost:
            self.summary["terminal"] = f"lost while the run went on: {self.terminal.lost}"

    def _tag(self) -> None:
        """How a trial ends, as a tag; one that was stopped has not ended."""
        status = self.summary["status"]
        if self.trial and self.tracker and status != "stopped":
            self.tracker.tag(status)

    def _keep_answers(self, step: int) -> None:
        """A trial's answers on validation, those of the weights that are kept, for `compare` and the report."""
        kept = self.folder / _answers(step)
        if kept.is_file():
            kept.replace(self.folder / "evaluations" / OWN_ANSWERS)
        for other in (self.folder / "evaluations").glob("step-*.jsonl"):
            other.unlink()

    def _give_up(self, reason: str) -> Outcome:
        """Record a pruned run, and remove what only a run that goes on would need."""
        if self.last is None:
            raise RuntimeError("a run was pruned before its first evaluation")
        scores, step = self.last
        value = scores.metrics[self.cfg.objective]
        self.summary |= {
            "status": "pruned",
            "reason": reason,
            "tuned": scores.metrics,
            "intervals": {"base": {}, "tuned": scores.intervals},
            "objective": {"name": self.cfg.objective, "value": value},
            "step": step,
            "vram": self.meter.peaks,
        }
        self.summary["seconds"]["total"] = round(time.perf_counter() - self.began, 3)
        line = self._close_tracker([], step)
        self.folder.write_summary(self.summary)
        if not self.cfg.sweep.keep_pruned:
            shutil.rmtree(self.checkpoints.folder, ignore_errors=True)
        self._keep_answers(step)
        self._return_base()
        report_pruned(self.folder, self.summary, self.terminal)
        if line:
            self.terminal.note(line)
        return Outcome(float(value), self.summary, self.folder.path)

    def _ended_early(self, error: BaseException) -> None:
        stopped = isinstance(error, Stopped)
        self.summary |= {
            "status": "stopped" if stopped else "failed",
            "error": f"{type(error).__name__}: {error}",
            "vram": self.meter.peaks,
        }
        self._tell_lost_terminal()
        with suppress(OSError):  # on a full disk the error under way matters more
            if self.tracker:
                self._tag()
                self.tracker.close(exit_code=getattr(error, "exit_code", 1))
        with suppress(OSError):
            if self.begun:
                self.folder.write_summary(self.summary)


def dry_run(composition: Composition, terminal: Terminal) -> None:
    """Compose, read data, show what training would do; loads no weights and writes nothing."""
    cfg = composition.config
    terminal.config(composition.tree, composition.changed)
    prepared = prepare(cfg)
    for note in (*prepared.splits.notes, *prepared.notes):
        terminal.note(note)
    for warning in prepared.warnings(cfg):
        terminal.warn(warning)
    rows = prepared.train.rows
    trainer = cfg.trainer
    plan = RowOrder.of(len(rows), trainer.global_batch_size, trainer.max_steps, trainer.epochs, cfg.seed)
    lengths = [row.tokens for row in rows]
    trained = sum(row.trained for row in rows)
    mean = sum(lengths) / len(rows)
    located = weights.find(cfg.model, what="tokenizer")
    trainable, total = models.planned_parameters(models.skeleton(located, cfg.model.trust_remote_code), cfg.lora)
    micro = trainer.micro_batch_size
    for line in (
        f"rows        train {len(rows):,} ({prepared.train.truncated} shortened, {prepared.train.dropped} dropped), "
        f"validation {len(prepared.validation.rows):,}, test {len(prepared.test.rows):,}",
        f"tokens      {mean:.0f} a row on average, {max(lengths):,} at most; "
        f"{100 * trained / sum(lengths):.0f} % trained",
        f"batch       {trainer.global_batch_size} rows a step (about {mean * trainer.global_batch_size:,.0f} tokens), "
        f"micro-batch {micro}"
        + ("" if micro == "auto" else f" x {trainer.global_batch_size // int(micro)} accumulated"),
        f"steps       {plan.steps:,} = {plan.epochs:.2f} epochs; evaluation every {cfg.eval.every}, "
        f"checkpoint every {trainer.save_every}",
        f"parameters  {trainable:,} of {total:,} trained",
        f"run_dir     {cfg.run_dir} (not written: dry run)",
    ):
        terminal.note(line)


def model_card(cfg: ExperimentConfig, summary: dict[str, Any], located: Located) -> str:
    """A short card beside the result: what it is, how to ask it, how it scored."""
    tuned, base = summary["tuned"], summary["base"]
    whole = sorted(key for key in tuned if key.count("/") == 1)  # not those by kind of query
    before = {key: f"{base[key]:.4f}" if key in base else "-" for key in whole}  # a trial's base is not scored
    lines = [f"| {key} | {before[key]} | {tuned[key]:.4f} |" for key in whole]
    table = "\n".join(["| metric | base | tuned |", "| --- | --- | --- |", *lines])
    return (
        f"---\nbase_model: {cfg.model.id}\nlibrary_name: {'peft' if cfg.lora.r else 'transformers'}\n---\n\n"
        f"# {cfg.run_name}\n\n{cfg.model.id} (revision {located.revision}) tuned with ftlab on {cfg.data.name} "
        f"(sha256 {summary['data_sha256'][:12]}), {summary['step']} steps of {cfg.trainer.global_batch_size} rows.\n\n"
        f"## Prompt\n\n```\n{cfg.data.prompt}\n```\n\n## Scores\n\n{table}\n"
    )


def _answers(step: int) -> str:
    """Where the answers of one evaluation lie until the trial has ended."""
    return f"evaluations/step-{step:06d}.jsonl"


def quiet() -> None:
    """Keep the libraries' own notices and bars out of ftlab's output."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def make_accelerator(cfg: ExperimentConfig) -> Accelerator:
    """Device and precision; a second run in the same process may use another precision.

    Raises:
        ConfigError: the launcher that started this process asks for what ftlab does not do.
    """
    check_launch(cfg.model.dtype)
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = PRECISION[cfg.model.dtype]
    # Not from the environment: torch.compile's mere name would turn TF32 on.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision, dynamo_backend="no")
    accelerator.gradient_accumulation_steps = 1  # accelerate would take it from the environment and divide gradients
    return accelerator


def load_finished(
    run: Path, cfg: ExperimentConfig, accelerator: Accelerator
) -> tuple[PreTrainedTokenizerBase, nn.Module, Decoder | None, str | None]:
    """Tokenizer and tuned model of a finished run; its decoder for the fast path, or the reason why it has none.

    Raises:
        WeightsError: the folder holds no result, or its base cannot be found.
        TrainingError: too little GPU memory.
    """
    with within_memory("load", *lighter(cfg, "load", trained=True)):
        tokenizer, model = models.load_result(run, cfg, accelerator.device)
        with accelerator.autocast():
            models.check_runs(model, cfg.model.id, cfg.quant)
        return tokenizer, model, *fast_path(model, accelerator.autocast)


def base_differs(summary: Mapping[str, Any], cfg: ExperimentConfig) -> str | None:
    """A line where the base of a finished run is no longer the one that its adapter was trained on."""
    recorded = summary.get("model", {}).get("sha256")
    if not recorded or cfg.lora.r == 0:  # a run that trained all weights holds them itself
        return None
    differ = changed(recorded, Checksums(weights.base_files(weights.find(cfg.model).folder)).result())
    if not differ:
        return None
    return (
        f"the base model.id={cfg.model.id} has changed since the adapter was trained on it ({', '.join(differ)}): its "
        "answers are not the run's; put its old files back, or train again"
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x {torch.get_num_threads()}"


def flops_per_token(base: PreTrainedModel, parameters: int, cfg: ExperimentConfig) -> float:
    """Floating-point operations a token: 2 N forward, 2 N for the gradients of activations, 2 N for those of
    weights where all are trained, 2 N for a second forward under activation checkpointing. An untied embedding
    table does no arithmetic."""
    embedding = base.get_input_embeddings().weight
    if not base.config.tie_word_embeddings:
        parameters -= embedding.numel()
    passes = 2 + (cfg.lora.r == 0) + (cfg.trainer.activation_checkpointing is True)
    return 2.0 * parameters * passes
