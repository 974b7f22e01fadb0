"""Adapters of PEFT: creating them, checking them before weights load, and loading them."""

import difflib
import json
import shutil
import tempfile
import weakref
from pathlib import Path

from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from ftlab.config import LoraConfig
from ftlab.errors import ConfigError, WeightsError
from ftlab.models.load import count
from ftlab.models.targets import Targets, find_targets
from ftlab.weights import readable

MOST_RANK = 65_536  # the largest rank of an adapter: above the hidden size of a model, a rank adds nothing
NAMES = ("target_modules", "target_parameters", "modules_to_save")  # the sets of names in PEFT's configuration


def peft_config(model: PreTrainedModel, lora: LoraConfig) -> PeftLoraConfig:
    """Return PEFT's configuration, with named target sets resolved to this model's names.

    Raises:
        ConfigError: the model does not have a name, or its experts do not support a setting.
    """
    targets = find_targets(model, lora.target_modules)
    _check_experts(targets, lora)
    for name in lora.modules_to_save or []:
        if not any(full.rpartition(".")[2] == name for full, _ in model.named_modules()):
            children = sorted({full.rpartition(".")[2] for full, _ in model.named_modules() if full})
            near = difflib.get_close_matches(name, children, n=3, cutoff=0.3)
            raise ConfigError(f"lora.modules_to_save={name} is not a module of this model; nearest: {', '.join(near)}")
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
        bias=lora.bias,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=lora.init_lora_weights,
        modules_to_save=lora.modules_to_save,
    )


def _check_experts(targets: Targets, lora: LoraConfig) -> None:
    """Refuse settings that experts do not support. PEFT adds their adapter to the weights, so that the adapter has no
    input of its own for dropout or DoRA."""
    asked = {
        "lora_dropout": (lora.lora_dropout, lora.lora_dropout == 0, 0),
        "use_dora": (lora.use_dora, not lora.use_dora, False),
        "init_lora_weights": (lora.init_lora_weights, lora.init_lora_weights in (True, "gaussian"), True),
    }
    problems = [
        f"lora.{name}={value}: experts ({', '.join(targets.parameters)}) support plain LoRA only: "
        f"set lora.{name}={plain}, or leave the experts out with lora.target_modules=attention"
        for name, (value, fits, plain) in asked.items()
        if not fits
    ]
    if targets.parameters and problems:
        raise ConfigError(*problems)


