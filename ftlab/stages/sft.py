"""Supervised fine-tuning: the model learns the rows' answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftlab.metrics import LOSS, Metric

if TYPE_CHECKING:
    from ftlab.config import ExperimentConfig
    from ftlab.data.encode import Encoded, EncodedSet, Tokens
    from ftlab.stages.stage import Hooks, LoadedModel
    from ftlab.train.checkpoint import Checkpoint
    from ftlab.train.learner import Progress


@dataclass(frozen=True)
class Sft:
    """Trains on the cross entropy of the trained spans, with the fast step if it supports the model."""

    name: str = "sft"
    needs: str = "completion"
    metrics: tuple[Metric, ...] = (LOSS,)
    answers: bool = True

    def encode(self, tokens: "Sequence[Tokens]", cfg: "ExperimentConfig") -> "EncodedSet[Encoded]":
        """See `Stage`: each row is a sample."""
        from ftlab.data.encode import fit

        return fit(tokens, cfg.data.max_length, cfg.trainer.loss_on)

    def evaluate(
        self, loaded: "LoadedModel", samples: "Sequence[Encoded]", cfg: "ExperimentConfig"
    ) -> dict[str, float]:
        """See `Stage`: the mean loss over trained tokens, in nats."""
        from ftlab.fast import scoring
        from ftlab.train.loss import mean_loss

        if loaded.decoder:
            return {"loss": scoring.mean_loss(loaded.decoder, samples)}
        return {"loss": mean_loss(loaded.model, samples, loaded.accelerator.device, loaded.flat)}

    def fit(
        self,
        loaded: "LoadedModel",
        samples: "Sequence[Encoded]",
        cfg: "ExperimentConfig",
        hooks: "Hooks",
        resume: "Checkpoint | None",
    ) -> "Progress":
        """See `Stage`."""
        from ftlab.fit import fit

        return fit(loaded, samples, cfg, hooks, resume)


STAGE = Sft()
