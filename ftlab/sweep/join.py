"""A worker as a process of its own: `python -m ftlab.sweep.join`, told by its environment which study it joins."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ftlab.config import SweepConfig
from ftlab.errors import FtlabError
from ftlab.redact import redact
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.train.signals import StopSignal

ORDER = "FTLAB_SWEEP_ORDER"
POLL_S = 1.0


@dataclass(frozen=True)
class Order:
    """All that a worker must know, on whatever host: plain values, absolute paths, no password."""

    name: str
    folder: str
    config: dict[str, Any]  # of SweepConfig
    space: dict[str, Any]
    objectives: list[str]
    fixed: list[str]
    config_dir: str | None
    cwd: str
    path: list[str]  # where Python finds modules
    parent: int = 0  # pid of the process that looks after the worker

    @classmethod
    def of(cls, study: Study, config_dir: str | None) -> "Order":
        """To join a study that is open here."""
        return cls(
            name=study.name,
            folder=str(study.folder.resolve()),
            config=asdict(study.cfg),
            space=study.space.record(),
            objectives=study.objectives,
            fixed=study.fixed,
            config_dir=config_dir and str(Path(config_dir).absolute()),
            cwd=str(Path.cwd()),
            path=[str(Path(place).absolute()) for place in sys.path],
        )

    def environment(self) -> dict[str, str]:
        """Variables for a worker that this process starts."""
        order = replace(self, parent=os.getpid())
        return {ORDER: json.dumps(asdict(order)), "PYTHONPATH": os.pathsep.join(self.path)}

    def open(self) -> Study:
        """The study, joined."""
        cfg, space = SweepConfig(**self.config), Space.from_record(self.space)
        return Study.open(self.name, Path(self.folder), cfg, space, self.objectives, self.fixed)


def main() -> int:
    """Work until the study has enough; the exit code."""
    order = Order(**json.loads(os.environ[ORDER]))
    try:
        with StopSignal().caught() as stop:
            end_with(order.parent)
            join(order, stop)
    except FtlabError as error:
        print(f"ftlab: {redact(str(error))}", file=sys.stderr)
        return error.exit_code
    return 0


def join(order: Order, stop: StopSignal) -> None:
    """Run trials of the study."""
    from ftlab.sweep.forecast import Forecast
    from ftlab.sweep.trial import search

    study = order.open()
    search(study, stop=stop, config_dir=order.config_dir, estimate=Forecast(study))


def end_with(parent: int, parent_now: Callable[[], int] = os.getppid) -> None:
    """Stop as on SIGTERM once the parent is gone: a worker that nobody looks after would hold its GPU unseen."""

    def watch() -> None:
        while parent_now() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
