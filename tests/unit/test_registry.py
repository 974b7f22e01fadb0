"""Parts by name: those of installed packages are found by their entry points, and a broken one hinders no other."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ftlab import compose, declared, registry, tasks
from ftlab.errors import ConfigError

Install = Callable[..., Path]
Cli = Callable[..., tuple[int, str, str]]

SHOUT = """
from dataclasses import dataclass

from ftlab.metrics import Metric
from ftlab.tasks.completion import CompletionTask, cluster_of


@dataclass
class ShoutOptions:
    mark: str = "!"


class Shout(CompletionTask):
    name, title, headline = "shout", "shouting", "shout_loud"
    metrics = (Metric("shout_loud", "loud", "share in capitals", "maximize", "rate", objective=True, field="loud"),)
    recorded = ("loud",)
    sample = {"question": "Who is there?", "context": ""}
    options = ShoutOptions

    def judge(self, examples, answers, cfg, on_row=lambda: None):
        mark = self.settings(cfg).mark
        loud = [answer.isupper() or answer.endswith(mark) for answer in answers]
        return [self.judged({"loud": one}, cluster_of(row)) for one, row in zip(loud, examples, strict=True)]


TASK = Shout()
"""
POINTS = {"ftlab.tasks": {"shout": "extra.shout:TASK"}}
OWN_ROWS = ["data=jsonl", "data.path=x", "objective=eval/shout_loud"]


@pytest.fixture
def shout(install: Install) -> Path:
    """An installed package that provides a task."""
    return install("extra", POINTS, {"extra/__init__.py": "", "extra/shout.py": SHOUT})


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return str(caught.value)


# --- names -------------------------------------------------------------------------------------------------------


def test_a_name_that_is_not_installed_is_answered_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.KNOWN, "ftlab.tasks", {"rouge": "pip install 'ftlab[rouge]'"})
    said = tasks.unknown("rouge")
    assert said == "data.task=rouge is not installed: pip install 'ftlab[rouge]'. Available: match, sql"


def test_any_other_name_is_answered_with_the_names_like_it() -> None:
    assert tasks.unknown("sqll") == "data.task=sqll does not exist. Did you mean: sql? Available: match, sql"
    assert tasks.unknown("translate") == (
        "data.task=translate does not exist. Available: match, sql. If a package provides it, install that package"
    )


def test_a_task_of_an_installed_package_is_one_of_ftlab(shout: Path) -> None:
    assert tasks.names() == ["match", "shout", "sql"]
    assert refusal("data.task=shuot").startswith("data.task=shuot does not exist. Did you mean: shout?")
    cfg = compose(["data.task=shout", "data=jsonl", "data.path=x", "data.options.mark='?'"])
    assert cfg.objective == "eval/shout_loud"
    assert declared.of("test/shout_loud").title == "loud"
    (judged,) = tasks.get("shout").judge([row := tasks.get("shout").ask({"question": "a"}, "1")], ["b?"], cfg)
    assert judged.record == {"loud": True}
    assert tasks.get("shout").reward(row, "b!", cfg) == 0.0
    assert tasks.get("shout").reward(row, "b?", cfg) == 1.0


@pytest.mark.usefixtures("shout")
def test_names_are_told_and_help_is_shown_without_importing_the_package(cli: Cli) -> None:
    assert "shout" in tasks.names()
    assert cli("--help")[0] == 0
    assert "extra" not in sys.modules


@pytest.mark.usefixtures("shout")
def test_what_is_not_chosen_is_not_imported() -> None:
    """A package may take long to import, or import torch."""
    compose(["experiment=quickstart"])
    assert declared.of("eval/loss").title == "loss"
    assert "extra" not in sys.modules
    compose(["data.task=shout", "data=jsonl", "data.path=x"])
    assert "extra" in sys.modules


def test_what_a_package_prints_when_it_is_imported_goes_to_stderr(install: Install, cli: Cli) -> None:
    install("extra", POINTS, {"extra/__init__.py": "print('noise')\n", "extra/shout.py": SHOUT})
    code, out, err = cli("--dry-run", "data.task=shout", *OWN_ROWS)
    assert code == 2  # there is no file x
    assert "noise" not in out
    assert "noise" in err


@pytest.mark.usefixtures("shout")
def test_its_options_are_typed() -> None:
    said = refusal("data.task=shout", *OWN_ROWS, "data.options.mrak=x")
    assert said == (
        "data.options.mrak is not an option of data.task=shout. Did you mean data.options.mark? It has mark"
    )


# --- what a package can do wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_thing", "cannot be imported (ModuleNotFoundError: No module named 'no_such_thing')"),
        ("import sys; sys.exit('bye')", "cannot be imported (SystemExit: bye)"),
        ("TASK =", "cannot be imported (SyntaxError: invalid syntax (shout.py, line 1))"),
        ("X = 1", "cannot be imported (AttributeError: module 'extra.shout' has no attribute 'TASK')"),
        (SHOUT.replace("Shout()", "Shout"), "is a class, not an instance of one"),
        (SHOUT.replace("    sample", "    simple"), "has no sample"),
        (SHOUT.replace("@dataclass\n", ""), "has an attribute options that is not a dataclass"),
        (
            SHOUT.replace("class Shout(", "@dataclass\nclass Shout("),
            "is not hashable: make its class @dataclass(frozen",
        ),
        (
            SHOUT.replace("TASK =", "Shout.metrics = ('loud',)\nTASK ="),
            "has metrics that are no ftlab.metrics.Metric ('lo",
        ),
        (
            SHOUT.replace('headline = "shout", "shouting", "shout_loud"', 'headline = "shout", "", "loud"'),
            "has the headline loud, wh",
        ),
        (
            SHOUT.replace('("loud",)', '("cry",)'),
            "has the metric shout_loud of the column loud, which `recorded` lacks",
        ),
        (SHOUT.replace('"shout"', '"cry"'), "has the name cry: name the entry point and the part alike"),
    ],
)
def test_a_broken_part_names_itself_and_its_package_where_it_is_chosen(
    install: Install, cli: Cli, text: str, said: str
) -> None:
    install("extra", POINTS, {"extra/__init__.py": "", "extra/shout.py": text})
    code, out, err = cli("--dry-run", "data.task=shout", *OWN_ROWS)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"ftlab: data.task=shout: extra.shout:TASK of the package extra {said}")
    assert compose(["data=sql_synth"]).data.task == "sql"
    assert [task.name for task in tasks.usable()] == ["match", "sql"]
    assert tasks.broken().keys() == {"shout"}


def test_one_name_of_two_packages_is_refused_with_both(install: Install) -> None:
    install("extra", POINTS, {"extra/__init__.py": "", "extra/shout.py": SHOUT})
    install("other", {"ftlab.tasks": {"shout": "other:TASK", "sql": "other:SQL"}}, {"other/__init__.py": ""})
    said = refusal("data.task=shout", *OWN_ROWS)
    assert said.startswith("data.task=shout is ambiguous: the packages ")
    assert "extra" in said
    assert "other" in said
    said = refusal("data.task=sql")
    assert said == "data.task=sql is ambiguous: the packages ftlab and other both provide it; pip uninstall other"
    assert compose(["data=match_synth"]).data.task == "match"


def test_a_package_that_is_installed_twice_counts_once(install: Install) -> None:
    install("extra", POINTS, {"extra/__init__.py": "", "extra/shout.py": SHOUT}, version="0.9")
    install("extra", POINTS, {"extra/__init__.py": "", "extra/shout.py": SHOUT})
    assert tasks.get("shout").title == "shouting"


def test_a_metric_declared_otherwise_hinders_only_who_chooses_its_part(install: Install, cli: Cli) -> None:
    install("extra", POINTS, {"extra/__init__.py": "", "extra/shout.py": SHOUT.replace("shout_loud", "loss")})
    said = refusal("data.task=shout", "data=jsonl", "data.path=x", "objective=eval/loss")
    assert said == (
        "data.task=shout and trainer.stage=sft declare the metric loss differently: rename it in data.task=shout"
    )
    assert "declare the metric loss differently" in cli("doctor")[1]
    assert declared.of("eval/loss").direction == "minimize"
    assert set(declared.objectives()) >= {"eval/loss", "eval/match_exact"}
    assert cli("runs")[0] == 0
    assert compose(["data=sql_synth"]).data.task == "sql"


def test_two_packages_that_declare_one_metric_differently_do_not_meet(install: Install) -> None:
    """The first one by name is as it was; the other one is refused where it is chosen."""
    install("extra", POINTS, {"extra/__init__.py": "", "extra/shout.py": SHOUT})
    other = SHOUT.replace('"shout"', '"yell"').replace('"loud", "share', '"noisy", "share')
    install("other", {"ftlab.tasks": {"yell": "other:TASK"}}, {"other/__init__.py": other})
    assert compose(["data.task=shout", *OWN_ROWS]).data.task == "shout"
    assert declared.of("eval/shout_loud").title == "loud"
    assert refusal("data.task=yell", *OWN_ROWS) == (
        "data.task=yell and data.task=shout declare the metric shout_loud differently: rename it in data.task=yell"
    )
