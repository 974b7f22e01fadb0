"""The sweeper of `--multirun`: a thin plug-in that does not import the engine. The caller of a multirun passes the
function that runs the sweep as the task of `hydra.main`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

NAME = "hydra_plugins.ftlab_sweeper.FtlabSweeper"


class FtlabSweeper(Sweeper):
    """Searches `params` (of the sweep file) and the swept overrides of the command line, with workers that pull trials
    from one Optuna study. Its settings are in the `sweep` node of the configuration."""

    def __init__(self, params: Any = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store what the sweep needs. `task_function` runs the whole sweep; workers have tasks of their own."""
        self.drive: Callable[..., Any] = task_function
        self.config = config
        self.start = partial(Plugins.instance().instantiate_launcher, hydra_context=hydra_context)

    def sweep(self, arguments: list[str]) -> Any:
        """Run or resume the sweep to its end."""
        return self.drive(arguments, self.params, self.config, self.start)


def register() -> None:
    """Register `hydra/sweeper=ftlab`, also where Hydra's search misses this package; safe to call repeatedly."""
    Plugins.instance().register(FtlabSweeper)
    node = {"_target_": NAME, "params": None}
    ConfigStore.instance().store(group="hydra/sweeper", name="ftlab", node=node, provider="ftlab")
