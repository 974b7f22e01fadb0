"""A stage of an installed package, its own settings, and settings that a sweep searches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab import compose
from ftlab.errors import ConfigError
from ftlab.sweep.space import Space

Install = Callable[..., Path]
Cli = Callable[..., tuple[int, str, str]]

STAGE = """
from dataclasses import dataclass, replace
from typing import ClassVar

from ftlab.options import settings
from ftlab.stages.sft import Sft


@dataclass
class FewOptions:
    rows: int = 8


@dataclass(frozen=True)
class Few(Sft):
    name: str = "few"
    options: ClassVar = FewOptions

    def encode(self, tokens, cfg):
        found = super().encode(tokens, cfg)
        return replace(found, rows=found.rows[: settings(self.options, cfg.trainer.options).rows])


STAGE = Few()
"""
FEW = ["trainer.stage=few", "trainer.max_steps=null", "trainer.epochs=1"]


@pytest.fixture(autouse=True)
def few(install: Install) -> Path:
    """An installed package with a stage that trains on few rows."""
    points = {"ftlab.stages": {"few": "extra.few:STAGE"}}
    return install("extra", points, {"extra/__init__.py": "", "extra/few.py": STAGE})


def test_its_settings_reach_it_are_recorded_and_kept_on_resuming(fit: Callable[..., Any], tmp_path: Path) -> None:
    outcome = fit(*FEW, "trainer.options.rows=5")
    assert (outcome.summary.status, outcome.summary.step) == ("finished", 2)
    assert "rows: 5" in (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(Exception, match=r"trainer\.options\.rows: 5 in the folder, 9 now"):
        fit(*FEW, "trainer.options.rows=9")
    assert fit(*FEW, "trainer.options.rows=5").summary.step == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "trainer.options.rows=many",
            "trainer.options.rows=many must be of the type int, which trainer.stage=few declares",
        ),
        (
            "trainer.options.row=4",
            "trainer.options.row is not an option of trainer.stage=few. Did you mean trainer.options.rows? It has rows",
        ),
        ("trainer.option.rows=4", "trainer.option.rows is not a key or group of the configuration. Did you mean"),
    ],
)
def test_settings_that_it_does_not_have_are_refused(small: list[str], override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([*small, *FEW, override])
    assert str(caught.value).startswith(said)


def test_a_stage_without_settings_takes_none(small: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"trainer.options.rows is not an option of trainer.stage=sft. It has none"):
        compose([*small, "trainer.options.rows=4"])


def test_a_searched_setting_has_the_name_that_was_typed() -> None:
    space, _ = Space.read(["++trainer.options.rows=4,8"], {})
    assert space.keys == ["trainer.options.rows"]
    assert space.overrides(space.at(1)) == ["trainer.options.rows=8"]
    assert space.params_of(["++trainer.options.rows=8"]) == {"trainer.options.rows": 8}


def test_a_setting_that_it_does_not_have_is_no_search(small: list[str], cli: Cli) -> None:
    code, _, err = cli("--multirun", *small, *FEW, "trainer.options.row=4,8")
    assert code == 2
    assert "trainer.options.row is not an option of trainer.stage=few. Did you mean trainer.options.rows?" in err
    assert "Traceback" not in err


def test_they_are_searched_by_workers_of_their_own(
    small: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--multirun", *small, *FEW, "trainer.options.rows=4,8", "sweep.study=few", "eval.every=null")
    code, out, err = cli(*words, "sweep.workers=2")
    assert code == 0, err
    trials = [json.loads(file.read_text()) for file in sorted((tmp_path / "outputs/few").glob("*/summary.json"))]
    assert sorted(trial["step"] for trial in trials) == [1, 2]
    assert "trainer.options.rows" in out
    assert "++" not in out
    again = cli(*words)
    assert again[0] == 0, again[2]
