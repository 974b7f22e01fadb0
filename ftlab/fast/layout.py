"""Rows as one flat batch of a recurring shape, packed into one tensor: one copy to the GPU, a CUDA graph per shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftlab.data.encode import Encoded

IGNORED = -100  # target of a position without loss


@dataclass(frozen=True)
class Layout:
    """Sizes of a flat batch, padding included. The padding is a separate row after the others."""

    tokens: int
    scored: int
    rows: int

    @classmethod
    def of(cls, rows: Sequence[Encoded], most_rows: int, *, padded: bool) -> "Layout":
        """Return the layout of these rows; if `padded`, one of a few shapes that hold at most `most_rows` rows."""
        tokens = sum(row.tokens for row in rows)
        scored = sum(row.trained for row in rows)
        if not padded:
            return cls(tokens, scored, len(rows))
        return cls(*padded_sizes(tokens, scored), most_rows + 1)

    @property
    def size(self) -> int:
        """The number of elements of the packed tensor."""
        return 2 * self.tokens + 2 * self.scored + self.rows + 3

    def pack(self, rows: Sequence[Encoded], trained: int, seed: int, *, pinned: bool) -> Tensor:
        """Return all inputs of a step on `rows` as one int64 tensor [size]; the loss is divided by `trained` tokens."""
        ids: list[int] = []
        positions: list[int] = []
        predict: list[int] = []
        targets: list[int] = []
        starts = [0]
        for row in rows:
            start = len(ids)
            ids += row.input_ids
            positions += range(row.tokens)
            for first, last in row.spans:
                predict += range(start + first - 1, start + last - 1)
                targets += row.input_ids[first:last]
            starts.append(len(ids))
        more = self.tokens - len(ids)
        fill = self.scored - len(predict)
        starts += [self.tokens] * (self.rows + 1 - len(starts))
        numbers = [
            *ids, *[0] * more, *positions, *range(more), *predict, *[0] * fill, *targets, *[IGNORED] * fill,
            *starts, trained, seed,
        ]  # fmt: skip
        return torch.tensor(numbers, dtype=torch.int64, pin_memory=pinned)

    def parts(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return ids and positions [tokens], predict and targets [scored], starts [rows + 1], trained [1], seed [1]."""
        sizes = [self.tokens, self.tokens, self.scored, self.scored, self.rows + 1, 1, 1]
        ids, positions, predict, targets, starts, trained, seed = torch.split(packed, sizes)
        return ids, positions, predict, targets, starts, trained, seed


def padded_sizes(tokens: int, scored: int) -> tuple[int, int]:
    """Return the numbers of tokens and of scored positions after padding."""
    tokens = _up(tokens, bucket(tokens))
    return tokens, min(tokens, _up(scored, max(64, tokens // 8)))


def bucket(tokens: int) -> int:
    """Return the multiple to which a token count is padded: few shapes, and above 400 tokens at most a sixth wasted."""
    return 64 if tokens <= 768 else 128 if tokens <= 2048 else 256 if tokens <= 4096 else 512


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
