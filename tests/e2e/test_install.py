"""ftlab as others install it: from a wheel, away from the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True, capture_output=True, timeout=120)
    return folder


def installed(target: Path, cwd: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_configuration_sweeps_and_type_marker(wheel: Path, root: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"ftlab/conf/{file.relative_to(root / 'conf')}" for file in (root / "conf").rglob("*.yaml")}
    sweeps = {f"ftlab/sweeps/{file.name}" for file in (root / "sweeps").glob("*.yaml")}
    code = {str(file.relative_to(root)) for file in (root / "ftlab").rglob("*.py")}
    assert conf | sweeps | code | {"ftlab/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests/", "outputs/"))]
    assert wheel.stat().st_size < 20e6


def test_it_runs_from_an_empty_folder(target: Path, tmp_path: Path) -> None:
    where = installed(target, tmp_path, "-c", "import ftlab; print(ftlab.__file__)")
    assert Path(where.strip()).is_relative_to(target)
    assert "smollm2_135m" in installed(target, tmp_path, "-m", "ftlab", "--help")
    assert "lr_search" in installed(target, tmp_path, "-m", "ftlab", "--help")
    assert "lora_alpha: 64" in installed(target, tmp_path, "-m", "ftlab", "--cfg", "job", "lora=r32")
    assert list(tmp_path.iterdir()) == []


def test_it_trains_from_an_empty_folder(target: Path, tmp_path: Path, small: list[str]) -> None:
    words = ["experiment=quickstart", "data.train_rows=40", "eval.max_rows=4", "eval.max_new_tokens=4", "tracker=none"]
    if not (target / "ftlab/tiny/model.safetensors").exists():
        words = small
    installed(target, tmp_path, "-m", "ftlab", *words, "trainer.max_steps=2", "run_dir=r")
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 2)


def test_the_console_script_is_the_same_program(target: Path, tmp_path: Path) -> None:
    script = installed(target, tmp_path, str(target / "bin" / "ftlab"), "--cfg", "job")
    assert script == installed(target, tmp_path, "-m", "ftlab", "--cfg", "job")


def test_this_environment_is_an_editable_install_that_works_anywhere(root: Path, tmp_path: Path) -> None:
    program = "import ftlab.composition as c; print(c.CONF, c.SWEEPS, sep='\\n')"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(root / "conf"), str(root / "sweeps")]
