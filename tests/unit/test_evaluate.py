"""Scores of a split, and the rows kept of it."""

from typing import Any

import pytest

from ftlab import compose
from ftlab.data.splits import Example
from ftlab.evaluate import Split, prediction_rows, score_answers, subset
from ftlab.experiment import make_accelerator
from ftlab.sql import wilson

EXAMPLES = [Example(str(i), f"How many over {i}?", "CREATE TABLE t (a INT)", f"SELECT {i}", "d") for i in range(10)]


def test_the_headline_is_the_strict_match_with_its_interval() -> None:
    scores = score_answers("eval", ["SELECT 1", "SELECT 2", "SELECT 3"], ["SELECT 1 ;", "select 2", ""])
    assert scores.metrics == pytest.approx({"eval/sql_string_match": 1 / 3, "eval/sql_exact_match": 1 / 3})
    assert scores.intervals["eval/sql_exact_match"] == wilson(1, 3)


def test_no_row_scores_nothing() -> None:
    assert score_answers("test", [], []).metrics["test/sql_exact_match"] == 0


def test_answers_and_golds_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        score_answers("eval", ["a", "b"], ["a"])


def test_a_subset_is_drawn_from_the_whole_split_in_its_order() -> None:
    drawn = subset(EXAMPLES, 4, seed=0)
    places = [EXAMPLES.index(row) for row in drawn]
    assert places == sorted(places)
    assert places != [0, 1, 2, 3]
    assert drawn == subset(EXAMPLES, 4, seed=0)
    assert subset(EXAMPLES, None, 0) == subset(EXAMPLES, 99, 0) == EXAMPLES
    assert len({tuple(row.id for row in subset(EXAMPLES, 4, seed)) for seed in range(5)}) > 1


@pytest.fixture
def split(small: list[str], byte_tokens: Any) -> Split:
    return Split("test", EXAMPLES, byte_tokens, compose([*small, "run_dir=x", "eval.max_rows=5"]))


def test_a_split_is_scored_by_what_the_model_writes(split: Split, make_llama: Any) -> None:
    cfg, heard = split.cfg, list[int]()
    scores = split.score(make_llama(), make_accelerator(cfg), True, heard.append)
    assert len(scores.answers) == 5
    assert heard == [4, 5]
    assert scores.metrics.keys() == {"test/sql_string_match", "test/sql_exact_match", "test/loss"}
    assert scores.metrics["test/loss"] > 0
    again = split.score(make_llama(), make_accelerator(cfg), False, heard.append)
    assert again.answers == scores.answers
    assert again.metrics["test/loss"] == pytest.approx(scores.metrics["test/loss"], rel=1e-5)


def test_training_and_scoring_show_the_model_the_same_prompt(split: Split) -> None:
    for prompt, encoded in zip(split.prompts, split.encoded, strict=True):
        assert encoded.input_ids[: encoded.trained_from] == prompt


def test_rows_are_kept_with_both_answers(split: Split) -> None:
    golds = [row.answer for row in split.rows]
    rows = prediction_rows(split, ["no"] * 5, golds)
    assert [row["exact_string"] for row in rows] == [True] * 5
    assert [row["base_exact_string"] for row in rows] == [False] * 5
    assert rows[0].keys() >= {"id", "split", "question", "context", "gold", "base_pred", "pred"}
    assert prediction_rows(split, ["no"] * 5, None)[0]["pred"] is None
