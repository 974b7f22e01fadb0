"""Greedy answers: the same in a batch as alone, in the order asked, ended by the end marker."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from ftlab import generate as module
from ftlab.generate import generate, generation_config, greedy

PROMPTS = [list(range(start, start + length)) for start, length in ((60, 9), (40, 3), (70, 20), (33, 5), (90, 1))]


@pytest.fixture(scope="module")
def model(make_llama: Any) -> Any:
    return make_llama().eval()


def answers(model: Any, tokenizer: Any, batch_size: int, prompts: list[list[int]] = PROMPTS) -> list[str]:
    return generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=batch_size)


def test_a_batch_gives_what_each_prompt_gives_alone(model: Any, byte_tokens: Any) -> None:
    alone = [answers(model, byte_tokens, 1, [prompt])[0] for prompt in PROMPTS]
    assert len(set(alone)) > 2
    for size in (1, 2, 3, 5, 64):
        assert answers(model, byte_tokens, size) == alone


def test_answers_come_in_the_order_of_the_prompts(model: Any, byte_tokens: Any) -> None:
    assert answers(model, byte_tokens, 2, PROMPTS[::-1]) == answers(model, byte_tokens, 2)[::-1]


def test_a_pad_token_that_is_the_end_marker_changes_nothing(model: Any, byte_tokens: Any) -> None:
    shared = copy.deepcopy(byte_tokens)
    shared.pad_token = shared.eos_token
    assert answers(model, shared, 5) == answers(model, byte_tokens, 5)


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_an_answer_ends_at_the_end_marker(model: Any, byte_tokens: Any, pad: str) -> None:
    """A row that ends early is padded while another is still generated."""
    tokenizer = copy.deepcopy(byte_tokens)
    tokenizer.pad_token = pad
    full = answers(model, tokenizer, 1, [PROMPTS[0]])[0]
    letters = tokenizer(full, add_special_tokens=False)["input_ids"]
    cut = next(i for i in range(1, len(letters)) if letters[i] not in letters[:i])
    ended = copy.deepcopy(tokenizer)
    ended.eos_token = ended.convert_ids_to_tokens(letters[cut])
    assert answers(model, ended, 5)[0] == tokenizer.decode(letters[:cut], skip_special_tokens=True)


@pytest.mark.parametrize(("kind", "alone"), [("rwkv", True), ("mamba", False), ("bloom", False)])
def test_a_model_that_reads_padding_is_answered_prompt_by_prompt_and_told_once(
    kind: str, alone: bool, make_kind: Any, byte_tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    model = AutoModelForCausalLM.from_pretrained(make_kind(kind), attn_implementation="eager").eval()
    sizes, written = [], module._batch
    monkeypatch.setattr(module, "_batch", lambda *given: (sizes.append(len(given[2])), written(*given))[1])
    for _ in range(2):
        batched = generate(model, byte_tokens, PROMPTS, max_new_tokens=6, batch_size=5, note=lines.append)
    assert batched == [answers_of(model, byte_tokens, prompt) for prompt in PROMPTS]
    assert (max(sizes) == 1) is alone
    assert len(lines) == alone
    assert lines == [line for line in lines if line.startswith("answers depend on padding (RwkvForCausalLM): ")]


def answers_of(model: Any, tokenizer: Any, prompt: list[int]) -> str:
    return generate(model, tokenizer, [prompt], max_new_tokens=6, batch_size=1)[0]


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_left_as_it_was(model: Any, byte_tokens: Any, training: bool) -> None:
    model.train(training)
    answers(model, byte_tokens, 2)
    assert model.training is training
    model.eval()
    model.train(training)
    with pytest.raises(IndexError):
        generate(model, byte_tokens, [[10_000]], max_new_tokens=2, batch_size=1)
    assert model.training is training
    model.eval()


def test_dropout_is_off_while_answers_are_written(make_llama: Any, byte_tokens: Any) -> None:
    model = make_llama(attention_dropout=0.9).train()
    assert answers(model, byte_tokens, 5) == answers(model, byte_tokens, 5)


def test_progress_counts_prompts(model: Any, byte_tokens: Any) -> None:
    heard: list[int] = []
    generate(model, byte_tokens, PROMPTS, max_new_tokens=1, batch_size=2, on_batch=heard.append)
    assert heard == [2, 4, 5]


def test_no_prompt_gives_no_answer(model: Any, byte_tokens: Any) -> None:
    assert generate(model, byte_tokens, [], max_new_tokens=1, batch_size=2) == []


def test_a_batch_that_does_not_fit_is_halved(model: Any, byte_tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, batch, sizes = answers(model, byte_tokens, 5), module._batch, []

    def small_gpu(model: Any, tokenizer: Any, prompts: list[list[int]], settings: Any) -> list[str]:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return batch(model, tokenizer, prompts, settings)

    monkeypatch.setattr(module, "_batch", small_gpu)
    assert answers(model, byte_tokens, 5) == wanted
    assert sizes == [5, 2, 3, 1, 2]


def test_one_prompt_that_does_not_fit_is_an_error(
    model: Any, byte_tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu(*arguments: Any) -> list[str]:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_batch", no_gpu)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        answers(model, byte_tokens, 4)


def test_settings_are_greedy_and_carry_the_tokenizers_markers(byte_tokens: Any) -> None:
    made = generation_config(byte_tokens, 7)
    assert (made.do_sample, made.max_new_tokens, made.eos_token_id) == (False, 7, byte_tokens.eos_token_id)


SHIFTING = {
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2,
    "min_length": 3,
    "min_new_tokens": 3,
    "max_time": 1.0,
    "forced_eos_token_id": 1,
    "exponential_decay_length_penalty": (2, 1.1),
    "guidance_scale": 2.0,
    "suppress_tokens": [3],
    "stop_strings": ["x"],
    "num_beams": 2,
    "unheard_of": 1,
}


@pytest.mark.parametrize("name", SHIFTING)
def test_settings_of_the_models_own_that_change_greedy_answers_are_known(model: Any, name: str) -> None:
    model.generation_config = GenerationConfig()
    assert greedy(model)
    setattr(model.generation_config, name, SHIFTING[name])
    assert not greedy(model)


def test_settings_of_sampling_change_no_greedy_answer(model: Any) -> None:
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, eos_token_id=[1, 2]
    )
    assert greedy(model)
