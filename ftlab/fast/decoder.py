"""A decoder of the Llama family, forward and backward written by hand, over flat batches: [tokens, width], no padding.

The modules of transformers keep owning the weights. Their architecture is recognised by its parts (Llama, Mistral,
Qwen2, Qwen3, SmolLM, Gemma 3 text and models of the same structure) and then verified: on a short batch each layer must
return what the model's own layer returns. Only adapters are trained, so the backward pass computes gradients of
activations and of adapters, and saves no more than these need.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ftlab.fast import ops
from ftlab.fast.flat import Flat
from ftlab.fast.frozen import Int8, Packed, Scratch, Unrecognised
from ftlab.fast.linear import LinearGroup, packed
from ftlab.fast.operands import Dropout
from ftlab.fast.streams import SideStream

# Required submodules, and optional ones, of which either all or none are present.
LAYER_PARTS = (
    {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    {"pre_feedforward_layernorm", "post_feedforward_layernorm"},
)
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj"}, {"act_fn"}
# Attention classes that read their window from the configuration. Others ignore it there, as Llama does.
WINDOWED = {"MistralAttention", "Ministral3Attention"}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
STATIC_ROPES = ("default", "linear", "llama3", "yarn")
# Dropout sites of a layer: before attention, the output projection, the MLP, and the MLP's last projection.
SITES = 4
# If the logits of a batch are larger than this, they are computed and used in chunks.
LOGITS_BYTES = 1 << 28

Attend = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionShape:
    """Attention heads of one layer. `window` is the number of tokens that a token attends to, itself included; None
    means all tokens before it."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None

    @property
    def width(self) -> int:
        """The number of columns of query, key and value together."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim], as views."""
        whole = qkv.view(qkv.shape[0], self.heads + 2 * self.kv_heads, self.head_dim)
        query, key, value = torch.split(whole, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        return query, key, value


class Attention(Protocol):
    """Attention within the rows of a flat batch."""

    def forward(self, shape: AttentionShape, qkv: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the result [tokens, heads * head_dim] and the tensors that `backward` needs."""

    def backward(
        self, shape: AttentionShape, do: Tensor, qkv: Tensor, o: Tensor, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value, in their shapes."""


@dataclass(frozen=True)
class Norm:
    """An RMS norm, which scales by `offset + weight`."""

    weight: Tensor
    eps: float
    offset: float

    @classmethod
    def of(cls, module: Any) -> "Norm":
        """Read the norm of a module; raise Unrecognised if the module is not an RMS norm."""
        name = type(module).__name__
        if not name.endswith("RMSNorm") or not hasattr(module, "weight"):
            raise Unrecognised(f"a {name} where an RMS norm is expected")
        eps = getattr(module, "variance_epsilon", None)
        return cls(
            module.weight.detach(),
            float(module.eps if eps is None else eps),
            1.0 if name.startswith("Gemma") else 0.0,
        )

    def forward(
        self, x: Tensor, residual: Tensor | None = None, drop: Dropout | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `ops.add_rms_norm`."""
        return ops.add_rms_norm(x, residual, self.weight, self.eps, self.offset, drop)

    def backward(self, dy: Tensor, stream: Tensor, rstd: Tensor, dstream: Tensor | None = None) -> Tensor:
        """See `ops.add_rms_norm_backward`."""
        return ops.add_rms_norm_backward(dy, stream, rstd, self.weight, self.offset, dstream)


@dataclass(frozen=True)
class BatchContext:
    """What the layers need to know about a flat batch: the rotary embedding of each token (by layer type), the
    attention within its rows, and the seed of its dropout masks (None: no dropout)."""

    rotations: dict[str, tuple[Tensor, Tensor]]  # cos and sin, each [tokens, head_dim], float32
    attention: Attention
    seed: Tensor | None


@dataclass
class SavedActivations:
    """What the backward pass of one layer needs from its forward pass."""

    stream: Tensor  # the residual stream at the layer's input
    rstd: Tensor
    xd: Tensor
    h_qkv: Tensor | None
    raw: tuple[Tensor, ...]  # queries and keys before their norms, and the norms' rstd
    qkv: Tensor
    o: Tensor
    attended: tuple[Tensor, ...]
    od: Tensor
    h_o: Tensor | None
    after: tuple[Tensor, Tensor] | None  # input and rstd of the norm after attention, if there is one
    middle: Tensor  # the residual stream before the MLP
    middle_rstd: Tensor
    md: Tensor
    h_gu: Tensor | None
    gu: Tensor
    inner: Tensor
    h_down: Tensor | None
    last: tuple[Tensor, Tensor] | None  # input and rstd of the norm after the MLP, if there is one


class Layer:
    """One decoder layer."""

    def __init__(self, module: Any, config: Any, number: int, dtype: torch.dtype, scratch: Scratch) -> None:
        _built_of(module, *LAYER_PARTS)
        attention, mlp = module.self_attn, module.mlp
        _built_of(attention, *ATTENTION_PARTS)
        _built_of(mlp, *MLP_PARTS)
        if getattr(config, "attention_dropout", 0.0):
            raise Unrecognised("dropout inside attention")
        if not getattr(attention, "use_rope", True):
            raise Unrecognised("a layer without rotary embedding")
        self.number = number
        self.qkv = LinearGroup([attention.q_proj, attention.k_proj, attention.v_proj], dtype, scratch)
        self.out = LinearGroup([attention.o_proj], dtype, scratch)
        self.gate_up = LinearGroup([mlp.gate_proj, mlp.up_proj], dtype, scratch)
        self.down = LinearGroup([mlp.down_proj], dtype, scratch)
        self.act = _activation(config)
        self.rope = _layer_type(config, number)
        self.attention = _shape(attention, config)
        self.head_norms = (
            (Norm.of(attention.q_norm), Norm.of(attention.k_norm)) if hasattr(attention, "q_norm") else None
        )
        self.norm = Norm.of(module.input_layernorm)
        post = Norm.of(module.post_attention_layernorm)
        if hasattr(module, "pre_feedforward_layernorm"):  # Gemma also has norms after attention and after the MLP
            self.mlp_norm = Norm.of(module.pre_feedforward_layernorm)
            self.after_norm: Norm | None = post
            self.last_norm: Norm | None = Norm.of(module.post_feedforward_layernorm)
        else:
            self.mlp_norm, self.after_norm, self.last_norm = post, None, None

    @property
    def groups(self) -> list[LinearGroup]:
        """The four stacked linear layers."""
        return [self.qkv, self.out, self.gate_up, self.down]

    def forward(
        self, delta: Tensor, stream: Tensor | None, batch: BatchContext
    ) -> tuple[Tensor, Tensor, SavedActivations]:
        """Return what the layer adds to the residual stream, the stream before the addition, and what `backward` needs.

        `delta` is what the previous layer adds to `stream`; both are [tokens, hidden].
        """
        drops = self._drops(batch.seed)
        x, xd, stream, rstd = self.norm.forward(delta, stream, drops[0])
        qkv, h_qkv = self.qkv.forward(x, xd)
        qkv, raw = self._head_norms(qkv)
        self._rotate(qkv, batch)
        o, attended = batch.attention.forward(self.attention, qkv)
        od = ops.dropout(o, drops[1]) if drops[1] else o
        a, h_o = self.out.forward(o, od)
        a, after = _behind(self.after_norm, a)
        m, md, middle, middle_rstd = self.mlp_norm.forward(a, stream, drops[2])
        gu, h_gu = self.gate_up.forward(m, md)
        inner, inner_d = ops.gated(gu, self.act, drops[3])
        d, h_down = self.down.forward(inner, inner_d)
        d, last = _behind(self.last_norm, d)
        saved = SavedActivations(
            stream, rstd, xd, h_qkv, raw, qkv, o, attended, od, h_o, after,
            middle, middle_rstd, md, h_gu, gu, inner_d, h_down, last,
        )  # fmt: skip
        return d, middle, saved

    def backward(
        self, g: Tensor, saved: SavedActivations, batch: BatchContext, side: SideStream, *, wanted: bool
    ) -> Tensor:
        """Return the gradient of the layer's input [tokens, hidden], given the gradient g of its output."""
        drops = self._drops(batch.seed)
        dd = _before(self.last_norm, g, saved.last)
        dinner = _present(self.down.backward(dd, saved.inner, saved.h_down, drops[3], side))
        dgu = ops.gated_backward(dinner, saved.gu, self.act)
        dm = _present(self.gate_up.backward(dgu, saved.md, saved.h_gu, drops[2], side))
        g = self.mlp_norm.backward(dm, saved.middle, saved.middle_rstd, g)
        da = _before(self.after_norm, g, saved.after)
        do = _present(self.out.backward(da, saved.od, saved.h_o, drops[1], side))
        dq, dk, dv = batch.attention.backward(self.attention, do, saved.qkv, saved.o, saved.attended)
        dqkv = self._head_norms_backward(ops.pack_rotated(dq, dk, dv, *batch.rotations[self.rope]), saved.raw)
        dx = self.qkv.backward(dqkv, saved.xd, saved.h_qkv, drops[0], side, wanted=wanted)
        return g if dx is None else self.norm.backward(dx, saved.stream, saved.rstd, g)

    def infer(self, delta: Tensor, stream: Tensor | None, rotations: dict[str, Any], attend: Attend) -> Any:
        """Run `forward` without dropout and saved activations; `attend` gets the layer's number and its qkv."""
        x, _, stream, _ = self.norm.forward(delta, stream)
        qkv, _ = self._head_norms(self.qkv.forward(x, x)[0])
        shape = self.attention
        cos, sin = rotations[self.rope]
        ops.rotate_(qkv, cos, sin, shape.heads + shape.kv_heads, shape.head_dim)
        o = attend(self.number, qkv)
        a, _ = _behind(self.after_norm, self.out.forward(o, o)[0])
        m, _, middle, _ = self.mlp_norm.forward(a, stream)
        inner, _ = ops.gated(self.gate_up.forward(m, m)[0], self.act, None)
        d, _ = _behind(self.last_norm, self.down.forward(inner, inner)[0])
        return d, middle

    def _drops(self, seed: Tensor | None) -> list[Dropout | None]:
        return [group.drop(seed, SITES * self.number + place) for place, group in enumerate(self.groups)]

    def _rotate(self, qkv: Tensor, batch: BatchContext) -> None:
        shape, (cos, sin) = self.attention, batch.rotations[self.rope]
        ops.rotate_(qkv, cos, sin, shape.heads + shape.kv_heads, shape.head_dim)

    def _head_norms(self, qkv: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.head_norms is None:
            return qkv, ()
        query, key, value = self.attention.split(qkv)
        size = self.attention.head_dim
        q, _, q_raw, q_rstd = self.head_norms[0].forward(query.reshape(-1, size))
        k, _, k_raw, k_rstd = self.head_norms[1].forward(key.reshape(-1, size))
        whole = torch.cat([q.view(query.shape), k.view(key.shape), value], dim=1)
        return whole.view(qkv.shape), (q_raw, q_rstd, k_raw, k_rstd)

    def _head_norms_backward(self, dqkv: Tensor, raw: tuple[Tensor, ...]) -> Tensor:
        if self.head_norms is None:
            return dqkv
        q_raw, q_rstd, k_raw, k_rstd = raw
        query, key, _ = self.attention.split(dqkv)
        size = self.attention.head_dim
        query.copy_(self.head_norms[0].backward(query.reshape(-1, size), q_raw, q_rstd).view(query.shape))
        key.copy_(self.head_norms[1].backward(key.reshape(-1, size), k_raw, k_rstd).view(key.shape))
        return dqkv


class Decoder:
    """The whole decoder: embedding, layers, final norm, output layer."""

    def __init__(self, model: Any) -> None:
        """Read a causal language model of transformers, or one wrapped by PEFT.

        Raises:
            Unrecognised: the model has parts that the fast path does not support.
        """
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        inner: Any = getattr(causal, "model", None)
        config = causal.config
        parts = ("embed_tokens", "layers", "norm", "rotary_emb")
        if not all(hasattr(inner, part) for part in parts) or not hasattr(causal, "lm_head"):
            raise Unrecognised(f"{type(causal).__name__}, which is not built like Llama")
        if (getattr(config, "rope_parameters", None) or {}).get("llama_4_scaling_beta"):
            raise Unrecognised("queries scaled by their position")
        for softcap in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(config, softcap, None):
                raise Unrecognised(softcap)
        self.embedding: Any = inner.embed_tokens
        if not isinstance(self.embedding, nn.Embedding):
            raise Unrecognised(f"a {type(self.embedding).__name__} around the embedding")
        self.dtype: torch.dtype = self.embedding.weight.dtype
        self.device: torch.device = self.embedding.weight.device
        self.scratch = Scratch(self.device)
        self.rotary: Any = inner.rotary_emb
        self.layers = [
            Layer(module, config, number, self.dtype, self.scratch) for number, module in enumerate(inner.layers)
        ]
        self.norm = Norm.of(inner.norm)
        self.head = LinearGroup([causal.lm_head], self.dtype, self.scratch)
        self.vocab_size = self.head.width
        self.ropes = _ropes(self.rotary, [layer.rope for layer in self.layers])
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        self._old_tables: list[Any] = []  # shorter tables, which captured graphs may still read
        _adapters_known(causal, self)

    @property
    def groups(self) -> list[LinearGroup]:
        """Every stacked linear layer, in the order of the forward pass."""
        return [group for layer in self.layers for group in layer.groups] + [self.head]

    @property
    def dropout(self) -> float:
        """The probability of the adapters' dropout."""
        return max(group.dropout for group in self.groups)

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can capture a forward pass. LLM.int8() layers wait for the host, unless merged."""
        return not any(isinstance(group.frozen, Int8) and not group.is_merged for group in self.groups)

    # --- training ----------------------------------------------------------------------------------------------

    def parameters(self) -> list[list[nn.Parameter]]:
        """The adapters' tensors, in the groups that `Flat` must place without a gap."""
        return [group for linear in self.groups for group in linear.parameters()]

    def attach(self, flat: Flat, work: Tensor, grad: Tensor) -> None:
        """Read adapters from the buffer `work` from now on, and write their gradients into the buffer `grad`."""
        for group in self.groups:
            group.attach(flat, work, grad)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings [tokens, hidden] of token ids [tokens]."""
        embedded: Tensor = self.embedding(input_ids)
        return embedded

    def forward(
        self, input_ids: Tensor, batch: BatchContext, checkpointed: int = 0
    ) -> tuple[Tensor, Tensor, list[SavedActivations | Tensor]]:
        """Return what the last layer adds, the stream before that addition (both [tokens, hidden]), and what each layer
        saved for `backward`. The first `checkpointed` layers save their input only and are recomputed there."""
        delta: Tensor = self.embed(input_ids)
        stream: Tensor | None = None
        kept: list[SavedActivations | Tensor] = []
        for layer in self.layers:
            delta, stream, saved = layer.forward(delta, stream, batch)
            kept.append(saved.stream if layer.number < checkpointed else saved)
        assert stream is not None
        return delta, stream, kept

    def backward(self, g: Tensor, kept: list[SavedActivations | Tensor], batch: BatchContext) -> None:
        """Write every adapter's gradient, given the gradient g [tokens, hidden] of the last layer's output. The saved
        activations of a layer are freed once they are used."""
        side = SideStream(self.device)
        try:
            for layer in reversed(self.layers):
                saved = kept.pop()
                if isinstance(saved, Tensor):
                    saved = layer.forward(saved, None, batch)[2]
                g = layer.backward(g, saved, batch, side, wanted=layer.number > 0)
                side.end_layer()
        finally:
            side.join()

    def loss_and_gradient(
        self, delta: Tensor, stream: Tensor, predict: Tensor, targets: Tensor, scale: Tensor, seed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the summed cross entropy (float32) at positions `predict` [scored], and `scale` times its gradient at
        the last layer's output, [tokens, hidden]. Targets of -100 are ignored.

        Logits are computed, used and freed in chunks. The output layer's adapter gets its gradient here.
        """
        drop = self.head.drop(seed, SITES * len(self.layers))
        x, xd, picked, rstd = self.norm.forward(delta[predict], stream[predict], drop)
        losses, parts, inner = [], [], []
        part = max(1, LOGITS_BYTES // (self.vocab_size * x.element_size()))
        for start in range(0, len(predict), part):
            rows = slice(start, start + part)
            logits, h = self.head.forward(x[rows], xd[rows])
            losses.append(ops.cross_entropy_(logits, targets[rows], scale))
            parts.append(self.head.frozen.back(logits))
            if h is not None:
                dh = self.head.inner_gradient(logits, h)
                self.head.adapter_gradients(logits, xd[rows], h, dh, add=start > 0)
                inner.append(dh)
        loss, dx = torch.stack(losses).sum(), _joined(parts)
        if self.head.adapters:
            self.head.pass_back_(dx, _joined(inner), drop)
        g = torch.zeros_like(delta)
        return loss, g.index_add_(0, predict, self.norm.backward(dx, picked, rstd))

    # --- inference ---------------------------------------------------------------------------------------------

    def hidden(self, input_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Return the final norm's output [tokens, hidden]. `attend(layer, qkv)` is called with rotated queries and keys
        [tokens, (heads + 2 kv_heads) * head_dim] and returns [tokens, heads * head_dim]."""
        rotations = self.rotations(positions)
        delta, stream = self.embed(input_ids), None
        for layer in self.layers:
            delta, stream = layer.infer(delta, stream, rotations, attend)
        return self.norm.forward(delta, stream)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [n, vocabulary] of hidden states [n, hidden]."""
        return self.head.forward(hidden, hidden)[0]

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Replace every linear layer by one dense weight with its adapter merged, while the block runs."""
        with ExitStack() as stack:
            for group in self.groups:
                stack.enter_context(group.merged())
            yield

    def merged_bytes(self) -> int:
        """The memory that `merged` takes, in bytes."""
        return sum(group.merged_bytes() for group in self.groups)

    def refresh(self) -> None:
        """Copy the adapters' current values."""
        for group in self.groups:
            group.refresh()

    # --- rotary embedding and weights --------------------------------------------------------------------------

    def prepare_positions(self, length: int) -> None:
        """Compute the rotary tables for all positions below `length`."""
        if self._tables and next(iter(self._tables.values()))[0].shape[0] >= length:
            return
        self._old_tables.append(dict(self._tables))
        positions = torch.arange(length, device=self.device)[None]
        like = torch.empty(0, dtype=torch.float32, device=self.device)
        for kind, arguments in self.ropes.items():
            cos, sin = self.rotary(like, positions, *arguments)
            self._tables[kind] = cos[0].contiguous(), sin[0].contiguous()

    def rotations(self, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return cosine and sine [tokens, head_dim] of each token, by layer type. Call `prepare_positions` before."""
        return {kind: (cos[positions], sin[positions]) for kind, (cos, sin) in self._tables.items()}

    def packed(self) -> list[Packed]:
        """The 4-bit weights, which are dequantized before each product unless they are kept dequantized."""
        return packed(self.groups)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _behind(norm: Norm | None, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    if norm is None:
        return x, None
    y, _, raw, rstd = norm.forward(x)
    return y, (raw, rstd)


def _before(norm: Norm | None, g: Tensor, saved: tuple[Tensor, Tensor] | None) -> Tensor:
    return g if norm is None or saved is None else norm.backward(g, *saved)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _built_of(module: nn.Module, needed: set[str], more: set[str]) -> None:
    found = {name for name, _ in module.named_children()}
    unknown = found - needed - more
    missing = (needed | more if found & more else needed) - found
    for parts, how in ((unknown, "with"), (missing, "without")):
        if parts:
            raise Unrecognised(f"{type(module).__name__} {how} {', '.join(sorted(parts))}")


def _activation(config: Any) -> str:
    name = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if name not in ACTIVATIONS:
        raise Unrecognised(f"activation {name}")
    return ACTIVATIONS[name]


def _layer_type(config: Any, number: int) -> str:
    types = getattr(config, "layer_types", None)
    return str(types[number]) if types else "full_attention"


def _shape(attention: Any, config: Any) -> AttentionShape:
    heads, kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
    return AttentionShape(
        heads, kv_heads, int(attention.head_dim), float(attention.scaling), _window(attention, config)
    )


def _window(attention: Any, config: Any) -> int | None:
    if hasattr(attention, "sliding_window"):
        own: int | None = attention.sliding_window
        return own
    window: int | None = getattr(config, "sliding_window", None)
    if window is not None and type(attention).__name__ not in WINDOWED:
        raise Unrecognised(f"sliding_window={window}, which {type(attention).__name__} may ignore")
    return window


def _ropes(rotary: Any, kinds: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the extra arguments of the rotary embedding by layer type; it must not depend on the batch's length."""
    types = rotary.rope_type
    by_kind = isinstance(types, dict)
    for rope in types.values() if by_kind else [types]:
        if rope not in STATIC_ROPES:
            raise Unrecognised(f"rotary embedding of type {rope}")
    return {kind: (kind,) if by_kind else () for kind in dict.fromkeys(kinds)}


def _adapters_known(causal: nn.Module, decoder: "Decoder") -> None:
    """Check that the trained tensors are exactly the adapters that this decoder computes with."""
    adapters = [parameter for group in decoder.parameters() for parameter in group]
    if any(parameter.requires_grad for parameter in adapters) and not all(p.requires_grad for p in adapters):
        raise Unrecognised("adapters of which some are not trained")
    known = {id(parameter) for parameter in adapters}
    for name, parameter in causal.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            raise Unrecognised(f"{name}, which is trained and is not a LoRA matrix")
