"""Fast answers on a GPU: those of plain generation, from a graph as without one, and memory given back."""

import random
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from ftlab.fast import generator as module
from ftlab.fast.decoder import Decoder
from ftlab.fast.generator import DecodeBatch, Generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
VOCABULARY = 200
NEW = 24
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    # Weights this large make a random model's answers differ from prompt to prompt, and their best token clear.
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
WINDOWS = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "query_pre_attn_scalar": 64,
}


def llama(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).to(DEVICE, dtype).eval().requires_grad_(False)


def gemma(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **WINDOWS)).to(DEVICE, dtype).eval().requires_grad_(False)


def some_prompts(count: int = 100) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(1, VOCABULARY) for _ in range(draw.randrange(1, 150))] for _ in range(count)]


def plain(model: Any, prompt: list[int], end: int | None) -> list[int]:
    ids = torch.tensor([prompt], device=DEVICE)
    said: list[int] = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, eos_token_id=end
    )[0, len(prompt) :].tolist()
    return said[: said.index(end)] if end in said else said


def fast(model: Any, prompts: list[list[int]], size: int, end: int, **options: Any) -> list[list[int]]:
    made = {"max_new_tokens": NEW} | options
    return Generator(Decoder(model), end=end, batch_size=size, **made).run(prompts)


def end_marker(model: Any, prompts: list[list[int]]) -> int:
    """A token that answers come to at different places."""
    counts = torch.bincount(torch.tensor([token for p in fast(model, prompts, 100, VOCABULARY) for token in p]))
    return int(counts.argmax())


def same(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of identical rows."""
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def lost(model: Any, prompt: list[int], ours: list[int], theirs: list[int], end: int) -> float:
    """By how much the model's logit of our token is below the best one where answers part, as a part of the largest
    logit; 0 for equal answers."""
    ours, theirs = ([*answer, end][:NEW] for answer in (ours, theirs))
    if ours == theirs:
        return 0.0
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    logits = model(input_ids=torch.tensor([prompt + theirs[:place]], device=DEVICE)).logits[0, -1].float()
    return float((logits.max() - logits[ours[place]]) / logits.abs().max())


@pytest.mark.parametrize("make", [llama, gemma])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 8e-2)])
def test_answers_are_those_of_plain_generation(make: Any, dtype: torch.dtype, tolerance: float) -> None:
    """Rows part only where two tokens are equally likely but for rounding, which in a random model is often so."""
    model, prompts = make(dtype), some_prompts(40)
    end = end_marker(model, prompts)
    wanted = [plain(model, prompt, end) for prompt in prompts]
    assert len({len(answer) for answer in wanted}) > 3  # the end marker comes early in some
    for size in (1, 7, 40):
        answers = fast(model, prompts, size, end)
        print(f"{make.__name__}, {dtype}, batch {size}: {same(answers, wanted):.0%} of rows identical")
        rows = zip(prompts, answers, wanted, strict=True)
        assert max(lost(model, prompt, ours, theirs, end) for prompt, ours, theirs in rows) < tolerance


@pytest.mark.parametrize("make", [llama, gemma])
@pytest.mark.parametrize("size", [9, 64, 100])
def test_a_graph_says_what_steps_without_one_say(make: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = make(torch.bfloat16), some_prompts()
    end = end_marker(model, prompts)
    with_graph = fast(model, prompts, size, end)
    monkeypatch.setattr(DecodeBatch, "_capture", DecodeBatch._decode)
    assert fast(model, prompts, size, end) == with_graph


def test_the_last_rows_go_through_a_smaller_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL_GRAPH_STEPS", 1)
    captured: list[int] = []
    capture = DecodeBatch._capture

    def watched(self: DecodeBatch, width: int) -> None:
        captured.append(width)
        capture(self, width)

    model, prompts = llama(torch.float32), some_prompts()
    end = end_marker(model, prompts)
    wanted = fast(model, prompts, 32, end)
    monkeypatch.setattr(DecodeBatch, "_capture", watched)
    assert same(fast(model, prompts, 64, end), wanted) >= 0.95
    assert captured == [64, 16]


class Enough(Exception):
    pass


def stop(done: int) -> None:
    raise Enough


def test_memory_is_given_back_however_it_ends() -> None:
    model, prompts = llama(torch.bfloat16), some_prompts()
    decoder = Decoder(model)
    made = Generator(decoder, end=VOCABULARY, max_new_tokens=NEW, batch_size=64)
    made.run(prompts)  # what libraries keep for good is there now
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    made.run(prompts)
    with pytest.raises(Enough) as caught:
        made.run(prompts, stop)
    assert caught.tb is not None  # whose frames still know the batch
    slack = 1 << 20  # cuBLAS' workspaces were there before: all work beside the main stream shares one stream
    assert torch.cuda.memory_allocated() <= allocated + slack
    assert torch.cuda.memory_reserved() <= reserved + 32 * slack


def filled() -> list[torch.Tensor]:
    """What other tests left reserved but unused, taken."""
    torch.cuda.empty_cache()
    reserved, taken = torch.cuda.memory_reserved(), list[torch.Tensor]()
    while torch.cuda.memory_reserved() == reserved:
        taken.append(torch.empty(2 * 2**20, dtype=torch.uint8, device=DEVICE))
    del taken[-1]
    torch.cuda.empty_cache()
    return taken


def test_little_memory_makes_smaller_batches_and_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = llama(torch.float32), some_prompts()
    wanted = fast(model, prompts, 100, VOCABULARY)
    slots: list[int] = []
    allocate = DecodeBatch.allocate

    def watched(self: DecodeBatch) -> None:
        slots.append(self.slots)
        allocate(self)

    monkeypatch.setattr(DecodeBatch, "allocate", watched)
    held = filled()
    room = torch.cuda.memory_reserved() + 48 * 2**20  # the cache alone of 100 rows takes 70 MiB
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        found = fast(model, prompts, 100, VOCABULARY)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    del held
    assert slots[0] > slots[-1]
    assert same(found, wanted) >= 0.95
