"""A worker as a separate process: `python -m ftlab.sweep.join`. The environment names the study to join."""

import json
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ftlab.config import SweepConfig
from ftlab.errors import FtlabError
from ftlab.process import Process, end_with
from ftlab.redact import redact_message, redact_streams
from ftlab.sweep.events import Listener, ignore_event
from ftlab.sweep.space import Space
from ftlab.sweep.storage import without_password
from ftlab.sweep.study import Study
from ftlab.train.signals import StopSignal

ORDER = "FTLAB_SWEEP_ORDER"


@dataclass(frozen=True)
class WorkerOrder:
    """All that a worker on any host needs to know: plain values, absolute paths, no password."""

    name: str
    folder: str
    config: dict[str, Any]  # of SweepConfig
    space: dict[str, Any]
    objectives: list[str]
    fixed: list[str]
    config_dir: str | None
    cwd: str
    path: list[str]  # sys.path
    rungs: list[int] | None = None  # optimizer steps of evaluations; None: they depend on the data
    above: list[dict[str, Any]] = field(default_factory=list)  # parents with which the worker ends, its driver first

    @classmethod
    def of(cls, study: Study, config_dir: str | None, rungs: list[int] | None = None) -> "WorkerOrder":
        """The order to join a study that is open in this process."""
        return cls(
            name=study.name,
            folder=str(study.folder.resolve()),
            config={**asdict(study.cfg), "storage": study.cfg.storage and without_password(study.cfg.storage)},
            space=study.space.record(),
            objectives=study.objectives,
            fixed=study.fixed,
            config_dir=config_dir and str(Path(config_dir).absolute()),
            cwd=str(Path.cwd()),
            path=[str(Path(place).absolute()) for place in sys.path],
            rungs=rungs,
            above=[Process.me().record()],
        )

    def environment(self) -> dict[str, str]:
        """Environment variables for a worker that this process starts."""
        me = Process.me().record()
        order = replace(self, above=[*(process for process in self.above if process != me), me])
        return {ORDER: json.dumps(asdict(order)), "PYTHONPATH": os.pathsep.join(self.path)}

    def open(self) -> Study:
        """Join the study."""
        cfg, space = SweepConfig(**self.config), Space.from_record(self.space)
        return Study.open(self.name, Path(self.folder), cfg, space, self.objectives, self.fixed)


def main() -> int:
    """Run trials until the study has enough. Returns the exit code."""
    order = WorkerOrder(**json.loads(os.environ[ORDER]))
    try:
        with StopSignal().caught() as stop:
            end_with(int(order.above[-1]["pid"]))
            join(order, stop, order.open())
    except FtlabError as error:
        print(f"ftlab: {redact_message(str(error))}", file=sys.stderr)
        return error.exit_code
    return 0


def join(order: WorkerOrder, stop: StopSignal, study: Study, on_event: Listener = ignore_event) -> None:
    """Run trials of the study as ordered."""
    study.work_under([process for process in map(Process.read, order.above) if process])
    from ftlab.sweep.forecast import Forecast
    from ftlab.sweep.trial import search

    search(study, on_event, stop, config_dir=order.config_dir, estimate=Forecast(study), rungs=order.rungs)


if __name__ == "__main__":
    redact_streams()
    sys.exit(main())
