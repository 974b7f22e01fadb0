"""The loss of a flat batch, and a check that rows of one batch do not influence each other."""

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from ftlab.data.encode import Encoded, in_chunks
from ftlab.train.attention import rows_of
from ftlab.train.batches import FlatBatch, lay_flat

# Tokens of each row in the check for interaction. All logits of a long row would need more memory than a step.
PROBE_TOKENS = 32
# Tokens of the rows that go through the model together when only their loss is computed.
TOKENS = 4096
# Rows interact if the effect of a neighbour is above this fraction of the effect of a row's own token. Rounding stays
# far below it, even that of LLM.int8, which chooses its outlier columns by batch.
INTERACTION_LIMIT = 0.01


def summed_loss(model: nn.Module, batch: FlatBatch) -> Tensor:
    """Return the cross entropy summed over the trained tokens, in float32."""
    return F.cross_entropy(scored_logits(model, batch).float(), batch.targets, reduction="sum")


def scored_logits(model: nn.Module, batch: FlatBatch) -> Tensor:
    """Return the logits [trained, vocabulary] of the scored positions.

    If the model supports it (`logits_to_keep`), the output layer runs on these positions only. For short answers after
    long prompts this saves most of the product with the vocabulary.
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
    """Whether the model's forward pass can be limited to given positions (`logits_to_keep`)."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


@torch.no_grad()
def rows_interact(model: nn.Module, rows: list[Encoded], device: torch.device) -> bool:
    """Whether the rows of a flat batch influence each other, as in architectures that do not restart at position 0
    (state-space models, or absolute positions taken from the batch).

    The check takes the beginnings of two short rows and computes the second row's logits three times: unchanged, with
    other tokens in the first row, and with another first token of its own. The change from the first row must be as
    small as rounding, compared with the change from its own token.
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
    """Return the mean cross entropy over the trained tokens of `rows`, in nats, without gradients. `flat` says whether
    rows may share a batch."""
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    try:
        with torch.no_grad():
            for part in in_chunks(rows, TOKENS if flat else 0):
                batch = lay_flat(part, device)
                total += summed_loss(model, batch).double()
                tokens += batch.trained
    finally:
        model.train(was_training)
    return float(total) / max(1, tokens)
