"""Supervised fine-tuning: the model learns the rows' answers."""

from dataclasses import dataclass

from ftlab.metrics import LOSS, Metric


@dataclass(frozen=True)
class Sft:
    """What the configuration's rules and the tables need to know of it."""

    name: str = "sft"
    needs: str = "completion"
    metrics: tuple[Metric, ...] = (LOSS,)


STAGE = Sft()
