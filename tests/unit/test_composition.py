"""What the user typed becomes an experiment, or an answer that names the right word."""

import shlex
import shutil
from pathlib import Path

import pytest

from ftlab import compose
from ftlab import composition as composition_module
from ftlab.composition import (
    composed_tree,
    composition,
    config_groups,
    flatten,
    hydra_session,
    quoted,
    to_tree,
    typed_from_tree,
)
from ftlab.errors import ConfigError

# What a user might type, and the key, group or option that is meant.
MISSPELT = {
    "modle=tiny": "model",
    "trianer=quick": "trainer",
    "qant=nf4": "quant",
    "loras=r8": "lora",
    "dataset=sql_synth": "data",
    "experimant=quickstart": "experiment",
    "sweeps=lr_search": "sweep",
    "model=mistral_7b": "mistral7b",
    "model=smollm2-135m": "smollm2_135m",
    "model=tinny": "tiny",
    "model=qwen3_06b": "qwen3_0_6b",
    "quant=nf": "nf4",
    "lora=r23": "r32",
    "lora=qlora": "qlora_paper",
    "data=sql_create_contxt": "sql_create_context",
    "trainer=qick": "quick",
    "experiment=quick_start": "quickstart",
    "trainer.learning_rate=1e-4": "trainer.lr",
    "learning_rate=1e-4": "trainer.lr",
    "lora_rank=8": "lora.r",
    "lora.alpha=16": "lora.lora_alpha",
    "per_device_train_batch_size=4": "trainer.micro_batch_size",
    "num_train_epochs=3": "trainer.epochs",
    "max_seq_length=512": "data.max_length",
    "gradient_checkpointing=true": "trainer.activation_checkpointing",
    "gradient_accumulation_steps=4": "trainer.global_batch_size",
    "trainer.max_step=10": "trainer.max_steps",
    "lora.target_module=qv": "lora.target_modules",
    "evall.every=10": "eval.every",
    "max_steps=10": "trainer.max_steps",
    "data.pth=rows.jsonl": "data.path",
    "trainer.globalbatchsize=8": "trainer.global_batch_size",
    "lora.drop=0.1": "lora.lora_dropout",
    "objektive=eval/loss": "objective",
    "output_dir=here": "run_dir",
    "trainer.warmup=5": "trainer.warmup_steps",
}


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return str(caught.value)


def suggested(override: str) -> list[str]:
    message = refusal(override)
    return message.partition("Did you mean: ")[2].split("?")[0].split(", ")[:3]


def test_nearly_every_misspelt_word_is_answered_with_the_right_one() -> None:
    missed = [text for text, meant in MISSPELT.items() if meant not in suggested(text)]
    assert len(missed) <= len(MISSPELT) * 2 // 30, missed


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.r=abc", "lora.r=abc must be a whole number"),
        ("trainer.max_steps=1.5", "trainer.max_steps=1.5 must be a whole number"),
        ("trainer.lr=fast", "trainer.lr=fast must be a number"),
        ("force=perhaps", "force"),
        ("trainer.lr=null", "trainer.lr=null must have a value"),
        ("lora.r=${oops}", "oops"),
        ("experiment=null", "leave experiment= out"),
        ("model=null", "tiny"),
        ("data={name: x}", "not an option of data"),
        ("+lora.rr=4", "lora.r"),
        ("+nothing=4", "nothing is not a key"),
        ("++lora.rr=4", "lora.r"),
        ("~seed", "set seed=null or another value"),
        ("~trainer.lr", "the configuration's keys are fixed"),
        ("+model=tiny", "model"),
        ("seed", "key=value"),
        ("lora.r=8,16", "--multirun"),
        ("model=tiny,mistral7b", "--multirun"),
        ("hydra.run.dir=here", "run_dir=DIR"),
        ("data=jsonl", "data.path=FILE"),
    ],
)
def test_a_wrong_override_is_answered(override: str, said: str) -> None:
    assert said in refusal(override)


def test_all_wrong_overrides_are_listed_at_once() -> None:
    message = refusal("modle=tiny", "lora.rr=4", "trainer.lr=1e-3")
    assert len(message.splitlines()) == 2


