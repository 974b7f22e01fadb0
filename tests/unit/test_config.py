"""Rules across keys: each message names key, value, rule and remedy, and all are reported at once."""

import copy
import math
import subprocess
import sys
from dataclasses import is_dataclass, replace
from functools import cache, reduce
from typing import Any

import pytest

from ftlab import compose
from ftlab.composition import composition, typed_from_tree
from ftlab.config import ExperimentConfig, known_keys
from ftlab.errors import ConfigError
from ftlab.rules import check


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["trainer.global_batch_size=6", "trainer.micro_batch_size=4"], ["=6", "multiple", "=4"]),
        (["trainer.micro_batch_size=0"], ["auto"]),
        (["trainer.micro_batch_size=some"], ["auto"]),
        (["trainer.micro_batch_size=true"], ["auto"]),
        (["trainer.lr=0"], ["trainer.lr=0", "above 0"]),
        (["trainer.lr=-1e-3"], ["above 0"]),
        (["trainer.lr=nan"], ["trainer.lr=nan"]),
        (["trainer.max_steps=-1"], ["null"]),
        (["trainer.epochs=0"], ["trainer.max_steps=0"]),
        (["trainer.keep=0"], ["at least 1"]),
        (["trainer.optim=sgd"], ["adamw"]),
        (["trainer.lr_scheduler_type=cos"], ["cosine"]),
        (["trainer.loss_on=answer"], ["completion"]),
        (["trainer.early_stopping=0"], ["null"]),
        (["lora=none"], ["quant=none"]),
        (["lora=pissa"], ["quant=none"]),
        (["lora=pissa", "quant=none", "lora.use_dora=true"], ["lora.use_dora"]),
        (["lora.r=-1"], ["lora=none"]),
        (["lora.lora_dropout=1"], ["[0, 1)"]),
        (["lora.target_modules=q_proj"], ["all-linear", "'lora.target_modules=[q_proj]'"]),
        (["lora.target_modules=[]"], ["list of module names"]),
        (["lora.target_modules=[1]"], ["list of module names"]),
        (["lora.init_lora_weights=random"], ["gaussian"]),
        (["lora=none", "quant=none", "lora.init_from=x"], ["lora=r16"]),
        (["quant.load_in_8bit=true"], ["quant.load_in_4bit"]),
        (["quant.bnb_4bit_quant_type=int4"], ["nf4"]),
        (["model.dtype=fp16"], ["bfloat16"]),
        (["data.prompt=ask"], ["{question}"]),
        (["data.prompt='{question} {schema}'"], ["{context}", "{{"]),
        (["data.prompt='{question} {'"], ["{{"]),
        (["data.max_length=4"], ["at least 8"]),
        (["data.columns.question=answer"], ["answer=answer is data.columns.question too", "name another column"]),
        (["data.validation=0"], ["above 0"]),
        (["data.test_rows=0"], ["null"]),
        (["eval.every=0"], ["null"]),
        (["eval.batch_size=0"], ["at least 1"]),
        (["eval.databases=0"], ["eval.databases=0", "1 to 1000"]),
        (["eval.databases=1001"], ["eval.databases=1001"]),
        (["sweep.direction=up"], ["sweep.direction=up", "one of maximize, minimize, null"]),
        (["sweep.objectives=[eval/loss,eval/loss]"], ["sweep.objectives=", "eval/loss twice", "once"]),
        (["eval.databases=many"], ["whole number"]),
        (["eval.extract_sql=often"], ["eval.extract_sql"]),
        (["objective=accuracy"], ["eval/sql_exact_match", "eval/sql_exec_match"]),
        (["objective=test/sql_exec_match"], ["eval/sql_exec_match"]),
        (["objective=test/sql_exact_match"], ["eval/loss"]),
        (["tracker.wandb.mode=always"], ["offline"]),
    ],
)
def test_a_broken_rule_is_told_with_its_remedy(overrides: list[str], parts: list[str]) -> None:
    message = refusal(*overrides)
    assert [part for part in parts if part not in message] == []


def test_all_broken_rules_are_told_at_once() -> None:
    message = refusal("trainer.lr=0", "data.max_length=2", "eval.batch_size=0")
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize("name", ["../../x", "a/../../x", "/x", "..", "''", "."])
def test_a_run_name_stays_below_outputs(name: str) -> None:
    assert "run_name" in refusal(f"run_name={name}")


def test_a_model_name_cannot_lead_out_either() -> None:
    assert "run_name" in refusal("model.name=../../x")


