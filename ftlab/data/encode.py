"""Examples as token ids: which tokens are trained, and what becomes of rows that are too long; no torch.

The end marker is a label of every row, so that the model learns to stop. What carries loss is told by length,
never by comparing with the padding id, which in many tokenizers is the end marker itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftlab.data.prompts import batch_prompt_ids, begin_ids, kept_tail, render, text_ids
from ftlab.data.splits import Example
from ftlab.errors import DataError, WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEP = 64  # suggested lengths are multiples of this


@dataclass(frozen=True)
class Tokens:
    """A row before it is made to fit: prompt, answer with its end marker, and what of the prompt must stay.

    `start` tokens at the beginning of the prompt (the begin marker) and `tail` at its end are never cut.
    """

    id: str
    prompt: list[int]
    answer: list[int]
    start: int
    tail: int

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Encoded:
    """A row to train on: tokens from index `trained_from` on carry loss."""

    id: str
    input_ids: list[int]
    trained_from: int
    truncated: bool


@dataclass(frozen=True)
class EncodedSet:
    """The rows that fit, and counts of those truncated and dropped; `longest_dropped` is in tokens."""

    rows: list[Encoded]
    truncated: int
    dropped: int
    longest_dropped: int


def encode(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    max_length: int,
    loss_on: str,
) -> EncodedSet:
    """Tokenise `examples` and make them fit `max_length` tokens. `loss_on`: completion or all.

    Raises WeightsError for a tokenizer without end marker, DataError if no row is left.
    """
    tokens = tokenise(examples, tokenizer, prompt)
    fitted = fit(tokens, max_length, loss_on)
    refuse_nothing(fitted, tokens, max_length)
    return fitted


def tokenise(examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[Tokens]:
    """Prompt and answer of each example apart from each other, of whatever length."""
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        raise WeightsError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no end marker (eos_token): a model tuned with "
            "it could never stop.\nSet eos_token in its tokenizer_config.json, or choose model=tiny"
        )
    prompts = batch_prompt_ids(tokenizer, [render(prompt, row.question, row.context) for row in examples])
    answers = text_ids(tokenizer, [row.answer.strip() for row in examples])
    tails = text_ids(tokenizer, [kept_tail(prompt, row.question, row.context) for row in examples])
    begin = begin_ids(tokenizer)
    return [
        Tokens(row.id, ids, [*answer, eos], int(bool(begin) and ids[:1] == begin), min(len(tail), len(ids)))
        for row, ids, answer, tail in zip(examples, prompts, answers, tails, strict=True)
    ]


def fit(tokens: Sequence[Tokens], max_length: int, loss_on: str) -> EncodedSet:
    """Shorten prompts from the left until rows fit; drop rows whose question and answer alone do not."""
    fitted = [_fit(row, max_length, loss_on) for row in tokens]
    rows = [row for row in fitted if row]
    dropped = [len(row) for row, kept in zip(tokens, fitted, strict=True) if not kept]
    return EncodedSet(rows, sum(row.truncated for row in rows), len(dropped), max(dropped, default=0))


def _fit(row: Tokens, max_length: int, loss_on: str) -> Encoded | None:
    room = max_length - len(row.answer)
    if room < row.start + row.tail:
        return None
    prompt = row.prompt
    if cut := max(0, len(prompt) - room):
        prompt = prompt[: row.start] + prompt[row.start + cut :]
    # The first token has nothing before it to be predicted from.
    first = max(1, len(prompt)) if loss_on == "completion" else 1
    return Encoded(row.id, prompt + row.answer, first, cut > 0)


def whole_step(length: int) -> int:
    """The `max_length` to suggest for rows of `length` tokens."""
    return -(-length // STEP) * STEP


def refuse_nothing(fitted: EncodedSet, tokens: Sequence[Tokens], max_length: int) -> None:
    """Raise DataError, with the `max_length` that would do, if no row is left to train on."""
    if fitted.rows:
        return
    if not tokens:
        raise DataError("there are no rows to train on: this split is empty")
    longest = max(map(len, tokens))
    raise DataError(
        f"data.max_length={max_length} leaves nothing to train on: in all {len(tokens):,} rows the question "
        f"and the answer alone are longer.\nThe longest row has {longest:,} tokens: "
        f"data.max_length={whole_step(longest)}"
    )
