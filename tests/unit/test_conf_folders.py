"""Options that installed packages provide are found by every command that composes, and checked like ftlab's own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab import compose
from ftlab.composition import config_groups, hydra_session
from ftlab.errors import ConfigError

Install = Callable[..., Path]
Cli = Callable[..., tuple[int, str, str]]

POINTS = {"ftlab.conf": {"extra": "extra.conf"}}
MODEL = "name: mine\nid: org/mine\nrevision: abc\n"
SWEEP = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      lora.r: 4,8\n"
FILES = {
    "extra/__init__.py": "raise RuntimeError('imported')\n",
    "extra/conf/model/mine.yaml": MODEL,
    "extra/conf/sweep/few.yaml": SWEEP,
    "extra/conf/experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /model: mine\nseed: 7\n",
}


@pytest.fixture
def extra(install: Install) -> Path:
    """An installed package with a model, a sweep and an experiment; importing it would fail."""
    return install("extra", POINTS, FILES)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return str(caught.value)


@pytest.mark.usefixtures("extra")
def test_its_options_are_composed_without_importing_the_package() -> None:
    assert compose(["model=mine"]).model.id == "org/mine"
    cfg = compose(["experiment=mine", "lora=r8"])
    assert (cfg.seed, cfg.model.name, cfg.lora.r) == (7, "mine", 8)
    assert "extra" not in sys.modules
    with hydra_session():
        assert {"mine", "tiny"} <= set(config_groups()["model"])
    assert "Did you mean: mine" in refusal("model=mien")


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("words", [("--help",), ("--cfg", "job", "model=mine"), ("--info", "searchpath")])
def test_hydras_own_answers_know_them(cli: Cli, words: tuple[str, ...]) -> None:
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    assert "mine" in out or "extra/conf" in out


@pytest.mark.usefixtures("extra")
def test_the_doctor_knows_its_models(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, out, _ = cli("doctor", "model=mine")
    assert "mine (org/mine) is not on this machine" in out


@pytest.mark.usefixtures("extra")
def test_a_sweep_of_a_package_is_one(cli: Cli) -> None:
    code, out, err = cli("--multirun", "sweep=few", "--cfg", "hydra")
    assert (code, err) == (0, "")
    assert "lora.r: 4,8" in out
    assert cli("sweep=few")[0] == 2


def test_without_the_package_its_options_are_gone() -> None:
    assert "mine" not in refusal("model=tinny")


def test_a_folder_beside_the_package_is_found_too(install: Install) -> None:
    """As where an editable installation has the folder elsewhere: Python's own search finds it."""
    site = install("extra", POINTS, {"extra/__init__.py": "", "elsewhere/conf/model/mine.yaml": MODEL})
    path = f"__path__.append({str(site / 'elsewhere')!r})\n"
    (site / "extra/__init__.py").write_text(path)
    assert compose(["model=mine"]).model.id == "org/mine"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"extra/__init__.py": ""}, "which does not exist"),
        ({"extra/__init__.py": "1 / 0"}, "which cannot be found (ZeroDivisionError: division by zero)"),
        ({}, "which cannot be found (ModuleNotFoundError: No module named 'extra')"),
    ],
)
def test_a_folder_that_is_missing_costs_one_line(install: Install, cli: Cli, files: dict[str, str], said: str) -> None:
    from ftlab import conf_folders

    conf_folders._warn.cache_clear()
    install("extra", POINTS, files)
    code, out, err = cli("--cfg", "job", "model=tiny")
    assert (code, "embedded:tiny" in out, err.count("\n")) == (0, True, 1)
    assert err.startswith(f"ftlab: the package extra declares the configuration folder extra.conf, {said}")
    assert err.endswith("Repair it, or pip uninstall extra\n")


@pytest.mark.usefixtures("extra")
def test_an_option_of_two_packages_is_refused_with_both_where_it_is_chosen(install: Install) -> None:
    install("other", {"ftlab.conf": {"other": "other.conf"}}, {"other/conf/model/mine.yaml": MODEL})
    for words in (["model=mine"], ["experiment=mine"]):
        said = refusal(*words)
        assert said.startswith("model=mine is ambiguous: the package ")
        assert "package extra" in said
        assert "package other" in said
    assert compose(["model=tiny", "quant=none"]).model.name == "tiny"


def test_an_option_of_a_package_and_of_ftlab_is_refused_with_both(install: Install, tmp_path: Path) -> None:
    install("extra", POINTS, {"extra/conf/model/tiny.yaml": MODEL, "extra/conf/experiment/best.yaml": ""})
    assert refusal("model=tiny") == (
        "model=tiny is ambiguous: ftlab and the package extra both provide it; rename its file, or pip uninstall extra"
    )
    assert compose([]).model.name == "mistral7b"
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/best.yaml").write_text("# @package _global_\nseed: 3\n")
    with pytest.raises(ConfigError, match=rf"the package extra and the folder {tmp_path}/own both provide it"):
        compose(["experiment=best"], config_dir=str(tmp_path / "own"))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("model", f"{MODEL}trust_remote_code: true\n", "model.trust_remote_code=true comes from a configuration file"),
        ("experiment", "# @package _global_\nhydra:\n  launcher:\n    _target_: os.system\n", "os.system is refused"),
        ("model", "name: [\n", "mine.yaml:2: not YAML"),
        ("model", "nam: mine\n", "nam is not a key of the configuration"),
    ],
)
def test_what_its_files_hold_is_looked_at(install: Install, file: str, text: str, said: str) -> None:
    install("extra", POINTS, {f"extra/conf/{file}/mine.yaml": text})
    assert said in refusal(f"{file}=mine")
    assert compose(["lora=r8"]).lora.r == 8


@pytest.mark.usefixtures("extra")
def test_a_run_is_of_its_model(fit: Callable[..., Any], base_folder: Path, extra: Path) -> None:
    (extra / "extra/conf/model/mine.yaml").write_text(f"name: mine\nid: {base_folder}\nattn_implementation: sdpa\n")
    (extra / "extra/conf/experiment/mine.yaml").write_text("# @package _global_\nseed: 7\n")
    outcome = fit("experiment=mine", "trainer.max_steps=1")
    assert outcome.summary.status == "finished"
    assert "seed: 7" in (outcome.folder / "config.yaml").read_text()
