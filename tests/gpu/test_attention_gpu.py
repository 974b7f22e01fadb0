"""torch's varlen attention kernels inside the rows of a flat batch, against attention row by row in float64."""

import warnings

import pytest
import torch
from torch import Tensor

from ftlab.fast.attention import ByRow, Efficient, Varlen, inside
from ftlab.fast.decoder import AttentionShape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTHS = [1, 70, 129, 64, 300]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def context() -> None:
    """autograd's threads begin without one, and cuBLAS warns of that, once."""
    with warnings.catch_warnings(action="ignore"):
        ones = torch.ones(1, 1, device="cuda", requires_grad=True)
        ones.mm(ones).sum().backward()


def starts_of(lengths: list[int]) -> Tensor:
    """On the device; with rows of no tokens behind, as a padded batch has them."""
    return torch.tensor([0, *lengths, 0, 0], device="cuda").cumsum(0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("window", [None, 2, 33])
@pytest.mark.parametrize(("heads", "kv", "head_dim"), [(8, 2, 64), (4, 4, 128), (9, 3, 64), (4, 1, 256), (2, 2, 8)])
def test_result_and_gradients(dtype: torch.dtype, window: int | None, heads: int, kv: int, head_dim: int) -> None:
    torch.manual_seed(0)
    shape = AttentionShape(heads, kv, head_dim, head_dim**-0.5, window)
    qkv = torch.randn(sum(LENGTHS), shape.width, device="cuda").to(dtype)
    do = torch.randn(sum(LENGTHS), heads * head_dim, device="cuda").to(dtype)
    attention, reference = inside(starts_of(LENGTHS), max(LENGTHS), dtype), ByRow(LENGTHS)
    assert isinstance(attention, Efficient if dtype == torch.float32 else Varlen)
    o, kept = attention.forward(shape, qkv)
    exact, exactly_kept = reference.forward(shape, qkv.double())
    found = (o, *attention.backward(shape, do, qkv, o, kept))
    wanted = (exact, *reference.backward(shape, do.double(), qkv.double(), exact, exactly_kept))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error <= TOLERANCE[dtype]
