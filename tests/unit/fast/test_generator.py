"""Fast answers are those of `model.generate`, whatever the batch, the order and what a step computes beside them."""

import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ftlab.errors import DataError
from ftlab.fast import generator as module
from ftlab.fast.decoder import Decoder
from ftlab.fast.generator import DecodeBatch, Generator

VOCABULARY = 83
NEW = 14

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 2,
    # Weights this large make a random model's answers differ from prompt to prompt.
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
WINDOW = {"sliding_window": 6}
GEMMA = WINDOW | {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}

MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, tie_word_embeddings=False)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, tie_word_embeddings=True)),
    "mistral, window": lambda: MistralForCausalLM(MistralConfig(**COMMON, **WINDOW)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**COMMON)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**COMMON, **GEMMA, tie_word_embeddings=False)),
}


def some_prompts(count: int = 30) -> list[list[int]]:
    """Prompts of 1 to 40 tokens, the lengths in no order."""
    draw = random.Random(3)
    return [[draw.randrange(1, VOCABULARY) for _ in range(draw.randrange(1, 41))] for _ in range(count)]


class Case:
    """A model, prompts, and the answer of the model's own `generate` to each alone."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(1)
        self.model = MODELS[name]().eval().requires_grad_(False)
        self.decoder = Decoder(self.model)
        self.prompts = some_prompts()
        endless = [self.plain(prompt, None) for prompt in self.prompts]
        # The end marker is a token that most answers come to, at different places.
        self.end = max(range(1, VOCABULARY), key=lambda token: sum(token in answer for answer in endless))
        self.wanted = [self.plain(prompt, self.end) for prompt in self.prompts]

    def plain(self, prompt: list[int], end: int | None) -> list[int]:
        ids = torch.tensor([prompt])
        said = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, eos_token_id=end
        )[0, len(prompt) :].tolist()
        return said[: said.index(end)] if end in said else said

    def fast(self, batch_size: int, prompts: list[list[int]] | None = None, **options: Any) -> list[list[int]]:
        made = {"end": self.end, "max_new_tokens": NEW} | options
        return Generator(self.decoder, batch_size=batch_size, **made).run(prompts or self.prompts)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("llama")


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_plain_generation(name: str) -> None:
    case = Case(name)
    lengths = {len(answer) for answer in case.wanted}
    assert NEW in lengths
    assert len(lengths) > 4
    for size in (1, 3, 8, 100):
        assert case.fast(size) == case.wanted


def test_the_order_of_prompts_changes_no_answer(case: Case) -> None:
    assert case.fast(4, case.prompts[::-1]) == case.wanted[::-1]


def test_prefilling_in_small_pieces_gives_the_same_answers(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PREFILL_TOKENS, "cpu", 25)  # less than some prompts
    assert case.fast(8) == case.wanted


def test_an_answer_ends_at_the_limit(case: Case) -> None:
    assert case.fast(4, max_new_tokens=1) == [answer[:1] for answer in case.wanted]
    assert case.fast(4, max_new_tokens=5) == [answer[:5] for answer in case.wanted]


def test_no_prompt_gives_no_answer(case: Case) -> None:
    assert Generator(case.decoder, end=1, max_new_tokens=3, batch_size=2).run([]) == []


def test_a_prompt_without_a_token_is_an_error_that_names_it(case: Case) -> None:
    with pytest.raises(DataError, match="prompt 1 has no token"):
        case.fast(2, [[3], []])


def test_autocast_round_the_work_changes_nothing(case: Case) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert case.fast(8) == case.wanted


# --- progress, errors, what is left behind -------------------------------------------------------------------------


def test_progress_rises_to_the_number_of_prompts(case: Case) -> None:
    heard: list[int] = []
    made = Generator(case.decoder, end=case.end, max_new_tokens=NEW, batch_size=4)
    made.run(case.prompts, heard.append)
    assert heard == sorted(set(heard))
    assert heard[-1] == len(case.prompts)
    assert len(heard) > 8


class Enough(Exception):
    pass


def test_an_exception_of_the_callback_ends_the_work_and_frees_the_cache(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[weakref.ref[torch.Tensor]] = []
    allocate = DecodeBatch.allocate

    def watched(self: DecodeBatch) -> None:
        allocate(self)
        caches.extend(weakref.ref(cache) for cache in self.keys + self.values)

    def stop(done: int) -> None:
        raise Enough

    monkeypatch.setattr(DecodeBatch, "allocate", watched)
    with pytest.raises(Enough) as caught:
        Generator(case.decoder, end=case.end, max_new_tokens=NEW, batch_size=4).run(case.prompts, stop)
    gc.collect()
    assert caught.tb is not None  # whose frames still know the batch
    assert len(caches) == 4
    assert not any(cache() is not None for cache in caches)
    assert case.fast(4) == case.wanted


def test_nothing_of_the_model_changes(case: Case) -> None:
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    hooks = torch.is_grad_enabled()
    case.fast(4)
    assert torch.is_grad_enabled() is hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.model.state_dict().items())


def test_a_cache_that_does_not_fit_is_halved_and_answers_are_kept(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    step, sizes = DecodeBatch.step, list[int]()

    def small_gpu(self: DecodeBatch) -> None:
        sizes.append(self.slots)
        if self.slots > 2 and len(sizes) > 10:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        step(self)

    heard: list[int] = []
    monkeypatch.setattr(DecodeBatch, "step", small_gpu)
    made = Generator(case.decoder, end=case.end, max_new_tokens=NEW, batch_size=8)
    assert made.run(case.prompts, heard.append) == case.wanted
    assert list(dict.fromkeys(sizes)) == [8, 4, 2]
    assert heard == sorted(set(heard))


def test_one_row_that_does_not_fit_is_an_error(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(self: DecodeBatch) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DecodeBatch, "allocate", no_gpu)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        case.fast(4)


# --- how much is computed ------------------------------------------------------------------------------------------


def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every step that is made from now on."""
    seen: list[int] = []
    decode = DecodeBatch._decode

    def watched(self: DecodeBatch, width: int) -> None:
        seen.append(width)
        decode(self, width)

    monkeypatch.setattr(DecodeBatch, "_decode", watched)
    return seen


