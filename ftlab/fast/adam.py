"""bitsandbytes' 8-bit AdamW as one Triton kernel, on the same state.

State and checkpoints have the format of bitsandbytes: codes (uint8), the largest magnitude of each block of 256
numbers, and maps from code to value. The results are those of its CUDA kernel (kOptimizerStatic8bit2StateBlockwise) up
to rounding, except for the bias corrections. Its power function makes updates wrong by up to a relative 1e-4 in the
first thousand steps; here they are exact.

Two things make it faster. A code is found by a table over the bits of a float instead of a search, and the host does
not wait for the device after a step. Paged state must be read on the host through `state_dict`, which waits.
"""

# Triton has no types, and its kernels none that mypy could check; bitsandbytes has none either.
# mypy: disable-error-code="import-untyped, import-not-found", allow-untyped-defs, allow-incomplete-defs
# mypy: allow-untyped-decorators, allow-untyped-calls

from dataclasses import dataclass
from functools import cache, lru_cache
from math import sqrt
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ftlab.fast.flat import BLOCK

ROWS = 2  # blocks a program; one warp, so that a block's maximum stays inside it
JUST_BELOW_ONE = tl.constexpr(0x3F7FFFFF)  # as bits of a float32
MOST_CELLS = 4096


@dataclass(frozen=True)
class CodeTable:
    """A lookup table from values in [-1, 1] to their codes, by the highest bits of the magnitude.

    The cell of a magnitude is its bits shifted right by `shift`, minus `first`, and at least 0. `entries` [2 * cells]
    (int32) holds the cells of positive values, then those of negative ones. The bits of an entry above the `shift`
    lowest are the code of the cell's lower end. Its `shift` lowest bits are an offset: added to the lowest bits of a
    magnitude, they carry into the code from the midpoint on. Codes of negative values are complemented, so that they
    also grow with the magnitude.
    """

    entries: Tensor
    shift: int
    first: int

    @property
    def cells(self) -> int:
        """The number of cells of one sign."""
        return self.entries.numel() // 2


@lru_cache(maxsize=8)
def table_of(values: Tensor) -> CodeTable | None:
    """Return the table of a map [256] (float32) on its device; None if the map does not ascend or needs a larger one.

    A value gets the nearest code with the same sign bit, as in bitsandbytes.
    """
    held = values.detach().cpu()
    if not bool((held.diff() > 0).all()):
        return None
    signs = _signs(held)
    lowest = min(int(steps[0]) for _, steps in signs if steps.numel())
    for shift in range(20, 12, -1):
        first = (lowest >> shift) - 1  # the cell of whatever is smaller than all midpoints
        cells = (JUST_BELOW_ONE.value >> shift) - first + 1
        if first < 0 or cells > MOST_CELLS:
            return None
        parts = [_entries(code, steps, shift, first, cells) for code, steps in signs]
        if all(part is not None for part in parts):
            return CodeTable(torch.cat(parts).int().to(values.device), shift, first)  # type: ignore[arg-type]
    return None


def _signs(values: Tensor) -> list[tuple[int, Tensor]]:
    """Return for positive values, then for negative ones (complemented): the code next to 0, and the ascending
    magnitudes, as bits, at which the next code begins. A midpoint itself still belongs to the code below it."""
    bits = ((values[:-1] + values[1:]) * 0.5).view(torch.int32).long()
    above, below = bits[bits >= 0] + 1, (bits[bits < 0] & 0x7FFFFFFF).flip(0)
    negatives = int(values.signbit().sum())
    skipped = max(negatives - len(below), 0)  # the code next to 0 may be of the other sign
    dropped = min(max(len(below) - negatives + 1, 0), len(below))
    return [(len(below) + skipped, above[skipped:]), (255 - len(below) + dropped, below[dropped:])]


