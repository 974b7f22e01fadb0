"""Tokenizer, base weights, quantisation and adapters."""

import difflib
import gc
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)

from ftlab.config import ExperimentConfig, LoraConfig, ModelConfig, QuantConfig
from ftlab.errors import ConfigError, WeightsError, first_line
from ftlab.weights import Located, find, own_code

# transformers and PEFT ask on stdin whether a model's code may run, where nobody said so; so they never do.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

# A linear layer belongs to attention or to the MLP by the name of the module that holds it.
ATTENTION_PARENTS = ("attn", "attention")
MLP_PARENTS = ("mlp", "ffn", "feed_forward", "experts")
QUERY_VALUE = ("q_proj", "v_proj", "query", "value", "wq", "wv", "q", "v")


@contextmanager
def _code_refused(located: Located) -> Iterator[None]:
    """A model that brings code of its own, where none may run: which files, and how to allow them.

    Raises:
        WeightsError: always where transformers asks for permission.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if "trust_remote_code" not in str(error):
            raise
        raise WeightsError(own_code(located.folder)) from None


def load_tokenizer(located: Located, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, with a pad token. Its eos token must exist: without it nothing can stop.

    Raises:
        WeightsError: no tokenizer, or one without an end-of-sequence token.
    """
    try:
        with _code_refused(located):
            tokenizer = AutoTokenizer.from_pretrained(located.folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{located.folder}: no usable tokenizer ({first_line(error)})") from None
    if tokenizer.eos_token_id is None:
        raise WeightsError(
            f"{located.folder}: the tokenizer has no end-of-sequence token, so a tuned model could never stop: "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: masks come from lengths, never from this id
    return tokenizer


def load_base(
    located: Located, model: ModelConfig, quant: QuantConfig, *, device: torch.device, full: bool
) -> PreTrainedModel:
    """The base weights on `device`, quantised as asked and frozen unless `full`.

    Full fine-tuning holds float32 weights (an update of bfloat16 weights rounds away); `model.dtype` is
    then the dtype of the arithmetic only.

    Raises:
        WeightsError: files that cannot be read or are of no decoder architecture.
    """
    arguments: dict[str, Any] = {
        "dtype": torch.float32 if full else getattr(torch, model.dtype),
        "attn_implementation": model.attn_implementation,
        "trust_remote_code": model.trust_remote_code,
        "use_safetensors": True,
        "local_files_only": True,
    }
    if quantization := quantization_config(quant):
        arguments |= {"quantization_config": quantization, "device_map": {"": device}}
    try:
        with _code_refused(located):
            base = AutoModelForCausalLM.from_pretrained(located.folder, **arguments)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise WeightsError(f"model.id={model.id} cannot be loaded: {first_line(error)}") from None
    if not quantization:
        base = base.to(device)
    _keep_weights_trainable(base)
    base.requires_grad_(full)
    base.config.use_cache = False
    return base


class Bases:
    """Keeps the last base between the experiments of one process, so that the next one on it need not load it.

    A base is lent to one experiment at a time and taken back only clean: its adapter unloaded, its modules, hooks and
    flags those of the load, and every tensor the same bit for bit, by sums over the bits. At any doubt it is dropped.
    """

    def __init__(self) -> None:
        self._key = ""
        self._base: PreTrainedModel | None = None
        self._state: list[tuple[Any, ...]] = []
        self._hooks: Any = None  # those with which a base passes gradients to its input

    def take(self, key: str, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """The base kept under `key`, or what `load` returns; a base of another key is dropped before."""
        if self._base is None or self._key != key:
            self.drop()
            base = load()
            self._state, self._hooks = _state(base), getattr(base, "_require_grads_hooks", None)
            self._key, self._base = key, base  # last: a time limit or a signal may end this at any line
        base, self._base = self._base, None
        return base

    def give_back(self, model: nn.Module) -> bool:
        """Keep the base of a model that is no longer needed; whether it was clean."""
        base: Any = model.unload() if isinstance(model, PeftModel) else model
        if getattr(base, "_require_grads_hooks", None) is not self._hooks:  # PEFT added its own
            base.disable_input_require_grads()
            base._require_grads_hooks = self._hooks
        base.eval()
        self._base = base if _state(base) == self._state else None
        return self._base is not None

    def held_gib(self) -> float:
        """GPU memory of the base that is kept."""
        tensors = dict(_tensors(self._base)).values() if self._base is not None else ()
        return sum(tensor.nbytes for tensor in tensors if tensor.is_cuda) / (1 << 30)

    def drop(self) -> None:
        """Free the base that is kept."""
        self._base = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def base_key(located: Located, model: ModelConfig, quant: QuantConfig, *more: object) -> str:
    """All that decides which tensors a load puts where."""
    return repr((str(located.folder), located.revision, asdict(model) | {"name": ""}, asdict(quant), *more))


def leaves_base(lora: LoraConfig) -> bool:
    """Whether training with this adapter leaves every weight of the base as it is."""
    pissa = str(lora.init_lora_weights).startswith("pissa")
    return bool(lora.r) and not pissa and not lora.modules_to_save and lora.bias == "none"


def _state(base: nn.Module) -> list[tuple[Any, ...]]:
    """Modules with their hooks, and tensors with their flags and the sums of their bits."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (name, type(module), *(len(getattr(module, kind)) for kind in kinds)) for name, module in base.named_modules()
    ]
    named = list(_tensors(base))
    sums = torch.stack([_sum_of_bits(tensor).cpu() for _, tensor in named]).tolist()
    tensors = [
        (name, tensor.dtype, tuple(tensor.shape), tensor.requires_grad, total)
        for (name, tensor), total in zip(named, sums, strict=True)
    ]
    return [*modules, *tensors]


def _tensors(base: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers, and the scales that belong to quantised weights."""
    yield from base.named_buffers()
    for name, parameter in base.named_parameters():
        yield name, parameter
        quant_state = getattr(parameter, "quant_state", None)
        for state in (quant_state, getattr(quant_state, "state2", None)):
            for key, value in vars(state).items() if state is not None else ():
                if isinstance(value, torch.Tensor):
                    yield f"{name}.{key}", value


def _sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor's 8-byte words: any one bit that differs changes it. It needs no memory of its own."""
    data = tensor.data.contiguous()
    if data.data_ptr() % 8 or data.storage_offset() * data.element_size() % 8:
        data = data.clone()
    flat = data.view(-1).view(torch.uint8)
    whole = flat.numel() // 8 * 8
    return flat[:whole].view(torch.int64).sum() + flat[whole:].sum()


def switch_activation_checkpointing(base: PreTrainedModel, on: bool) -> None:
    """Whether training keeps layer inputs only and computes the rest again in the backward pass (newer transformers'
    name first)."""
    name = "activation_checkpointing" if hasattr(base, "activation_checkpointing_enable") else "gradient_checkpointing"
    if on:
        getattr(base, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(base, f"{name}_disable")()


def _keep_weights_trainable(base: nn.Module) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks 4-bit weights at the first forward pass in eval mode, for
    good, and has no gradient for the packed form: training after an evaluation would go on without one."""
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  (torch types attributes as modules)


def quantization_config(quant: QuantConfig) -> BitsAndBytesConfig | None:
    """transformers' quantisation settings, or None where both flags are off."""
    if not (quant.load_in_4bit or quant.load_in_8bit):
        return None
    return BitsAndBytesConfig(
        load_in_8bit=quant.load_in_8bit,
        load_in_4bit=quant.load_in_4bit,
        bnb_4bit_quant_type=quant.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quant.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quant.bnb_4bit_compute_dtype),
        llm_int8_threshold=quant.llm_int8_threshold,
    )


def skeleton(located: Located, trust_remote_code: bool) -> PreTrainedModel:
    """The architecture without weights (meta device): names and shapes, no memory."""
    with _code_refused(located):
        config = AutoConfig.from_pretrained(located.folder, trust_remote_code=trust_remote_code)
    with _code_refused(located), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def linear_names(model: nn.Module) -> dict[str, list[str]]:
    """Short names of the linear layers, each with the full names that end in it, in the model's order."""
    found: dict[str, list[str]] = {}
    for full, module in model.named_modules():
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's linear
        if is_linear and full:
            found.setdefault(full.rpartition(".")[2], []).append(full)
    return found


def target_names(model: PreTrainedModel, targets: Any) -> list[str]:
    """Module names for PEFT: a named set resolved on this model, or a list of which every entry exists.

    Raises:
        ConfigError: an entry that names no linear layer, or a set that this architecture does not have.
    """
    linears = linear_names(model)
    head = model.get_output_embeddings()
    inner = {name: full for name, full in linears.items() if not _is_head(model, full, head)}
    if isinstance(targets, list):
        return _checked(targets, linears)
    chosen = [found for name, full in inner.items() for found in _members(targets, name, full)]
    if not chosen:
        raise ConfigError(
            f"lora.target_modules={targets} names no linear layer of this model; it has: {', '.join(linears)}"
        )
    return chosen


def _is_head(model: nn.Module, names: list[str], head: nn.Module | None) -> bool:
    return head is not None and any(model.get_submodule(name) is head for name in names)


def _members(targets: str, name: str, full: list[str]) -> list[str]:
    """The name where all layers so called are in the set; where some are (GPT-2's attention and MLP both have a
    `c_proj`), the name together with the module that holds it."""
    members = [layer for layer in full if _in_set(targets, name, layer)]
    if len(members) == len(full):
        return [name]
    return list(dict.fromkeys(".".join(layer.split(".")[-2:]) for layer in members))


def _in_set(targets: str, name: str, full: str) -> bool:
    parents = full.lower().split(".")[:-1]
    attention = any(mark in parent for parent in parents for mark in ATTENTION_PARENTS)
    mlp = any(mark in parent for parent in parents for mark in MLP_PARENTS)
    return {
        "all-linear": True,
        "attention": attention,
        "mlp": mlp and not attention,
        "qv": attention and name in QUERY_VALUE,
    }[targets]


def _checked(targets: list[str], linears: dict[str, list[str]]) -> list[str]:
    problems = []
    for target in targets:
        full = [name for names in linears.values() for name in names]
        if target in linears or any(name == target or name.endswith("." + target) for name in full):
            continue
        near = difflib.get_close_matches(target, linears, n=1, cutoff=0.3)
        hint = f" (nearest: {near[0]})" if near else ""
        problems.append(
            f"lora.target_modules={target} is no linear layer of this model{hint}; it has: {', '.join(linears)}"
        )
    if problems:
        raise ConfigError(*problems)
    return targets


def peft_config(model: PreTrainedModel, lora: LoraConfig) -> PeftLoraConfig:
    """PEFT's configuration with every target set resolved to this model's names."""
    for name in lora.modules_to_save or []:
        if not any(full.rpartition(".")[2] == name for full, _ in model.named_modules()):
            children = sorted({full.rpartition(".")[2] for full, _ in model.named_modules() if full})
            near = difflib.get_close_matches(name, children, n=3, cutoff=0.3)
            raise ConfigError(f"lora.modules_to_save={name} is no module of this model; nearest: {', '.join(near)}")
    return PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=target_names(model, lora.target_modules),
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
        bias=lora.bias,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=lora.init_lora_weights,
        modules_to_save=lora.modules_to_save,
    )


def add_adapter(base: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Wrap the base in a fresh adapter, or in the one of `lora.init_from`. Seed torch before the call.

    Raises:
        ConfigError: module names this model does not have, or an adapter of another shape.
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
        ConfigError: names this architecture does not have, or an `init_from` that does not fit.
    """
    if not lora.r:
        return
    config = peft_config(skeleton, lora)
    if lora.init_from:
        folder = adapter_folder(lora.init_from)
        _check_like(PeftConfig.from_pretrained(str(folder)), config, folder)


def planned_parameters(skeleton: PreTrainedModel, lora: LoraConfig) -> tuple[int, int]:
    """Trainable and all parameters of the model that `lora` makes of an architecture on the meta device."""
    if not lora.r:
        return count(skeleton)
    config = peft_config(skeleton, lora)
    config.init_lora_weights = True  # there is nothing to split on the meta device
    return count(get_peft_model(skeleton, config))


def _initial_state(model: PeftModel) -> str:
    """PiSSA moves part of the base into the adapter; a plain adapter needs its start to subtract: its folder."""
    folder = tempfile.mkdtemp(prefix="ftlab-pissa-")
    initial = model.peft_config["default"].init_lora_weights
    model.peft_config["default"].init_lora_weights = True  # PEFT refuses to save a start that would split again
    model.save_pretrained(folder, save_embedding_layers=False)
    model.peft_config["default"].init_lora_weights = initial
    return folder


def adapter_folder(text: str) -> Path:
    """The adapter in a run folder, or the folder itself where it is one.

    Raises:
        ConfigError: there is no adapter.
    """
    folder = Path(text).expanduser()
    for candidate in (folder / "adapter", folder):
        if (candidate / "adapter_config.json").is_file():
            return candidate
    raise ConfigError(f"lora.init_from={text} holds no adapter (adapter_config.json): name a run or adapter folder")


def load_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool, like: LoraConfig | None = None) -> PeftModel:
    """Put the adapter of `folder` on `base`; `like` must describe the same adapter.

    Raises:
        ConfigError: `like` asks for another adapter than the folder holds.
        WeightsError: the adapter was made for another base, or its file is not readable.
    """
    config = PeftConfig.from_pretrained(str(folder))
    if like is not None:
        _check_like(config, peft_config(base, like), folder)
        config.lora_dropout = like.lora_dropout
    config.megatron_config = None  # with it, PEFT imports whatever module the file names
    config.base_model_name_or_path = None  # PEFT would warn of a base that lies elsewhere; shapes are checked below
    config.inference_mode = not trainable
    config.init_lora_weights = True
    try:
        model = get_peft_model(base, config)
        saved = load_file(str(folder / "adapter_model.safetensors"))
    except torch.cuda.OutOfMemoryError:
        raise
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder}: the adapter does not fit this base: {first_line(error)}") from None
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


def _check_like(saved: PeftLoraConfig, asked: PeftLoraConfig, folder: Path) -> None:
    problems = []
    for name in ("r", "lora_alpha", "use_rslora", "use_dora", "bias", "target_modules", "modules_to_save"):
        mine, theirs = getattr(asked, name), getattr(saved, name)
        if isinstance(mine, (set, list)) or isinstance(theirs, (set, list)):
            mine, theirs = sorted(mine or []), sorted(theirs or [])
        if mine != theirs:
            problems.append(f"lora.{name}={mine} must be {theirs}, as in lora.init_from={folder}")
    if problems:
        raise ConfigError(*problems)


def adapts_tied_weights(base: PreTrainedModel, model: nn.Module) -> bool:
    """Whether an adapter sits on the embedding or the output layer while both share their weights."""
    if not isinstance(model, PeftModel) or not base.config.tie_word_embeddings:
        return False
    config = model.peft_config["default"]
    ends = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Embedding)}
    return bool((ends | {"lm_head"}) & {*config.target_modules, *(config.modules_to_save or [])})


def save_result(model: nn.Module, folder: Path, base_id: str) -> None:
    """Write a plain PEFT adapter (or, without one, the whole model) as safetensors."""
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)  # type: ignore[operator]
        return
    initial = getattr(model, "ftlab_initial", None)
    extra = {"path_initial_model_for_weight_conversion": initial} if initial else {}
    model.save_pretrained(str(folder), save_embedding_layers=False, **extra)
    # Written last: PEFT would look a Hub id up while it saves.
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": base_id}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_beside(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompt: dict[str, Any],
    generation: GenerationConfig,
    card: str,
) -> None:
    """Tokenizer, prompt template, generation settings and model card: all that prediction needs beside the
    weights."""
    tokenizer.save_pretrained(str(folder))
    generation.save_pretrained(str(folder))
    (folder / "prompt.json").write_text(json.dumps(prompt, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def load_result(run: Path, cfg: ExperimentConfig, device: torch.device) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """Tokenizer and tuned model of a finished run.

    Raises:
        WeightsError: the folder holds no result, or its base cannot be found.
    """
    full = cfg.lora.r == 0
    result = run / ("model" if full else "adapter")
    if not result.is_dir():
        raise WeightsError(f"run={run} holds no {result.name}/: the run has not finished (the same command resumes it)")
    beside = Located(result, "folder", None, "the run's own")
    tokenizer = load_tokenizer(beside, cfg.model.trust_remote_code)
    located = beside if full else find(cfg.model)
    base = load_base(located, cfg.model, cfg.quant, device=device, full=False)
    return tokenizer, base if full else load_adapter(base, result, trainable=False)


def count(model: nn.Module) -> tuple[int, int]:
    """Trainable and all parameters; a packed 4-bit weight counts every number that it stands for."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        numbers = state.shape.numel() if state is not None else parameter.numel()
        total += numbers
        trainable += numbers if parameter.requires_grad else 0
    return trainable, total
