"""Experiments that fine-tune language models, so that you know what worked.

    from ftlab import compose, run

    outcome = run(compose(["experiment=quickstart", "trainer.lr=1e-3"]))

Both are loaded at their first use; torch is not imported before a run.
"""

import os
import sys

# `python -m ftlab` looks for modules in the working folder first, where files of a downloaded folder could replace any
# library. So it is removed from the path, unless ftlab itself is there; only these two modules are imported before.
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if getattr(sys, "argv", [])[:1] == ["-m"] and sys.path[:1] == [os.getcwd()] and os.getcwd() != _HOME:
    del sys.path[0]

from typing import TYPE_CHECKING, Any  # noqa: E402

from ftlab import quiet as quiet  # noqa: E402

if TYPE_CHECKING:
    from ftlab.composition import compose
    from ftlab.experiment import run

__all__ = ["compose", "run"]


def __getattr__(name: str) -> Any:
    if name == "compose":
        from ftlab.composition import compose

        return compose
    if name == "run":
        from ftlab.experiment import run

        return run
    raise AttributeError(f"module 'ftlab' has no attribute {name!r}")
