"""Tasks and stages are found by name, and a configuration that names another is refused with the nearest."""

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ftlab.tasks
from ftlab import compose, declared, tasks
from ftlab.composition import composition, typed_from_tree
from ftlab.config import DataConfig, ExperimentConfig
from ftlab.data.splits import Example
from ftlab.errors import ConfigError, InputError
from ftlab.run_dir import RunDir
from ftlab.sql.intervals import wilson
from ftlab.tasks import Judgement
from ftlab.tasks.scores import mean
from ftlab.tasks.sql import TASK as SQL

OTHER = """
from ftlab.metrics import Metric
from ftlab.tasks.completion import CompletionTask


class Shout(CompletionTask):
    name = "shout"
    title = "shouting"
    headline = "shout_loud"
    metrics = (
        Metric("shout_loud", "loud", "answers in capitals", "maximize", "rate", True, True, field="loud"),
    )
    recorded = ("loud",)
    gives = frozenset({"prompt"})

    def judge(self, examples, answers, cfg, on_row=lambda: None):
        return [self.judged({"loud": answer.isupper()}, "") for answer in answers]


TASK = Shout()
"""


@pytest.fixture
def shout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A task in a folder of its own."""
    (tmp_path / "shout.py").write_text(OTHER)
    monkeypatch.setattr(ftlab.tasks, "__path__", [*ftlab.tasks.__path__, str(tmp_path)])
    yield
    sys.modules.pop("ftlab.tasks.shout", None)


@pytest.fixture
def documented(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The task that docs/extending.md shows, word for word."""
    text = (root / "docs/extending.md").read_text(encoding="utf-8")
    code = next(block for block in text.split("```python\n")[1:] if "class Shout" in block).partition("```")[0]
    (tmp_path / "shout.py").write_text(code)
    monkeypatch.setattr(ftlab.tasks, "__path__", [*ftlab.tasks.__path__, str(tmp_path)])
    yield
    sys.modules.pop("ftlab.tasks.shout", None)


@pytest.mark.usefixtures("documented")
def test_the_documented_task_trains_and_is_scored(fit: Callable[..., Any]) -> None:
    outcome = fit("data.task=shout", "trainer.max_steps=1")
    assert outcome.summary.status == "finished"
    assert outcome.summary.objective.name == "eval/shout_loud"
    rows = RunDir(outcome.folder).read_rows("predictions.jsonl")
    assert {row["loud"] for row in rows} <= {True, False}
    assert outcome.summary.tuned["test/shout_loud"] == sum(row["loud"] for row in rows) / len(rows)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.task=sqll", "data.task=sqll does not exist. Did you mean: sql? Available:"),
        ("data.task=translate", "data.task=translate does not exist. Available: "),
        ("trainer.stage=sf", "trainer.stage=sf does not exist. Did you mean: sft? Available: sft"),
    ],
)
def test_an_unknown_part_is_answered_with_the_nearest(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert said in str(caught.value)


@pytest.mark.usefixtures("shout")
def test_a_task_in_a_module_of_its_own_is_there_with_its_metrics() -> None:
    assert "shout" in tasks.names()
    assert declared.of("test/shout_loud").title == "loud"
    assert declared.task_of("eval/shout_loud") is tasks.get("shout")
    assert set(declared.objectives("shout", "sft")) == {"eval/shout_loud", "eval/loss"}
    assert "`eval/shout_loud`, `test/shout_loud`" in declared.markdown()


def test_a_task_that_is_gone_is_not_remembered() -> None:
    assert "shout" not in tasks.names()
    assert declared.of("test/shout_loud").title == "shout_loud"


@pytest.mark.usefixtures("shout")
def test_a_stage_is_refused_the_rows_that_its_task_does_not_give() -> None:
    with pytest.raises(
        ConfigError,
        match=r"trainer.stage=sft needs rows of the kind completion, which data.task=shout does not provide",
    ):
        compose(["data.task=shout", "objective=eval/shout_loud", "data=jsonl", "data.path=x"])


@pytest.mark.usefixtures("shout")
def test_what_another_tasks_judge_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval.rows_dir=x is read only by data.task=sql: leave it out"):
        compose(["data=match_synth", "eval.rows_dir=x"])


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    monkeypatch.setattr(ftlab.tasks, "__path__", [*ftlab.tasks.__path__, str(tmp_path)])
    with pytest.raises(
        InputError, match=r"data.task=broken: ftlab\.tasks\.broken cannot be imported .*no_such_package"
    ):
        compose(["data.task=broken"])
    assert compose(["data.task=sql"]).data.task == "sql"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("shout_loud", "loss", "data.task=shout and trainer.stage=sft declare the metric loss differently"),
        ("gives = ", "roles = (*CompletionTask.roles, Role('persona', (), 'may'))  # ", "reads a column persona"),
        ('name = "shout"', 'name = "cry"', "ftlab.tasks.shout has the name cry"),
    ],
)
def test_a_task_that_does_not_fit_in_is_refused(
    before: str, after: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = OTHER.replace(before, after).replace("frozenset({", 'frozenset({"completion", ')
    (tmp_path / "shout.py").write_text(f"from ftlab.data.table import Role\n{text}")
    monkeypatch.setattr(ftlab.tasks, "__path__", [*ftlab.tasks.__path__, str(tmp_path)])
    try:
        with pytest.raises(InputError, match=said):
            compose(["data.task=shout", "objective=eval/loss", "data=jsonl", "data.path=x"])
    finally:
        sys.modules.pop("ftlab.tasks.shout", None)


def test_options_of_a_task_that_has_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.options.pattern is not an option of data.task=sql. It has none"):
        compose(["data=sql_synth", "data.options.pattern=x"])


def test_an_older_run_without_a_task_and_a_stage_is_of_the_defaults(tmp_path: Path) -> None:
    composed = composition(["experiment=quickstart", f"run_dir={tmp_path}"])
    older: dict[str, Any] = copy.deepcopy(composed.tree)
    del older["data"]["task"], older["data"]["options"], older["trainer"]["stage"]
    assert typed_from_tree(older) == composed.config
    folder = RunDir(tmp_path)
    folder.record(composition(["experiment=quickstart", f"run_dir={tmp_path}"]))
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(
        "".join(
            line for line in text.splitlines(True) if line.strip() not in ("task: sql", "options: {}", "stage: sft")
        )
    )
    assert "task:" not in (tmp_path / "config.yaml").read_text()
    folder.check_same(composed.tree)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [("SELECT a FROM t WHERE a > 1", 1.0), ("select a from t where 1 < a", 1.0), ("SELECT a FROM t", 0.0), ("", 0.0)],
)
def test_the_reward_of_a_query_is_whether_it_is_right(answer: str, reward: float) -> None:
    row = Example("1", "?", "CREATE TABLE t (a INT)", "SELECT a FROM t WHERE a > 1", "d")
    assert SQL.reward(row, answer, ExperimentConfig(data=DataConfig("x", "table"))) == reward


