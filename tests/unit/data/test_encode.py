import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from encoding import encode

from ftlab import data
from ftlab.config import DataConfig
from ftlab.data import Example
from ftlab.data.encode import Tokens, fit
from ftlab.data.prompts import PromptTokenizer
from ftlab.errors import DataError, WeightsError
from ftlab.tasks.sql import TASK

TEMPLATE = "### Schema:\n{context}\n\n### Question:\n{question}\n\n### SQL:\n"
KINDS = ("bos", "bos_eos", "plain")


def random_rows(count: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    words = ["singer", "age", "COUNT", "ä", "(name VARCHAR)", "WHERE", '"x"', "\n", "  ", "</", "🙂"]

    def text(most: int) -> str:
        return "a" + " ".join(rng.choices(words, k=rng.randint(1, most)))

    return [Example(str(i), text(12), text(60), f" {text(15)} \n", "g") for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_length", [48, 100, 4096])
@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_every_row_fits_learns_its_whole_answer_and_when_to_stop(
    make_tokenizer: Callable[[str], Any], kind: str, max_length: int, loss_on: str
) -> None:
    tokenizer = make_tokenizer(kind)
    rows = random_rows(150)
    by_id = {row.id: row for row in rows}
    found = encode(rows, tokenizer, TEMPLATE, max_length, loss_on)
    for encoded in found.rows:
        row = by_id[encoded.id]
        answer = [
            *tokenizer(row.answer.strip(), add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        whole = PromptTokenizer(tokenizer, TEMPLATE).prompts([(row.question, row.context)])[0]
        prompt = encoded.input_ids[: -len(answer)]
        assert len(encoded.input_ids) <= max_length
        assert encoded.input_ids[-len(answer) :] == answer, "the answer is never cut"
        assert encoded.input_ids.count(tokenizer.eos_token_id) == 1
        assert encoded.spans == ((len(prompt) if loss_on == "completion" else 1, encoded.tokens),)
        assert encoded.truncated == (prompt != whole)
        assert prompt[:1] == whole[:1] or kind == "plain", "the begin marker stays"
        kept = tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
        assert kept.endswith(f"{row.question}\n\n### SQL:\n"), "question and answer marker stay"
    assert len(found.rows) + found.dropped == len(rows)
    assert found.truncated == sum(row.truncated for row in found.rows)
    if max_length == 4096:
        assert found.truncated == found.dropped == found.longest_dropped == 0
    else:
        assert found.truncated > 0
        assert (found.longest_dropped > max_length) == (found.dropped > 0)


def test_truncation_takes_the_left_of_the_schema(tokenizer: Any) -> None:
    row = Example("1", "How many singers are there?", "first " + "CREATE TABLE singer " * 40 + "last", "SELECT 1", "g")
    (encoded,) = encode([row], tokenizer, TEMPLATE, 80, "completion").rows
    text = tokenizer.decode(encoded.input_ids)
    assert len(encoded.input_ids) == 80
    assert "first" not in text
    assert "### Schema" not in text
    assert "last\n\n### Question:\nHow many singers are there?\n\n### SQL:\nSELECT 1</s>" in text


def test_a_row_whose_question_and_answer_do_not_fit_is_dropped_and_counted(tokenizer: Any) -> None:
    short = Example("s", "How many?", "CREATE TABLE t", "SELECT 1", "g")
    long = Example("l", "How many?", "CREATE TABLE t", "SELECT COUNT(*) FROM singer " * 30, "g")
    found = encode([short, long], tokenizer, TEMPLATE, 64, "completion")
    assert [row.id for row in found.rows] == ["s"]
    assert found.dropped == 1
    whole = encode([long], tokenizer, TEMPLATE, 4096, "completion").rows[0]
    assert found.longest_dropped == len(whole.input_ids)


def test_a_question_before_the_schema_is_never_cut(tokenizer: Any) -> None:
    row = Example("1", "How many singers are there?", "CREATE TABLE singer " * 40, "SELECT 1", "g")
    other = Example("2", "How many?", "CREATE TABLE t", "SELECT 1", "g")
    found = encode([row, other], tokenizer, "Q: {question}\n{context}\nSQL:", 60, "completion")
    assert [encoded.id for encoded in found.rows] == ["2"]


def test_loss_on_all_without_a_prompt_still_skips_the_first_token(
    make_tokenizer: Callable[[str], Any],
) -> None:
    row = Example("1", "", "", "SELECT 1", "g")
    (encoded,) = encode([row], make_tokenizer("plain"), "{question}", 64, "completion").rows
    assert encoded.spans == ((1, encoded.tokens),), "nothing stands before the first token to predict it from"


def test_no_row_left_is_an_error_with_a_length_that_works(tokenizer: Any) -> None:
    rows = random_rows(30)
    with pytest.raises(DataError, match=r"data\.max_length=8 leaves no row to train on.*all 30 rows") as caught:
        encode(rows, tokenizer, TEMPLATE, 8, "completion")
    suggested = int(str(caught.value).rsplit("data.max_length=", 1)[1])
    assert encode(rows, tokenizer, TEMPLATE, suggested, "completion").truncated == 0


def test_no_rows_at_all_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no rows"):
        encode([], tokenizer, TEMPLATE, 64, "all")


def test_a_tokenizer_without_end_marker_is_refused(make_tokenizer: Callable[[str], Any]) -> None:
    with pytest.raises(WeightsError, match=r"no end-of-sequence token \(eos_token\)") as caught:
        encode(random_rows(2), make_tokenizer("no_eos"), TEMPLATE, 64, "all")
    assert "tokenizer_config.json" in str(caught.value)


def test_twenty_thousand_real_rows_are_encoded_within_seconds(shared: Callable[[str], Path], tokenizer: Any) -> None:
    rows = shared("data/sql_create_context/train.jsonl.gz")
    splits = data.load(DataConfig(name="x", source="table", path=str(rows.parent)), TASK)
    began = time.perf_counter()
    found = encode(splits.train, tokenizer, TEMPLATE, 512, "completion")
    assert time.perf_counter() - began < 30, "2 to 4 s on two idle cores"
    assert len(found.rows) + found.dropped == 19_800
    assert all(row.input_ids[-1] == tokenizer.eos_token_id for row in found.rows)


# A conversation: begin marker, a turn (1, 2, 3), an answer (4, 5), a turn (6, 7), an answer (8, 9).
TURNS = Tokens("t", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], ((4, 6), (8, 10)), cut=(1, 7))


@pytest.mark.parametrize(
    ("max_length", "ids", "trained"),
    [
        (10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [[4, 5], [8, 9]]),
        (8, [0, 3, 4, 5, 6, 7, 8, 9], [[4, 5], [8, 9]]),
        (6, [0, 5, 6, 7, 8, 9], [[5], [8, 9]]),
        (5, [0, 6, 7, 8, 9], [[8, 9]]),
        (4, [0, 7, 8, 9], [[8, 9]]),
    ],
)
def test_truncation_moves_the_spans_with_their_tokens(
    max_length: int, ids: list[int], trained: list[list[int]]
) -> None:
    (row,) = fit([TURNS], max_length, "completion").rows
    assert row.input_ids == ids
    assert [row.input_ids[first:last] for first, last in row.spans] == trained
    assert (row.tokens, row.trained, row.truncated) == (len(ids), sum(map(len, trained)), max_length < 10)
    assert fit([TURNS], max_length, "all").rows[0].spans == ((1, len(ids)),)


def test_what_may_not_be_cut_is_kept_or_the_row_is_dropped() -> None:
    found = fit([TURNS], 3, "completion")
    assert (found.rows, found.dropped, found.longest_dropped) == ([], 1, 10)
    assert TURNS.prompt == [0, 1, 2, 3, 4, 5, 6, 7], "what the model is asked is all before its last answer"


def test_the_first_token_is_never_trained() -> None:
    assert fit([Tokens("t", [1, 2, 3], ((0, 3),), cut=(0, 0))], 8, "completion").rows[0].spans == ((1, 3),)
    assert fit([Tokens("t", [1, 2, 3, 4], ((1, 4),), cut=(0, 2))], 2, "completion").rows[0].spans == ((1, 2),)


def test_another_answer_takes_the_last_ones_place() -> None:
    other = TURNS.answered([7, 7, 7])
    assert (other.prompt, other.answer, TURNS.answer) == (TURNS.prompt, [7, 7, 7], [8, 9])
    assert fit([other], 8, "completion").rows[0].input_ids == [0, 4, 5, 6, 7, 7, 7, 7]
