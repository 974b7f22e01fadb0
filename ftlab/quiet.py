"""Notices of libraries that mean nothing to a user of ftlab are silenced; the package imports this first.

- bitsandbytes: an optional CPU kernel package is absent (its own kernels do the work).
- transformers: PEFT still reads `is_gradient_checkpointing` under its old name.
- bitsandbytes: without a GPU there is nothing to page an optimizer to; the updates are the same.
- PEFT: an adapter on a layer that shares its weights (ftlab says so in a line of its own).
- PEFT: a PiSSA adapter beside another: to save one, its start is loaded beside it for a moment and subtracted.
"""

import logging
import warnings

MESSAGES = (
    r"`is_gradient_checkpointing` is deprecated",
    r"Paged optimizers are not supported on CPU",
    r"Model has `tie_word_embeddings=True`",
    r"PiSSA changes the base weights",
)

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
for message in MESSAGES:
    warnings.filterwarnings("ignore", message=message)
