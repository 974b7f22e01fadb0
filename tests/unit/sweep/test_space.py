"""Sweep syntax to dimensions, and values back to overrides that compose to the same values."""

import json
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ftlab.composition import composition, flatten
from ftlab.errors import ConfigError, InputError
from ftlab.sweep.space import Dimension, Space, text_of


def read(*overrides: str, **params: Any) -> Space:
    return Space.read(overrides, {key.replace("__", "."): value for key, value in params.items()})[0]


def dimension(override: str) -> Dimension:
    (found,) = read(override).dimensions
    return found


def problem(*overrides: str, **params: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*overrides, **params)
    return str(caught.value)


def composed(override: str) -> Any:
    """What the key is in a composed experiment."""
    return flatten(composition(["model=tiny", "quant=none", override]).tree)[override.partition("=")[0]]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("lora.r=4,8,16,32,64", [4, 8, 16, 32, 64]),
        ("lora.r=choice(4,8,16)", [4, 8, 16]),
        ("lora.r=range(4,17,4)", [4, 8, 12, 16]),
        ("lora.r=range(8,24,step=8)", [8, 16]),
        ("lora.r=range(8,2,-2)", [8, 6, 4]),
        ("lora.lora_dropout=range(0.0,0.4,0.1)", [0.0, 0.1, 0.2, 0.3]),
        ("lora.r=sort(16,4,8)", [4, 8, 16]),
        ("lora.r=sort(range(2,8,2),reverse=true)", [6, 4, 2]),
        ("lora.r=tag(log,range(1,4))", [1, 2, 3]),
        ("eval=glob(*,exclude=[long*])", None),
    ],
)
def test_listed_values_are_those_of_hydra(override: str, values: list[Any] | None) -> None:
    found = dimension(override).grid()
    if values is None:
        assert found is not None
        assert set(found) == set(dimension(override).choices)
        assert len(found) > 1
    else:
        assert found == values
        assert [type(value) for value in found] == [type(value) for value in values]


def test_target_modules_compose_to_what_was_written() -> None:
    modules = dimension("lora.target_modules=choice(all-linear,attention,mlp,[q_proj,v_proj])")
    wanted = ["all-linear", "attention", "mlp", ["q_proj", "v_proj"]]
    assert all(isinstance(value, str) for value in modules.choices)  # Optuna stores no lists
    assert [composed(modules.override(value)) for value in modules.choices] == wanted
    assert [modules.value(raw) for raw in wanted] == list(modules.choices)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("trainer.lr=1e-05,0.00012345678901234567", [1e-05, 0.00012345678901234567]),
        ("eval.every=null,5", [None, 5]),
        ("lora.use_rslora=true,false", [True, False]),
        ("data.prompt='a, b','{question} = \"x\"\\\\'", ["a, b", '{question} = "x"\\']),
        ("run_dir_is_free=1", None),
    ],
)
def test_values_survive_the_way_through_the_study(override: str, wanted: list[Any] | None) -> None:
    if wanted is None:
        assert "is not a key" in problem(f"{override},2", run_dir_is_free="1,2")
        return
    found = dimension(override)
    assert list(found.choices) == wanted
    stored = json.loads(json.dumps(list(found.choices)))
    key = found.key
    texts = [found.override(value).partition("=")[2] for value in stored]
    again, fixed = Space.read([f"{key}={','.join(texts)}"], {})
    assert list(again.dimensions[0].choices) == wanted
    assert fixed == []


def test_quoted_text_with_commas_composes() -> None:
    prompt = dimension("data.prompt='{context}, {question}, A:','{context} {question}'")
    assert composed(prompt.override(prompt.choices[0])) == "{context}, {question}, A:"


@pytest.mark.parametrize("text", ["null", "8", "1e-4", "true", "a,b", "[x]", "a b ", "", "q'\"", "${seed}", "x\\"])
def test_text_that_would_be_misread_is_quoted(text: str) -> None:
    found = read(**{"data__prompt": ["other", text]}).dimensions[0]
    assert found.choices == ("other", text)


def test_floats_keep_every_digit() -> None:
    value = 0.1 + 0.2
    found = dimension("trainer.lr=interval(1e-5,1)")
    assert found.override(value) == "trainer.lr=0.30000000000000004"
    assert composed(found.override(3.0000000000000004e-05)) == 3.0000000000000004e-05


def test_drawn_steps_are_the_written_ones() -> None:
    space = read("lora.lora_dropout=range(0.0,0.5,0.1)")
    drawn = space.suggest(optuna.trial.FixedTrial({"lora.lora_dropout": 0.30000000000000004}))
    assert space.overrides(drawn) == ["lora.lora_dropout=0.3"]


