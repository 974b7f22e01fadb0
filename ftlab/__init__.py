"""Experiments that fine-tune language models, so that you know what worked.

    from ftlab import compose, run

    outcome = run(compose(["experiment=quickstart", "trainer.lr=1e-3"]))

Both are loaded when they are first used: torch is not imported before a run.
"""

from typing import TYPE_CHECKING, Any

from ftlab import quiet as quiet

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
