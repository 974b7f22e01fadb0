"""The folder of a result: adapter or weights, and the other files that prediction needs."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ftlab.config import ExperimentConfig
from ftlab.errors import WeightsError
from ftlab.models.adapters import load_adapter
from ftlab.models.load import load_base, load_tokenizer
from ftlab.weights import WeightsFolder, find


def save_result(model: nn.Module, folder: Path, base_id: str) -> None:
    """Write a plain PEFT adapter (or, without one, the whole model) as safetensors."""
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)  # type: ignore[operator]
        _open_up(folder, "config.json")
        return
    initial = getattr(model, "ftlab_initial", None)
    extra = {"path_initial_model_for_weight_conversion": initial} if initial else {}
    # Save only the trained adapter, whatever other adapters the model has.
    model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=["default"], **extra)
    # The Hub id is written last: with it PEFT would access the Hub while it saves.
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": base_id}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _open_up(folder, file.name)


def _open_up(folder: Path, written: str) -> None:
    """Give weight files the same mode as the file `written`: safetensors makes them readable for their owner only."""
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / written, file)


def save_beside(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompt: dict[str, Any],
    generation: GenerationConfig,
    card: str,
) -> None:
    """Write tokenizer, prompt template, generation settings and model card next to the weights."""
    tokenizer.save_pretrained(str(folder))
    generation.save_pretrained(str(folder))
    (folder / "prompt.json").write_text(json.dumps(prompt, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def load_result(run: Path, cfg: ExperimentConfig, device: torch.device) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """Load the tokenizer and the tuned model of a finished run.

    Raises:
        WeightsError: the folder holds no result, or its base cannot be found.
    """
    full = cfg.lora.r == 0
    result = run / ("model" if full else "adapter")
    if not result.is_dir():
        raise WeightsError(f"run={run} has no {result.name}/: the run has not finished (the same command resumes it)")
    beside = WeightsFolder(result, "folder", None, "the run's own")
    tokenizer = load_tokenizer(beside, cfg.model.trust_remote_code)
    located = beside if full else find(cfg.model)
    base = load_base(located, cfg.model, cfg.quant, device=device, full=False)
    return tokenizer, base if full else load_adapter(base, result, trainable=False)
