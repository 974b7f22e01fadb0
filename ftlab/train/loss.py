"""The loss of a flat batch, and a check that rows in one batch do not see each other."""

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from ftlab.data.encode import Encoded, in_runs
from ftlab.train.attention import rows_of
from ftlab.train.batches import FlatBatch, lay_flat

# Tokens of each row that the check for leaks reads: with all of a long row's logits it would need more than a step.
PROBE_TOKENS = 32
# Rows of this many tokens go through the model together when only their loss is wanted.
TOKENS = 4096
# Rounding (LLM.int8 chooses its outlier columns by batch) stays far below this part of a row's own effect.
INTERACTION_LIMIT = 0.01


def summed_loss(model: nn.Module, batch: FlatBatch) -> Tensor:
    """Cross entropy summed over the trained tokens, in float32."""
    return F.cross_entropy(scored_logits(model, batch).float(), batch.targets, reduction="sum")


def scored_logits(model: nn.Module, batch: FlatBatch) -> Tensor:
    """Logits [trained, vocabulary] of the scored positions.

    The output layer runs on these only, where the model allows to say so (`logits_to_keep`): for short answers
    after long prompts most of the vocabulary product is never computed.
    """
    arguments = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    logits: Tensor
    with rows_of(batch.lengths):
        if keeps_logits(model):
            logits = model(**arguments, logits_to_keep=batch.predict).logits[0]
        else:
            logits = model(**arguments).logits[0, batch.predict]
    return logits


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model's forward takes the positions whose logits are wanted."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


@torch.no_grad()
def rows_interact(model: nn.Module, rows: list[Encoded], device: torch.device) -> bool:
    """Whether a row's logits depend on its neighbours in a flat batch, as with architectures that do not
    restart at position 0 (state-space models, absolute positions taken from the batch).

    Of the beginnings of two short rows the second goes through the model thrice: as it is, with other tokens in the
    first row, and with another first token of its own. What the neighbour changes must be rounding beside what that
    token changes.
    """
    pair = sorted(rows, key=lambda row: row.tokens)[:2]
    if len(pair) < 2:
        return False
    before, row = (one.input_ids[:PROBE_TOKENS] for one in pair)

    def second(first: list[int], ids: list[int]) -> Tensor:
        batch = lay_flat([Encoded("", first, ()), Encoded("", ids, ((1, len(ids)),))], device)
        return scored_logits(model, batch).float()

    was_training = model.training
    model.eval()
    try:
        logits = second(before, row)
        neighbour = (second(before[:1] * len(before), row) - logits).abs().max()
        own = (second(before, [abs(row[0] - 1), *row[1:]]) - logits).abs().max()
    except torch.cuda.OutOfMemoryError:
        raise
    except (TypeError, ValueError, IndexError, RuntimeError):
        return True
    finally:
        model.train(was_training)
    return bool(neighbour > INTERACTION_LIMIT * own)


def mean_loss(model: nn.Module, rows: Sequence[Encoded], device: torch.device, flat: bool) -> float:
    """Mean cross entropy over the trained tokens of `rows`, without gradients; `flat` says whether rows may share a
    batch."""
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    try:
        with torch.no_grad():
            for part in in_runs(rows, TOKENS if flat else 0):
                batch = lay_flat(part, device)
                total += summed_loss(model, batch).double()
                tokens += batch.trained
    finally:
        model.train(was_training)
    return float(total) / max(1, tokens)
