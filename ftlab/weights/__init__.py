"""Where the files of a base model lie, and how they come to this machine.

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
    """The folder with `model`'s configuration and tokenizer and, by default, its weights; fetched if need be.

    Raises:
        WeightsError: not to be found, not readable as safetensors, or refused by the Hub.
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
    """`find` without a network; None where something would have to be fetched.

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
        raise WeightsError(f"model.id={model.id} is not embedded; there is {', '.join(EMBEDDED)}")
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
    """What is no folder must have the form of a Hub id."""
    if folder.is_file():
        raise WeightsError(f"model.id={model.id} is a file: name the folder that holds it")
    if what := special(folder):
        raise WeightsError(f"model.id={model.id} is {what}: name a model's folder")
    if model.id.startswith(("/", ".", "~")):
        raise WeightsError(f"model.id={model.id}: there is no such folder")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model.id) or ".." in model.id or "--" in model.id:
        raise WeightsError(f"model.id={model.id} is neither a folder here nor a Hub id of the form ORG/NAME")


def check_code(model: ModelConfig) -> None:
    """Refuse a model on this machine whose architecture only its own Python files know, before anything takes time.

    Raises:
        WeightsError: it is one, and `model.trust_remote_code` is off; or the folder cannot be used.
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
    held = f"holds it in part: it {flaw_of(snapshot, what)}" if snapshot else "does not hold it"
    looked = [f"the Hub cache {constants.HF_HUB_CACHE} {held}"]
    if model.package:
        looked.append(f"{cache()} holds no weights converted from {model.package}")
    return (
        f"model.id={model.id}, revision {model.revision or 'main'}: no {what} of it on this machine, and "
        f"HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network. Looked at: {'; '.join(looked)}. "
        f"Run `python -m ftlab fetch {named(model)}` where there is a network (HF_ENDPOINT=URL names a "
        "mirror), copy the folder it prints, and set model.id=FOLDER"
    )
