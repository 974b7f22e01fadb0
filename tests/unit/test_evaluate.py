"""Scores of a split, and the rows kept of it."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ftlab import compose, declared
from ftlab.config import EvalConfig, ExperimentConfig
from ftlab.data.splits import Example
from ftlab.errors import ConfigError, FtlabError, Stopped
from ftlab.evaluate import (
    Split,
    prediction_rows,
    ready,
    score_answers,
    scores_of_base,
    subset,
)
from ftlab.experiment import make_accelerator
from ftlab.sql.intervals import wilson
from ftlab.sql.rates import recorded
from ftlab.sql.verdict import Verdict
from ftlab.stages.stage import LoadedModel
from ftlab.tasks import Judgement
from ftlab.tasks.sql import TASK


def judged(*verdict: Any) -> Judgement:
    found = Verdict(*verdict)
    return TASK.judged(recorded(found), "t", found.buckets)


def judge(examples: list[Example], answers: list[str], cfg: EvalConfig, *on_row: Any) -> list[Any]:
    found = TASK.judge(examples, answers, ExperimentConfig(eval=cfg), *on_row)
    return [SimpleNamespace(**judgement.record) for judgement in found]


EXAMPLES = [Example(str(i), f"How many over {i}?", "CREATE TABLE t (a INT)", f"SELECT {i}", "d") for i in range(10)]


RIGHT = judged(True, True, True, True, None, False, 0, "equal strings", ("single_table",))
LIKE = judged(False, True, True, True, None, False, 0, "equal trees", ("single_table", "order"))
WRONG = judged(False, False, False, False, False, False, 2, "told apart", ("multi_table",))
BROKEN = judged(False, False, None, True, None, True, 0, "no such column", ("nested",))
VACUOUS = judged(False, False, True, True, True, False, 32, "no row", ("nested",))


def test_the_headline_is_the_ast_match_and_every_rate_has_its_interval() -> None:
    scores = score_answers(TASK, "eval", list("abcde"), [RIGHT, LIKE, WRONG, BROKEN, VACUOUS])
    assert scores.metrics == pytest.approx(
        {
            "eval/sql_string_match": 1 / 5,
            "eval/sql_ast_match": 2 / 5,
            "eval/sql_exact_match": 2 / 5,
            "eval/sql_exec_match": 2 / 3,
            "eval/sql_valid": 4 / 5,
            "eval/sql_ast_match/single_table": 1.0,
            "eval/sql_exec_match/single_table": 1.0,
            "eval/sql_ast_match/multi_table": 0.0,
            "eval/sql_exec_match/multi_table": 0.0,
            "eval/sql_ast_match/order": 1.0,
            "eval/sql_exec_match/order": 1.0,
            "eval/sql_ast_match/nested": 0.0,
            "eval/sql_gold_broken": 1.0,
            "eval/sql_vacuous": 1.0,
        }
    )
    assert scores.intervals.keys() == {key for key in scores.metrics if declared.of(key).is_rate}
    assert scores.intervals["eval/sql_exact_match"] == wilson(2, 5)
    assert scores.intervals["eval/sql_exec_match"] == wilson(2, 3)
    assert (scores.answers[1], scores.judgements[1]) == ("b", LIKE)


@pytest.mark.parametrize("judgements", [[], [BROKEN], [VACUOUS]])
def test_a_rate_without_rows_is_zero_and_no_nan(judgements: list[Judgement]) -> None:
    scores = score_answers(TASK, "test", ["x"] * len(judgements), judgements)
    assert scores.metrics["test/sql_exec_match"] == 0
    assert scores.intervals["test/sql_exec_match"] == (0.0, 1.0)
    assert scores.metrics["test/sql_exact_match"] == 0


def test_answers_are_judged_as_they_are_or_taken_out_of_their_fence() -> None:
    answers = ["```sql\nselect  3\n```", "SELECT 4 -- four", "DROP TABLE t"]
    heard: list[int] = []
    verdicts = judge(EXAMPLES[3:6], answers, EvalConfig(), lambda: heard.append(1))
    assert [v.ast_equal for v in verdicts] == [False, True, False]
    assert [v.valid for v in verdicts] == [False, True, False]
    assert len(heard) == 3
    verdicts = judge(EXAMPLES[3:6], answers, EvalConfig(extract_sql=True))
    assert [v.ast_equal for v in verdicts] == [True, True, False]


def test_the_number_of_databases_is_the_configurations() -> None:
    row = [Example("1", "?", "CREATE TABLE t (a INT)", "SELECT a FROM t WHERE a > 1", "d")]
    same = ["SELECT a FROM t WHERE a > 1 AND a > 0"]
    assert [judge(row, same, EvalConfig(databases=n))[0].databases for n in (3, 7)] == [3, 7]


def test_real_rows_of_a_group_are_executed_too(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "d.sqlite")) as file:
        file.executescript("CREATE TABLE t (a INT); INSERT INTO t VALUES (1), (2);")
    cfg = EvalConfig(rows_dir=str(tmp_path), databases=1)
    TASK.check_files(ExperimentConfig(eval=cfg))
    (row,) = EXAMPLES[:1]
    row = replace(row, answer="SELECT a FROM t WHERE a > 1")
    answers = ["SELECT a FROM t WHERE a >= 1 + 1 AND a > 0"]
    (made_up,) = judge([row], answers, EvalConfig(databases=4))
    (real,) = judge([row], answers, replace(cfg, databases=4))
    assert real.databases == made_up.databases + 1


@pytest.mark.parametrize(("name", "said"), [("absent", "is not a folder"), (".", "contains no .sqlite")])
def test_a_folder_of_real_rows_that_is_none_is_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"eval.rows_dir=.*{said}"):
        TASK.check_files(ExperimentConfig(eval=EvalConfig(rows_dir=str(tmp_path / name))))


def test_answers_and_golds_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        judge(EXAMPLES[:2], ["a"], EvalConfig())


def test_what_on_row_raises_ends_the_scoring() -> None:
    def stop() -> None:
        raise Stopped("SIGTERM")

    with pytest.raises(Stopped):
        judge(EXAMPLES[:2], ["a", "b"], EvalConfig(), stop)


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
    scores = split.score(LoadedModel(make_llama(), None, make_accelerator(cfg), True), heard.append)
    assert len(scores.answers) == 5
    assert heard == [4, 5] + [5] * 5
    assert len(scores.judgements) == 5
    assert scores.metrics.keys() >= {"test/sql_ast_match", "test/sql_exact_match", "test/sql_valid", "test/loss"}
    assert scores.metrics["test/loss"] > 0
    again = split.score(LoadedModel(make_llama(), None, make_accelerator(cfg), False), heard.append)
    assert again.answers == scores.answers
    assert again.metrics["test/loss"] == pytest.approx(scores.metrics["test/loss"], rel=1e-5)


def test_a_task_that_leaves_answers_out_is_named(
    split: Split, make_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(split.task), "judge", lambda *given: [])
    with pytest.raises(FtlabError, match=r"^data.task=sql gave 0 judgements of 5 answers: its method `judge` must"):
        split.score(LoadedModel(make_llama(), None, make_accelerator(split.cfg), True), lambda done: None)


def test_training_and_scoring_show_the_model_the_same_prompt(split: Split) -> None:
    for prompt, encoded in zip(split.prompts, split.encoded, strict=True):
        assert encoded.input_ids[: encoded.spans[0][0]] == prompt


def test_rows_are_kept_with_both_answers_and_their_verdicts(split: Split) -> None:
    base = score_answers(TASK, "test", ["no"] * 5, [WRONG] * 5)
    tuned = score_answers(TASK, "test", [row.answer for row in split.rows], [RIGHT, LIKE, WRONG, BROKEN, VACUOUS])
    rows = prediction_rows(split, base, tuned)
    assert rows[0].keys() >= {"id", "split", "question", "context", "gold", "base_pred", "pred"}
    assert [row["exact_string"] for row in rows] == [True, False, False, False, False]
    assert [row["ast_equal"] for row in rows] == [True, True, False, False, False]
    assert [row["exec_equal"] for row in rows] == [True, True, False, None, True]
    assert rows[3]["gold_broken"]
    assert rows[4]["vacuous"]
    assert [row["base_valid"] for row in rows] == [False] * 5
    assert rows[2]["base_reason"] == "told apart"


def test_a_resumed_run_reads_the_bases_answers_and_verdicts_back(split: Split) -> None:
    base = score_answers(TASK, "test", ["no"] * 5, [RIGHT, LIKE, WRONG, BROKEN, VACUOUS])
    rows = prediction_rows(split, base, None)
    assert rows[0]["pred"] is rows[0]["ast_equal"] is None
    again = scores_of_base(TASK, json.loads(json.dumps(rows)))
    assert again is not None
    assert prediction_rows(split, again, None) == rows
    assert scores_of_base(TASK, [{"base_pred": "no", "base_exact_string": False}]) is None  # an older record


def test_a_model_that_shifts_its_scores_is_asked_by_its_own_generation(make_llama: Any) -> None:
    """The fast path always says the most likely token, which a penalty on repetition does not."""
    from ftlab.fast.recognise import fast_path

    cfg = compose(["model=tiny", "quant=none", "run_dir=x"])
    model, accelerator = make_llama().requires_grad_(False), make_accelerator(cfg)
    decoder, _ = fast_path(model, accelerator.autocast)
    with ready(model, decoder, accelerator) as fast:
        assert fast is decoder is not None
    model.generation_config.repetition_penalty = 1.3
    with ready(model, decoder, accelerator) as fast:
        assert fast is None
