"""The sweeper behind `--multirun`: a thin shell that does not know the engine. Whoever starts a multirun hands over the
function that drives it, as the task of `hydra.main`."""

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
    """Searches `params` (of the sweep file) and the swept overrides of the command line with workers that pull trials
    from one Optuna study. All settings are those of the configuration's `sweep` node."""

    def __init__(self, params: Any = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what the sweep is made of. `task_function` drives it; workers have tasks of their own."""
        self.drive: Callable[..., Any] = task_function
        self.config = config
        self.start = partial(Plugins.instance().instantiate_launcher, hydra_context=hydra_context)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep, or go on with it, to its end."""
        return self.drive(arguments, self.params, self.config, self.start)


def register() -> None:
    """Make `hydra/sweeper=ftlab` known, also where Hydra's own search does not see this package; safe to call again."""
    Plugins.instance().register(FtlabSweeper)
    node = {"_target_": NAME, "params": None}
    ConfigStore.instance().store(group="hydra/sweeper", name="ftlab", node=node, provider="ftlab")
