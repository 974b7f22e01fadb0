"""Parts that several messages about a model share."""

import sys
from pathlib import Path

from ftlab.config import ModelConfig
from ftlab.redact import redact
from ftlab.shell import typed

REMEDY = (
    "Set HF_ENDPOINT to a mirror of the Hub, name a folder with model.id=FOLDER, "
    "or choose model=tiny, which is shipped inside ftlab"
)


def named(model: ModelConfig) -> str:
    """Return the override that selects the model, as a user types it: its option, or its id if it has no option."""
    return typed("model.id", model.id) if model.name == Path(model.id).name else f"model={model.name}"


def show_progress(line: str) -> None:
    """Print a line of progress on stderr, since stdout is for a command's results."""
    print(redact(line), file=sys.stderr, flush=True)
