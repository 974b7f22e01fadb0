"""The Triton kernels without a GPU: kernel_checks.py in Triton's interpreter.

Triton decides when it is imported whether it interprets, so the checks run in a pytest of their own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_kernels_agree_with_torch(root: Path) -> None:
    checks = Path(__file__).with_name("kernel_checks.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(checks)],
        cwd=root,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
