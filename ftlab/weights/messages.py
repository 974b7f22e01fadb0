"""What messages about a model share."""

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
    """The override that names the model, as typed: its option, or its id where there is no option of that name."""
    return typed("model.id", model.id) if model.name == Path(model.id).name else f"model={model.name}"


def show_progress(line: str) -> None:
    """Progress goes to stderr: stdout belongs to a command's results."""
    print(redact(line), file=sys.stderr, flush=True)
