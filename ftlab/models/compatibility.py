"""Checks whether an architecture supports a configuration, by its names and shapes, before its weights are read."""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftlab.config import ExperimentConfig, QuantConfig
from ftlab.errors import ConfigError, WeightsError
from ftlab.models.attention import attention_of
from ftlab.models.load import kind, stored_kind
from ftlab.models.targets import Targets, find_targets, is_linear, uncalled

# If less than this share of the layers' weights is quantised, or has adapters, a line says so.
MOST = 0.9
SHOWN = 3  # names shown in a line
# The last parts of the names of position tables: embeddings, and GPT-J's sinusoids.
POSITIONS = ("wpe", "position_embeddings", "embed_positions", "position_embedding", "embed_position", "pos_emb")


def check_settings(bare: PreTrainedModel, cfg: ExperimentConfig) -> list[str]:
    """Return one line for each setting that does not apply as configured, or applies to a part of the model only.

    Raises:
        ConfigError: an attention implementation cannot be used, the architecture does not have the targets, or all
            weights are to be trained but they are stored quantised.
    """
    asked, used = cfg.model.attn_implementation, attention_of(bare, cfg.model.attn_implementation)
    notes = []
    if used != asked:
        notes.append(f"model.attn_implementation={asked}: {type(bare).__name__} does not support it; {used} is used")
    stored = stored_kind(bare)
    if stored and not cfg.lora.r:
        raise ConfigError(
            f"lora=none trains all weights, but those of model.id={cfg.model.id} are stored quantised ({stored}): "
            "choose lora=r16, or weights that are not quantised"
        )
    if stored and stored != kind(cfg.quant):
        notes.append(f"quant={kind(cfg.quant)} changes nothing: the weights are stored quantised ({stored})")
    elif not stored:
        notes += _quantised(bare, cfg.quant, cfg.model.dtype)
    if cfg.lora.r:
        targets = find_targets(bare, cfg.lora.target_modules)
        notes += [*targets.notes, *_adapted(bare, targets, cfg.lora.target_modules)]
    return notes


def check_rows(
    bare: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    prompts: list[list[int]],
    cfg: ExperimentConfig,
) -> list[str]:
    """Check token ids against the embedding, and lengths against absolute positions; return one line for tokens that
    cannot be used. A pad token beyond the embedding is replaced. `rows` are the token ids of all rows that are trained
    on or whose loss is measured, `prompts` those of all prompts to answer.

    Raises:
        WeightsError: a token id is beyond the embedding.
        ConfigError: a row, or a prompt with its answer, is longer than the model has positions.
    """
    _check_positions(bare, rows, prompts, cfg)
    return list(_check_ids(bare, tokenizer, [*rows, *prompts], cfg.model.id))


def _check_ids(
    bare: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], model_id: str
) -> Iterator[str]:
    embedded = int(bare.get_input_embeddings().weight.shape[0])
    highest = max(max(row) for row in rows)
    if highest >= embedded:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise WeightsError(
            f"model.id={model_id}: its tokenizer gives {token!r} the id {highest}, but its embedding has {embedded} "
            "rows (vocab_size): tokenizer and weights are of different models, or tokens were added without "
            "model.resize_token_embeddings(len(tokenizer)); use the tokenizer of these weights"
        )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= embedded:
        yield f"the pad token {tokenizer.pad_token!r} has no row in the embedding: {tokenizer.eos_token!r} pads instead"
        tokenizer.pad_token = tokenizer.eos_token  # harmless: padding is masked by length
    elif len(tokenizer) > embedded:
        yield (
            f"the tokenizer has {len(tokenizer)} tokens but the embedding {embedded} rows: the tokens beyond them "
            "cannot be used (no row of the data has one)"
        )


def _check_positions(
    bare: PreTrainedModel, rows: list[list[int]], prompts: list[list[int]], cfg: ExperimentConfig
) -> None:
    most = positions(bare)
    if most is None:
        return
    row, prompt = max(map(len, rows), default=0), max(map(len, prompts), default=0)
    limit = f"{type(bare).__name__} has positions for {most} tokens"
    problems = []
    if row > most:
        problems.append(
            f"data.max_length={cfg.data.max_length}: {limit}, the longest row has {row}: "
            f"set data.max_length={most} or less"
        )
    if prompt + cfg.eval.max_new_tokens > most:
        remedy = f"set eval.max_new_tokens={most - prompt} or less" if prompt < most else "leave such rows out"
        problems.append(
            f"eval.max_new_tokens={cfg.eval.max_new_tokens}: {limit}, the longest prompt takes {prompt} of them: "
            f"{remedy}, or choose a model with more positions"
        )
    if problems:
        raise ConfigError(*problems)


def positions(model: nn.Module) -> int | None:
    """Return the number of positions of a model with absolute positions; None for a model without them."""
    tables = [
        (name, module.num_embeddings - int(getattr(module, "offset", 0)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    ]
    tables += [(name, len(buffer)) for name, buffer in model.named_buffers() if buffer.ndim == 2]
    return min((size for name, size in tables if name.rpartition(".")[2] in POSITIONS), default=None)


def carries_state(model: nn.Module) -> bool:
    """Whether the model has convolution or recurrence along the sequence: rows laid end to end then influence each
    other, however little."""
    return any(isinstance(module, nn.Conv1d) or hasattr(module, "A_log") for module in model.modules())


# --- shares ---------------------------------------------------------------------------------------------


def _quantised(bare: PreTrainedModel, quant: QuantConfig, dtype: str) -> Iterator[str]:
    if not (quant.load_in_4bit or quant.load_in_8bit):
        return
    linears = {
        f"{name}.weight" for name, module in bare.named_modules() if is_linear(module) and not uncalled(bare, name)
    }
    share, rest = _share(bare, linears)
    if share < MOST:
        yield f"quant={kind(quant)} quantises {share:.0%} of the layers' weights; in {dtype} stay: {rest}"


def _adapted(bare: PreTrainedModel, targets: Targets, asked: object) -> Iterator[str]:
    names = [*(f"{name}.weight" for name in targets.modules), *targets.parameters]
    chosen = {full for full, _ in bare.named_parameters() if any(full == n or full.endswith(f".{n}") for n in names)}
    share, rest = _share(bare, chosen)
    if asked == "all-linear" and share < MOST:
        yield f"lora.target_modules={asked} adapts {share:.0%} of the layers' weights; without an adapter: {rest}"


def _share(bare: PreTrainedModel, chosen: set[str]) -> tuple[float, str]:
    """Return which share of the layers' weights is chosen, and the names of the largest ones that are not."""
    ends = {id(module.weight) for module in bare.modules() if isinstance(module, nn.Embedding)}
    head = bare.get_output_embeddings()
    ends |= {id(parameter) for parameter in head.parameters()} if head is not None else set()
    weights = {name: p.numel() for name, p in bare.named_parameters() if p.ndim > 1 and id(p) not in ends}
    rest: dict[str, int] = {}
    for name in weights.keys() - chosen:
        short = ".".join(name.removesuffix(".weight").split(".")[-2:])
        rest[short] = rest.get(short, 0) + weights[name]
    named = sorted(rest, key=lambda name: (-rest[name], name))
    more = ", …" if len(named) > SHOWN else ""
    return 1 - sum(rest.values()) / max(1, sum(weights.values())), ", ".join(named[:SHOWN]) + more
