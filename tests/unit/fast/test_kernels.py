"""The Triton kernels without a GPU: kernel_checks.py in Triton's interpreter."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_kernels_agree_with_torch(interpreted: Callable[[Path], None]) -> None:
    interpreted(Path(__file__).with_name("kernel_checks.py"))
