"""Settings that parts define themselves: which values are refused, and with which messages."""

from dataclasses import dataclass, field

import pytest

from ftlab.errors import ConfigError
from ftlab.options import NoOptions, options_of, plain, problems, settings, typed


@dataclass
class Inner:
    size: int = 1


@dataclass
class Reading:
    path: str
    limit: int | None = None
    shares: list[float] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1")


@dataclass
class Judging:
    strict: bool = False
    limit: int | None = None


def wrong(**values: object) -> list[str]:
    return problems({"data.task=a": Judging, "data.source=b": Reading}, values, "data.options")


def test_each_part_gets_the_names_that_it_has() -> None:
    values = {"path": "x", "strict": True, "limit": 3, "inner": {"size": 2}}
    assert wrong(**values) == []
    assert settings(Reading, values) == Reading("x", 3, [], Inner(2))
    assert settings(Judging, values) == Judging(True, 3)
    assert settings(NoOptions, values) == NoOptions()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ["data.options.path has no value, but data.source=b requires one: set data.options.path=VALUE"]),
        (
            {"path": "x", "strict": 3.5},
            ["data.options.strict=3.5 must be of the type bool, which data.task=a declares"],
        ),
        ({"path": "x", "limit": 0}, ["data.options.limit=0 must be at least 1"]),
        (
            {"path": "x", "strickt": True},
            [
                "data.options.strickt is not an option of data.task=a or data.source=b. "
                "Did you mean data.options.strict? "
                "data.task=a has strict, limit; data.source=b has path, limit, shares, inner"
            ],
        ),
    ],
)
def test_what_cannot_be_used_is_named_with_its_part(values: dict[str, object], said: list[str]) -> None:
    assert wrong(**values) == said


def test_a_dataclass_that_no_configuration_can_have_is_told_so() -> None:
    @dataclass
    class Odd:
        value: complex = 1j

    (said,) = problems({"trainer.stage=odd": Odd}, {}, "trainer.options")
    assert said.startswith(
        "trainer.options: the options of trainer.stage=odd are not a dataclass that OmegaConf supports"
    )
    with pytest.raises(ConfigError, match="the options of tracker=odd are not a dataclass that OmegaConf supports"):
        plain(Odd, "tracker.odd", "tracker=odd")


@pytest.mark.parametrize("error", [TypeError, KeyError, AssertionError])
def test_a_dataclass_that_fails_is_named(error: type[Exception]) -> None:
    @dataclass
    class Failing:
        size: int = 1

        def __post_init__(self) -> None:
            raise error("size")

    (said,) = problems({"trainer.stage=odd": Failing}, {}, "trainer.options")
    assert said.startswith("trainer.options: the options of trainer.stage=odd cannot be made (")
    assert "size" in said


def test_one_part_alone_is_typed_or_refused() -> None:
    assert typed(Judging, {"strict": True}, "x.options", "x=y") == Judging(True)
    with pytest.raises(ConfigError, match=r"x\.options\.path is not an option of x=y\. It has strict, limit"):
        typed(Judging, {"path": 1}, "x.options", "x=y")


def test_a_part_without_options_has_none() -> None:
    assert options_of(object()) is NoOptions