def test_on_a_cpu_a_step_computes_only_running_rows(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = widths(monkeypatch)
    case.fast(8)
    # The first token of an answer comes with its prompt; the end token is generated as well.
    assert sum(seen) == sum(min(len(answer) + 1, NEW) - 1 for answer in case.wanted)
    assert max(seen) == 8


class Replay:
    """Stands in for a CUDA graph."""

    def __init__(self, batch: DecodeBatch, width: int) -> None:
        self.batch, self.width = batch, width

    def replay(self) -> None:
        self.batch._decode(self.width)

    def reset(self) -> None:
        pass


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches work as on CUDA: fixed widths, ended rows seen one step late and kept until there are enough of them."""
    captured: list[int] = []
    made = DecodeBatch.__init__

    def on_cuda(self: DecodeBatch, *arguments: Any) -> None:
        made(self, *arguments)
        self.cuda = True

    def capture(self: DecodeBatch, width: int) -> None:
        captured.append(width)
        self._decode(width)
        self.graphs[width] = Replay(self, width)

    monkeypatch.setattr(DecodeBatch, "__init__", on_cuda)
    monkeypatch.setattr(DecodeBatch, "_capture", capture)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    return captured


def test_slots_without_a_row_attend_to_nothing(case: Case, graphs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    attending: list[int] = []
    attention = module.ops.decode_attention

    def watched(query: Any, keys: Any, values: Any, lengths: torch.Tensor, *options: Any) -> torch.Tensor:
        attending.append(int((lengths > 0).sum()))
        return attention(query, keys, values, lengths, *options)

    monkeypatch.setattr(module.ops, "decode_attention", watched)
    case.fast(8)
    layers = len(case.decoder.layers)
    assert sum(attending) == layers * sum(min(len(answer) + 1, NEW) - 1 for answer in case.wanted)


def test_ended_slots_stay_inside_the_cache(case: Case, graphs: list[int]) -> None:
    made = Generator(case.decoder, end=case.end, max_new_tokens=3, batch_size=2)
    batch = DecodeBatch(made, 2, 8, 100)
    with torch.no_grad():
        batch.allocate()
        batch.fill([(0, [1, 2, 3, 4, 5]), (1, [6])])
        for _ in range(20):
            batch.step()
    assert batch.position.max() < 8


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_ended_rows_in_a_graph_change_no_answer(case: Case, graphs: list[int], size: int) -> None:
    assert case.fast(size) == case.wanted
    assert graphs == [min(size, 30)]


def test_the_last_rows_use_a_smaller_graph(case: Case, graphs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL_GRAPH_SLOTS", 8)
    monkeypatch.setattr(module, "SMALL_GRAPH_STEPS", 1)
    seen = widths(monkeypatch)
    assert case.fast(16) == case.wanted
    assert graphs == [16, 4]
    assert seen == sorted(seen, reverse=True)
    assert seen.count(4) > 2


def test_full_length_answers_cost_no_step_too_many(
    case: Case, graphs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = widths(monkeypatch)
    answers = case.fast(15, end=VOCABULARY)  # which no model here says
    assert {len(answer) for answer in answers} == {NEW}
    assert len(seen) == 2 * (NEW - 1)