def add_adapter(base: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Add a new adapter to the base, or the one of `lora.init_from`. Seed torch before the call.

    Raises:
        ConfigError: the model does not have a module name, or the adapter of `lora.init_from` has another shape.
    """
    if lora.init_from:
        return load_adapter(base, adapter_folder(lora.init_from), trainable=True, like=lora)
    model = get_peft_model(base, peft_config(base, lora))
    if str(lora.init_lora_weights).startswith("pissa"):
        model.ftlab_initial = _initial_state(model)
        weakref.finalize(model, shutil.rmtree, model.ftlab_initial, ignore_errors=True)
    return model


def check_adapter(skeleton: PreTrainedModel, lora: LoraConfig) -> None:
    """Check the adapter's settings against an architecture, before any weights load.

    Raises:
        ConfigError: the architecture does not have a name, or the adapter of `lora.init_from` does not fit.
    """
    if not lora.r:
        return
    config = peft_config(skeleton, lora)
    if lora.init_from:
        folder = adapter_folder(lora.init_from)
        _check_like(_adapter_config(folder), config, folder)


def planned_parameters(skeleton: PreTrainedModel, lora: LoraConfig) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters after adding the adapter to an architecture on the meta
    device."""
    if not lora.r:
        return count(skeleton)
    config = peft_config(skeleton, lora)
    config.init_lora_weights = True  # there is nothing to split on the meta device
    return count(get_peft_model(skeleton, config))


def _initial_state(model: PeftModel) -> str:
    """Save the adapter's initial weights, and return their folder. PiSSA moves part of the base into the adapter; to
    convert it to a plain adapter, PEFT subtracts the initial weights."""
    folder = tempfile.mkdtemp(prefix="ftlab-pissa-")
    initial = model.peft_config["default"].init_lora_weights
    model.peft_config["default"].init_lora_weights = True  # PEFT refuses to save an adapter that would be split again
    model.save_pretrained(folder, save_embedding_layers=False)
    model.peft_config["default"].init_lora_weights = initial
    return folder


def adapter_folder(text: str) -> Path:
    """Return the adapter's folder: the one in a run folder, or the folder itself.

    Raises:
        ConfigError: there is no adapter.
    """
    folder = Path(text).expanduser()
    for candidate in (folder / "adapter", folder):
        if (candidate / "adapter_config.json").is_file():
            return candidate
    raise ConfigError(f"lora.init_from={text} has no adapter (adapter_config.json): name a run or adapter folder")


def load_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool, like: LoraConfig | None = None) -> PeftModel:
    """Add the adapter in `folder` to `base`; `like` must describe the same adapter.

    Raises:
        ConfigError: `like` describes another adapter than the one in the folder.
        WeightsError: the adapter was made for another base, or its file cannot be read.
    """
    config = _adapter_config(folder)
    if like is not None:
        _check_like(config, peft_config(base, like), folder)
        config.lora_dropout = like.lora_dropout
    config.megatron_config = None  # with it, PEFT imports whatever module the file names
    config.base_model_name_or_path = None  # PEFT would warn if the base has another path; shapes are checked below
    config.inference_mode = not trainable
    config.init_lora_weights = True
    with readable(f"{folder}: its adapter_model.safetensors cannot be read"):
        saved = load_file(str(folder / "adapter_model.safetensors"))
    with readable(f"{folder}: the adapter does not fit this base"):
        model = get_peft_model(base, config)
    expected = {
        name: tuple(t.shape) for name, t in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if expected != found:
        wrong = sorted({name for name, shape in {**expected, **found}.items() if expected.get(name) != found.get(name)})
        raise WeightsError(
            f"{folder}: the adapter was made for another base: {len(wrong)} of {len(expected)} tensors differ, "
            f"first {wrong[0]}: {found.get(wrong[0])} in the file, {expected.get(wrong[0])} in the model"
        )
    set_peft_model_state_dict(model, saved)
    return model


def _adapter_config(folder: Path) -> PeftLoraConfig:
    """Return the settings of the LoRA adapter in a folder.

    Raises:
        WeightsError: they cannot be read, or belong to another kind of adapter.
    """
    file = folder / "adapter_config.json"
    with readable(f"{file} describes no adapter"):
        if not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
            raise WeightsError(f"{file} holds no object {{...}}: copy the adapter again")
        config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, PeftLoraConfig):
        raise WeightsError(
            f"{file}: peft_type={config.peft_type} is not a LoRA adapter; ftlab supports LoRA adapters only"
        )
    if not isinstance(config.r, int) or not 0 < config.r <= MOST_RANK:
        raise WeightsError(f"{file}: r={config.r} must be a whole number from 1 to {MOST_RANK}: copy the adapter again")
    for name in NAMES:
        value = getattr(config, name)
        if value is not None and not isinstance(value, (str, list, set)):
            raise WeightsError(f"{file}: {name}={value} must be a list of names: copy the adapter again")
    return config


def _check_like(saved: PeftLoraConfig, asked: PeftLoraConfig, folder: Path) -> None:
    problems = []
    for name in ("r", "lora_alpha", "use_rslora", "use_dora", "bias", *NAMES):
        mine, theirs = getattr(asked, name), getattr(saved, name)
        if name in NAMES:
            mine, theirs = sorted(mine or []), sorted(theirs or [])
        if mine != theirs:
            problems.append(f"lora.{name}={mine} must be {theirs}, as in lora.init_from={folder}")
    if problems:
        raise ConfigError(*problems)


def adapts_tied_weights(base: PreTrainedModel, model: nn.Module) -> bool:
    """Whether the embedding or the output layer has an adapter while the two share their weights."""
    if not isinstance(model, PeftModel) or not base.config.tie_word_embeddings:
        return False
    config = model.peft_config["default"]
    ends = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Embedding)}
    return bool((ends | {"lm_head"}) & {*config.target_modules, *(config.modules_to_save or [])})
