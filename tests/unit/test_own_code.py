"""Python code in a model's folder runs only if the command allows it; pickles are never read."""

import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab import compose
from ftlab.composition import to_tree, typed_from_tree
from ftlab.errors import ConfigError, FtlabError
from ftlab.sweep.space import Space

Cli = Callable[..., tuple[int, str, str]]
TRUST = "model.trust_remote_code=true"
QUESTION = ("question=How many?", "context=CREATE TABLE t (a INT)")


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What hostile code leaves. Whoever asks on stdin gets a yes."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "ran"


def with_code(folder: Path, marker: Path, *, tokenizer: bool = False) -> None:
    """Have a folder's model, or its tokenizer, come with Python files of its own."""
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    (folder / "own.py").write_text(
        f"{code}from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    changed: list[tuple[str, dict[str, Any]]] = [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}, "tokenizer_class": "Own"})
    ]
    if not tokenizer:
        named = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
        changed = [("config.json", {"auto_map": named, "model_type": "own", "architectures": ["Model"]})]
    for name, more in changed:
        node = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(node | more))


@pytest.fixture
def hostile_base(base_folder: Path, marker: Path, tmp_path: Path) -> Path:
    shutil.copytree(base_folder, tmp_path / "base")
    with_code(tmp_path / "base", marker)
    return tmp_path / "base"


@pytest.fixture
def hostile_run(finished: Path, marker: Path, tmp_path: Path) -> Path:
    """A finished run whose adapter's tokenizer has code of its own, and whose configuration allows it."""
    shutil.copytree(finished, tmp_path / "run")
    with_code(tmp_path / "run" / "adapter", marker, tokenizer=True)
    tree = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    tree["model"]["trust_remote_code"] = True
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "run"


def refused(answer: tuple[int, str, str], marker: Path) -> str:
    code, out, err = answer
    assert not marker.exists()
    assert (code, out.count("Traceback"), err.count("Traceback")) == (2, 0, 0), err
    assert "[y/N]" not in out + err
    return err


@pytest.mark.parametrize("words", [["predict", *QUESTION], ["eval"]], ids=lambda words: words[0])
def test_a_run_folder_runs_nothing(cli: Cli, hostile_run: Path, marker: Path, words: list[str]) -> None:
    said = refused(cli(words[0], str(hostile_run), *words[1:]), marker)
    assert "own.py (sha256 " in said
    assert f"add {TRUST} to this command" in said
    assert len([line for line in said.splitlines() if not line.startswith("loading ")]) == 1


def test_a_run_folder_runs_what_is_typed(cli: Cli, hostile_run: Path, marker: Path) -> None:
    code, _, err = cli("predict", str(hostile_run), *QUESTION, TRUST)
    assert (code, marker.exists()) == (0, True), err


@pytest.mark.parametrize("command", [["--dry-run"], []], ids=str)
def test_a_model_folder_runs_nothing(
    cli: Cli, small: list[str], hostile_base: Path, marker: Path, command: list[str]
) -> None:
    said = refused(cli(*command, *small, f"model.id={hostile_base}", "run_dir=r"), marker)
    assert "own.py (sha256 " in said
    assert not Path("r/checkpoints").exists()


def test_a_model_folder_runs_what_is_typed(cli: Cli, small: list[str], hostile_base: Path, marker: Path) -> None:
    code, _, err = cli("--dry-run", *small, f"model.id={hostile_base}", TRUST)
    assert (code, marker.exists()) == (0, True), err


def test_nobody_is_asked_whatever_loads(hostile_base: Path, hostile_run: Path, marker: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoConfig, AutoTokenizer

    import ftlab.models

    assert ftlab.models
    config = hostile_run / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(hostile_base)}))
    for load, folder in (
        (AutoConfig.from_pretrained, hostile_base),
        (AutoTokenizer.from_pretrained, hostile_run / "adapter"),
        (AutoPeftModelForCausalLM.from_pretrained, hostile_run / "adapter"),
    ):
        with pytest.raises(ValueError, match="trust_remote_code"):
            load(folder)
    assert not marker.exists()
    assert sys.stdin.readline() == "y\n"  # nobody has read one


@pytest.mark.parametrize("group", ["model/mine", "experiment/mine"])
def test_a_configuration_file_cannot_allow_it(tmp_path: Path, group: str) -> None:
    file = tmp_path / f"{group}.yaml"
    file.parent.mkdir()
    file.write_text(
        "id: embedded:tiny\nname: x\ntrust_remote_code: true\n"
        if group.startswith("model")
        else "# @package _global_\nmodel:\n  trust_remote_code: true\n"
    )
    choice = group.replace("/", "=")
    with pytest.raises(ConfigError, match="in this command"):
        compose([choice], config_dir=str(tmp_path))
    assert compose([choice, TRUST], config_dir=str(tmp_path)).model.trust_remote_code
    assert not compose([choice, "model.trust_remote_code=false"], config_dir=str(tmp_path)).model.trust_remote_code


