"""One experiment: `order.py` runs its phases in order; each other module implements a part of it."""

from ftlab.experiment.device import make_accelerator, quiet
from ftlab.experiment.dry import dry_run
from ftlab.experiment.follower import follow
from ftlab.experiment.interface import Outcome, Trial
from ftlab.experiment.order import run, run_in
from ftlab.experiment.prepare import Prepared, prepare
from ftlab.experiment.result import base_differs, load_finished

__all__ = [
    "Outcome",
    "Prepared",
    "Trial",
    "base_differs",
    "dry_run",
    "follow",
    "load_finished",
    "make_accelerator",
    "prepare",
    "quiet",
    "run",
    "run_in",
]
