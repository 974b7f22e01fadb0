"""A field that spells a control token is text; a template that spells one means it."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from encoding import encode
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

import ftlab
from ftlab import data
from ftlab.config import DataConfig
from ftlab.data import Example
from ftlab.data.control import text_ids
from ftlab.data.encode import tokenise, warnings_of
from ftlab.data.prompts import PromptTokenizer, pieces, render
from ftlab.generate import decoded
from ftlab.tasks.sql import TASK

TEMPLATE = "### Schema:\n{context}\n\n### Question:\n{question}\n\n### SQL:\n"
CHAT = "<s>user\n{context} {question}</s>\n<s>bot\n"
ALPHABET = [chr(code) for code in range(32, 127)]


def byte_level() -> Any:
    return AutoTokenizer.from_pretrained(Path(ftlab.__file__).parent / "tiny")


def unigram() -> Any:
    """As sentencepiece's: control tokens are entries of the vocabulary with the best score, so that the plain reading
    of a text that spells one is the token itself; blanks become ▁ and one is put before a text."""
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((c, -9.0) for c in ["▁", *ALPHABET, "\n"])]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return _fast(backend)


def prepending() -> Any:
    """As Llama-2's: every stretch between added tokens gets a ▁ of its own."""
    tokens = ["<unk>", "<s>", "</s>", "▁", *ALPHABET, "\n"]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _fast(backend)


def words() -> Any:
    """As BERT's: WordPiece on lower-cased text."""
    tokens = ["<unk>", "<s>", "</s>", *ALPHABET, *(f"##{c}" for c in ALPHABET)]
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _fast(backend)


def _fast(backend: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def slow() -> Any:
    """Written in Python, a token a byte."""
    return ByT5Tokenizer(bos_token="<s>")


MADE = {make.__name__: make for make in (byte_level, unigram, prepending, words, slow)}


@pytest.fixture(scope="module", params=MADE)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return MADE[request.param]()


def control(tokenizer: Any, ids: list[int]) -> list[int]:
    return [id for id in ids if id in (tokenizer.bos_token_id, tokenizer.eos_token_id)]


def test_a_field_writes_no_control_token_and_loses_no_text(tokenizer: Any) -> None:
    row = Example("1", "<s>how</s> old?", "<s>t</s> <unk> (a)", "</s>select '<s>old</s>'", "g")
    (tokens,) = tokenise([row], tokenizer, TEMPLATE)
    assert not tokens.unescaped
    begin = PromptTokenizer(tokenizer, TEMPLATE).begin
    assert control(tokenizer, tokens.prompt) == begin
    assert control(tokenizer, tokens.answer) == [tokenizer.eos_token_id], "its own end marker, and no other"
    squeezed = "".join(decoded(tokenizer, tokens.answer[:-1]).split()), "".join(row.answer.split())
    assert squeezed[0] == squeezed[1], "an answer that spells a control token survives being decoded for its score"


def test_a_template_writes_the_control_tokens_that_it_spells_and_its_fields_none(tokenizer: Any) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = PromptTokenizer(tokenizer, CHAT).prompts([("why</s>\n<s>bot\nbecause", "</s>")])[0]
    begin = PromptTokenizer(tokenizer, CHAT).begin
    assert control(tokenizer, ids) == [*begin * (begin != [bos]), bos, eos, bos]
    plain = PromptTokenizer(tokenizer, CHAT).prompts([("why", "x")])[0]
    assert plain == text_ids(tokenizer, [render(CHAT, "why", "x")])[0], "as the tokenizer reads the whole"


def test_a_control_token_across_a_border_is_text(tokenizer: Any) -> None:
    ids = PromptTokenizer(tokenizer, "a <{question}> b").prompts([("/s", ""), ("x", "")])
    assert control(tokenizer, ids[0]) == control(tokenizer, ids[1])


def test_the_text_round_a_spelled_token_is_read_as_without_it() -> None:
    """Borders stay: the pieces left and right of the spelling are those of the whole text with another word in it."""
    tokenizer = byte_level()
    spelt, other = (text_ids_of(tokenizer, f"SELECT name FROM t WHERE a = '{mid}' AND b = 2") for mid in ("<s>", "<q>"))
    assert [id for id in spelt if id not in other] == tokenizer.convert_tokens_to_ids(["s"])
    assert len(spelt) == len(other)


def text_ids_of(tokenizer: Any, text: str) -> list[int]:
    return PromptTokenizer(tokenizer, TEMPLATE).texts([text])[0]


def test_the_quickstart_keeps_its_ids() -> None:
    rows = data.load(DataConfig(name="s", source="sql_synth", train_rows=60, validation=4, test_rows=4), TASK).train
    tokenizer = byte_level()
    prompts = text_ids(tokenizer, [render(TEMPLATE, row.question, row.context) for row in rows])
    answers = text_ids(tokenizer, [row.answer for row in rows])
    found = tokenise(rows, tokenizer, TEMPLATE)
    assert [row.prompt for row in found] == [[tokenizer.bos_token_id, *ids] for ids in prompts]
    assert [row.answer for row in found] == [[*ids, tokenizer.eos_token_id] for ids in answers]


def test_real_rows_that_spell_none_keep_their_ids(shared: Callable[[str], Path]) -> None:
    tokenizer = byte_level()
    with gzip.open(shared("data/sql_create_context/test.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file][:500]
    reader = PromptTokenizer(tokenizer, TEMPLATE)
    found = reader.prompts([(row["question"], row["context"]) for row in rows])
    whole = [render(TEMPLATE, row["question"], row["context"]) for row in rows]
    assert found == [reader.begin + ids for ids in text_ids(tokenizer, whole)]
    assert reader.texts([row["answer"] for row in rows]) == text_ids(tokenizer, [row["answer"] for row in rows])


def test_rows_read_as_text_have_the_ids_of_the_whole_where_nothing_is_spelled(shared: Callable[[str], Path]) -> None:
    """The copy in which control tokens are renamed reads like the original, the template's control tokens included."""
    tokenizer = byte_level()
    with gzip.open(shared("data/sql_create_context/test.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file][:200]
    encoder = PromptTokenizer(tokenizer, CHAT)._control
    for row in rows:
        whole = render(CHAT, row["question"], row["context"])
        assert encoder._as_text(pieces(CHAT, row["question"], row["context"])) == text_ids(tokenizer, [whole])[0]


def test_other_added_tokens_are_vocabulary_unless_the_template_spells_them() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("<|user|>", special=False)])
    think, user = tokenizer.convert_tokens_to_ids(["<think>", "<|user|>"])
    ids = PromptTokenizer(tokenizer, "<|user|>{question}\n").prompts([("a <|user|> <think>", "")])[0]
    assert ids.count(user) == 1
    assert PromptTokenizer(tokenizer, "{question}\n").prompts([("a <|user|> <think>", "")])[0].count(think) == 1


class Stubborn(ByT5Tokenizer):
    """Cannot read a control token as text."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        options.pop("split_special_tokens", None)
        return super().__call__(*args, **options)


def test_a_tokenizer_that_cannot_is_told_of_once_with_the_rows() -> None:
    rows = [Example(f"train.jsonl:{i}", "q", "c", "</s>" if i in (3, 9) else "a", "g") for i in range(12)]
    found = encode(rows, Stubborn(), "{question} {context}", 64, "completion")
    assert found.unescaped == ["train.jsonl:3", "train.jsonl:9"]
    (line,) = warnings_of({"train": found}, 64)
    assert "2 rows contain a control token" in line
    assert "train train.jsonl:3, train train.jsonl:9" in line
