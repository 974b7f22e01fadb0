"""Which models take the fast path. For others one line names the reason, and nothing is changed."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP

from ftlab import models
from ftlab.config import LoraConfig
from ftlab.fast.recognise import ROWS, adapter_groups, fast_path

DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
# Architectures that share some of Llama's parts, and the part that tells them apart.
OTHERS = {
    "gemma2": "softcapping",
    "olmo2": "Olmo2DecoderLayer without input_layernorm",
    "olmo": "a OlmoLayerNorm where an RMS norm is expected",
    "cohere": "CohereDecoderLayer without post_attention_layernorm",
    "arcee": "ArceeMLP without gate_proj",
    "nemotron": "NemotronMLP without gate_proj",
    "glm": "GlmMLP with activation_fn, gate_up_proj",
    "phi3": "Phi3DecoderLayer with resid_attn_dropout, resid_mlp_dropout",
    "stablelm": "StableLmDecoderLayer with dropout",
    "mixtral": "MixtralSparseMoeBlock with experts, gate",
    "gpt_neox": "not built like Llama",
}


def reason(model: Any, autocast: Any = nullcontext) -> str:
    """Why a model is not on the fast path: one line. Nothing of the model has changed."""
    training = model.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decoder, told = fast_path(model, autocast)
    assert decoder is None
    assert told
    assert "\n" not in told
    assert model.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return told


def recognised(model: Any) -> bool:
    decoder, told = fast_path(model, nullcontext)
    assert told is None or decoder is None
    return decoder is not None


def test_every_family_goes_the_fast_path_before_and_behind_an_adapter(kit: Any) -> None:
    for family in kit.families:
        assert recognised(kit.make(family))
        assert recognised(kit.adapt(kit.make(family)))


def test_recognising_draws_no_random_number(kit: Any) -> None:
    model = kit.adapt(kit.make(), lora_dropout=0.5)
    state = torch.get_rng_state()
    assert recognised(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_recognising_leaves_no_hook(kit: Any) -> None:
    """With one left, a sweep could not lend the base to its next trial."""
    for model in (kit.make(), kit.adapt(kit.make())):
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        before = [len(getattr(module, kind)) for module in model.modules() for kind in kinds]
        assert recognised(model)
        assert [len(getattr(module, kind)) for module in model.modules() for kind in kinds] == before


# --- adapters ------------------------------------------------------------------------------------------------------


def adapted(kit: Any, **lora: Any) -> Any:
    """An adapter as an experiment makes it."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora
    return models.add_adapter(kit.make("llama, tied, biases"), LoraConfig(**options))


def test_plain_lora_and_rslora_are_known(kit: Any) -> None:
    assert recognised(adapted(kit))
    assert recognised(adapted(kit, use_rslora=True))


def test_dora(kit: Any) -> None:
    assert reason(adapted(kit, use_dora=True)) == "DoRA"


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_pissa_is_plain_lora_once_it_has_begun(kit: Any) -> None:
    """The base that a decoder was made of before has moved into the adapter in part."""
    base = kit.make()
    whole = fast_path(base, nullcontext)[0]
    assert whole
    first = whole.layers[0].qkv.frozen.dense().clone()
    model = models.add_adapter(
        base, LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights="pissa")
    )
    assert recognised(model)
    rows = kit.rows()
    expected = kit.plain(model, rows)
    step = kit.step(model)
    group = step.decoder.layers[0].qkv
    assert not torch.equal(group.frozen.dense(), first)
    with group.merged():
        assert group._merged is not None
        torch.testing.assert_close(group._merged, first, rtol=1e-4, atol=1e-5)
    assert kit.fast(model, step, rows).error(expected) <= 1e-5


def test_modules_trained_whole(kit: Any) -> None:
    told = reason(adapted(kit, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert "ModulesToSaveWrapper" in told
    assert "RMS norm" in reason(adapted(kit, target_modules=["q_proj"], modules_to_save=["norm"]))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases(kit: Any, bias: str) -> None:
    assert "bias, which is trained and is not a LoRA matrix" in reason(adapted(kit, bias=bias))


def test_an_adapted_embedding(kit: Any) -> None:
    assert "around the embedding" in reason(kit.adapt(kit.make(), ["embed_tokens", "q_proj"]))


def test_all_weights_trained(kit: Any) -> None:
    told = reason(kit.make().requires_grad_(True))
    assert "embed_tokens.weight, which is trained" in told


def test_merged_or_switched_off_adapters(kit: Any) -> None:
    model = kit.adapt(kit.make())
    with model.disable_adapter():
        assert reason(model) == "an adapter that is switched off"
    model.merge_adapter()
    assert reason(model) == "an adapter that is already merged"
    model.unmerge_adapter()
    assert recognised(model)
    assert recognised(model.merge_and_unload())


# --- architectures -------------------------------------------------------------------------------------------------


def test_dropout_inside_attention(kit: Any) -> None:
    assert reason(kit.make(attention_dropout=0.1)) == "dropout inside attention"


def test_a_rope_that_depends_on_the_length(kit: Any) -> None:
    assert reason(kit.make(**DYNAMIC)) == "rotary embedding of type dynamic"


def test_an_activation_that_is_not_known(kit: Any) -> None:
    assert reason(kit.make(hidden_act="relu")) == "activation relu"


def test_float16(kit: Any) -> None:
    assert reason(kit.make().to(torch.float16)) == "float16 needs a scaled loss"


def test_gpt2(kit: Any) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=4))
    assert reason(model) == "GPT2LMHeadModel, which is not built like Llama"


