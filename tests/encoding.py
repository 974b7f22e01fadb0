"""Rows made to fit in one call, as a run's preparation does it in three."""

from collections.abc import Sequence
from typing import Any

from ftlab.data import Example
from ftlab.data.encode import Encoded, EncodedSet, fit, refuse_empty, tokenise


def encode(
    examples: Sequence[Example], tokenizer: Any, prompt: str, max_length: int, loss_on: str
) -> EncodedSet[Encoded]:
    tokens = tokenise(examples, tokenizer, prompt)
    fitted = fit(tokens, max_length, loss_on)
    refuse_empty(fitted, tokens, max_length)
    return fitted
