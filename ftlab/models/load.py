"""Tokenizer and base weights, quantised as asked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)

from ftlab.config import ModelConfig, QuantConfig
from ftlab.disk import size
from ftlab.errors import WeightsError, first_line
from ftlab.models.attention import attention_of
from ftlab.models.complete import absent_experts, check_class, check_complete
from ftlab.models.targets import linear_names, uncalled
from ftlab.weights import WeightsFolder, own_code, readable

# Without permission in the configuration, transformers and PEFT would ask on stdin whether a model's code may run. With
# a time-out of 0 they never ask.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


@contextmanager
def _code_refused(located: WeightsFolder) -> Iterator[None]:
    """Refuse a model that needs its own Python code, with the files' names and how to allow them.

    Raises:
        WeightsError: transformers asks for permission to run the code.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if "trust_remote_code" not in str(error):
            raise
        raise WeightsError(own_code(located.folder)) from None


def load_tokenizer(located: WeightsFolder, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, and set a pad token if there is none. It must have an end-of-sequence token:
    without it, generation could not stop.

    Raises:
        WeightsError: there is no usable tokenizer, or it has no end-of-sequence token.
    """
    place = f"{located.folder}: its tokenizer files, or the config.json that names their class, cannot be used"
    with readable(place), _code_refused(located):
        tokenizer = AutoTokenizer.from_pretrained(located.folder, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise WeightsError(
            f"{located.folder}: the tokenizer has no end-of-sequence token, so a tuned model could never stop: "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: masks come from lengths, never from this id
    return tokenizer


@contextmanager
def _absent_named(folder: Path) -> Iterator[None]:
    """If loading fails because tensors of experts are missing, name them in the error.

    Raises:
        ValueError: names the missing tensors.
    """
    try:
        yield
    except Exception as error:
        absent = "" if "out of memory" in str(error) else absent_experts(folder)
        if not absent:
            raise
        raise ValueError(f"its weight files lack {absent}: copy or download them again") from None


def load_base(
    located: WeightsFolder, model: ModelConfig, quant: QuantConfig, *, device: torch.device, full: bool
) -> PreTrainedModel:
    """Load the base weights on `device`, quantised as `quant` says, and frozen unless `full`.

    Full fine-tuning uses float32 weights, since small updates of bfloat16 weights would be lost by rounding.
    `model.dtype` is then only the dtype of the arithmetic.

    Raises:
        WeightsError: files cannot be read, do not belong to a decoder, do not contain the tensors that config.json
            describes, or are larger than the machine's memory.
        ConfigError: the attention implementation cannot be used.
    """
    bare = skeleton(located, model.trust_remote_code)
    arguments: dict[str, Any] = {
        "dtype": torch.float32 if full else getattr(torch, model.dtype),
        "attn_implementation": attention_of(bare, model.attn_implementation),
        "trust_remote_code": model.trust_remote_code,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # `check_complete` refuses them, with their names
    }
    uncalled_layers = [name for names in linear_names(bare).values() for name in names if uncalled(bare, name)]
    quantization = quantization_config(quant, uncalled_layers)
    if quantization and not stored_kind(bare):
        arguments["quantization_config"] = quantization
    if quantization or stored_kind(bare):
        arguments["device_map"] = {"": device}
    if device.type == "cpu":
        _check_memory(bare, model.id, arguments["dtype"], quant)
    with (
        readable(f"model.id={model.id} cannot be loaded"),
        _code_refused(located),
        _absent_named(located.folder),
    ):
        base, loading = AutoModelForCausalLM.from_pretrained(located.folder, **arguments)
    check_complete(base, loading, model.id)
    if "device_map" not in arguments:
        base = base.to(device)
    _keep_weights_trainable(base)
    if hasattr(base.config, "rescale_every"):  # RWKV would halve weights in place for evaluations, but not adapters
        base.config.rescale_every = 0
    base.requires_grad_(full)
    base.config.use_cache = False
    return base


def _check_memory(bare: PreTrainedModel, model_id: str, dtype: torch.dtype, quant: QuantConfig) -> None:
    """Refuse weights that are larger than the machine's memory: the system would kill the process while it loads,
    without a message. On a GPU the allocator raises an error by itself.

    Raises:
        WeightsError: names the bytes needed and the bytes of memory.
    """
    each = 0.5 if quant.load_in_4bit else 1 if quant.load_in_8bit else dtype.itemsize
    needed = each * sum(parameter.numel() for parameter in bare.parameters())
    there = psutil.virtual_memory().total + psutil.swap_memory().total
    if needed > there:
        raise WeightsError(
            f"model.id={model_id} needs about {size(needed)} for its weights, and this machine has {size(there)} of "
            "memory: choose a smaller model, quant=nf4, or a machine with more"
        )


def switch_activation_checkpointing(base: PreTrainedModel, on: bool) -> None:
    """Switch activation checkpointing on or off. Newer versions of transformers have another name for it than older
    ones."""
    name = "activation_checkpointing" if hasattr(base, "activation_checkpointing_enable") else "gradient_checkpointing"
    if on:
        getattr(base, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(base, f"{name}_disable")()


def _keep_weights_trainable(base: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights. On CPUs with AVX512-BF16 it does so permanently at the first
    forward pass in eval mode, and the packed form has no gradient: training after an evaluation would have none."""
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  (torch types attributes as modules)


def check_forward(model: nn.Module, model_id: str, quant: QuantConfig) -> None:
    """Refuse a model whose forward pass fails: libraries do not support every pair of architecture and quantisation.
    Call this in the precision in which the model runs.

    A model that predicts NaN is refused too, and one whose tokens attend to later ones, as in an encoder: it would
    learn to copy them.

    Raises:
        WeightsError: names the model, and the quantisation or the flaw.
    """
    ids = torch.arange(8, device=next(model.parameters()).device).reshape(2, 4)
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    training = model.training
    try:
        changed = torch.cat([ids[:, :-1], ids[:, -1:].flip(0)], dim=1)
        with torch.no_grad():
            first = model.eval()(input_ids=ids, use_cache=False).logits
            model.train()(input_ids=ids, use_cache=False)
            problem = _flaw(base, first, model.eval()(input_ids=changed, use_cache=False).logits)
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError) as error:
        quantised = quant.load_in_4bit or quant.load_in_8bit
        remedy = "choose quant=none, or another model" if quantised else "choose another model"
        raise WeightsError(
            f"model.id={model_id}: {type(base).__name__} cannot be run with quant={kind(quant)} ({first_line(error)}): "
            f"{remedy}"
        ) from None
    finally:
        model.train(training)
    if problem:
        raise WeightsError(f"model.id={model_id}: {problem}")


