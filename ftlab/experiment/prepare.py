"""Everything that is read and checked before weights load."""

import importlib.util
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftlab import data, models, provenance, stages, tasks, weights
from ftlab.config import ExperimentConfig
from ftlab.data import Splits
from ftlab.data.encode import EncodedSet, refuse_empty, warnings_of
from ftlab.errors import ConfigError
from ftlab.evaluate import Split
from ftlab.summary import RowCounts, Sources


@dataclass(frozen=True)
class Prepared:
    """The tokenized rows of a run, with its tokenizer and the hashes of what they were made from."""

    splits: Splits
    train: EncodedSet[Any]  # the samples that the stage makes of the training rows
    validation: Split
    test: Split
    tokenizer: PreTrainedTokenizerBase
    sources: Sources
    notes: list[str]  # where the architecture requires something else than the configuration says

    def warnings(self, cfg: ExperimentConfig) -> list[str]:
        """Return warnings about rows that were truncated, dropped or not encoded as plain text."""
        sets = {"train": self.train, "validation": self.validation.fitted, "test": self.test.fitted}
        return warnings_of(sets, cfg.data.max_length)

    @property
    def counts(self) -> RowCounts:
        """The numbers of rows, and of those that were truncated or dropped."""
        return RowCounts(
            train_rows=len(self.train.rows),
            validation_rows=len(self.validation.rows),
            test_rows=len(self.test.rows),
            truncated=self.train.truncated,
            dropped=self.train.dropped,
            validation_truncated=self.validation.fitted.truncated,
            validation_dropped=self.validation.fitted.dropped,
            test_truncated=self.test.fitted.truncated,
            test_dropped=self.test.fitted.dropped,
        )


def prepare(cfg: ExperimentConfig) -> Prepared:
    """Read data and tokenizer, and check adapter, attention and rows against the architecture.

    Raises:
        InputError: packages, data, tokenizer or module names cannot be used.
    """
    check_packages(cfg)
    task = tasks.get(cfg.data.task)
    task.check_files(cfg)
    weights.check_code(cfg.model)
    splits = data.load(cfg.data, task)
    located = weights.find(cfg.model, what="tokenizer")
    tokenizer = models.load_tokenizer(located, cfg.model.trust_remote_code)
    bare = models.skeleton(located, cfg.model.trust_remote_code)
    notes = models.check_settings(bare, cfg)
    models.check_adapter(bare, cfg.lora)
    tokens = task.render(splits.train, tokenizer, cfg.data)
    train = stages.get(cfg.trainer.stage).encode(tokens, cfg)
    refuse_empty(train, tokens, cfg.data.max_length)
    validation = Split("eval", splits.validation, tokenizer, cfg)
    test = Split("test", splits.test, tokenizer, cfg)
    sources = provenance.record(splits, cfg, located.folder)
    rows = [row.input_ids for row in (*train.encoded, *validation.encoded, *test.encoded)]
    notes += models.check_rows(bare, tokenizer, rows, [*validation.prompts, *test.prompts], cfg)
    return Prepared(splits, train, validation, test, tokenizer, sources, notes)


def check_packages(cfg: ExperimentConfig) -> None:
    """Check that bitsandbytes is installed if the configuration needs it.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is not None:
        return
    remedy = "needs the package bitsandbytes: pip install bitsandbytes, or"
    if cfg.quant.load_in_4bit or cfg.quant.load_in_8bit:
        kind = cfg.quant.bnb_4bit_quant_type if cfg.quant.load_in_4bit else "int8"
        raise ConfigError(f"quant={kind} {remedy} choose quant=none")
    if cfg.trainer.optim != "adamw":
        raise ConfigError(f"trainer.optim={cfg.trainer.optim} {remedy} choose trainer.optim=adamw")
