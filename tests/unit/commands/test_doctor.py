"""What `doctor` reports of machines that lack one thing or another."""

import builtins
import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftlab.commands import doctor
from ftlab.commands.doctor import Line
from ftlab.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("HF_ENDPOINT", "WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Packages that are neither importable nor installed."""
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    imported, version = builtins.__import__, importlib.metadata.version

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *args, **kwargs)

    def not_installed(name: str) -> str:
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(importlib.metadata, "version", not_installed)


def only(lines: Iterator[Line]) -> Line:
    (line,) = lines
    return line


def test_a_whole_report_is_one_line_a_check_and_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert doctor.main({"run_dir": str(tmp_path / "runs" / "one")}) == 0
    assert time.monotonic() - start < 30  # 4 s alone on two cores
    *findings, blank, verdict = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in findings} <= {"ok", "warn"}
    for name in (
        "python",
        "torch",
        "peft",
        "gpu",
        "cpu",
        "memory",
        "bitsandbytes",
        "disk here",
        "hub",
        "tracker",
    ):
        assert any(line[6:].startswith(name) for line in findings), name
    assert blank == ""
    assert verdict.startswith(f"ready to run: {len(findings)} checks")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_essential_package_fails_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "peft")
    assert doctor.main({}) == 1
    told = next(line for line in capsys.readouterr().out.splitlines() if line[6:].startswith("peft"))
    assert told.startswith("fail  peft")
    assert "pip install 'peft" in told


def test_a_report_survives_without_any_of_the_heavy_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = (
        "torch",
        "transformers",
        "bitsandbytes",
        "huggingface_hub",
        "wandb",
        "packaging",
        "safetensors",
    )
    without(monkeypatch, *packages)
    assert doctor.main({}) == 1
    output = capsys.readouterr().out
    assert "fail  gpu              torch cannot be imported" in output
    assert "warn  tracker          wandb is not installed -> pip install wandb, or set tracker=none" in output
    assert "Traceback" not in output


def test_a_missing_optional_package_is_only_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "wandb")
    monkeypatch.setattr(doctor, "requirements", lambda: {"wandb": ">=0.27"})
    assert only(doctor.packages()) == Line("warn", "wandb", "not installed", "pip install 'wandb>=0.27'")


def test_versions_are_held_against_the_ranges_of_the_installed_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stated = ['peft[x]>=99; python_version > "3"', "hydra-core<9,>=1", 'matplotlib>=3; extra == "plots"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: stated)
    too_old, fine = doctor.packages()
    assert (too_old.mark, too_old.name, too_old.remedy) == ("fail", "peft", "pip install 'peft>=99'")
    assert (fine.mark, fine.name) == ("ok", "hydra-core")


def test_a_checkout_that_is_not_installed_has_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    monkeypatch.setattr(importlib.metadata, "metadata", absent)
    assert doctor.requirements() == {
        "hydra-core": ">=1.3.8",
        "torch": ">=2.10",
        "transformers": ">=5.3",
        "peft": ">=0.21",
    }
    assert only(doctor.python()).mark == "ok"


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.8.1")
    line = only(doctor.python())
    assert line.mark == "fail"
    assert "needs Python" in line.remedy


def test_a_build_of_torch_without_cuda_is_told_beside_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver", lambda: "570.1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    line = only(doctor.gpu())
    assert (line.mark, line.remedy[:13]) == ("warn", "install torch")
    assert "driver 570.1 is installed" in line.text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hidden by CUDA_VISIBLE_DEVICES" in only(doctor.gpu()).text


@pytest.mark.parametrize(
    ("capability", "free", "mark", "remedy"),
    [
        ((9, 0), 70, "ok", ""),
        ((7, 5), 70, "warn", "model.dtype=float16"),
        ((9, 0), 10, "warn", "another process"),
    ],
)
def test_a_gpu_is_described(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], free: int, mark: str, remedy: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free * 1e9, 80e9))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(doctor, "_driver", lambda: "570.1")
    line = only(doctor.gpu())
    assert line.mark == mark
    assert remedy in line.remedy
    for part in (
        "Some GPU",
        "driver 570.1",
        f"{free}.0 of 80.0 GB free",
        "{}.{}".format(*capability),
        "bf16",
    ):
        assert part in line.text


def test_bitsandbytes_is_really_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.functional as bnb

    assert only(doctor.quantisation()).mark == "ok"
    monkeypatch.setattr(bnb, "dequantize_4bit", lambda packed, state: 0 * state.absmax.sum())
    line = only(doctor.quantisation())
    assert (line.mark, line.remedy) == ("warn", "use quant=none")


