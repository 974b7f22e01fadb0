"""Invalid values are refused before a study is created; values that are valid in combination only are not."""

import math
from typing import Any

import pytest

from ftlab.composition import composition
from ftlab.errors import ConfigError
from ftlab.sweep import preflight
from ftlab.sweep.preflight import check_values
from ftlab.sweep.space import Space

FIXED = ["experiment=quickstart", "quant=none"]


class Composer:
    """Composes as a trial would, and counts."""

    def __init__(self, *fixed: str) -> None:
        self.fixed, self.asked = [*FIXED, *fixed], list[list[str]]()

    def __call__(self, overrides: list[str]) -> Any:
        self.asked.append(overrides)
        return composition([*self.fixed, *overrides])


def problems(*swept: str, fixed: tuple[str, ...] = ()) -> list[str]:
    space, _ = Space.read(swept, {})
    try:
        check_values(space, Composer(*fixed))
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("swept", "said"),
    [
        (["trainer.lr=0.1,abc"], ["trainer.lr=abc must be a number"]),
        (["trainer.lr=abc,0.1", "lora.r=4,8"], ["trainer.lr=abc must be a number"]),
        (["lora.r=4,-8"], ["lora.r=-8 must be 0 (full fine-tuning, lora=none) or more"]),
        (["lora.r=range(-8,9,8)"], ["lora.r=-8 must be 0 (full fine-tuning, lora=none) or more"]),
        (["lora.r=range(8,-9,-8)"], ["lora.r=-8 must be 0 (full fine-tuning, lora=none) or more"]),
        (["trainer.lr=interval(-1,1)"], ["trainer.lr=-1.0 must be above 0"]),
        (["lora.lora_dropout=interval(0,1)"], []),  # which holds no 1
        (["lora.lora_dropout=interval(0,1.5)"], ["lora.lora_dropout=1.4999999999999998 must lie in [0, 1)"]),
        (["trainer.global_batch_size=16,6", "trainer.micro_batch_size=4,8"], None),
    ],
)
def test_every_listed_value_and_both_ends_are_tried(swept: list[str], said: list[str] | None) -> None:
    found = problems(*swept)
    if said is None:
        assert [text.partition(" ")[0] for text in found] == ["trainer.global_batch_size=6"]
    else:
        assert found == said


@pytest.mark.parametrize("swept", [["lora.r=0,8", "quant=nf4,none"], ["quant=nf4,none", "lora.r=0,8"]])
def test_values_that_only_go_together_are_fine(swept: list[str]) -> None:
    assert problems(*swept) == []


def test_a_problem_of_another_key_names_the_value_that_brings_it_about() -> None:
    (found,) = problems("trainer.micro_batch_size=4,5", fixed=("trainer.global_batch_size=16",))
    assert found.startswith("trainer.micro_batch_size=5: trainer.global_batch_size=16 must be a multiple")


def test_values_are_tried_one_at_a_time_not_all_combinations() -> None:
    space, _ = Space.read(["lora.r=2,4,8,16", "lora.lora_dropout=0.0,0.1,0.2", "trainer.lr=interval(0.1,1)"], {})
    composer = Composer()
    check_values(space, composer)
    assert len(composer.asked) == 1 + 3 + 2 + 1


def test_no_space_takes_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MOST", 5)
    space, _ = Space.read([f"lora.r={','.join(map(str, range(1, 40)))}", "seed=range(0,1000)"], {})
    composer = Composer()
    check_values(space, composer)
    assert len(composer.asked) == 5


def test_an_interval_is_tried_below_its_end() -> None:
    (found,) = Space.read(["trainer.lr=interval(0.1,1)"], {})[0].dimensions
    assert found.probes() == [0.1, math.nextafter(1, 0)]
