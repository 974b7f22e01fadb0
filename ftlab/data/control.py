"""Control tokens: those that the template writes are encoded as tokens, those that a field contains as plain text.

A tokenizer recognises its added tokens anywhere in a text. A question, context or answer that contains `<s>` or
`<|im_end|>` would therefore end the sequence or start another turn in the middle of it. A control token is

- one that the tokenizer marks as special (its decoder leaves these out), its unknown token included;
- one that it lists as `chat_control_tokens`;
- any other added token, unless it is white space, that the prompt template itself contains (a turn marker that is not
  marked as special).

Other added tokens (`<think>`, `<tool_call>`, runs of spaces, Gemma's HTML tags) are ordinary vocabulary: a model reads
and writes them as part of its text, so fields may contain them.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Piece = tuple[str, bool]  # a text, and whether it comes from the template (otherwise from a field)


class ControlTokens:
    """The control tokens of a tokenizer under a template whose literal texts are `literals`."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", literals: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.ids = _control_ids(tokenizer, literals)  # by spelling
        unknown: Any = tokenizer.unk_token_id
        # Unknown characters get this id too, so only the text shows whether a field contains the token itself.
        self._unknown = str(tokenizer.unk_token) if _only_unknown(tokenizer) else ""
        self._unambiguous = frozenset(self.ids.values()) - ({unknown} if self._unknown else set())

    def encode(self, texts: Sequence[Sequence[Piece]], own: Sequence[int]) -> tuple[list[list[int]], set[int]]:
        """Return the token ids of texts, each given in pieces, without added special tokens; and the indices of the
        texts in which a field's control token stayed one, because this tokenizer cannot encode it as plain text.

        `own` are the control tokens (ids, in order) that the template writes in each of the texts: see `found`.
        A text whose fields contain no control token gets the ids that the tokenizer gives to the whole text.
        """
        whole = ["".join([text for text, _ in pieces]) for pieces in texts]
        ids = text_ids(self.tokenizer, whole)
        spelled = [i for i, text in enumerate(whole) if self._spelled(text, ids[i], own)]
        for i in spelled:
            ids[i] = self._as_text(texts[i])
        return ids, {i for i in spelled if self.found(ids[i]) != own}

    def found(self, ids: Sequence[int]) -> list[int]:
        """Return the control tokens among `ids`, in order, without the unknown token, which any character may be."""
        return [] if self._unambiguous.isdisjoint(ids) else [id for id in ids if id in self._unambiguous]

    def _spelled(self, text: str, ids: Sequence[int], own: Sequence[int]) -> bool:
        return self.found(ids) != own or (self._unknown != "" and self._unknown in text)

    def _as_text(self, pieces: Sequence[Piece]) -> list[int]:
        if self._renamed:
            backend, names = self._renamed
            text = "".join(self._pattern.sub(lambda m: names[m[0]], text) if ours else text for text, ours in pieces)
            ids: list[int] = backend.encode(text, add_special_tokens=False).ids
            return ids
        return [id for part in self._apart(pieces) for id in self._plain(part)]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))))

    @cached_property
    def _renamed(self) -> "tuple[Tokenizer, dict[str, str]] | None":
        """A copy of a fast tokenizer in which control tokens have names that occur in no text, and these names. Ids,
        token boundaries and everything else are those of the original. None where no such copy can be made."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        from tokenizers import Tokenizer

        # Three private-use characters of the last plane.
        names = {name: f"\U0010fffc{chr(0x100000 + i)}\U0010fffd" for i, name in enumerate(self.ids)}
        try:
            return Tokenizer.from_str(json.dumps(_rename(json.loads(backend.to_str()), names))), names
        except Exception:  # the library raises plain Exception, e.g. where merges make a control token
            return None

    def _apart(self, pieces: Sequence[Piece]) -> list[str | int]:
        """The texts between the template's control tokens, and the ids of these tokens, in order."""
        parts: list[str | int] = [""]
        for text, ours in pieces:
            at = 0
            for match in self._pattern.finditer(text) if ours else ():
                parts[-1] = str(parts[-1]) + text[at : match.start()]
                parts += [self.ids[match[0]], ""]
                at = match.end()
            parts[-1] = str(parts[-1]) + text[at:]
        return [part for part in parts if part != ""]

    def _plain(self, part: str | int) -> list[int]:
        return [part] if isinstance(part, int) else text_ids(self.tokenizer, [part], split_special_tokens=True)[0]


def text_ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str], **options: bool) -> list[list[int]]:
    """Return the token ids that the tokenizer gives to texts of any length, without added special tokens."""
    if not texts:
        return []
    # verbose=False: ftlab handles lengths itself; the tokenizer would warn of texts beyond the model's maximum.
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)
    ids: list[list[int]] = found["input_ids"]
    return ids


def _control_ids(tokenizer: "PreTrainedTokenizerBase", literals: Sequence[str]) -> dict[str, int]:
    try:
        added = tokenizer.added_tokens_decoder
    except NotImplementedError:  # mistral-common's tokenizer, which never recognises a control token in a text
        added = {}
    named = set(tokenizer.all_special_tokens) | set(getattr(tokenizer, "chat_control_tokens", None) or ())
    ids = {
        token.content: id
        for id, token in added.items()
        if token.special
        or token.content in named
        or (token.content.strip() and any(token.content in text for text in literals))
    }
    return dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)) | ids


def _only_unknown(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the unknown token has no other role: in many byte-level vocabularies it is the EOS token too."""
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in others


def _rename(state: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return a serialised tokenizer with control tokens renamed, without special tokens, truncation or padding."""
    model, vocabulary = state["model"], state["model"]["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): id for token, id in vocabulary.items()}
    else:  # Unigram: pairs of a token and its score
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    for token in state["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "normalized": False}
    return state | {"post_processor": None, "truncation": None, "padding": None}
