"""Prompts: the one place that writes and tokenises them, for training, evaluation and prediction."""

import string
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from ftlab.data.control import ControlTokens, Piece, text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(template: str, question: str, context: str) -> str:
    """Fill the fields of `template` in one pass, so that braces in the question or context have no effect."""
    return template.format(question=question, context=context)


@lru_cache(maxsize=32)
def shows(template: str, field: str) -> bool:
    """Whether the template has a field of that name."""
    return any(name == field for _, name, _, _ in string.Formatter().parse(template))


def pieces(template: str, question: str, context: str) -> list[Piece]:
    """Return the text of `render(...)` in pieces: the template's literal texts and its fields."""
    values = {"question": (question, False), "context": (context, False)}
    return [values[part] if is_field else (part, True) for part, is_field in _parts(template)]


def kept_tail(template: str, question: str, context: str) -> list[Piece]:
    """Return the end of the prompt that is never truncated: the question and everything after it."""
    return pieces(template, question, context)[_parts(template).index(("question", True)) :]


@lru_cache(maxsize=8)
def _parts(template: str) -> list[tuple[str, bool]]:
    """Return the literal texts and field names of a template in order, each with whether it is a field."""
    found = [((text, False), (name, True)) for text, name, _, _ in string.Formatter().parse(template)]
    return [(part, is_field) for pair in found for part, is_field in pair if part]


class PromptTokenizer:
    """Tokenises rows under one template. Control tokens that the template contains are encoded as such, those that a
    field contains as plain text (`ftlab.data.control` defines which tokens these are).

    `unescaped` holds the indices of rows in which a field's control token stayed one, because the tokenizer cannot
    encode it as plain text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.unescaped: set[int] = set()

    def prompts(self, asked: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Return the token ids of prompts of (question, context), with BOS if the tokenizer adds it, without EOS."""
        ids = self._encode([pieces(self.template, *row) for row in asked], pieces(self.template, "7", "7"))
        # A template may contain the BOS token itself.
        return [row if self.begin and row[:1] == self.begin else self.begin + row for row in ids]

    def tails(self, asked: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Return the token ids of the ends of these prompts that are never truncated."""
        return self._encode([kept_tail(self.template, *row) for row in asked], kept_tail(self.template, "7", "7"))

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of fields alone, such as answers, without added special tokens."""
        return self._encode([[(text, False)] for text in texts], [])

    @cached_property
    def begin(self) -> list[int]:
        """`[bos]` if the tokenizer adds its BOS token before text, otherwise `[]`.

        Having a bos_token is not enough: GPT-2 and SmolLM2 define one that their models never saw before a text.
        """
        bos: Any = self.tokenizer.bos_token_id
        added: list[int] = self.tokenizer("a", return_attention_mask=False)["input_ids"]
        return [bos] if bos is not None and added[:1] == [bos] else []

    @cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens(self.tokenizer, [text for text, ours in pieces(self.template, "", "") if ours])

    def _encode(self, texts: list[list[Piece]], sample: list[Piece]) -> list[list[int]]:
        """Return the ids of texts; the template's control tokens are found in a `sample` whose fields contain none."""
        own = self._control.found(text_ids(self.tokenizer, ["".join(text for text, _ in sample)])[0])
        ids, unescaped = self._control.encode(texts, own)
        self.unescaped |= unescaped
        return ids
