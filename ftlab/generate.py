"""Batched generation, for evaluation and prediction."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

UNSET: tuple[Any, ...] = (None, False, 0, 0.0, [], {})
NEUTRAL = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "guidance_scale": 1.0,
}
# Settings that do not affect greedy decoding, or that ftlab sets itself.
HARMLESS = {
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("max_length", "max_new_tokens", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "cache_config", "compile_config", "disable_compile", "prefill_chunk_size"),
    *("length_penalty", "early_stopping", "renormalize_logits", "return_dict_in_generate", "transformers_version"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "low_memory"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size", "trust_remote_code"),
}

# Tokens of the longer prompt in the check of padding.
PROBE_TOKENS = 24
# Answers depend on padding if its effect is above this fraction of the effect of another last token. Rounding in
# batches stays below 0.02 (LLM.int8); padding that is read as text comes near 1.
PADDING_LIMIT = 0.1
ALONE = "answers depend on padding ({}): prompts are answered one by one, whatever eval.batch_size says"

_reads_padding: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()  # results of the check, by base


def generation_config(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Return the settings of greedy decoding until the end-of-sequence token or `max_new_tokens`."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


@torch.inference_mode()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
    note: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Return the model's answer to each prompt (token ids), in the order of the prompts, without the end token.

    Prompts are sorted by length so that batches need little padding. Padding is on the left and masked by length, since
    the pad token may be the end token. If answers depend on padding all the same, prompts are answered one by one, and
    `note` is called with one line. A batch that does not fit on the GPU is halved. `on_batch` is called with the number
    of answered prompts. The model's training mode does not change.
    """
    was_training = model.training
    model.eval()
    if batch_size > 1 and _needs_single_prompts(model, tokenizer, prompts, note):
        batch_size = 1
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, str] = {}
    settings = generation_config(tokenizer, max_new_tokens)
    try:
        for chosen in _chunks(order, batch_size):
            for part, texts in _fitting(model, tokenizer, prompts, chosen, settings):
                answers.update(zip(part, texts, strict=True))
            on_batch(len(answers))
    finally:
        model.train(was_training)
    return [answers[i] for i in range(len(prompts))]


def _chunks(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _fitting(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    chosen: list[int],
    settings: GenerationConfig,
) -> Iterable[tuple[list[int], list[str]]]:
    try:
        return [(chosen, _batch(model, tokenizer, [prompts[i] for i in chosen], settings))]
    except torch.cuda.OutOfMemoryError:
        if len(chosen) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(chosen) // 2
    return [
        *_fitting(model, tokenizer, prompts, chosen[:half], settings),
        *_fitting(model, tokenizer, prompts, chosen[half:], settings),
    ]


def _needs_single_prompts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], note: Callable[[str], None]
) -> bool:
    """Whether the model's answers depend on padding. This is checked once per base, and `note` is called if so."""
    longest = max(prompts, key=len, default=[])[:PROBE_TOKENS]
    if len({len(prompt) for prompt in prompts}) < 2 or len(longest) < 2:
        return False  # no prompt is padded, or the prompts are too short to check
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if base not in _reads_padding:
        _reads_padding[base] = reads_padding(model, tokenizer, longest)
        if _reads_padding[base]:
            note(ALONE.format(type(base).__name__))
    return _reads_padding[base]


@torch.inference_mode()
def reads_padding(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: list[int]) -> bool:
    """Whether padding changes logits: those after half of a prompt, alone and padded in a batch with the whole prompt.
    The change must be as small as rounding, compared with the change from another last token."""
    half = prompt[: len(prompt) // 2]
    other = [*half[:-1], next(token for token in (*prompt, half[-1] + 1, 0) if token != half[-1])]
    settings = generation_config(tokenizer, 2)
    try:
        alone, changed = (_written(model, tokenizer, [ids], settings, logits=True).logits for ids in (half, other))
        beside = _written(model, tokenizer, [half, prompt], settings, logits=True).logits
    except torch.cuda.OutOfMemoryError:
        raise
    except (TypeError, ValueError, IndexError, RuntimeError):
        return True
    own = (changed[0][0] - alone[0][0]).abs().max()
    steps = min(len(alone), len(beside)) if alone[0][0].argmax() == beside[0][0].argmax() else 1
    apart = max((beside[step][0] - alone[step][0]).abs().max() for step in range(steps))
    return bool(apart > PADDING_LIMIT * own)


def _batch(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], settings: GenerationConfig
) -> list[str]:
    longest = max(map(len, prompts))
    written = _written(model, tokenizer, prompts, settings).sequences[:, longest:]
    return [decoded(tokenizer, _until(row, settings.eos_token_id)) for row in written.tolist()]


def _written(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    settings: GenerationConfig,
    logits: bool = False,
) -> Any:
    """Return the output of `model.generate` for prompts padded on the left: `sequences` [prompts, longest + new] and,
    if requested, `logits`, one [prompts, vocabulary] per new token."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), int(tokenizer.pad_token_id), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return model.generate(  # type: ignore[operator]
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=settings,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=logits,
    )


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of an answer's token ids."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


def greedy(model: nn.Module) -> bool:
    """Whether greedy decoding takes the most likely token each time until the end token. transformers applies the
    model's own generation settings too, which may change scores or lengths (a repetition penalty, suppressed
    tokens)."""
    own = getattr(model, "generation_config", None)
    return own is None or all(name in HARMLESS or name.startswith("_") for name in _changed(own))


def _changed(settings: GenerationConfig) -> list[str]:
    """Return the names of the settings that have an effect: neither unset nor neutral."""
    return [name for name, value in settings.to_dict().items() if value != NEUTRAL.get(name) and value not in UNSET]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
