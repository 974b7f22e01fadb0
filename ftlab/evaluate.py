"""Scoring a model on a split: the loss of the gold answers, and the SQL it writes itself."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from ftlab import sql
from ftlab.config import ExperimentConfig
from ftlab.data import Example
from ftlab.data.encode import Encoded, encode
from ftlab.data.prompts import prompt_ids
from ftlab.generate import generate
from ftlab.train.loss import mean_loss

# Rows of this many tokens go through the model together when only their loss is wanted.
LOSS_TOKENS = 4096


@dataclass(frozen=True)
class Scores:
    """`metrics` by key, `intervals` (95 %) of the rates among them, and the `answers`, one a row."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    answers: list[str]


def score_answers(prefix: str, golds: list[str], answers: list[str]) -> Scores:
    """The SQL scores of answers already written, as `<prefix>/sql_…`. The headline `sql_exact_match` is the
    strict string match."""
    hits = sum(sql.exact_string(gold, answer) for gold, answer in zip(golds, answers, strict=True))
    rate = hits / max(1, len(golds))
    keys = (f"{prefix}/sql_string_match", f"{prefix}/sql_exact_match")
    interval = sql.wilson(hits, len(golds))
    return Scores(dict.fromkeys(keys, rate), dict.fromkeys(keys, interval), answers)


class Split:
    """The rows of a split that are scored, tokenised once. `name` prefixes its metrics: eval or test."""

    def __init__(self, name: str, rows: list[Example], tokenizer: PreTrainedTokenizerBase, cfg: ExperimentConfig):
        self.name, self.title = name, "validation" if name == "eval" else name
        self.rows = subset(rows, cfg.eval.max_rows, cfg.data.split_seed)
        self.golds = [row.answer for row in self.rows]
        self.prompts = [prompt_ids(tokenizer, cfg.data.prompt, row.question, row.context) for row in self.rows]
        self.encoded: list[Encoded] = encode(
            self.rows, tokenizer, cfg.data.prompt, cfg.data.max_length, cfg.trainer.loss_on
        ).rows
        self.tokenizer, self.cfg = tokenizer, cfg

    def score(self, model: nn.Module, accelerator: Accelerator, flat: bool, on_rows: Callable[[int], None]) -> Scores:
        """Generate an answer to every row and measure the gold answers' loss.

        The loss is the mean over trained tokens (`trainer.loss_on`), in nats.
        """
        with accelerator.autocast():
            loss = mean_loss(model, self.encoded, LOSS_TOKENS, accelerator.device, flat)
            answers = generate(
                model,
                self.tokenizer,
                self.prompts,
                max_new_tokens=self.cfg.eval.max_new_tokens,
                batch_size=self.cfg.eval.batch_size,
                on_batch=on_rows,
            )
        scores = score_answers(self.name, self.golds, answers)
        return Scores({**scores.metrics, f"{self.name}/loss": loss}, scores.intervals, answers)


def subset(rows: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` rows, drawn evenly from the whole split and kept in its order."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def prediction_rows(split: Split, base: list[str] | None, tuned: list[str] | None) -> list[dict[str, Any]]:
    """One row an example: `pred` is the tuned answer, `base_pred` the base's; null where there is none."""
    nothing = [None] * len(split.rows)
    return [
        {
            "id": row.id,
            "split": split.name,
            "question": row.question,
            "context": row.context,
            "gold": row.answer,
            "base_pred": base_answer,
            "pred": answer,
            "base_exact_string": sql.exact_string(row.answer, base_answer),
            "exact_string": sql.exact_string(row.answer, answer),
        }
        for row, base_answer, answer in zip(split.rows, base or nothing, tuned or nothing, strict=True)
    ]
