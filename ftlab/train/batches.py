"""The rows of each step, and rows as one flat batch without padding.

The order is a function of (rows, seed, step) only, so a resumed run continues at any step without saved state.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from ftlab.data.encode import Encoded, Sample

S = TypeVar("S", bound=Sample)


@dataclass(frozen=True)
class RowOrder:
    """The rows of every optimizer step: shuffled epochs one after another, cut into global batches."""

    rows: int
    global_batch_size: int
    steps: int
    total_rows: int | None  # if epochs end within a batch, the last batch is shorter
    seed: int

    @classmethod
    def of(cls, rows: int, global_batch_size: int, max_steps: int | None, epochs: float, seed: int) -> "RowOrder":
        if max_steps is not None:
            return cls(rows, global_batch_size, max_steps, None, seed)
        total = max(1, round(rows * epochs))
        return cls(rows, global_batch_size, math.ceil(total / global_batch_size), total, seed)

    @property
    def epochs(self) -> float:
        """How often each row is trained on."""
        return (self.total_rows or self.steps * self.global_batch_size) / self.rows

    def indices(self, step: int) -> list[int]:
        """Return the row numbers of optimizer step `step` (0-based)."""
        start = step * self.global_batch_size
        end = start + self.global_batch_size
        if self.total_rows is not None:
            end = min(end, self.total_rows)
        return [shuffled(self.rows, self.seed, p // self.rows)[p % self.rows] for p in range(start, end)]


@lru_cache(maxsize=2)
def shuffled(rows: int, seed: int, epoch: int) -> list[int]:
    """Return the order of the rows in an epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(rows, generator=generator).tolist()
    return order


@dataclass(frozen=True)
class FlatBatch:
    """Rows laid end to end. `input_ids` and `position_ids` are [1, tokens]. Positions restart with each row, which
    keeps attention within a row (transformers, with attention_mask=None and use_cache=False).
    `predict` [trained] are the positions whose output is scored, and `targets` [trained] their expected tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    predict: Tensor
    targets: Tensor
    lengths: list[int]  # tokens of each row

    @property
    def trained(self) -> int:
        return self.targets.numel()


def lay_flat(rows: Sequence[Encoded], device: torch.device) -> FlatBatch:
    """Lay rows end to end. No token of one row predicts a token of another row."""
    ids: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    for row in rows:
        start = len(ids)
        for first, last in row.spans:
            predict.extend(range(start + first - 1, start + last - 1))
        ids.extend(row.input_ids)
        positions.extend(range(row.tokens))
    input_ids = torch.tensor([ids], device=device)
    lengths = [row.tokens for row in rows]
    scored = torch.tensor(predict, dtype=torch.long, device=device)
    return FlatBatch(input_ids, torch.tensor([positions], device=device), scored, input_ids[0, scored + 1], lengths)


def micro_batches(rows: Sequence[S], size: int) -> Iterator[Sequence[S]]:
    """Yield the micro-batches of a global batch."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def tokens_of(samples: Iterable[Sample]) -> int:
    """Return the number of tokens of all samples."""
    return sum(sample.tokens for sample in samples)


def trained_of(samples: Iterable[Sample]) -> int:
    """Return the number of the samples' tokens that carry loss."""
    return sum(sample.trained for sample in samples)
