"""Notices of libraries that mean nothing to a user of ftlab are silenced; the package imports this first.

- bitsandbytes: an optional CPU kernel package is absent (its own kernels do the work).
- transformers: PEFT still reads `is_gradient_checkpointing` under its old name.
"""

import logging
import warnings

MESSAGES = (r"`is_gradient_checkpointing` is deprecated",)

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
for message in MESSAGES:
    warnings.filterwarnings("ignore", message=message)