def test_an_output_folder_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    assert only(doctor.output(str(tmp_path / "outputs" / "run"))).mark == "ok"
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    line = only(doctor.output(str(tmp_path / "outputs" / "run")))
    assert (line.mark, line.remedy) == ("fail", "name another folder: run_dir=DIR")
    assert str(tmp_path / "outputs") in line.text


@pytest.mark.parametrize(("free", "mark"), [(50e9, "ok"), (1e9, "warn"), (1e8, "fail")])
def test_a_full_disk_fails_and_a_small_one_warns(monkeypatch: pytest.MonkeyPatch, free: float, mark: str) -> None:
    usage = doctor.shutil._ntuple_diskusage(int(1e12), 0, int(free))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    assert next(iter(doctor.disk())).mark == mark


def test_a_container_counts_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_machine_memory", lambda: (64e9, 60e9))
    assert only(doctor.memory()).text == "60.0 of 64.0 GB free" or doctor._container_memory()[0] < 64e9
    monkeypatch.setattr(doctor, "_container_memory", lambda: (8e9, 5e9))
    line = only(doctor.memory())
    assert (line.mark, line.text) == ("warn", "3.0 of 8.0 GB free")


def test_the_hub_is_not_asked_offline_and_its_silence_is_told_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "switched off by your environment" in only(doctor.hub()).text
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    line = only(doctor.hub())
    assert (line.mark, line.text[:48]) == ("warn", "http://127.0.0.1:9 (HF_ENDPOINT) does not answer")


@pytest.mark.parametrize("way", ["variable", "netrc"])
def test_a_wandb_key_is_found_and_never_shown(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "recorded offline" in doctor.wandb().text
    secret = "0123456789abcdef0123456789abcdef01234567"
    if way == "variable":
        monkeypatch.setenv("WANDB_API_KEY", secret)
    else:
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {secret}\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "recorded online" in doctor.wandb().text
    doctor.main({})
    assert secret not in capsys.readouterr().out


def test_wandb_mode_wins_over_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "offline by WANDB_MODE" in doctor.wandb().text


def test_a_named_model_that_is_not_here_comes_with_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert doctor.main({"model": "mistral7b"}) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if line[6:].startswith("model "))
    assert told.startswith("warn")
    assert told.endswith("-> python -m ftlab fetch model=mistral7b")


def test_a_misspelt_model_is_answered_with_the_right_name() -> None:
    with pytest.raises(ConfigError, match="mistral7b"):
        doctor.main({"model": "mistral_7b"})


def test_an_import_of_the_command_loads_nothing_heavy() -> None:
    heavy = "torch transformers wandb bitsandbytes huggingface_hub rich"
    code = f"import sys, ftlab.commands.doctor; print({{*sys.modules}} & {{*'{heavy}'.split()}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_parts_and_options_of_other_packages_are_listed_with_the_package(install: Any) -> None:
    task = "from ftlab.tasks.match import MatchTask\nclass T(MatchTask):\n    name = 'mine'\nTASK = T()\n"
    points = {"ftlab.tasks": {"mine": "extra:TASK", "lost": "extra.lost"}, "ftlab.conf": {"extra": "extra.conf"}}
    task += "from ftlab.trackers import Tracker\nclass Lines(Tracker):\n    name = 'lines'\n"
    points["ftlab.trackers"] = {"lines": "extra:Lines"}
    install("extra", points, {"extra/__init__.py": task, "extra/conf/model/mine.yaml": "name: mine\n"}, "2.1")
    install("other", {"ftlab.conf": {"other": "other.conf"}, "ftlab.stages": {"sft": "other:STAGE"}}, {})
    lines = [(line.mark, line.text) for line in (*doctor.parts(), *doctor.options())]
    assert {("ok", "data.task=mine, extra 2.1"), ("ok", "tracker=lines, extra 2.1")} <= {*lines}
    assert any(mark == "ok" and text.startswith("model=mine, extra 2.1 (") for mark, text in lines)
    warned = [text for mark, text in lines if mark == "warn"]
    assert [text.partition(" (")[0] for text in warned] == [
        "data.task=lost: extra.lost of the package extra cannot be imported",
        "trainer.stage=sft is ambiguous: the packages ftlab and other both provide it; pip uninstall other",
        "the package other declares the configuration folder other.conf, which cannot be found",
    ]
    assert all(text.endswith(("(extra 2.1)", "(other 1.0)")) for text in warned)


def test_without_other_packages_nothing_is_said_of_them() -> None:
    assert [*doctor.parts(), *doctor.options()] == []
