"""Examples as token ids: which tokens are trained, and what becomes of rows that are too long; no torch.

The end marker is a label of every row, so that the model learns to stop. What carries loss is told by length,
never by comparing with the padding id, which in many tokenizers is the end marker itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftlab.data.prompts import PromptTokenizer
from ftlab.data.splits import Example
from ftlab.errors import DataError, WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEP = 64  # suggested lengths are multiples of this
SHOWN = 5  # rows that a warning names


@dataclass(frozen=True)
class Tokens:
    """A row before it is made to fit: prompt, answer with its end marker, and what of the prompt must stay.

    `start` tokens at the beginning of the prompt (the begin marker) and `tail` at its end are never cut. A row is
    `unescaped` where the tokenizer reads a control token that a field spells as the token, not as text.
    """

    id: str
    prompt: list[int]
    answer: list[int]
    start: int
    tail: int
    unescaped: bool = False

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
    """The rows that fit, and counts of those truncated and dropped; `longest_dropped` is in tokens. `unescaped` are the
    ids of rows that hold a control token which a field spells (none, but with few tokenizers)."""

    rows: list[Encoded]
    truncated: int
    dropped: int
    longest_dropped: int
    unescaped: list[str]


def encode(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    max_length: int,
    loss_on: str,
    name: str = "train",
) -> EncodedSet:
    """Tokenise the `examples` of the split `name` and make them fit `max_length` tokens. `loss_on`: completion or all.

    Raises WeightsError for a tokenizer without end marker, DataError if no row is left.
    """
    tokens = tokenise(examples, tokenizer, prompt)
    fitted = fit(tokens, max_length, loss_on)
    refuse_nothing(fitted, tokens, max_length, name)
    return fitted


def tokenise(examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[Tokens]:
    """Prompt and answer of each example apart from each other, of whatever length."""
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        raise WeightsError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no end marker (eos_token): a model tuned with "
            "it could never stop.\nSet eos_token in its tokenizer_config.json, or choose model=tiny"
        )
    reader = PromptTokenizer(tokenizer, prompt)
    asked = [(row.question, row.context) for row in examples]
    prompts, tails = reader.prompts(asked), reader.tails(asked)
    answers = reader.texts([row.answer.strip() for row in examples])
    start = [int(bool(reader.begin) and ids[:1] == reader.begin) for ids in prompts]
    return [
        Tokens(
            row.id, prompts[i], [*answers[i], eos], start[i], min(len(tails[i]), len(prompts[i])), i in reader.unescaped
        )
        for i, row in enumerate(examples)
    ]


def fit(tokens: Sequence[Tokens], max_length: int, loss_on: str) -> EncodedSet:
    """Shorten prompts from the left until rows fit; drop rows whose question and answer alone do not."""
    fitted = [_fit(row, max_length, loss_on) for row in tokens]
    rows = [row for row in fitted if row]
    dropped = [len(row) for row, kept in zip(tokens, fitted, strict=True) if not kept]
    unescaped = [row.id for row in tokens if row.unescaped]
    return EncodedSet(rows, sum(row.truncated for row in rows), len(dropped), max(dropped, default=0), unescaped)


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


def refuse_nothing(fitted: EncodedSet, tokens: Sequence[Tokens], max_length: int, name: str = "train") -> None:
    """Raise DataError, with the `max_length` that would do, if no row of the split `name` is left."""
    if fitted.rows:
        return
    use = "to train on" if name == "train" else f"of {name} to measure a loss on"
    if not tokens:
        raise DataError(f"there are no rows {use}: this split is empty")
    longest = max(map(len, tokens))
    raise DataError(
        f"data.max_length={max_length} leaves nothing {use}: in all {len(tokens):,} rows the question "
        f"and the answer alone are longer.\nThe longest row has {longest:,} tokens: "
        f"data.max_length={whole_step(longest)}"
    )


def warnings_of(sets: dict[str, EncodedSet], max_length: int) -> list[str]:
    """Lines for a person on rows, by split, that were made to fit, and on rows whose fields spell a control token that
    this tokenizer cannot read as text."""
    lines = [_shortened(name, found, max_length) for name, found in sets.items() if found.truncated or found.dropped]
    kept = [f"{name} {id}" for name, found in sets.items() for id in found.unescaped]
    if kept:
        more = f" and {len(kept) - SHOWN:,} more" if len(kept) > SHOWN else ""
        lines.append(
            f"{len(kept):,} rows spell a control token (such as the end marker), which this tokenizer cannot read as "
            f"text: {', '.join(kept[:SHOWN])}{more}. Reword or delete these rows"
        )
    return lines


def _shortened(name: str, found: EncodedSet, max_length: int) -> str:
    lost = f"{found.dropped:,} rows dropped" if name == "train" else f"{found.dropped:,} rows left out of its loss"
    answered = "" if name == "train" else "; answers are written to whole prompts"
    return (
        f"data.max_length={max_length}: {name}: {found.truncated:,} prompts shortened, {lost}, of "
        f"{len(found.rows) + found.dropped:,} rows{answered} (python -m ftlab data shows lengths)"
    )
