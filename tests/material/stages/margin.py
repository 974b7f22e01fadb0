"""A stage beside SFT: of two answers to a prompt, the row's own should be likelier than another row's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ftlab.data.encode import Encoded, EncodedSet, Tokens, fit
from ftlab.fit import fit as train
from ftlab.metrics import Metric
from ftlab.train.batches import lay_flat, tokens_of, trained_of
from ftlab.train.loss import summed_loss

HELP = "mean log-probability a token of the own answer over that of the other"


class Pair:
    def __init__(self, *rows: Encoded) -> None:
        self.id, self.rows = rows[0].id, rows
        self.tokens, self.trained = tokens_of(rows), trained_of(rows)


def margins(model: Any, pairs: Sequence[Pair], device: torch.device) -> Tensor:
    """[pairs], in nats a token; each row goes through the model alone."""
    means = [summed_loss(model, lay_flat([row], device)) / row.trained for pair in pairs for row in pair.rows]
    own, other = torch.stack(means).view(-1, 2).unbind(1)
    return other - own


def loss(model: Any, pairs: Sequence[Pair], device: torch.device) -> Tensor:
    weights = torch.tensor([pair.trained for pair in pairs], device=device)
    return (torch.nn.functional.softplus(-margins(model, pairs, device)) * weights).sum()


@dataclass(frozen=True)
class Margin:
    name: str = "margin"
    needs: str = "completion"
    metrics: tuple[Metric, ...] = (Metric("margin", "margin", HELP, "maximize", objective=True),)
    answers: bool = False

    def encode(self, tokens: Sequence[Tokens], cfg: Any) -> EncodedSet[Any]:
        swapped = [row.answered(other.answer) for row, other in zip(tokens, [*tokens[1:], tokens[0]], strict=True)]
        own, others = (fit(rows, cfg.data.max_length, "completion") for rows in (tokens, swapped))
        other = {row.id: row for row in others.rows}
        pairs = [Pair(row, other[row.id]) for row in own.rows if row.id in other]
        return EncodedSet(pairs, own.truncated, len(tokens) - len(pairs), own.longest_dropped, own.unescaped)

    @torch.no_grad()
    def evaluate(self, loaded: Any, pairs: Sequence[Pair], cfg: Any) -> dict[str, float]:
        loaded.model.eval()
        with loaded.accelerator.autocast():
            return {"margin": margins(loaded.model, pairs, loaded.accelerator.device).mean().item()}

    def fit(self, loaded: Any, pairs: Sequence[Pair], cfg: Any, hooks: Any, resume: Any) -> Any:
        return train(loaded, pairs, cfg, hooks, resume, loss)


STAGE = Margin()