def test_what_predict_asks_for_is_what_the_prompt_shows() -> None:
    for name in tasks.names():
        task = tasks.get(name)
        shown = {role.name for role in task.roles if role.in_prompt != "never"}
        assert set(task.sample) == shown
        assert task.ask(task.sample, "1").question == task.sample["question"]


def test_a_task_that_is_named_brings_its_headline_unless_another_objective_is() -> None:
    assert compose(["data.task=sql"]).objective == "eval/sql_exact_match"
    assert compose(["data.task=sql", "objective=eval/loss"]).objective == "eval/loss"


def test_the_mean_of_values_between_wrong_and_right_has_the_interval_of_a_bootstrap() -> None:
    rows = [Judgement({}, {"f1": value}, cluster=str(i)) for i, value in enumerate([0.0, 0.5, 1.0] * 20)]
    value, (low, high) = mean("f1", rows)
    assert value == pytest.approx(0.5)
    assert 0.35 < low < 0.42
    assert 0.58 < high < 0.65
    assert mean("f1", rows[:1] * 20) == (0.0, wilson(0, 20))
    alike = [Judgement({}, {"f1": value}, cluster="one") for value in (0.0, 0.5)]
    assert mean("f1", alike) == (0.25, (0.0, 1.0))  # one cluster says nothing of others


def test_a_row_without_a_newer_score_is_read() -> None:
    row = {"id": "1", "exact_string": True, "ast_equal": True}
    found = SQL.read(row)
    assert found.hits == {"sql_string_match": True, "sql_ast_match": True, "sql_exact_match": True}
    with pytest.raises(KeyError, match="ast_equal"):
        SQL.read({"id": "1", "exact_string": True})


def test_rates_by_kind_of_row_are_those_that_are_declared_so_and_leave_out_rows_that_say_nothing() -> None:
    whole = {"exact_string": True, "ast_equal": True, "exec_equal": True, "valid": True, "gold_broken": False}
    counted = SQL.judged({**whole, "vacuous": False}, "a", ("order",))
    silent = SQL.judged({**whole, "exec_equal": False, "vacuous": True}, "b", ("order",))
    metrics, intervals = SQL.score("eval", [counted, silent])
    assert metrics["eval/sql_exec_match"] == metrics["eval/sql_exec_match/order"] == 1.0
    assert metrics["eval/sql_vacuous"] == 1
    kinds = {key for key in metrics if key.count("/") == 2}
    assert kinds == {"eval/sql_ast_match/order", "eval/sql_exec_match/order"}
    assert kinds < intervals.keys()