VALUES = [
    "/data/rows (1).jsonl",
    "it's [here",
    "a,b",
    'the "new" (rows)',
    "C:\\rows(1)\\",
    'back\\"slash (',
    "a=b",
    "a;b~c",
    "#1",
    "{x",
    "línea, 行 (1)",
    "two\nlines (",
]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_that_the_grammar_refuses_is_shown_in_the_form_that_works(value: str) -> None:
    form = refusal("data=jsonl", f"data.path={value}").rpartition(": ")[2]
    assert compose(["data=jsonl", *shlex.split(form)]).data.path == value


@pytest.mark.parametrize("value", [*VALUES, "plain", "null", "3", "true", "\\", '"', "'"])
def test_a_quoted_value_means_itself(value: str) -> None:
    assert compose(["data=jsonl", f"data.path={quoted(value)}"]).data.path == value


@pytest.mark.parametrize("key", ["data.path", "run_dir", "lora.init_from", "model.id"])
def test_a_path_may_begin_with_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a user")
    assert flatten(to_tree(compose([f"{key}=~/x y"])))[key] == "/home/a user/x y"


def test_a_tree_written_to_a_file_gives_the_same_experiment() -> None:
    cfg = compose(["experiment=mistral7b_tutorial", "run_dir=x"])
    assert typed_from_tree(to_tree(cfg)) == cfg


def test_a_tree_with_an_unknown_key_is_refused() -> None:
    tree = to_tree(compose(["run_dir=x"]))
    tree["lora"]["rank"] = 8
    with pytest.raises(ConfigError, match=r"lora\.r"):
        typed_from_tree(tree)


def test_a_group_choice_gives_that_node_alone() -> None:
    node = composed_tree("data", "sql_synth")["data"]
    assert (node["name"], node["source"]) == ("sql_synth", "sql_synth")
    with pytest.raises(ConfigError, match="sql_synth"):
        composed_tree("data", "sql_sinth")


def test_options_of_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\nid: org/mine\n")
    assert compose(["model=mine"], config_dir=str(tmp_path)).model.id == "org/mine"
    with pytest.raises(ConfigError, match="mine"):
        compose(["model=mien"], config_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="not a folder"):
        compose([], config_dir=str(tmp_path / "absent"))


def test_a_misspelt_key_inside_a_file_is_named_with_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "mine.yaml").write_text("r: 4\nlora_alhpa: 8\n")
    with pytest.raises(ConfigError, match=r"lora/mine.*lora_alhpa.*lora\.lora_alpha"):
        compose(["lora=mine"], config_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [("r: four\n", r"lora/mine.*lora\.r=four must be a whole number"), ("r: [4\n", r"mine\.yaml:2: not YAML")],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        compose(["lora=mine"], config_dir=str(tmp_path))


def test_the_record_keeps_what_was_typed() -> None:
    made = composition(["lora=r8", "seed=3"])
    assert made.overrides == ["lora=r8", "seed=3"]
    assert made.tree["lora"]["r"] == 8
    assert "lora=r8" in made.hydra["overrides"]["task"]


def test_runs_get_a_folder_below_outputs() -> None:
    cfg = compose(["model=tiny"])
    assert cfg.run_dir == f"outputs/{cfg.run_name}"
    assert cfg.run_name.startswith("tiny-2")


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder that may be changed."""
    folder = tmp_path / "conf"
    shutil.copytree(composition_module.CONF, folder)
    monkeypatch.setattr(composition_module, "CONF", folder)
    return folder


def test_what_was_composed_before_hides_no_change_of_the_files(conf: Path) -> None:
    with pytest.raises(ConfigError, match="newer"):
        compose(["lora=newer"])
    (conf / "lora" / "newer.yaml").write_text("defaults: [r8]\nr: 11\n")
    assert compose(["lora=newer"]).lora.r == 11
    assert "seed" in composition(["seed=7"]).changed
    main = conf / "config.yaml"
    main.write_text(main.read_text().replace("seed: 0", "seed: 7"))
    assert "seed" not in composition(["seed=7"]).changed


def test_who_changes_an_answer_changes_no_later_one() -> None:
    with hydra_session():
        config_groups()["lora"].clear()
        assert "r8" in config_groups()["lora"]
    composition(["experiment=quickstart"]).tree["lora"].clear()
    assert composition(["experiment=quickstart"]).tree["lora"]
