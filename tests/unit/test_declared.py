"""Every metric is declared once, and found by key."""

from pathlib import Path

import pytest

from ftlab import declared, stages, tasks
from ftlab.metrics import RUN

ROOT = Path(__file__).resolve().parents[2]


def test_rates_are_told_from_counts_and_losses() -> None:
    assert all(declared.of(f"test/{name}").is_rate for name in ("sql_valid", "sql_exec_match", "sql_ast_match/nested"))
    assert not any(declared.of(f"test/{name}").is_rate for name in ("loss", "sql_gold_broken", "sql_vacuous"))


@pytest.mark.parametrize("key", ["eval/rouge_l", "test/rouge_l/long", "what/ever", "rouge_l", ""])
def test_an_unknown_key_is_a_plain_metric_and_no_error(key: str) -> None:
    metric = declared.of(key)
    assert metric.title == metric.name == (key if key.partition("/")[0] not in ("eval", "test") else "rouge_l")
    assert (metric.direction, metric.unit, metric.objective) == (None, "", False)


def test_the_direction_of_each_objective() -> None:
    ways = {key: metric.direction for key, metric in declared.objectives("sql", "sft").items()}
    assert ways == {
        **{f"eval/sql_{name}": "maximize" for name in ("string_match", "ast_match", "exact_match", "exec_match")},
        "eval/sql_valid": "maximize",
        "eval/loss": "minimize",
    }
    assert set(declared.costs()) == {"vram/peak_allocated_gib", "train/seconds"}


def test_tables_list_rates_then_losses_then_counts_and_one_name_of_each_number() -> None:
    keys = ["eval/sql_vacuous", "eval/loss", "eval/sql_exact_match", "eval/sql_ast_match", "eval/sql_ast_match/order"]
    assert declared.in_order(keys) == ["eval/sql_ast_match", "eval/loss", "eval/sql_vacuous"]
    assert declared.in_order(["eval/older", "eval/sql_exact_match"]) == ["eval/sql_exact_match", "eval/older"]


def test_no_name_is_declared_twice_and_none_is_half_declared() -> None:
    parts = [RUN, *(stages.get(name).metrics for name in stages.names())]
    parts += [tasks.get(name).metrics for name in tasks.names()]
    every = [metric for part in parts for metric in part]
    shared = {metric for metric in every if every.count(metric) > 1}  # the loss is what several stages measure
    assert len({metric.name for metric in every}) == len(every) - sum(every.count(one) - 1 for one in shared)
    for metric in every:
        assert metric.title, metric.name
        assert metric.help, metric.name
        assert metric.direction or not metric.objective, f"{metric.name}: an objective needs a direction"


def test_each_headline_is_an_objective_of_its_task() -> None:
    for name in tasks.names():
        assert f"eval/{tasks.get(name).headline}" in declared.objectives(name, "sft")


def test_the_table_of_keys_in_the_docs_is_the_declarations() -> None:
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert declared.markdown() in text, "write it anew: python -m ftlab.declared"