@pytest.mark.parametrize(
    ("override", "distribution"),
    [
        ("trainer.lr=interval(1e-5,1e-3)", FloatDistribution(1e-5, 1e-3)),
        ("trainer.lr=tag(log,interval(1e-5,1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
        ("lora.r=int(interval(1,9))", IntDistribution(1, 8)),  # Hydra's intervals exclude their end
        ("lora.r=tag(int,log,interval(1,65))", IntDistribution(1, 64, log=True)),
        ("lora.r=interval(4,9)", IntDistribution(4, 8)),  # the key is a whole number
        ("lora.r=tag(log,interval(4,65))", IntDistribution(4, 64, log=True)),
        ("trainer.max_steps=interval(10,21)", IntDistribution(10, 20)),
        ("lora.lora_alpha=interval(8,32)", FloatDistribution(8, 32)),
        ("lora.r=range(8,24,8)", IntDistribution(8, 16, step=8)),
        ("lora.r=tag(log,range(1,65))", IntDistribution(1, 64, log=True)),
        ("lora.lora_dropout=range(0.0,0.3,0.1)", FloatDistribution(0.0, 0.2, step=0.1)),
        ("quant=nf4,none", CategoricalDistribution(("nf4", "none"))),
    ],
)
def test_optuna_draws_from_the_same_numbers(override: str, distribution: Any) -> None:
    found = dimension(override)
    assert found.distribution() == distribution
    assert (found.grid() is None) == ("interval" in override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.r=choice(8)", []),
        ("lora.r=range(8,9)", ["lora.r=8"]),
        ("lora.r=8", ["lora.r=8"]),
    ],
)
def test_one_value_is_no_dimension(override: str, said: list[str]) -> None:
    space, fixed = Space.read([override], {})
    assert space.dimensions == ()
    assert fixed == (said or ["lora.r=8"])
    assert space.size() == 1


def test_the_command_line_wins_over_the_file() -> None:
    params = {"lora.r": "4,8", "trainer.lr": [1e-4, 2e-4], "seed": 3, "quant": "nf4,none"}
    space, fixed = Space.read(["lora.r=16", "trainer.lr=interval(0.1,1)", "model=tiny"], params)
    assert [d.key for d in space.dimensions] == ["trainer.lr", "quant"]
    assert space.dimensions[0].kind == "float"
    assert sorted(fixed) == ["lora.r=16", "model=tiny", "seed=3"]


def test_lists_of_the_file_are_choices() -> None:
    space = read(lora__target_modules=["all-linear", ["q_proj", "v_proj"]], eval__every=[None, 5])
    assert space.dimensions[0].texts == ("all-linear", "[q_proj,v_proj]")
    assert space.dimensions[1].choices == (None, 5)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.rr=4,8", ["lora.rr", "lora.r"]),
        ("quant=nf4,foo", ["quant=foo", "Options"]),
        ("trainer.lr=tag(log,interval(0,1))", ["log scale", "0"]),
        ("trainer.lr=interval(1,1)", ["interval"]),
        ("lora.r=int(interval(1,2))", ["whole numbers"]),
        ("lora.r=range(5,5)", ["empty"]),
        ("lora.r=range(1,5,0)", ["step"]),
        ("lora.r=8,8", ["8 twice"]),
        ("lora.r=tag(cubic,interval(1,2))", ["cubic", "log"]),
        ("lora.target_modules=tag(log,choice(mlp,attention))", ["mlp", "logarithm"]),
        ("lora.r=tag(log,range(4,64,4))", ["even steps"]),
        ("run_dir=a,b", ["run_dir"]),
        ("sweep.n_trials=2,3", ["sweep.n_trials"]),
        ("lora.r=choise(1,2)", ["choise", "Available", "choice"]),
        ("lora.r=interval(4.5,8)", ["whole number", "'lora.r=int(interval(4.5,8))'"]),
        ("lora.r=tag(log,interval(1.5,8))", ["'lora.r=int(tag(log,interval(1.5,8)))'"]),
        ("trainer.lr=interval(0,inf)", ["ends of an interval must be finite"]),
        ("lora.r=choice()", ["choice() is empty", "'lora.r=choice(A,B)'"]),
        ("lora.r=interval()", ["interval() is empty", "'lora.r=interval(LOW,HIGH)'"]),
        ("lora.r=interval(1)", ["interval(1)", "'end'"]),
        ("lora.target_modules=choice(all-linear,null)", ["null", "write lora.target_modules=all-linear,null"]),
        ("eval.every=choice(null, 5)", ["null", "write 'eval.every=null, 5'"]),
        ("quant=glob(zzz*)", ["quant"]),
    ],
)
def test_senseless_spaces_are_refused(override: str, words: list[str]) -> None:
    said = problem(override)
    assert all(word in said for word in words), said
    assert said == problem(**{override.partition("=")[0].replace(".", "__"): override.partition("=")[2]})


@pytest.mark.parametrize("override", ["lora.r=int(tag(log,interval(1.5,8)))", "lora.r=int(interval(4.5,8))"])
def test_what_a_refusal_proposes_is_accepted(override: str) -> None:
    assert dimension(override).kind == "int"


