"""What a launcher asks for and ftlab does not do is refused before anything is loaded; what is harmless is ignored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., tuple[int, str, str]]

REFUSED = {
    "ACCELERATE_USE_FSDP=true": "leave out --use_fsdp",
    "ACCELERATE_USE_DEEPSPEED=true": "leave out --use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM=true": "leave out --use_megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG=true": "leave out --use_parallelism_config",
    "ACCELERATE_USE_SAGEMAKER=1": "SageMaker",
    "ACCELERATE_MIXED_PRECISION=fp8": "ftlab does not support it",
    "ACCELERATE_MIXED_PRECISION=bf16": "choose model.dtype=bfloat16",
    "OMPI_COMM_WORLD_SIZE=2": "start them with torchrun",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_is_not_done_is_refused_at_once(
    setting: str, cli: Cli, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, value = setting.partition("=")
    monkeypatch.setenv(name, value)
    folder = tmp_path / "run"
    code, out, err = cli(*small, f"run_dir={folder}")
    assert (code, out) == (2, "")
    assert setting in err
    assert REFUSED[setting] in err
    assert not folder.exists()


@pytest.mark.parametrize("words", [("predict", "{run}", "question=x", "context=y"), ("eval", "{run}")])
def test_commands_on_a_run_refuse_it_too(
    words: tuple[str, ...], cli: Cli, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    code, _, err = cli(*(word.format(run=finished) for word in words))
    assert code == 2
    assert "--use_fsdp" in err


def test_a_sweep_is_refused_before_its_first_trial(
    cli: Cli, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    code, _, err = cli("--multirun", *small, "trainer.lr=1e-3,1e-2", f"run_dir={tmp_path / 'sweep'}")
    assert code == 2
    assert "ACCELERATE_MIXED_PRECISION=fp8" in err
    assert not (tmp_path / "sweep").exists()


def test_what_is_harmless_changes_nothing(
    fit: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `accelerate launch` says of itself, torch.compile, and accumulation, which accelerate would divide by."""
    from ftlab.experiment import device

    asked: list[Any] = []
    made = device.Accelerator
    monkeypatch.setattr(device, "Accelerator", lambda **options: asked.append(made(**options)) or asked[-1])
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_USE_FSDP": "false",
        "OMPI_COMM_WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    outcome = fit(run_dir=tmp_path / "run")
    adapter = "adapter/adapter_model.safetensors"
    assert (outcome.folder / adapter).read_bytes() == (finished / adapter).read_bytes()
    assert [accelerator.state.dynamo_plugin.backend.value for accelerator in asked] == ["NO"]


def test_the_precision_of_the_run_is_no_contradiction(
    cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert cli("--dry-run", *small, "model.dtype=bfloat16")[0] == 0


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK=abc must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two must be a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1 must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 must be below WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "z"}, "LOCAL_RANK=z must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1.5"}, "LOCAL_WORLD_SIZE=1.5 must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "http"}, "MASTER_PORT=http must be a whole number"),
        ({"OMPI_COMM_WORLD_SIZE": "many"}, "OMPI_COMM_WORLD_SIZE=many must be a whole number"),
    ],
)
def test_what_a_launcher_counts_must_be_numbers(
    variables: dict[str, str], said: str, cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = cli("--dry-run", "experiment=quickstart")
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_a_malformed_launch_ends_without_a_traceback(ftlab: Callable[..., Any]) -> None:
    """The console script looks at the variables once more when it ends."""
    done = ftlab("--dry-run", RANK="0", WORLD_SIZE="two")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_working_folder_that_is_gone_is_said(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (["--dry-run"], ["runs"], ["doctor"], ["predict", "run=x"]):
        code, _, err = cli(*words)
        assert code == 2
        assert "the working folder is gone" in err
