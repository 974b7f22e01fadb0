"""Examples as token ids: which tokens are trained, and how rows that are too long are truncated; no torch.

The end-of-sequence (EOS) token is a label of every row, so that the model learns to stop. The tokens that carry loss
are given as spans of indices and never found by comparing with the padding id, which in many tokenizers is EOS itself.
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

MULTIPLE = 64  # suggested lengths are multiples of this
SHOWN = 5  # number of rows that a warning names

Span = tuple[int, int]  # a half-open range of token indices


class Sample(Protocol):
    """The unit that a step trains on: a row, or several that belong together, such as a pair."""

    @property
    def id(self) -> str: ...

    @property
    def tokens(self) -> int:
        """Number of tokens that go through the model."""

    @property
    def trained(self) -> int:
        """Number of tokens that carry loss; a step's mean loss is divided by their sum."""

    @property
    def rows(self) -> "Sequence[Encoded]":
        """The rows that it consists of."""


S = TypeVar("S", bound=Sample)


@dataclass(frozen=True)
class Tokens:
    """A row before truncation. Its `spans` carry loss with `trainer.loss_on=completion`; the tokens before the last
    span are the prompt, which the model answers. If the row is too long, tokens in the range `cut` are removed from its
    left; all others stay. A row is `unescaped` if the tokenizer encodes a control token that a field contains as the
    token, not as text.
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
        """Token ids before the last span, which the model is asked to continue."""
        return self.ids[: self.spans[-1][0]]

    @property
    def answer(self) -> list[int]:
        """Token ids of the last span."""
        return self.ids[self.spans[-1][0] :]

    def answered(self, answer: list[int]) -> "Tokens":
        """Return the same prompt with another answer (token ids); only this answer carries loss."""
        prompt = self.prompt
        return replace(self, ids=prompt + answer, spans=((len(prompt), len(prompt) + len(answer)),))


@dataclass(frozen=True)
class Encoded:
    """A row to train on. The tokens of its `spans` carry loss: half-open ranges of indices of `input_ids`, ascending
    and disjoint. No span begins before index 1, because nothing predicts the first token."""

    id: str
    input_ids: list[int]
    spans: tuple[Span, ...]
    truncated: bool = False

    @property
    def tokens(self) -> int:
        """Number of tokens of the whole row."""
        return len(self.input_ids)

    @cached_property
    def trained(self) -> int:
        """Number of tokens that carry loss."""
        return sum(last - first for first, last in self.spans)

    @property
    def rows(self) -> "Sequence[Encoded]":
        """The row itself."""
        return (self,)


@dataclass(frozen=True)
class EncodedSet(Generic[S]):
    """The samples that fit (`rows`), and the numbers of truncated and dropped ones; `longest_dropped` is in tokens.
    `unescaped` are the ids of rows whose fields contain a control token that could not be encoded as text (only a few
    tokenizers have this limit)."""

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
    """Return the token ids of each example, prompt and answer tokenised separately and not truncated.

    Raises WeightsError if the tokenizer has no end-of-sequence token.
    """
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        raise WeightsError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no end-of-sequence token (eos_token), so a model tuned "
            "with it could never stop.\nSet eos_token in its tokenizer_config.json, or choose model=tiny"
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
    """Return a prompt with its answer; `kept` is how many tokens at the prompt's beginning and end are never cut."""
    ids = prompt + answer
    start, tail = kept
    return Tokens(id, ids, ((len(prompt), len(ids)),), (start, max(start, len(prompt) - tail)), unescaped)


def fit(tokens: Sequence[Tokens], max_length: int, loss_on: str) -> EncodedSet[Encoded]:
    """Truncate rows to `max_length` tokens, from the left of the range that may be cut. Rows that are still too long,
    and rows without a trained token, are dropped."""
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
    """Return the spans after `gone` tokens from index `first` on have been cut. Empty spans are left out, and so is the
    first token of a row, which nothing predicts."""

    def moved(index: int) -> int:
        return max(min(index, first), index - gone, 1)

    placed = [(moved(begin), moved(end)) for begin, end in spans]
    return tuple((begin, end) for begin, end in placed if begin < end)


def in_chunks(rows: Iterable[Encoded], tokens: int) -> Iterator[list[Encoded]]:
    """Yield the rows in chunks of at most `tokens` tokens, with at least one row each."""
    chunk: list[Encoded] = []
    filled = 0
    for row in rows:
        if chunk and filled + row.tokens > tokens:
            yield chunk
            chunk, filled = [], 0
        chunk.append(row)
        filled += row.tokens
    if chunk:
        yield chunk


def suggested_length(length: int) -> int:
    """Return the `max_length` to suggest for rows of `length` tokens."""
    return -(-length // MULTIPLE) * MULTIPLE


def refuse_empty(fitted: EncodedSet[Any], tokens: Sequence[Tokens], max_length: int, name: str = "train") -> None:
    """Raise DataError, with a `max_length` that is large enough, if no row of the split `name` fits."""
    if fitted.rows:
        return
    use = "to train on" if name == "train" else f"of {name} to measure a loss on"
    if not tokens:
        raise DataError(f"there are no rows {use}: this split is empty. Check the files of data.path")
    longest = max(map(len, tokens))
    raise DataError(
        f"data.max_length={max_length} leaves no row {use}: in all {len(tokens):,} rows the question and the answer "
        f"alone are longer.\nThe longest row has {longest:,} tokens. Set data.max_length={suggested_length(longest)}"
    )


def warnings_of(sets: Mapping[str, EncodedSet[Any]], max_length: int) -> list[str]:
    """Return warnings about truncated and dropped rows, by split, and about rows whose fields contain a control token
    that this tokenizer cannot encode as text."""
    lines = [_shortened(name, found, max_length) for name, found in sets.items() if found.truncated or found.dropped]
    kept = [f"{name} {id}" for name, found in sets.items() for id in found.unescaped]
    if kept:
        more = f" and {len(kept) - SHOWN:,} more" if len(kept) > SHOWN else ""
        lines.append(
            f"{len(kept):,} rows contain a control token (such as the EOS token) that this tokenizer cannot encode as "
            f"plain text, so the model reads the token: {', '.join(kept[:SHOWN])}{more}. Reword or delete these rows"
        )
    return lines


def _shortened(name: str, found: EncodedSet[Any], max_length: int) -> str:
    lost = f"{found.dropped:,} dropped" if name == "train" else f"{found.dropped:,} left out of the loss"
    answered = "" if name == "train" else ". Answers are still generated from whole prompts"
    return (
        f"data.max_length={max_length}: of {len(found.rows) + found.dropped:,} {name} rows, {found.truncated:,} are "
        f"truncated and {lost}{answered} (python -m ftlab data shows the lengths)"
    )