def test_all_problems_are_listed_at_once() -> None:
    said = problem("lora.r=range(5,5)", "trainer.lr=interval(2,1)")
    assert "lora.r" in said
    assert "trainer.lr" in said


def test_maps_and_empty_lists_of_the_file_are_refused() -> None:
    assert "lora.r" in problem(lora={"r": "4,8"})
    assert "lora.r=[]" in problem(lora__r=[])


def test_the_grid_runs_in_hydras_order() -> None:
    space = read("lora.r=4,8", "quant=nf4,none")
    points = [space.overrides(space.at(index)) for index in range(space.size() or 0)]
    assert points == [
        ["lora.r=4", "quant=nf4"],
        ["lora.r=4", "quant=none"],
        ["lora.r=8", "quant=nf4"],
        ["lora.r=8", "quant=none"],
    ]
    assert [space.index(space.at(index)) for index in range(4)] == [0, 1, 2, 3]
    assert space.index({"lora.r": 4}) is None
    assert space.index({"lora.r": 5, "quant": "nf4"}) is None


def test_a_shuffled_grid_is_the_same_every_time() -> None:
    text = "lora.r=shuffle(range(1,20))"
    assert dimension(text).grid() == dimension(text).grid()
    assert dimension(text).grid() != list(range(1, 20))
    assert sorted(dimension(text).grid() or []) == list(range(1, 20))  # type: ignore[type-var]


def test_a_tag_or_an_interval_is_searched_not_enumerated() -> None:
    assert read("lora.r=4,8").enumerable
    assert not read("lora.r=tag(log,choice(4,8))").enumerable
    assert not read("lora.r=4,8", "trainer.lr=interval(0.1,1)").enumerable


def test_a_record_gives_the_space_back() -> None:
    space = read("lora.r=4,8", "trainer.lr=tag(log,interval(1e-5,1e-3))", "lora.target_modules=mlp,[q_proj]")
    record = json.loads(json.dumps(space.record()))
    assert Space.from_record(record) == space
    assert Space.differences(record, space.record()) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"decay": 2, "base": 10}, "base, decay"),
        ({"kind": "permutation"}, "permutation"),
        ({"order": "zigzag"}, "zigzag"),
    ],
)
def test_a_record_of_a_newer_ftlab_is_told_so(changes: dict[str, Any], what: str) -> None:
    record = read("lora.r=4,8").record()
    record["lora.r"] |= changes
    with pytest.raises(InputError, match=f"newer ftlab made the study.*lora.r .*{what}.*pip install -U ftlab"):
        Space.from_record(record)


def test_differences_name_key_and_both_spaces() -> None:
    old = read("lora.r=4,8", "trainer.lr=interval(0.1,1)", "seed=1,2").record()
    new = read("lora.r=4,8,16", "seed=2,1", "quant=nf4,none").record()
    lines = Space.differences(old, new)
    assert [line.partition(":")[0] for line in lines] == ["lora.r", "quant", "trainer.lr"]
    assert lines[0] == "lora.r: choice(4,8) in the study, choice(4,8,16) now"
    assert "not searched in the study" in lines[1]
    assert lines[2].endswith("not searched now")


def test_guesses_are_checked_against_the_space() -> None:
    space = read("lora.r=4,8", "trainer.lr=tag(log,interval(1e-5,1e-3))", "eval.every=range(5,21,5)")
    assert space.values({"lora.r": 8, "trainer.lr": 2e-4}) == {"lora.r": 8, "trainer.lr": 2e-4}
    for guess in ({"lora.r": 5}, {"trainer.lr": 1}, {"trainer.lr": True}, {"eval.every": 7}, {"seed": 1}):
        with pytest.raises(ConfigError, match=next(iter(guess))):
            space.values(guess)


def test_text_of_nested_values() -> None:
    assert text_of({"a": [1, None, "x,y"]}) == '{a:[1,null,"x,y"]}'


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["lora.r=4,8", "lora.r=16"], ["lora.r=4,8", "lora.r=16"]),
        (["lora=r16,r32", "seed=1", "lora=r8"], ["lora=r16,r32", "lora=r8"]),
        (["+trainer.lr=1e-4,1e-3", "trainer.lr=interval(1e-5,1e-3)"], ["trainer.lr=1e-4,1e-3", "interval(1e-5,1e-3)"]),
    ],
)
def test_a_searched_key_given_twice_is_refused_with_both_values(words: list[str], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Space.read(words, {})
    assert all(text in str(caught.value) for text in named)


def test_a_value_may_become_a_search_and_a_search_of_a_file_another() -> None:
    space, _ = Space.read(["lora.r=16", "lora.r=4,8", "seed=1", "seed=2"], {"lora.r": [16, 32]})
    assert space.dimensions[0].choices == (4, 8)
