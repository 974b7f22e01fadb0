"""The tree before the joints were rebuilt, and runs of it beside runs of the present one."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

OLD = "44e1734e44deda3c28d5011a30a54985b270c627"
SOURCES = ("ftlab", "hydra_plugins", "conf", "sweeps")
TREE = Path(__file__).resolve().parents[2]
MATERIAL = Path(__file__).parent / "material"  # what its README.md says
# Runs command lines one after another. Imports from one tree only, and says so: the installed package would do as well.
START = """\
import json
import sys
from pathlib import Path
tree = Path(sys.argv[1])
import ftlab, hydra_plugins.ftlab_sweeper, ftlab.composition
for module in (ftlab, hydra_plugins.ftlab_sweeper, ftlab.composition):
    assert Path(module.__file__).is_relative_to(tree), f"{module.__name__} comes from {module.__file__}, not {tree}"
from ftlab.__main__ import main
for words in json.loads(sys.argv[2]):
    sys.argv = ["ftlab", *words]
    code = main(words)
    if code:
        sys.exit(code)
"""


@pytest.fixture(scope="session")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as they were; skips where git does not hold that commit."""
    folder = tmp_path_factory.mktemp("old")
    archive = folder / "old.tar"
    git = ["git", "-C", str(TREE), "archive", "-o", str(archive), OLD, *SOURCES]
    try:
        made = subprocess.run(git, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs git, to compare with an earlier commit")
    if made.returncode:
        pytest.skip(f"git does not hold the commit {OLD[:7]} to compare with: {made.stderr.strip()}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()
    return folder


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start command lines of one tree in a folder, one after another, on a CPU with one thread; all they print is one
    stream."""

    def start(tree: Path, cwd: Path, *commands: Sequence[str]) -> subprocess.Popen[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "FTLAB_", "PYTHON"))}
        env = {
            **kept,
            "PYTHONPATH": str(tree),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
        }
        cwd.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-c", START, str(tree), json.dumps(commands)],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def finish() -> Callable[..., str]:
    """Wait for such a process; what it printed. Another exit code than `code` fails."""

    def finish(process: subprocess.Popen[str], code: int = 0, timeout: float = 250) -> str:
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == code, output
        assert "Traceback" not in output
        return output

    return finish


@pytest.fixture
def material(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of tests/golden/material, which is the working folder; no GPU is seen, since the material is a CPU's."""
    import torch

    folder = tmp_path / "material"
    shutil.copytree(MATERIAL, folder)
    for adapter in folder.rglob("adapter"):
        shutil.copy(TREE / "ftlab/tiny/tokenizer.json", adapter)  # left out of the material, being this very file
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return folder


@pytest.fixture
def ok(cli: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """A command line in this process that must succeed; what it printed to stdout."""

    def ok(*words: str) -> str:
        code, out, err = cli(*words)
        assert code == 0, out + err
        return out

    return ok