def _entries(code: int, steps: Tensor, shift: int, first: int, cells: int) -> Tensor | None:
    """Return one sign's entries, or None if a cell contains two of the `steps` (ascending bits) between codes."""
    begin = (first + torch.arange(cells)) << shift
    end = begin + (1 << shift)
    passed, after = torch.searchsorted(steps, begin, right=True), torch.searchsorted(steps, end)
    if bool((after - passed > 1).any()):
        return None
    step = torch.cat([steps, end[-1:]])[passed]
    return ((code + passed) << shift) + end - torch.where(after > passed, step, end)


@triton.jit
def _codes(x, table_ptr, SHIFT: tl.constexpr, FIRST: tl.constexpr, CELLS: tl.constexpr):
    bits = x.to(tl.int32, bitcast=True)
    sign = bits >> 31
    magnitude = tl.minimum(bits & 0x7FFFFFFF, JUST_BELOW_ONE)
    cell = tl.maximum((magnitude >> SHIFT) - FIRST, 0) + (sign & CELLS)
    entry = tl.load(table_ptr + cell, eviction_policy="evict_last")
    return (((entry + (magnitude & ((1 << SHIFT) - 1))) >> SHIFT) ^ sign).to(tl.uint8)


@triton.jit
def _scale(s):
    """The largest magnitude of each block of s [BLOCK, ROWS] and its reciprocal; 0 and 0 below the normal floats, which
    bitsandbytes flushes to 0 and whose reciprocal may overflow."""
    largest = tl.max(tl.abs(s), axis=0)
    normal = largest >= 1.1754943508222875e-38
    return tl.where(normal, largest, 0.0), tl.where(normal, 1.0 / tl.where(normal, largest, 1.0), 0.0)


