"""Examples as token ids: which tokens are trained, and what becomes of rows that are too long; no torch.

The end marker is a label of every row, so that the model learns to stop. What carries loss is told by spans of
indices, never by comparing with the padding id, which in many tokenizers is the end marker itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ftlab.data.prompts import PromptTokenizer
from ftlab.data.splits import Example
from ftlab.errors import DataError, WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEP = 64  # suggested lengths are multiples of this
SHOWN = 5  # rows that a warning names

Span = tuple[int, int]  # a half-open range of token indices


class Sample(Protocol):
    """What a step trains on at a time: a row, or several that belong together, such as a pair."""

    @property
    def id(self) -> str: ...

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""

    @property
    def trained(self) -> int:
        """How many of them carry loss: what a step's mean loss is divided by."""

    @property
    def rows(self) -> "Sequence[Encoded]":
        """What it consists of."""


S = TypeVar("S", bound=Sample)


@dataclass(frozen=True)
class Tokens:
    """A row before it is made to fit. `spans` carry loss with `trainer.loss_on=completion`; what comes before the last
    one is the prompt, which the model answers. Of the tokens in `cut`, the oldest go first where the row is too long;
    all others stay. A row is `unescaped` where the tokenizer reads a control token that a field spells as the token,
    not as text.
    """

    id: str
    ids: list[int]
    spans: tuple[Span, ...]
    cut: Span
    unescaped: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt(self) -> list[int]:
        """Token ids to which the model is asked to give the last span."""
        return self.ids[: self.spans[-1][0]]

    @property
    def answer(self) -> list[int]:
        """Token ids of the last span."""
        return self.ids[self.spans[-1][0] :]

    def answered(self, answer: list[int]) -> "Tokens":
        """The same prompt with another answer, which alone carries loss."""
        prompt = self.prompt
        return replace(self, ids=prompt + answer, spans=((len(prompt), len(prompt) + len(answer)),))


@dataclass(frozen=True)
class Encoded:
    """A row to train on. The tokens of its `spans` carry loss: half-open ranges of indices of `input_ids`, in ascending
    order and disjoint. None begins before index 1, since nothing predicts the first token."""

    id: str
    input_ids: list[int]
    spans: tuple[Span, ...]
    truncated: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the whole row."""
        return len(self.input_ids)

    @cached_property
    def trained(self) -> int:
        """Tokens that carry loss."""
        return sum(last - first for first, last in self.spans)

    @property
    def rows(self) -> "Sequence[Encoded]":
        """Itself."""
        return (self,)


@dataclass(frozen=True)
class EncodedSet(Generic[S]):
    """The samples that fit (`rows`), and counts of those truncated and dropped; `longest_dropped` is in tokens.
    `unescaped` are the ids of rows that hold a control token which a field spells (none, but with few tokenizers)."""

    rows: list[S]
    truncated: int
    dropped: int
    longest_dropped: int
    unescaped: list[str]

    @property
    def encoded(self) -> list[Encoded]:
        """The rows that the samples consist of."""
        return [row for sample in self.rows for row in sample.rows]


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
    starts = [int(bool(reader.begin) and ids[:1] == reader.begin) for ids in prompts]
    return [
        _completion(row.id, prompts[i], [*answers[i], eos], (starts[i], len(tails[i])), i in reader.unescaped)
        for i, row in enumerate(examples)
    ]


def _completion(id: str, prompt: list[int], answer: list[int], kept: tuple[int, int], unescaped: bool) -> Tokens:
    """A prompt with its answer; of the prompt so many tokens are `kept` at its beginning and at its end."""
    ids = prompt + answer
    start, tail = kept
    return Tokens(id, ids, ((len(prompt), len(ids)),), (start, max(start, len(prompt) - tail)), unescaped)


def fit(tokens: Sequence[Tokens], max_length: int, loss_on: str) -> EncodedSet[Encoded]:
    """Shorten rows from the left of what may be cut until they fit; drop those that never would, and those of which no
    token would be trained."""
    fitted = [_fit(row, max_length, loss_on) for row in tokens]
    rows = [row for row in fitted if row]
    dropped = [len(row) for row, kept in zip(tokens, fitted, strict=True) if not kept]
    unescaped = [row.id for row in tokens if row.unescaped]
    return EncodedSet(rows, sum(row.truncated for row in rows), len(dropped), max(dropped, default=0), unescaped)


def _fit(row: Tokens, max_length: int, loss_on: str) -> Encoded | None:
    first, last = row.cut
    gone = max(0, len(row) - max_length)
    if gone > last - first:
        return None
    ids = row.ids[:first] + row.ids[first + gone :] if gone else row.ids
    spans = _after_cut(row.spans if loss_on == "completion" else ((1, len(row)),), first, gone)
    return Encoded(row.id, ids, spans, gone > 0) if spans else None


def _after_cut(spans: tuple[Span, ...], first: int, gone: int) -> tuple[Span, ...]:
    """Where spans lie once `gone` tokens from index `first` on have been cut, what is left of each; the first token of
    a row, which nothing predicts, is in none."""

    def moved(index: int) -> int:
        return max(min(index, first), index - gone, 1)

    placed = [(moved(begin), moved(end)) for begin, end in spans]
    return tuple((begin, end) for begin, end in placed if begin < end)


def in_runs(rows: Iterable[Encoded], tokens: int) -> Iterator[list[Encoded]]:
    """The rows in runs of at most so many tokens, at least one row each."""
    run: list[Encoded] = []
    filled = 0
    for row in rows:
        if run and filled + row.tokens > tokens:
            yield run
            run, filled = [], 0
        run.append(row)
        filled += row.tokens
    if run:
        yield run


def whole_step(length: int) -> int:
    """The `max_length` to suggest for rows of `length` tokens."""
    return -(-length // STEP) * STEP


def refuse_nothing(fitted: EncodedSet[Any], tokens: Sequence[Tokens], max_length: int, name: str = "train") -> None:
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


def warnings_of(sets: Mapping[str, EncodedSet[Any]], max_length: int) -> list[str]:
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


def _shortened(name: str, found: EncodedSet[Any], max_length: int) -> str:
    lost = f"{found.dropped:,} rows dropped" if name == "train" else f"{found.dropped:,} rows left out of its loss"
    answered = "" if name == "train" else "; answers are written to whole prompts"
    return (
        f"data.max_length={max_length}: {name}: {found.truncated:,} prompts shortened, {lost}, of "
        f"{len(found.rows) + found.dropped:,} rows{answered} (python -m ftlab data shows lengths)"
    )