@pytest.mark.parametrize("kind", OTHERS)
def test_architectures_that_share_some_parts(kind: str) -> None:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "head_dim": 8,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **shape)
    assert OTHERS[kind] in reason(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def test_a_window_that_the_model_ignores(kit: Any) -> None:
    """Short rows would not show it."""
    assert reason(kit.make("llama", sliding_window=64)) == "sliding_window=64, which LlamaAttention may ignore"
    assert recognised(kit.make("mistral, window", sliding_window=64))


def test_logits_that_are_capped(kit: Any) -> None:
    assert "softcapping" in reason(kit.make("gemma3", final_logit_softcapping=30.0))


# --- known parts that compute something else ------------------------------------------------------------------------

ELSE = "output differs by more than rounding tolerance"


def test_a_layer_that_scales_what_it_adds(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: forward(self, x) * 1.1)
    assert ELSE in reason(kit.make())


def test_a_single_layer_without_rotation(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaAttention.forward

    def unturned(self: Any, hidden_states: Any, position_embeddings: Any, *more: Any, **options: Any) -> Any:
        if self.layer_idx == 1:
            cos, sin = position_embeddings
            position_embeddings = torch.ones_like(cos), torch.zeros_like(sin)
        return forward(self, hidden_states, position_embeddings, *more, **options)

    monkeypatch.setattr(LlamaAttention, "forward", unturned)
    assert ELSE in reason(kit.make())


def test_a_layer_that_is_skipped(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaDecoderLayer.forward

    def skipping(self: Any, hidden_states: Any, *more: Any, **options: Any) -> Any:
        return hidden_states if self.self_attn.layer_idx == 1 else forward(self, hidden_states, *more, **options)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", skipping)
    assert f"{ELSE} (layer 1" in reason(kit.make())


def test_scaled_logits(kit: Any) -> None:
    model = kit.make()
    model.lm_head.register_forward_hook(lambda module, given, result: result * 1.5)
    assert f"{ELSE} (output layer" in reason(model)


def test_layers_that_add_nothing_are_known(kit: Any) -> None:
    """As in models that were made deeper by layers that begin as nothing."""
    model = kit.make()
    layer = model.model.layers[1]
    layer.self_attn.o_proj.weight.data.zero_()
    layer.mlp.down_proj.weight.data.zero_()
    assert recognised(model)


def test_one_token_that_is_larger_than_all_others_hides_nothing(kit: Any) -> None:
    """Trained models have such tokens; beside one, whatever the others lack is small."""
    model = kit.make()
    large = int(torch.randint(kit.vocabulary, (ROWS[0],), generator=torch.Generator().manual_seed(0))[0])
    model.model.embed_tokens.weight.data[large] *= 1e7
    assert recognised(model)
    model.model.layers[1].mlp.register_forward_hook(lambda module, given, result: result * 1.05)
    assert f"{ELSE} (layer 1" in reason(model)


def smollm3(rotated: list[int]) -> Any:
    shape = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model("smollm3", **shape, **heads, no_rope_layers=rotated)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def test_layers_without_rotary_embedding() -> None:
    assert "without rotary embedding" in reason(smollm3([1, 0, 1]))
    assert recognised(smollm3([1, 1, 1]))


def test_a_model_that_cannot_be_read_still_has_its_adapters(kit: Any) -> None:
    """The plain path trains it."""
    model = kit.adapt(kit.make())
    del model.get_base_model().model.layers[0].self_attn.scaling
    assert "scaling" in reason(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert [id(one) for (one,) in adapter_groups(model)] == [id(one) for one in trained]


def test_adapters_of_which_some_are_not_trained(kit: Any) -> None:
    model = kit.adapt(kit.make())
    next(p for name, p in model.named_parameters() if "lora_A" in name).requires_grad_(False)
    assert "not trained" in reason(model)


def test_queries_scaled_by_their_position(kit: Any) -> None:
    """The check's rows are too short to show it."""
    model = kit.make()
    model.config.rope_parameters = {**model.config.rope_parameters, "llama_4_scaling_beta": 0.1}
    assert "scaled by their position" in reason(model)


def test_what_fails_on_this_machine_is_left_to_the_model_itself(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any) -> Any:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nand more")

    monkeypatch.setattr("ftlab.fast.attention.ByRow.forward", refused)
    assert reason(kit.make()).endswith("FlashAttention only supports Ampere GPUs or newer.")