@pytest.mark.parametrize("word", ["model.trust_remote_code=${force}", "model.trust_remote_code='true'"])
def test_only_true_itself_allows_it(word: str) -> None:
    with pytest.raises(ConfigError, match="trust_remote_code"):
        compose([word, "force=true"])


@pytest.mark.parametrize("key", ["model.trust_remote_code", "+model.trust_remote_code", "++model.trust_remote_code "])
def test_a_sweep_file_cannot_allow_it(key: str) -> None:
    with pytest.raises(ConfigError, match="in this command"):
        Space.read([], {key: True})
    space, fixed = Space.read([TRUST], {"lora.r": "choice(4,8)"})
    assert (space.keys, fixed) == (["lora.r"], [TRUST])  # which every worker is given


def test_a_written_tree_cannot_allow_it() -> None:
    tree = to_tree(compose([TRUST, "run_dir=x"]))
    assert tree["model"]["trust_remote_code"]
    assert not typed_from_tree(tree).model.trust_remote_code
    assert typed_from_tree(tree, trust_remote_code=True).model.trust_remote_code


def test_the_flag_must_be_true_or_false(cli: Cli, finished: Path, marker: Path) -> None:
    assert "true or false" in refused(cli("predict", str(finished), "model.trust_remote_code=maybe"), marker)


def test_an_adapter_names_no_module_to_import(cli: Cli, finished: Path, marker: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / "adapter" / "adapter_config.json"
    hostile = {"megatron_config": {"x": 1}, "megatron_core": "this", "auto_mapping": {"parent_library": "this"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | hostile))
    sys.modules.pop("this", None)
    assert cli("predict", str(tmp_path / "run"), *QUESTION)[0] == 0
    assert "this" not in sys.modules


# --- pickles -------------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def put(file: Path, marker: Path) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(pickle.dumps(Payload(marker)))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model.ckpt"])
def test_pickled_weights_are_refused(
    cli: Cli, small: list[str], base_folder: Path, marker: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    put(tmp_path / "base" / name, marker)
    said = refused(cli(*small, f"model.id={tmp_path / 'base'}", "run_dir=r"), marker)
    assert "pickle" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"]
)
def test_a_pickle_in_an_adapter_is_never_read(
    cli: Cli, finished: Path, marker: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    if name.endswith(".bin"):
        (tmp_path / "run" / "adapter" / "adapter_model.safetensors").unlink()
    put(tmp_path / "run" / "adapter" / name, marker)
    answer = cli("predict", str(tmp_path / "run"), *QUESTION)
    assert not marker.exists()
    assert answer[0] == 2, answer
    assert "Traceback" not in answer[2]


@pytest.mark.parametrize("name", ["optimizer.pt", "trainable.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_is_never_read(
    fit: Callable[..., Any], marker: Path, tmp_path: Path, name: str
) -> None:
    fit()
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    put(newest / name, marker)
    data, manifest = (newest / name).read_bytes(), json.loads((newest / "manifest.json").read_text())
    manifest[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}  # it fits the attacker's file
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FtlabError, match=f"{name} was not written by ftlab"):
        fit("trainer.max_steps=6")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["train.pkl", "train.npy", "train.pt", "train.parquet", "train.arrow", "rows.py"])
def test_a_pickle_among_the_data_is_never_read(
    cli: Cli, small: list[str], marker: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "rows").mkdir()
    put(tmp_path / "rows" / name, marker)
    if name.endswith(".py"):
        (tmp_path / "rows" / name).write_text(f"open({str(marker)!r}, 'w')")
    for path in (tmp_path / "rows", tmp_path / "rows" / name):
        refused(cli(*small, f"data.path={path}", "run_dir=r"), marker)


# --- the folder one stands in ----------------------------------------------------------------------------------------


def test_files_of_the_working_folder_stand_in_for_nothing(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)\n"
    (tmp_path / "work" / "hydra_plugins" / "evil").mkdir(parents=True)
    (tmp_path / "work" / "hydra_plugins" / "evil" / "__init__.py").write_text(code)
    (tmp_path / "work" / "wandb").mkdir()
    (tmp_path / "work" / "wandb" / "__init__.py").write_text(code)
    standing_in = ("difflib", "io", "os", "logging", "shlex", "typing", "json", "re", "warnings", "runpy")
    for name in (*standing_in, "hydra", "omegaconf", "yaml", "torch", "optuna"):
        (tmp_path / "work" / f"{name}.py").write_text(code)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ftlab", "--cfg", "job", "lora=r8"],
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, "r: 8" in done.stdout, done.stderr) == (0, True, "")
    assert not (tmp_path / "ran").exists()
    assert time.monotonic() - began < 30
