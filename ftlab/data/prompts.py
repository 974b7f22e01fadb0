"""Prompts: one function writes them and one tokenises them, for training, evaluation and prediction alike."""

import string
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(template: str, question: str, context: str) -> str:
    """`template` with its fields filled in one pass: braces in the question or context mean nothing."""
    return template.format(question=question, context=context)


def uses_context(template: str) -> bool:
    """Whether the template shows the schema."""
    return any(name == "context" for _, name, _, _ in string.Formatter().parse(template))


def kept_tail(template: str, question: str, context: str) -> str:
    """The end of the prompt that is never cut: the question and everything after it.

    `render(...)` ends with this text.
    """
    literals = list(string.Formatter().parse(template))
    first = next(i for i, (_, name, _, _) in enumerate(literals) if name == "question")
    values = {"question": question, "context": context}
    return "".join(
        ("" if i == first else text) + values.get(name or "", "")
        for i, (text, name, _, _) in enumerate(literals)
        if i >= first
    )


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", template: str, question: str, context: str) -> list[int]:
    """Token ids of one prompt: begin marker first if the tokenizer puts one, no end marker."""
    return batch_prompt_ids(tokenizer, [render(template, question, context)])[0]


def batch_prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompts: list[str]) -> list[list[int]]:
    """`prompt_ids` of many rendered prompts at once."""
    start = begin_ids(tokenizer)
    # A template may write the begin marker itself.
    return [ids if start and ids[:1] == start else start + ids for ids in text_ids(tokenizer, prompts)]


def begin_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """`[bos]` if the tokenizer puts its begin marker before text, otherwise `[]`.

    Having a bos_token is not enough: GPT-2 and SmolLM2 define one that their models never saw in that place.
    """
    bos: Any = tokenizer.bos_token_id
    added: list[int] = tokenizer("a", return_attention_mask=False)["input_ids"]
    return [bos] if bos is not None and added[:1] == [bos] else []


def text_ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Token ids of texts with nothing added round them, whatever their length."""
    if not texts:
        return []
    # verbose: lengths are ftlab's business; the tokenizer would warn of those beyond its model's.
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = found["input_ids"]
    return ids
