"""`python -m ftlab fetch model=NAME`: bring a model's weights and tokenizer to this machine.

    HF_ENDPOINT=URL python -m ftlab fetch model=NAME    download from a mirror of the Hub

Files that are already on this machine are not downloaded again.
"""

import re
from pathlib import Path

from ftlab import weights
from ftlab.config import ExperimentConfig, ModelConfig
from ftlab.disk import size
from ftlab.shell import typed
from ftlab.weights import WeightsFolder

ORIGINS = {
    "embedded": "embedded",
    "folder": "a local folder",
    "converted": "converted earlier, found in ftlab's cache",
    "cache": "found in the Hub cache",
    "hub": "downloaded from the Hub",
    "package": "downloaded as a Python package and converted",
}


def main(cfg: ExperimentConfig) -> int:
    """Print where the files are, what they are, and a command that uses them; returns 0.

    Raises:
        WeightsError: the files cannot be found, read or downloaded.
    """
    located = weights.find(cfg.model)
    total = sum(file.stat().st_size for file in weights.files(located.folder))
    rows = {
        "model": f"{cfg.model.name} ({cfg.model.id})",
        "origin": ORIGINS[located.origin],
        "source": located.note,
        "folder": str(located.folder),
        "size": size(total),
        "revision": located.revision or "unknown",
        "licence": licence(located.folder) or "not stated in the folder: see the model's page on the Hub",
        "next": next_command(cfg.model, located),
    }
    for name, value in rows.items():
        print(f"{name:<10}{value}")
    return 0


def licence(folder: Path) -> str | None:
    """Return the licence's name from the record of a conversion, the model card's front matter, or a licence file."""
    recorded = weights.provenance(folder).get("licence")
    if recorded:
        return str(recorded)
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        named = re.search(r"^license(?:_name)?: *(\S.*)$", front[1], re.MULTILINE) if front else None
        if named:
            return named[1].strip("'\" ")
    file = next(iter(sorted(folder.glob("LICEN[CS]E*"))), None)
    return f"see {file.name}" if file else None


def next_command(model: ModelConfig, located: WeightsFolder) -> str:
    """Return a command that trains this model on rows that need no download."""
    chosen = typed("model.id", located.folder) if located.origin == "folder" else f"model={model.name}"
    return f"python -m ftlab {chosen} data=sql_synth"