def _flaw(base: nn.Module, first: torch.Tensor, second: torch.Tensor) -> str | None:
    """Return what is wrong with the model's logits for two batches that differ in each row's last token only."""
    if first.isnan().any():
        return (
            f"{type(base).__name__} predicts NaN: copy or download its weights again, or choose model.dtype=bfloat16 "
            "or float32 if they are made for these"
        )
    first, second = first[:, :-1].float(), second[:, :-1].float()
    spread = first.std(dim=1).mean()  # the spread between tokens; rounding stays far below it
    if (first - second).abs().mean() > 0.1 * spread:
        return (
            f"the tokens of {type(base).__name__} attend to later ones, as in an encoder, so it cannot learn to write "
            "answers: choose a decoder, or set is_decoder=true in its config.json if it is one"
        )
    return None


def kind(quant: QuantConfig) -> str:
    """Return the option of the group `quant` for these settings."""
    if quant.load_in_4bit:
        return quant.bnb_4bit_quant_type
    return "int8" if quant.load_in_8bit else "none"


def stored_kind(bare: PreTrainedModel) -> str | None:
    """Return how the weights are quantised in their files, as an option of the group `quant` or as another method's
    name; None if they are not."""
    stored = getattr(bare.config, "quantization_config", None)
    if not stored:
        return None
    settings: dict[str, Any] = stored if isinstance(stored, dict) else stored.to_dict()
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type", "fp4"))
    return "int8" if settings.get("load_in_8bit") else str(settings.get("quant_method", "quantised"))


def quantization_config(quant: QuantConfig, spared: Sequence[str] = ()) -> BitsAndBytesConfig | None:
    """Return transformers' quantisation settings, or None if both flags are off. The layers `spared` are not quantised,
    in addition to those that transformers leaves out itself."""
    if not (quant.load_in_4bit or quant.load_in_8bit):
        return None
    return BitsAndBytesConfig(
        load_in_8bit=quant.load_in_8bit,
        load_in_4bit=quant.load_in_4bit,
        bnb_4bit_quant_type=quant.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quant.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, quant.bnb_4bit_compute_dtype),
        llm_int8_threshold=quant.llm_int8_threshold,
        llm_int8_skip_modules=[*spared, "lm_head"] if spared else None,
    )


def skeleton(located: WeightsFolder, trust_remote_code: bool) -> PreTrainedModel:
    """Return the architecture without weights (on the meta device): names and shapes, no memory.

    Raises:
        WeightsError: config.json does not describe a decoder that transformers supports.
    """
    place = f"{located.folder}: config.json describes no usable decoder"
    with readable(place), _code_refused(located):
        config = AutoConfig.from_pretrained(located.folder, trust_remote_code=trust_remote_code)
        check_class(config, located.folder)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def count(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters. A packed 4-bit weight counts with all its numbers."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        numbers = state.shape.numel() if state is not None else parameter.numel()
        total += numbers
        trainable += numbers if parameter.requires_grad else 0
    return trainable, total
