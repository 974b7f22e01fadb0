"""Random models of 48 architectures, small enough that each trains in a second."""

from pathlib import Path
from typing import Any

WIDTH, LAYERS, HEADS, LONGEST = 64, 2, 4, 512
HEAD = {"head_dim": 16}
SLIDING = {"sliding_window": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SHARED_EXPERT = {"shared_expert_intermediate_size": 32}
MIXER = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
GPT = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": LONGEST}
NARROW = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS}

# What every architecture of the Llama kind is asked for.
LLAMA = {
    **NARROW,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST,
}

# Architectures that take LLAMA's names, each with what it needs beside them.
LIKE_LLAMA: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {"attn_layer_indices": [1], **MIXER},
    "cohere": {},
    "cohere2": SLIDING | HEAD,
    "deepseek_v3": {
        "num_key_value_heads": HEADS,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "ernie4_5": HEAD,
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"], **SLIDING},
    "gemma": HEAD,
    "gemma2": {"query_pre_attn_scalar": 16, **HEAD, **SLIDING},
    "gemma3_text": {"query_pre_attn_scalar": 16, **HEAD, **SLIDING},
    "glm4": HEAD,
    "gpt_neox": {},
    "gpt_oss": LOCAL_EXPERTS | HEAD | SLIDING,
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.1,
        "logits_scaling": 4.0,
    },
    "granitemoe": LOCAL_EXPERTS,
    "helium": HEAD,
    "hunyuan_v1_dense": HEAD,
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128, "block_multiple_of": 16},
    "ministral": HEAD,
    "mixtral": LOCAL_EXPERTS,
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": SLIDING,
    "phi": {"num_key_value_heads": HEADS},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": EXPERTS | SHARED_EXPERT,
    "qwen3": HEAD,
    "qwen3_moe": EXPERTS | HEAD,
    "qwen3_next": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        **EXPERTS,
        **SHARED_EXPERT,
        **HEAD,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 64, "lru_width": WIDTH, **HEAD},
    "seed_oss": HEAD,
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": {},
}
# Architectures with names of their own.
OTHERS: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    "falcon": {"num_attention_heads": HEADS, **NARROW},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gptj": {"rotary_dim": 8, **GPT},
    "mamba": {"state_size": 8, **NARROW},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16, **NARROW},
    "mpt": {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": LONGEST},
    "opt": {
        "ffn_dim": 128,
        "num_attention_heads": HEADS,
        "max_position_embeddings": LONGEST,
        "word_embed_proj_dim": WIDTH,
        **NARROW,
    },
    "rwkv": {"attention_hidden_size": WIDTH, "intermediate_size": 128, "context_length": LONGEST, **NARROW},
}
KINDS = sorted([*LIKE_LLAMA, *OTHERS])


def make_kind(kind: str, tokenizer: Any, folder: Path, **shape: Any) -> Path:
    """Write a random model of an architecture and its tokenizer into `folder`; keywords change its configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    own = LLAMA | LIKE_LLAMA[kind] if kind in LIKE_LLAMA else OTHERS[kind]
    if kind == "gpt_neox":
        own.pop("num_key_value_heads")
    tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **tokens, **own, **shape})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "norm" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