def test_an_explicit_run_dir_is_the_users_choice() -> None:
    assert compose(["run_dir=../elsewhere"]).run_dir == "../elsewhere"


@pytest.mark.parametrize(
    "overrides",
    [
        ["lora.target_modules=[q_proj,v_proj]"],
        ["lora.init_lora_weights=pissa_niter_4", "quant=none"],
        ["trainer.micro_batch_size=4", "trainer.global_batch_size=8"],
        ["trainer.max_steps=0"],
        ["data.validation=0.1"],
        ["data.prompt='{question} {{braces}}'"],
        ["run_name=mine/first"],
        ["eval.every=null"],
        ["eval.databases=1000", "eval.extract_sql=true", "eval.rows_dir=somewhere"],
        *([f"objective=eval/{name}"] for name in ("sql_ast_match", "sql_exec_match", "sql_valid", "loss")),
    ],
)
def test_what_is_allowed_passes(overrides: list[str]) -> None:
    compose(overrides)


def test_check_returns_the_same_configuration() -> None:
    cfg = compose(["model=tiny"])
    assert check(cfg) is cfg
    with pytest.raises(ConfigError, match="seed"):
        check(replace(cfg, seed=-1))


def test_known_keys_hold_nodes_and_leaves() -> None:
    known: dict[str, Any] = known_keys(ExperimentConfig)
    assert {"seed", "trainer", "trainer.lr", "data.columns.question", "eval.every"} <= known.keys()


def test_the_schema_does_not_import_torch() -> None:
    program = "import sys, ftlab.config, ftlab.composition; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- what no key may be -------------------------------------------------------------------------------------


@cache
def tree() -> dict[str, Any]:
    return composition(["experiment=quickstart", "run_dir=x"]).tree


def refused(key: str, value: Any) -> str:
    """What is said of a configuration with one value changed; the line that names the key."""
    changed = copy.deepcopy(tree())
    *path, last = key.split(".")
    reduce(lambda node, name: node[name], path, changed)[last] = value
    with pytest.raises(ConfigError) as caught:
        typed_from_tree(changed)
    (line, *_) = [problem for problem in caught.value.problems if problem.startswith(f"{key}=")]
    assert "\n" not in line
    return line


LEAVES = {key: str(kind) for key, kind in known_keys().items() if not is_dataclass(kind)}
WHOLE = [key for key, kind in LEAVES.items() if "int" in kind]
REAL = [key for key, kind in LEAVES.items() if "float" in kind]
WORDS = [key for key, kind in LEAVES.items() if "str" in kind and "List" not in kind and "Dict" not in kind]
LISTS = [key for key, kind in LEAVES.items() if "List[str]" in kind]
FLAGS = [key for key, kind in LEAVES.items() if "bool" in kind]
FREE = [key for key, kind in LEAVES.items() if kind == "typing.Any"]  # and what they say for themselves


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize("value", [10**20, -(10**20), 2**63])
def test_no_whole_number_is_absurd(key: str, value: int) -> None:
    assert str(value) in refused(key, value)


@pytest.mark.parametrize("key", REAL)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e39, -1e39])
def test_no_number_is_infinite_or_beyond_float32(key: str, value: float) -> None:
    assert refused(key, value)


@pytest.mark.parametrize("key", WORDS)
@pytest.mark.parametrize("value", ["", " "])
def test_no_name_and_no_path_is_empty(key: str, value: str) -> None:
    assert "is empty" in refused(key, value)


@pytest.mark.parametrize("key", LISTS)
def test_no_item_of_a_list_is_empty(key: str) -> None:
    assert "is empty" in refused(key, [""])


@pytest.mark.parametrize("key", FLAGS)
def test_a_flag_is_true_or_false(key: str) -> None:
    assert refused(key, "yess") == f"{key}=yess must be true or false"


@pytest.mark.parametrize("key", [key for key in FREE if key != "sweep.direction"])
@pytest.mark.parametrize("value", [10**20, math.nan, ""])
def test_keys_of_several_types_are_held_to_the_same(key: str, value: Any) -> None:
    assert refused(key, value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.max_steps=99999999999999999999", "must lie between -2,147,483,647 and 2,147,483,647"),
        ("force=yess", "force=yess must be true or false"),
        ("run_dir=", "run_dir='' is empty: give it a value, or leave run_dir= out"),
        ("trainer.lr=1e38", "trainer.lr=1e+38 must lie between -1e+30 and 1e+30"),
    ],
)
def test_an_absurd_value_costs_one_line(cli: Any, override: str, said: str) -> None:
    code, _, err = cli("experiment=quickstart", override)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
