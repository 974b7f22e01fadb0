"""Operands of the operations that are not tensors: dropout masks, and the members of stacked projections."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GOLDEN = 0x9E3779B9  # 2^32 / golden ratio
MIX_1, MIX_2 = 0x85EBCA6B, 0xC2B2AE35  # the multipliers of murmur3's 32-bit finaliser
WORD = 0xFFFFFFFF

Member = tuple[int, int, int, int, Tensor]
"""First and end column in y; first and end column in h; and B [columns in y, columns in h]."""


@dataclass(frozen=True)
class Dropout:
    """A dropout mask by hashing: element i (row-major, modulo 2^32) at site `site` is dropped with probability `p`.

    `seed` is an int64 tensor [1] on the device. It changes for every micro-batch, so that the replay of a CUDA graph
    draws new masks. The masks are the same on every device, bit for bit. Elements that are kept are divided by 1 - p.
    """

    p: float
    seed: Tensor
    site: int

    @property
    def threshold(self) -> int:
        """Elements with a hash below this number are dropped."""
        return int(self.p * 2**32)

    @property
    def scale(self) -> float:
        return 1.0 / (1.0 - self.p)


def kept(shape: Sequence[int], drop: Dropout) -> Tensor:
    """Return the mask of a tensor of this shape: True for elements that are kept."""
    first, second = _keys(int(drop.seed), drop.site)
    count = torch.Size(shape).numel()
    x = torch.arange(count, dtype=torch.int32, device=drop.seed.device)
    x.bitwise_xor_(_signed(first))
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(_signed(MIX_1))
    x.bitwise_xor_((x >> 13).bitwise_and_(0x7FFFF)).bitwise_xor_(_signed(second)).mul_(_signed(MIX_2))
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    # Compare signed words in unsigned order by flipping the highest bit of both sides.
    return (x.bitwise_xor_(-(2**31)) >= drop.threshold - 2**31).view(*shape)


def _keys(seed: int, site: int) -> tuple[int, int]:
    """Return two words that depend on every bit of seed and site: no mask is a shifted copy of another one's."""
    low, high = seed & WORD, (seed >> 32) & WORD
    first = _mix(low ^ _mix((site * GOLDEN + high) & WORD))
    return first, _mix((first + GOLDEN) & WORD)


def _mix(x: int) -> int:
    """Murmur3's 32-bit finaliser."""
    x = (x ^ (x >> 16)) * MIX_1 & WORD
    x = (x ^ (x >> 13)) * MIX_2 & WORD
    return x ^ (x >> 16)


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word
