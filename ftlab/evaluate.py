"""Scoring a model on a split: the loss of the gold answers, and the SQL it writes itself."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from ftlab.config import EvalConfig, ExperimentConfig
from ftlab.data import Example
from ftlab.data.encode import Encoded, fit, refuse_nothing, tokenise
from ftlab.errors import ConfigError, TrainingError
from ftlab.fast import scoring
from ftlab.fast.decoder import Decoder
from ftlab.generate import decoded, generate, greedy
from ftlab.sql.extract import extract
from ftlab.sql.rates import RECORDED, Rate, by_bucket, rate, read_back, recorded
from ftlab.sql.real_rows import fault, rows_file
from ftlab.sql.scorer import ScorerError, shared_scorer
from ftlab.sql.verdict import Verdict
from ftlab.train.loss import mean_loss

# Prompts answered at a time where `eval.batch_size` is auto.
PLAIN_BATCH = 32
FAST_BATCH = {"cuda": 256, "cpu": 128}
# Rows of this many tokens go through the model together when only their loss is wanted.
LOSS_TOKENS = 4096

# The metric of each score; the headline is the AST match.
METRICS = {
    "sql_string_match": "exact_string",
    "sql_ast_match": "ast_equal",
    "sql_exact_match": "ast_equal",
    "sql_exec_match": "exec_equal",
    "sql_valid": "valid",
}
BY_BUCKET = ("sql_ast_match", "sql_exec_match")


@dataclass(frozen=True)
class Scores:
    """`metrics` by key, `intervals` (95 %) of the rates among them, and the `answers` and `verdicts`, one a row."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    answers: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


def check_rows_dir(cfg: EvalConfig) -> None:
    """The folder of real rows must be there before anything is scored.

    Raises:
        ConfigError: it is not, or holds no database.
    """
    problem = fault(Path(cfg.rows_dir).expanduser()) if cfg.rows_dir else None
    if problem:
        raise ConfigError(f"eval.rows_dir={cfg.rows_dir} {problem}, or eval.rows_dir=null")


def judge_answers(
    rows: list[Example], answers: list[str], cfg: EvalConfig, on_row: Callable[[], None] = lambda: None
) -> list[Verdict]:
    """The verdict of each answer, on `cfg.databases` databases and those of `cfg.rows_dir`; `on_row` is called
    before each.

    Raises:
        TrainingError: the process that scores cannot be started.
    """
    scorer = shared_scorer()
    scorer.databases = cfg.databases
    folder = Path(cfg.rows_dir).expanduser() if cfg.rows_dir else None
    verdicts = []
    for row, answer in zip(rows, answers, strict=True):
        on_row()
        pred = extract(answer) if cfg.extract_sql else answer
        try:
            verdicts.append(scorer.score(row.answer, pred, row.context, rows_file=rows_file(folder, row.group)))
        except ScorerError as error:
            raise TrainingError(str(error)) from None
    return verdicts


def score_answers(prefix: str, answers: list[str], verdicts: list[Verdict]) -> Scores:
    """Verdicts as `<prefix>/sql_…`: five rates, two of them by kind of gold query too, and counts of golds that say
    nothing of execution. A rate without rows is 0."""
    rates = _rates(prefix, "", verdicts, tuple(METRICS))
    for bucket, mine in by_bucket(verdicts):
        rates |= _rates(prefix, f"/{bucket}", mine, BY_BUCKET)
    counts = {
        f"{prefix}/sql_gold_broken": float(sum(verdict.gold_broken for verdict in verdicts)),
        f"{prefix}/sql_vacuous": float(sum(bool(verdict.vacuous) for verdict in verdicts)),
    }
    metrics = {key: found.value for key, found in rates.items()} | counts
    return Scores(metrics, {key: found.interval for key, found in rates.items()}, answers, verdicts)


def _rates(prefix: str, suffix: str, verdicts: list[Verdict], names: tuple[str, ...]) -> dict[str, Rate]:
    """Rates by key; of a kind of gold query only those that have rows."""
    found = {f"{prefix}/{name}{suffix}": rate(METRICS[name], verdicts) for name in names}
    return {key: one for key, one in found.items() if one.rows or not suffix}