@triton.jit
def _update(
    p_ptr, g_ptr, codes1_ptr, codes2_ptr, largest1_ptr, largest2_ptr, map1_ptr, map2_ptr, table1_ptr, table2_ptr,
    count, beta1, beta2, size, eps, shrink,
    SHIFT1: tl.constexpr, FIRST1: tl.constexpr, CELLS1: tl.constexpr,
    SHIFT2: tl.constexpr, FIRST2: tl.constexpr, CELLS2: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # [BLOCK, ROWS], as Triton gives every load the layout of the sequential ones only where these run along the first.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    # Four numbers a thread at a time: floats as 16 bytes, codes as 4, both without a gap between threads.
    at = tl.max_contiguous(tl.arange(0, BLOCK)[:, None] + row[None, :] * BLOCK, [4, 1])
    inside, inside_row = at < count, row * BLOCK < count
    # What lies behind the end counts as bitsandbytes has it: code 128 of the first moment, all else 0.
    c1 = tl.load(codes1_ptr + at, mask=inside, other=128, eviction_policy="evict_first")
    c2 = tl.load(codes2_ptr + at, mask=inside, other=0, eviction_policy="evict_first")
    g = tl.load(g_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
    p = tl.load(p_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first")
    largest1 = tl.load(largest1_ptr + row, mask=inside_row, other=0.0)[None, :]
    largest2 = tl.load(largest2_ptr + row, mask=inside_row, other=0.0)[None, :]
    s1 = tl.load(map1_ptr + c1.to(tl.int32), eviction_policy="evict_last") * largest1
    s2 = tl.load(map2_ptr + c2.to(tl.int32), eviction_policy="evict_last") * largest2
    finite = tl.abs(g) < float("inf")
    s1 = tl.where(finite, s1 * beta1 + (1.0 - beta1) * g, 0.0)
    s2 = tl.where(finite, s2 * beta2 + (1.0 - beta2) * g * g, 0.0)
    moved = (p + size * (s1 / (tl.sqrt(s2) + eps))) * shrink
    tl.store(p_ptr + at, tl.where(finite, moved, p), mask=inside)
    new1, inverse1 = _scale(s1)
    new2, inverse2 = _scale(s2)
    tl.store(largest1_ptr + row, new1, mask=inside_row)
    tl.store(largest2_ptr + row, new2, mask=inside_row)
    # In a block of zeros bitsandbytes leaves the first moment's highest code.
    x1, x2 = tl.where(new1[None, :] > 0, s1 * inverse1[None, :], 1.0), s2 * inverse2[None, :]
    tl.store(codes1_ptr + at, _codes(x1, table1_ptr, SHIFT1, FIRST1, CELLS1), mask=inside)
    tl.store(codes2_ptr + at, _codes(x2, table2_ptr, SHIFT2, FIRST2, CELLS2), mask=inside)


def update_(p: Tensor, state: dict[str, Any], config: dict[str, Any]) -> None:
    """Make one AdamW step of p [n], for which `fits` must hold, on bitsandbytes' `state` of it. `state["step"]` must
    already be the number of this step.

    `config` has lr, betas, eps and weight_decay. Where a gradient is not finite, the number in p does not change and
    its moments become 0.
    """
    first, second = table_of(state["qmap1"]), table_of(state["qmap2"])
    assert first is not None
    assert second is not None
    (beta1, beta2), lr, step = config["betas"], float(config["lr"]), state["step"]
    correction = sqrt(1 - beta2**step)
    _update[(triton.cdiv(p.numel(), ROWS * BLOCK),)](
        p, p.grad, *(state[key] for key in ("state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2")),
        first.entries, second.entries, p.numel(), float(beta1), float(beta2),
        -lr * correction / (1 - beta1**step), float(config["eps"]) * correction, 1.0 - lr * config["weight_decay"],
        first.shift, first.first, first.cells, second.shift, second.first, second.cells, ROWS, BLOCK, num_warps=1,
    )  # fmt: skip


def fits(p: Tensor, state: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether `update_` supports p: contiguous float32, block-wise 8-bit state, and maps that fit into tables."""
    return (
        "absmax1" in state
        and all(x is not None and x.dtype == torch.float32 and x.is_contiguous() for x in (p, p.grad))
        and config.get("percentile_clipping", 100) >= 100  # only older versions of bitsandbytes have this setting
        and None not in (table_of(state["qmap1"]), table_of(state["qmap2"]))
    )


@cache
def fused(kind: Any) -> Any:
    """Return a subclass of bitsandbytes' AdamW8bit or PagedAdamW8bit (the class `kind`) for CUDA tensors. The kernel
    updates those for which `fits` holds. If the optimizer has only one tensor, the host does not wait for the GPU."""

    class Fused(kind):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            group, p = self.param_groups[0], self.param_groups[0]["params"][0]
            alone = [len(group["params"]) for group in self.param_groups] == [1]
            # In the first step bitsandbytes itself creates the state.
            if closure or not self.initialized or not alone or not self._fits(p, 0, 0):
                return super().step(closure)
            self.prefetch_state(p)
            self.update_step(group, p, 0, 0)

        @torch.no_grad()
        def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
            if not self._fits(p, gindex, pindex):
                super().update_step(group, p, gindex, pindex)
                return
            state = self.state[p]
            state["step"] += 1
            try:
                with torch.cuda.device_of(p):
                    update_(p, state, self.get_config(gindex, pindex, group))
            except RuntimeError:  # for example an OOM: nothing has changed, and the step may be tried again
                state["step"] -= 1
                raise

        def state_dict(self) -> dict[str, Any]:
            if self.is_paged and torch.cuda.is_available():  # the host reads paged state like its own memory
                torch.cuda.synchronize()
            state: dict[str, Any] = super().state_dict()
            return state

        def _fits(self, p: Tensor, gindex: int, pindex: int) -> bool:
            return fits(p, self.state.get(p, {}), self.get_config(gindex, pindex, self.param_groups[gindex]))

    Fused.__name__ = Fused.__qualname__ = f"Fused{kind.__name__}"
    return Fused
