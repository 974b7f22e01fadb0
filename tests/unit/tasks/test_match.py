"""Question and answer: what counts as the right answer, and the metrics over many of them."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from ftlab import compose, data, declared
from ftlab.config import DataConfig, ExperimentConfig
from ftlab.data.faults import Fault
from ftlab.data.splits import Example
from ftlab.errors import ConfigError, DataError
from ftlab.tasks.match import TASK, judge, labels, synth
from ftlab.tasks.sql import TASK as SQL

SPLITS = ("train", "validation", "test")


def config(**options: Any) -> ExperimentConfig:
    return ExperimentConfig(data=DataConfig(name="x", source="table", task="match", options=options))


def examples(*golds: str) -> list[Example]:
    return [Example(str(i), "?", "", gold, "?") for i, gold in enumerate(golds)]


def judged(gold: str, answer: str, **options: Any) -> dict[str, Any]:
    (found,) = TASK.judge(examples(gold), [answer], config(**options))
    return dict(found.record)


# --- one answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("Denver Broncos", "the denver broncos.", True),
        ("the end", "End", True),
        ("Saint Bernadette Soubirous", "St. Bernadette", False),
        ("a cat", "cat  ", True),
        ("yes", "no", False),
        ("yes", "", False),
        ("yes", "   ", False),
        ("the", "the", True),  # articles alone are kept
        ("the", "a", False),
        ("C++", "C", True),  # punctuation does not count
        ("1,000", "1000", True),
        ("1000", "1000.0", True),
        ("1e3", "1,000.", True),
        ("50%", "50", False),
        ("50%", "50 %", True),
        ("-5", "5", False),
        ("\N{MINUS SIGN}5", "-5", True),
        ("1.5", "15", False),  # where texts would drop the point
        ("1,00", "100", False),  # no number with that comma
        ("1.000,5", "1000.5", False),
        ("-3 apples", "3 apples", False),
        ("-3 apples", "\N{MINUS SIGN}3 Apples!", True),
        ("1.5 kg", "15 kg", False),
        ("1,000 km", "1000.0 km.", True),
        ("$1.50", "$150", False),
        ("$1.50", "1.5", True),
        ("10:30", "1030", False),
        ("at 10:30.", "at 10:30", True),
        ("1/2", "12", False),
        ("15", "1/5", False),
        ("50% of all", "50 % of all", True),
        ("50% of all", "50 of all", False),
        ("102", "10\N{SUPERSCRIPT TWO}", False),
        ("A", "A.", True),  # an article alone is kept
        ("A", "(a)", True),
        ("B", "b.", True),
        ("covid-19", "COVID 19", False),  # a hyphen within a word is dropped, as in SQuAD's evaluation
        ("the 1990s", "1990s", True),
        ("1.000,5", "1.000,5.", True),
        ("007", "7", True),
        ("3", "3 apples", False),
        ("٣", "3", True),  # a digit of another script
        (".5", "0.50", True),
    ],
)
def test_what_is_the_right_answer(gold: str, answer: str, right: bool) -> None:
    assert judged(gold, answer)["exact"] is right
    assert TASK.reward(examples(gold)[0], answer, config()) == float(right)


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("-3 apples", "3 apples", False),
        ("-3 apples", "\N{MINUS SIGN}3 Apples!", True),
        ("-3 apples", "(-3) apples", True),
        ("- 3 apples", "3 apples", True),  # an item of a list
        ("-3kg", "3kg", False),
        ("-.5 kg", "-0.50 kg", True),
        ("0 km", "-0.0 km", True),
        ("-$5", "$5", False),
        ("-$5", "$-5.00", True),
        ("1.5 kg", "15 kg", False),
        ("1.5kg", "15kg", False),
        ("1.5kg", "1 5kg", False),
        ("1,000 km", "1000 km", True),
        ("1,000 km", "1000.0 km.", True),
        ("1,000km", "1000km", True),
        ("about 1e3 km", "about 1,000 km", True),
        ("1e2a", "100a", False),  # no exponent
        ("$1.50", "$150", False),
        ("$1.50", "1.5", True),
        ("10:30", "1030", False),
        ("at 10:30.", "at 10:30", True),
        ("1/2", "12", False),
        ("1/2 cup", "12 cup", False),
        ("2020-01-02", "20200102", False),
        ("3-5", "35", False),
        ("2^3", "23", False),
        ("50% of all", "50 % of all", True),
        ("50% of all", "50 of all", False),
        ("v1.5", "v15", False),
        ("v1.10", "v1.1", False),  # digits of a name have no value
        ("F-16", "F16", True),  # a hyphen within a word
        ("F-16", "F-016", False),
        ("covid-19", "COVID19", True),
        ("the 1990s", "1990s", True),
        ("5-year-old", "5yearold", True),
        ("10\N{SUPERSCRIPT TWO}", "102", False),
        ("٣,٣٣٣ km", "3333 km", True),
        ("\N{FULLWIDTH DIGIT FIVE}\N{FULLWIDTH PERCENT SIGN}", "5%", True),
        ("\N{FULLWIDTH HYPHEN-MINUS}1\N{FULLWIDTH FULL STOP}5 kg", "-1.5 kg", True),
        ("9" * 500 + " m", "9" * 500 + ".0 m", False),  # too long to be read as numbers
    ],
)
def test_a_number_within_a_text_keeps_what_makes_its_value(gold: str, answer: str, right: bool) -> None:
    record = judged(gold, answer)
    assert record["exact"] is right
    assert judged(answer, gold)["exact"] is right
    assert (record["f1"] == 1.0) is right
    assert (record["label"] == record["said"]) is right


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("A", "A.", True),
        ("A", "a", True),
        ("A", "(A)", True),
        ("A", "B", False),
        ("An", "the", False),
        ("The A", "the a", True),
        ("a cat", "cat", True),  # where a word is left, articles go
        ("+", "+", True),
        ("+", "-", False),
        ("\N{THUMBS UP SIGN}", "\N{THUMBS UP SIGN}!", True),
        ("\N{THUMBS UP SIGN}", "\N{THUMBS DOWN SIGN}", False),
    ],
)
def test_a_text_of_which_nothing_would_be_left_is_kept(gold: str, answer: str, right: bool) -> None:
    assert judged(gold, answer)["exact"] is right
    assert judged(gold, answer)["f1"] == float(right)
    assert (judged(gold, answer)["label"] == judged(gold, answer)["said"]) is right


@pytest.mark.parametrize("number", ["0", "-0.0", "7", "-12.50", "1,234.5", "1e-3", ".5", "+2", "1e30", "100", "3%"])
def test_numbers_are_one_label_where_they_are_equal(number: str) -> None:
    value, unit = judge.number(number) or (0, "")
    for form in (number, f"{number}.", f"({number})", f"{value:f}{unit}", f"{value:e} {unit}"):
        assert judged(number, form)["exact"], form
        assert judge.label(form) == judge.label(number), form
    assert judge.number(judge.label(number)) == (value, unit)


def test_numbers_may_be_near() -> None:
    assert not judged("100", "101")["exact"]
    assert judged("100", "101", tolerance=0.01)["exact"]
    assert judged("100", "101", tolerance=0.01)["said"] == "100"  # the label that it is right for
    assert judged("+", "-")["said"] == "-"
    assert not judged("100", "102", tolerance=0.01)["exact"]
    assert judged("0", "0.0", tolerance=0.01)["exact"]


@pytest.mark.parametrize(
    ("gold", "answer", "f1"),
    [
        # The published script's rules: words in common, articles and punctuation aside.
        ("Denver Broncos", "Broncos", 2 / 3),
        ("Saint Bernadette Soubirous", "Bernadette", 0.5),
        ("in the late 1990s", "late 1990s", 0.8),
        ("gold gold", "gold", 2 / 3),
        ("golden", "gold", 0.0),
        ("the", "", 0.0),
        ("yes", "", 0.0),
        ("-3", "3", 0.0),
        ("50%", "50", 0.0),
        ("1.5 kg", "15 kg", 0.5),
        ("1,000 km", "1000 miles", 0.5),
    ],
)
def test_token_f1_is_that_of_squads_evaluation(gold: str, answer: str, f1: float) -> None:
    assert judged(gold, answer)["f1"] == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "extracted", "exact"),
    [
        ("I think 3, no. The answer is 4.", "4", True),
        ("The answer is 5. So the answer is 4.", "4", True),  # the last match counts
        ("4", "", False),
        ("", "", False),
    ],
)
def test_an_answer_is_taken_out_by_a_pattern(answer: str, extracted: str, exact: bool) -> None:
    record = judged("4", answer, pattern=r"(?i)answer is (\d+)")
    assert (record["extracted"], record["exact"]) == (extracted, exact)
    assert record["reason"] == ("numbers" if exact else "the pattern does not match")


def test_a_group_that_took_no_part_is_an_empty_answer() -> None:
    assert judged("4", "no", pattern=r"no|(\d)")["reason"] == "no answer"


def test_a_pattern_that_would_run_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "SECONDS", 0.05)
    record = judged("4", "a" * 60 + "b", pattern=r"((a|a)+)+$")
    assert not record["exact"]
    assert "took more than 0.05 s" in record["reason"]


def test_a_huge_number_is_compared_in_no_time() -> None:
    assert not judged("1e999", "1e998")["exact"]
    assert judged("9" * 300, "9" * 300)["exact"]
    assert judged("1e9999999999", "1e9999999999")["exact"]  # as texts


# --- many answers -------------------------------------------------------------------------------------------


def scored(golds: list[str], answers: list[str]) -> dict[str, float]:
    return TASK.score("eval", TASK.judge(examples(*golds), answers, config()))[0]


def test_labels_have_the_scores_of_a_published_example() -> None:
    """The example of scikit-learn's user guide on classification reports (section 3.4.4.6): class 0 has precision 0.67
    and F1 0.80, class 1 nothing, class 2 precision 1.00 and F1 0.67."""
    names = ["class 0", "class 1", "class 2"]
    golds, answers = [0, 1, 2, 2, 0], [0, 0, 2, 1, 0]
    found = labels.by_label([names[i] for i in golds] * 2, [names[i] for i in answers] * 2)
    assert [round(found[name].precision, 2) for name in names] == [0.67, 0.0, 1.0]
    assert [round(found[name].f1, 2) for name in names] == [0.8, 0.0, 0.67]


def test_an_answer_outside_the_labels_is_wrong() -> None:
    metrics = scored(["yes", "yes", "no", "no"], ["Yes.", "maybe", "no", "yes"])
    assert metrics["eval/match_exact"] == 0.5
    assert metrics["eval/match_label_precision/yes"] == 0.5
    assert metrics["eval/match_label_f1/yes"] == pytest.approx(0.5)
    assert metrics["eval/match_label_precision/no"] == 1.0
    assert metrics["eval/match_label_f1/no"] == pytest.approx(2 / 3)
    assert metrics["eval/match_macro_f1"] == pytest.approx((0.5 + 2 / 3) / 2)


@pytest.mark.parametrize(
    "golds",
    [
        [str(i) for i in range(21)] * 2,  # too many
        ["a label of four words", "no"] * 2,
        ["yes", "no"],  # each but once
        ["yes"] * 4,
        [],
    ],
)
def test_answers_that_are_no_labels_have_no_scores_of_labels(golds: list[str]) -> None:
    assert not [key for key in scored(golds, golds) if "label" in key or "macro" in key]


@pytest.mark.parametrize(
    ("golds", "answers", "said"),
    [
        (["-1", "0", "1"], ["-1", "0", "-1"], {"-1": (0.5, 2 / 3), "0": (1, 1), "1": (0, 0)}),
        (["1.0", "1", "2"], ["1", "1.00", "two"], {"1": (1, 1), "2": (0, 0)}),
        (["10", "1.0"], ["10.0", "1"], {"10": (1, 1), "1": (1, 1)}),
        (["A", "B", "C"], ["(a)", "B.", "A"], {"a": (0.5, 2 / 3), "b": (1, 1), "c": (0, 0)}),
        (["\N{THUMBS UP SIGN}", "\N{THUMBS DOWN SIGN}"], ["\N{THUMBS UP SIGN}"] * 2, None),
        (["50%", "50"], ["50 %", "50%"], {"50%": (0.5, 2 / 3), "50": (0, 0)}),
    ],
)
def test_a_label_is_what_answers_are_exactly_equal_to(
    golds: list[str], answers: list[str], said: dict[str, tuple[float, float]] | None
) -> None:
    said = said or {golds[0]: (0.5, 2 / 3), golds[1]: (0, 0)}
    metrics = scored(golds * 2, answers * 2)
    assert len([key for key in metrics if "match_label_f1/" in key]) == len(said)
    for label, (precision, f1) in said.items():
        assert metrics[f"eval/match_label_precision/{label}"] == pytest.approx(precision)
        assert metrics[f"eval/match_label_f1/{label}"] == pytest.approx(f1)
    assert metrics["eval/match_macro_f1"] == pytest.approx(sum(f1 for _, f1 in said.values()) / len(said))


def test_each_label_has_a_key_of_its_own_whatever_labels_there_are() -> None:
    found = [
        labels.key_part("1/2").replace("_", " "),
        "1/2",
        "1 2",
        "1_2",
        "1~2",
        "/",
        "_",
        "~",
        "+",
        "-1",
        "1",
        "\N{THUMBS UP SIGN}",
        "new york",
    ]
    keys = [labels.key_part(label) for label in found]
    assert len(set(keys)) == len(found)
    assert not [key for key in keys if "/" in key or " " in key]
    assert (keys[2], keys[9:]) == ("1_2", ["-1", "1", "\N{THUMBS UP SIGN}", "new_york"])
    alone = scored(["1/2", "3"] * 2, ["1/2", "3"] * 2)
    assert alone.keys() < scored(["1/2", "1 2", "3"] * 2, ["3"] * 6).keys()


def test_twenty_labels_of_three_words_are_still_labels() -> None:
    golds = [f"label number {i}" for i in range(20)] * 2
    assert scored(golds, golds)["eval/match_macro_f1"] == 1.0


def test_an_empty_text_is_no_label() -> None:
    assert labels.by_label(["", "yes"] * 2, ["", "yes"] * 2) == {}


def test_every_score_is_declared_and_the_rates_have_intervals() -> None:
    golds = ["yes", "no", "new york"] * 4
    metrics, intervals = TASK.score("test", TASK.judge(examples(*golds), ["yes"] * 12, config()))
    assert {declared.of(key).name for key in metrics} == {metric.name for metric in TASK.metrics}
    assert intervals.keys() == {"test/match_exact", "test/match_f1"}
    low, high = intervals["test/match_f1"]
    assert low < metrics["test/match_f1"] < high
    assert "test/match_label_f1/new_york" in metrics


def test_no_rows_are_no_error() -> None:
    metrics, intervals = TASK.score("eval", [])
    assert metrics == {"eval/match_exact": 0.0, "eval/match_f1": 0.0}
    assert intervals["eval/match_exact"] == (0.0, 1.0)


def test_judgements_are_written_and_read_back() -> None:
    (found,) = TASK.judge(examples("Oslo"), ["oslo"], config())
    row = json.loads(json.dumps({"id": 7, "context": "", **found.record}))
    assert dict(TASK.read(row).hits) == {"match_exact": True, "match_f1": 1.0}
    assert TASK.read(row).cluster == "7"  # rows without a context are not one
    with pytest.raises(KeyError, match="exact"):
        TASK.read({"id": 7})


# --- configuration ------------------------------------------------------------------------------------------


def test_the_objective_of_the_data_is_its_tasks_headline() -> None:
    assert compose(["data=match_synth"]).objective == "eval/match_exact"
    assert compose(["experiment=quickstart", "data=match", "data.path=rows.jsonl"]).objective == "eval/match_exact"
    assert compose(["data=match_synth", "objective=eval/match_f1"]).objective == "eval/match_f1"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.options.pattern='(a'"], ["data.options.pattern='(a' is not a valid regular expression", "missing"]),
        (["data.options.pattern='a+'"], ["has 0 groups: it must have one"]),
        (["data.options.pattern='(a)(b)'"], ["has 2 groups"]),
        (["data.options.tolerance=1.5"], ["data.options.tolerance=1.5 must lie in [0, 1)"]),
        (["data.options.tolerance=much"], ["data.options.tolerance=much must be"]),
        (
            ["data.options.patern=x"],
            ["data.options.patern is not an option of data.task=match", "data.options.pattern?"],
        ),
        (["objective=eval/sql_valid"], ["objective=eval/sql_valid", "eval/match_exact, eval/match_f1, eval/loss"]),
        (["sweep.rung_metric=eval/match_macro_f1"], ["sweep.rung_metric=eval/match_macro_f1 must be one of"]),
    ],
)
def test_wrong_options_are_refused_when_the_configuration_is_made(overrides: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["data=match_synth", *overrides])
    assert all(part in str(caught.value) for part in said), str(caught.value)


# --- rows ---------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, Any]]) -> DataConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = compose(["data=match", f"data.path={path}"])
    return cfg.data


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "?", "context": "c", "answer": [42]}, "line 2: answer is a list"),
        ({"question": "?", "context": "c", "answer": ""}, "line 2: answer is empty"),
        ({"question": "?", "context": "c", "answer": None}, "line 2: answer is null"),
        ({"question": "?", "context": "c"}, "line 2: no column answer (this row has question, context)"),
        ({"context": "c", "answer": "a"}, "line 2: no column question"),
    ],
)
def test_a_row_that_cannot_be_used_is_placed(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "context": f"c{i}", "answer": "a"} for i in range(20)]
    with pytest.raises(DataError) as caught:
        data.load(write(tmp_path / "rows.jsonl", [rows[0], row, *rows[1:]]), TASK)
    assert said in str(caught.value)
    assert "rows.jsonl" in str(caught.value)


def test_a_file_without_the_column_names_the_likeliest(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "passage": f"c{i}", "label": "a"} for i in range(20)]
    with pytest.raises(DataError) as caught:
        data.load(write(tmp_path / "rows.jsonl", rows), TASK)
    assert "data.columns.answer=label" in str(caught.value)
    assert "data.columns.context=passage" in str(caught.value)


def test_numbers_and_truth_values_are_answers_as_json_writes_them(tmp_path: Path) -> None:
    answers: list[Any] = [42, 1.0, -3, True, False, "x"] * 4
    rows = [{"question": f"{i}?", "context": f"c{i}", "answer": answer} for i, answer in enumerate(answers)]
    splits = data.load(write(tmp_path / "rows.jsonl", rows), TASK)
    found = {row.question: row.answer for row in [*splits.train, *splits.validation, *splits.test]}
    assert [found[f"{i}?"] for i in range(6)] == ["42", "1.0", "-3", "true", "false", "x"]


@pytest.mark.parametrize("values", [[1, 2], [1.5, 2.0], [Decimal("1.50"), Decimal("2.00")], [True, False]])
def test_a_parquet_column_of_numbers_is_read(values: list[Any], tmp_path: Path) -> None:
    table = {"question": [f"{i}?" for i in range(20)], "context": ["c", None] * 10, "answer": values * 10}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    splits = data.load(compose(["data=match", f"data.path={tmp_path / 'rows.parquet'}"]).data, TASK)
    found = {row.answer for row in [*splits.train, *splits.validation, *splits.test]}
    assert found == {str(value).lower() for value in values}


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), [42], {"a": 1}])
def test_what_is_neither_text_nor_number_is_refused(answer: Any) -> None:
    found = TASK.parse({"question": "?", "context": "", "answer": answer}, config().data, "1")
    assert isinstance(found, Fault)
    assert "answer is" in found.text


@pytest.mark.parametrize("row", [{"context": ""}, {"context": None}, {"context": "  "}, {}])
def test_a_row_may_be_without_a_context_that_the_prompt_shows(row: dict[str, Any], tmp_path: Path) -> None:
    cfg = compose(["data=match", "data.path=x"]).data
    assert "{context}" in cfg.prompt
    found = TASK.parse({**row, "question": "What is 2 plus 3?", "answer": "5"}, cfg, "1")
    assert isinstance(found, Example)
    assert (found.context, found.group) == ("", "What is 2 plus 3?")
    fault = SQL.parse({**row, "question": "How many?", "answer": "SELECT 1"}, cfg, "1")
    assert isinstance(fault, Fault)
    assert "context" in fault.text


# --- generated rows -----------------------------------------------------------------------------------------


def test_generated_splits_share_no_subject_and_no_sum() -> None:
    groups = [{row.group for row in synth.generate(split, 400)} for split in SPLITS]
    assert all(groups)
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]


def test_generated_answers_are_right_and_rows_differ() -> None:
    rows = synth.generate("train", 600)
    assert len({(row.question, row.context) for row in rows}) == 600
    for row in rows:
        if row.context:
            table = dict(line.split(": ") for line in row.context.splitlines())  # "range of Tom" -> "green"
            words = row.question.removesuffix("?").removesuffix(".")
            if row.question.startswith("Which "):
                column, cell = words.split(" has the ")[1].split()
                assert table[f"{column} of {row.answer}"] == cell
            else:
                assert table[words.split(" the ")[1]] == row.answer
        else:
            a, sign, b = row.question.removeprefix("What is ").removesuffix("?").split()
            assert int(row.answer) == int(a) + int(b) * (1 if sign in ("+", "plus") else -1)


def test_the_same_seed_gives_the_same_rows_and_more_begin_with_the_fewer() -> None:
    assert synth.generate("test", 50) == synth.generate("test", 80)[:50]
    assert synth.generate("test", 50, seed=1) != synth.generate("test", 50)


def test_splits_are_as_large_as_asked() -> None:
    splits = data.load(compose(["data=match_synth", "data.train_rows=100", "data.validation=0.1"]).data, TASK)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (100, 10, 200)


# --- what is a label ----------------------------------------------------------------------------------------


def test_labels_keep_their_signs_and_a_number_is_one_label_however_it_is_written() -> None:
    metrics = scored(["-1", "1", "0", "-1", "1.0", "0"], ["1", "1", "0", "1", "1", "0"])
    assert metrics["eval/match_exact"] == pytest.approx(2 / 3)
    f1 = {key.rpartition("/")[2]: value for key, value in metrics.items() if "label_f1" in key}
    assert f1 == {"-1": 0.0, "0": 1.0, "1": pytest.approx(2 / 3)}
    assert metrics["eval/match_macro_f1"] == pytest.approx(5 / 9)


def test_choices_and_signs_are_labels_with_names_of_their_own() -> None:
    choices = scored([*"ABCD"] * 2, [*"ABCA"] * 2)
    assert {key.rpartition("/")[2] for key in choices if "label_f1" in key} == {*"abcd"}
    thumbs = ["\N{THUMBS UP SIGN}", "\N{THUMBS DOWN SIGN}"]
    metrics = scored(thumbs * 2, [thumbs[0]] * 4)
    assert sorted(value for key, value in metrics.items() if "label_f1" in key) == [0.0, pytest.approx(2 / 3)]