class Split:
    """The rows of a split that are scored, tokenised once. `name` prefixes its metrics: eval or test. `encoded` are the
    rows whose loss is measured, those that `data.max_length` leaves; `fitted` counts the others."""

    def __init__(self, name: str, rows: list[Example], tokenizer: PreTrainedTokenizerBase, cfg: ExperimentConfig):
        self.name, self.title = name, "validation" if name == "eval" else name
        self.rows = subset(rows, cfg.eval.max_rows, cfg.data.split_seed)
        tokens = tokenise(self.rows, tokenizer, cfg.data.prompt)
        self.prompts = [row.prompt for row in tokens]  # answered whole, whatever data.max_length
        self.fitted = fit(tokens, cfg.data.max_length, cfg.trainer.loss_on)
        refuse_nothing(self.fitted, tokens, cfg.data.max_length, self.title)
        self.encoded: list[Encoded] = self.fitted.rows
        self.tokenizer, self.cfg = tokenizer, cfg

    def score(
        self,
        model: nn.Module,
        decoder: Decoder | None,
        accelerator: Accelerator,
        flat: bool,
        on_rows: Callable[[int], None],
        note: Callable[[str], None] = lambda line: None,
    ) -> Scores:
        """Generate an answer to every row, judge it, and measure the gold answers' loss.

        The loss is the mean over trained tokens (`trainer.loss_on`), in nats. `decoder` is the model for the fast path.
        `on_rows` hears how many rows have an answer, after each batch and again before each verdict; what it raises
        ends the scoring. `note` is given a line where rows cannot be answered as configured.
        """
        with ready(model, decoder, accelerator) as fast:
            if fast:
                loss = scoring.mean_loss(fast, self.encoded)
            else:
                loss = mean_loss(model, self.encoded, LOSS_TOKENS, accelerator.device, flat)
            answers = answer(model, fast, self.tokenizer, self.prompts, self.cfg.eval, on_rows, note)
        verdicts = judge_answers(self.rows, answers, self.cfg.eval, lambda: on_rows(len(answers)))
        scores = score_answers(self.name, answers, verdicts)
        return replace(scores, metrics={**scores.metrics, f"{self.name}/loss": loss})


@contextmanager
def ready(model: nn.Module, decoder: Decoder | None, accelerator: Accelerator) -> Iterator[Decoder | None]:
    """The model as `answer` takes it: its decoder with the adapters' present values, or None, in the precision of its
    own forward pass, where it has none or would not say the most likely token each time."""
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
    """The model's answer to each prompt: by the fast path where there is a `decoder`, which the caller has made ready,
    else by the model's own generation, in whatever precision the caller has set: see `ready`."""
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
    said = scoring.answers(
        decoder,
        prompts,
        end=int(tokenizer.eos_token_id),
        max_new_tokens=cfg.max_new_tokens,
        batch_size=size or FAST_BATCH[decoder.device.type],
        on_done=on_rows,
    )
    return [decoded(tokenizer, ids) for ids in said]


def subset(rows: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` rows, drawn evenly from the whole split and kept in its order."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def prediction_rows(split: Split, base: Scores | None, tuned: Scores | None) -> list[dict[str, Any]]:
    """One row an example: `pred` is the tuned answer and `ast_equal` and so on its verdict, `base_pred` and
    `base_ast_equal` those of the base; null where there is none."""
    return [
        {
            "id": row.id,
            "split": split.name,
            "question": row.question,
            "context": row.context,
            "gold": row.answer,
            "base_pred": base.answers[i] if base else None,
            "pred": tuned.answers[i] if tuned else None,
            **_verdict_fields(base, i, "base_"),
            **_verdict_fields(tuned, i, ""),
        }
        for i, row in enumerate(split.rows)
    ]


def _verdict_fields(scores: Scores | None, i: int, prefix: str) -> dict[str, Any]:
    return recorded(scores.verdicts[i], prefix) if scores else {prefix + name: None for name in RECORDED}


def scores_of_base(rows: list[dict[str, Any]]) -> Scores | None:
    """The base's answers and verdicts from the rows of an interrupted run; None where a row lacks them."""
    try:
        return Scores({}, {}, [row["base_pred"] for row in rows], [read_back(row, "base_") for row in rows])
    except KeyError:
        return None
