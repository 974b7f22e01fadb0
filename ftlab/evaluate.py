"""Scoring a model on a split: the loss of the gold answers, and generated answers, which the task judges."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from ftlab import stages, tasks
from ftlab.config import EvalConfig, ExperimentConfig
from ftlab.data import Example
from ftlab.data.encode import Encoded, refuse_empty
from ftlab.errors import FtlabError
from ftlab.fast import scoring
from ftlab.fast.decoder import Decoder
from ftlab.generate import decoded, generate, greedy
from ftlab.stages.stage import LoadedModel
from ftlab.tasks import Judgement, Task

# Prompts answered at a time if `eval.batch_size` is auto, on the slower path and on the fast path.
PLAIN_BATCH = 32
FAST_BATCH = {"cuda": 256, "cpu": 128}


@dataclass(frozen=True)
class Scores:
    """`metrics` by key, the `intervals` (95 %) of rates among them, and `answers` and `judgements`, one per row."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    answers: list[str] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)


def score_answers(task: Task, prefix: str, answers: list[str], judgements: list[Judgement]) -> Scores:
    """Return the scores of judged answers: the task's metrics, with the key prefix `prefix` (eval, test)."""
    return Scores(*task.score(prefix, judgements), answers, judgements)


class Split:
    """The scored rows of a split, tokenised once. `name` (eval or test) is the prefix of its metrics. `fitted` are the
    stage's samples of the rows that fit `data.max_length`, with the numbers of the others; `encoded` are the rows of
    these samples."""

    def __init__(self, name: str, rows: list[Example], tokenizer: PreTrainedTokenizerBase, cfg: ExperimentConfig):
        self.name, self.title = name, "validation" if name == "eval" else name
        self.task = tasks.get(cfg.data.task)
        self.rows = subset(rows, cfg.eval.max_rows, cfg.data.split_seed)
        tokens = self.task.render(self.rows, tokenizer, cfg.data)
        self.prompts = [row.prompt for row in tokens]  # never truncated to data.max_length
        self.stage = stages.get(cfg.trainer.stage)
        self.fitted = self.stage.encode(tokens, cfg)
        refuse_empty(self.fitted, tokens, cfg.data.max_length, self.title)
        self.encoded: list[Encoded] = self.fitted.encoded
        self.tokenizer, self.cfg = tokenizer, cfg

    def score(
        self,
        loaded: LoadedModel,
        on_rows: Callable[[int], None],
        note: Callable[[str], None] = lambda line: None,
    ) -> Scores:
        """Compute the stage's metrics and, if the stage needs answers, generate an answer to every row and judge it.

        `on_rows` is called with the number of answered rows, after each batch and again before each judgement; an
        exception that it raises ends the scoring. `note` is called with a line if rows cannot be answered as
        configured.
        """
        with ready(loaded.model, loaded.decoder, loaded.accelerator) as fast:
            found = self.stage.evaluate(replace(loaded, decoder=fast), self.fitted.rows, self.cfg)
            measured = {f"{self.name}/{name}": value for name, value in found.items()}
            if not self.stage.answers:
                return Scores(measured, {})
            answers = answer(loaded.model, fast, self.tokenizer, self.prompts, self.cfg.eval, on_rows, note)
        judgements = self.task.judge(self.rows, answers, self.cfg, lambda: on_rows(len(answers)))
        if len(judgements) != len(answers):  # a task of another package may leave some out
            raise FtlabError(
                f"data.task={self.task.name} gave {len(judgements)} judgements of {len(answers)} answers: its method "
                "`judge` must give one of each answer, in order"
            )
        scores = score_answers(self.task, self.name, answers, judgements)
        return replace(scores, metrics={**scores.metrics, **measured})


@contextmanager
def ready(model: nn.Module, decoder: Decoder | None, accelerator: Accelerator) -> Iterator[Decoder | None]:
    """Prepare the model for `answer`, and yield its decoder with the adapters' current values. If it has no decoder, or
    its own generation settings change greedy decoding, yield None in the precision of the model's own forward pass."""
    fast = decoder if greedy(model) else None
    with scoring.ready(fast) if fast else accelerator.autocast():
        yield fast


def answer(
    model: nn.Module,
    decoder: Decoder | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    cfg: EvalConfig,
    on_rows: Callable[[int], None] = lambda done: None,
    note: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Return the model's answer to each prompt: from the fast path if there is a `decoder`, else from the model's own
    generation. The caller has prepared the decoder or the precision: see `ready`."""
    size = None if cfg.batch_size == "auto" else int(cfg.batch_size)
    if decoder is None:
        return generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=cfg.max_new_tokens,
            batch_size=size or PLAIN_BATCH,
            on_batch=on_rows,
            note=note,
        )
    answers = scoring.answers(
        decoder,
        prompts,
        end=int(tokenizer.eos_token_id),
        max_new_tokens=cfg.max_new_tokens,
        batch_size=size or FAST_BATCH[decoder.device.type],
        on_done=on_rows,
    )
    return [decoded(tokenizer, ids) for ids in answers]


def subset(rows: list[Example], limit: int | None, seed: int) -> list[Example]:
    """Return at most `limit` rows, sampled uniformly from the whole split and kept in its order."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def prediction_rows(split: Split, base: Scores | None, tuned: Scores | None) -> list[dict[str, Any]]:
    """Return one row per example. `pred` is the tuned model's answer, followed by the task's columns of its judgement;
    `base_pred` and `base_…` are those of the base. Values that do not exist are null."""
    return [
        {
            "id": row.id,
            "split": split.name,
            "question": row.question,
            "context": row.context,
            "gold": row.answer,
            "base_pred": base.answers[i] if base and base.answers else None,
            "pred": tuned.answers[i] if tuned and tuned.answers else None,
            **_judgement(split.task, base, i, "base_"),
            **_judgement(split.task, tuned, i, ""),
        }
        for i, row in enumerate(split.rows)
    ]


def _judgement(task: Task, scores: Scores | None, i: int, prefix: str) -> dict[str, Any]:
    record = scores.judgements[i].record if scores and scores.judgements else {}
    return {prefix + name: record[name] if record else None for name in task.recorded}


def scores_of_base(task: Task, rows: list[dict[str, Any]]) -> Scores | None:
    """Return the base's answers and judgements from the rows of an interrupted run; None if a row lacks them."""
    try:
        return Scores({}, {}, [row["base_pred"] for row in rows], [task.read(row, "base_") for row in rows])
    except KeyError:
        return None
