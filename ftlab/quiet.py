"""Silences notices of libraries that do not help a user of ftlab; the package imports this module first.

- bitsandbytes: an optional package of CPU kernels is missing (its own kernels are used).
- transformers: PEFT still reads `is_gradient_checkpointing`, an old name.
- bitsandbytes: a paged optimizer without a GPU pages nothing; its updates are the same.
- PEFT: an adapter on a layer that shares its weights (ftlab prints its own warning).
- PEFT: a second adapter next to a PiSSA adapter; saving one loads its initial state for a moment to subtract it.
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
