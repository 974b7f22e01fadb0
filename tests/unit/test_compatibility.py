"""What an architecture cannot do of a configuration is refused or replaced, from its names and shapes alone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftlab.composition import compose
from ftlab.errors import ConfigError, WeightsError
from ftlab.models import carries_state, check_rows, check_settings, load_base, skeleton
from ftlab.models.compatibility import positions
from ftlab.weights import WeightsFolder

MakeKind = Callable[..., Path]


def bare(folder: Path) -> Any:
    return skeleton(WeightsFolder(folder, "folder", None, ""), False)


def config(*overrides: str) -> Any:
    return compose(["model=tiny", "quant=none", "lora=r4", "data=sql_synth", "run_dir=x", "model.id=x", *overrides])


# --- attention ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "gptj", "bloom", "mpt", "mamba", "mamba2", "rwkv"])
def test_an_attention_that_a_model_does_not_have_is_replaced_and_told(kind: str, make_kind: MakeKind) -> None:
    folder = make_kind(kind)
    cfg = config(f"model.id={folder}")
    (line,) = [line for line in check_settings(bare(folder), cfg) if "attn" in line]
    assert line.startswith("model.attn_implementation=sdpa: ")
    assert line.endswith(" does not support it; eager is used")
    base = load_base(
        WeightsFolder(folder, "folder", None, ""), cfg.model, cfg.quant, device=torch.device("cpu"), full=False
    )
    assert base.config._attn_implementation == "eager"


def test_an_attention_that_a_model_has_is_left_alone(base_folder: Path) -> None:
    for name in ("sdpa", "eager", "flex_attention"):
        assert check_settings(bare(base_folder), config(f"model.attn_implementation={name}")) == []


def test_an_attention_that_nothing_has_is_refused(base_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.attn_implementation=sdpaa cannot be used: .*Choose sdpa"):
        check_settings(bare(base_folder), config("model.attn_implementation=sdpaa"))


# --- shares ---------------------------------------------------------------------------------------------


def test_a_line_says_how_much_is_quantised(make_kind: MakeKind, base_folder: Path) -> None:
    (line,) = check_settings(bare(make_kind("mixtral")), config("quant=nf4", "model.dtype=bfloat16"))
    assert line == (
        "quant=nf4 quantises 11% of the layers' weights; in bfloat16 stay: experts.gate_up_proj, experts.down_proj, "
        "mlp.gate"
    )
    assert check_settings(bare(base_folder), config("quant=nf4")) == []


def test_a_line_says_what_is_left_out_of_all_linear_and_how_much_is_adapted(make_kind: MakeKind) -> None:
    for kind, names in (("mamba2", "out_proj"), ("jamba", "dt_proj"), ("deepseek_v3", "gate_proj, up_proj, down_proj")):
        lines = check_settings(bare(make_kind(kind)), config("model.attn_implementation=eager"))
        assert lines[0].startswith(f"lora.target_modules=all-linear leaves out {names}: ")
    assert lines[1].startswith("lora.target_modules=all-linear adapts 58% of the layers' weights; without an adapter: ")


def test_weights_stored_quantised_are_named_and_cannot_be_trained_whole(base_folder: Path) -> None:
    model = bare(base_folder)
    model.config.quantization_config = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "quant_method": "bitsandbytes",
    }
    assert check_settings(model, config("quant=nf4")) == []
    assert check_settings(model, config("quant=int8")) == [
        "quant=int8 changes nothing: the weights are stored quantised (nf4)"
    ]
    with pytest.raises(ConfigError, match=r"lora=none trains all weights, .*stored quantised \(nf4\): choose lora=r16"):
        check_settings(model, config("lora=none"))


# --- positions and token ids ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("gpt2", {"n_positions": 96}),
        ("gpt_bigcode", {"n_positions": 96}),
        ("gptj", {"n_positions": 96}),
        ("opt", {"max_position_embeddings": 96}),
    ],
    ids=["gpt2", "gpt_bigcode", "gptj", "opt"],
)
def test_rows_and_answers_beyond_absolute_positions_are_refused(
    kind: str, shape: dict[str, int], make_kind: MakeKind, byte_tokens: Any
) -> None:
    """What is let through is what the model itself can take."""
    folder = make_kind(kind, **shape)
    model, cfg = bare(folder), config("eval.max_new_tokens=6", "data.max_length=128")
    assert positions(model) == 96
    assert check_rows(model, byte_tokens, [[1] * 96], [[1] * 90], cfg) == []
    with pytest.raises(ConfigError) as caught:
        check_rows(model, byte_tokens, [[1] * 97], [[1] * 91], cfg)
    row, answer = caught.value.problems
    assert row.endswith("has positions for 96 tokens, the longest row has 97: set data.max_length=96 or less")
    assert row.startswith("data.max_length=128: ")
    assert answer.startswith("eval.max_new_tokens=6: ")
    assert "the longest prompt takes 91 of them: set eval.max_new_tokens=5 or less" in answer
    cfg.model.attn_implementation = "eager"
    base = load_base(
        WeightsFolder(folder, "folder", None, ""), cfg.model, cfg.quant, device=torch.device("cpu"), full=False
    )
    base(input_ids=torch.ones(1, 96, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        base(input_ids=torch.ones(1, 97, dtype=torch.long))


@pytest.mark.parametrize("kind", ["qwen3", "bloom", "mpt", "mamba"])
def test_rotary_and_relative_positions_have_no_end(kind: str, make_kind: MakeKind, byte_tokens: Any) -> None:
    assert check_rows(bare(make_kind(kind)), byte_tokens, [[1] * 5000], [[1] * 5000], config()) == []


@pytest.mark.parametrize("kind", ["jamba", "lfm2", "bamba", "recurrent_gemma", "qwen3_next", "mamba"])
def test_layers_that_run_along_the_sequence_are_known(kind: str, make_kind: MakeKind, base_folder: Path) -> None:
    """In a random model what they carry from row to row is too little to be seen in its logits."""
    assert carries_state(bare(make_kind(kind)))
    assert not carries_state(bare(base_folder))


def test_token_ids_beyond_the_embedding_are_refused(make_kind: MakeKind, byte_tokens: Any) -> None:
    model = bare(make_kind("qwen3", vocab_size=200, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    tokenizer = copy.deepcopy(byte_tokens)
    tokenizer.pad_token = "a"
    with pytest.raises(WeightsError, match=r"gives '.+' the id 200, but its embedding has 200 rows \(vocab_size\)"):
        check_rows(model, tokenizer, [[1, 200]], [[1]], config())
    (line,) = check_rows(model, tokenizer, [[1, 199]], [[1]], config())
    assert line.startswith("the tokenizer has 259 tokens but the embedding 200 rows: ")


def test_a_pad_token_beyond_the_embedding_is_replaced(make_kind: MakeKind, byte_tokens: Any) -> None:
    model, tokenizer = bare(make_kind("qwen3", vocab_size=258, pad_token_id=0)), copy.deepcopy(byte_tokens)
    assert check_rows(model, tokenizer, [[1, 257]], [[1]], config()) == [
        "the pad token '<pad>' has no row in the embedding: '</s>' pads instead"
    ]
    assert tokenizer.pad_token_id == 257


def test_a_dry_run_refuses_or_notes_settings(small: list[str], make_kind: MakeKind, cli: Any, tmp_path: Path) -> None:
    short = make_kind("gpt2", n_positions=64)
    code, _, err = cli(*small, f"model.id={short}", f"run_dir={tmp_path / 'run'}", "--dry-run")
    assert code == 2
    assert "has positions for 64 tokens" in err
    assert "Traceback" not in err
    code, out, err = cli(*small, f"model.id={make_kind('mamba')}", f"run_dir={tmp_path / 'run'}", "--dry-run")
    assert code == 0
    told = out + err
    assert "does not support it; eager is used" in told
    assert "leaves out x_proj, dt_proj, out_proj: MambaMixer uses the weights without calling the layer" in told
