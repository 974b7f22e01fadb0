"""Which rows make a step, and how rows become one flat batch without padding.

Order is a function of (rows, seed, step) alone, so a resumed run continues at any step without state.
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
    """Rows of every optimizer step: shuffled epochs one after another, cut into global batches."""

    rows: int
    global_batch_size: int
    steps: int
    total_rows: int | None  # where epochs end inside a batch, the last batch is shorter
    seed: int

    @classmethod
    def of(cls, rows: int, global_batch_size: int, max_steps: int | None, epochs: float, seed: int) -> "RowOrder":
        if max_steps is not None:
            return cls(rows, global_batch_size, max_steps, None, seed)
        total = max(1, round(rows * epochs))
        return cls(rows, global_batch_size, math.ceil(total / global_batch_size), total, seed)

    @property
    def epochs(self) -> float:
        """How often each row is seen."""
        return (self.total_rows or self.steps * self.global_batch_size) / self.rows

    def indices(self, step: int) -> list[int]:
        """Row numbers of optimizer step `step` (0-based)."""
        start = step * self.global_batch_size
        end = start + self.global_batch_size
        if self.total_rows is not None:
            end = min(end, self.total_rows)
        return [shuffled(self.rows, self.seed, p // self.rows)[p % self.rows] for p in range(start, end)]


@lru_cache(maxsize=2)
def shuffled(rows: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch sees the rows."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(rows, generator=generator).tolist()
    return order


@dataclass(frozen=True)
class FlatBatch:
    """Rows laid end to end. `input_ids` and `position_ids` are [1, tokens]; positions restart with each row,
    which is what keeps attention inside a row (transformers, with attention_mask=None and use_cache=False).
    `predict` [trained] are the positions whose output is scored, `targets` [trained] the tokens they should give.
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
    """Lay rows end to end; no token of one row predicts a token of another."""
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
    """Parts of a global batch that go through the model together."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def tokens_of(samples: Iterable[Sample]) -> int:
    """Tokens of all samples together."""
    return sum(sample.tokens for sample in samples)


def trained_of(samples: Iterable[Sample]) -> int:
    """Tokens of the samples that carry loss."""
    return sum(sample.trained for sample in samples)
