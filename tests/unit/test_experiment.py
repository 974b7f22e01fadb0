"""An experiment from configuration to records, in this process, on a tiny random model."""

import importlib.util
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftlab import experiment as module
from ftlab import models, trackers
from ftlab.composition import compose, composition
from ftlab.errors import (
    ConfigError,
    DataError,
    FtlabError,
    InputError,
    Pruned,
    RunDirError,
    Stopped,
    TrainingError,
    WeightsError,
)
from ftlab.evaluate import Scores, Split
from ftlab.experiment.device import flops_per_token
from ftlab.models import Bases
from ftlab.out_of_memory import oom_remedies

Fit = Callable[..., Any]


def adapter(outcome: Any) -> bytes:
    return (Path(outcome.folder) / "adapter/adapter_model.safetensors").read_bytes()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


RESULT = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "generation_config.json",
    "prompt.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
CHECKPOINT = {"manifest.json", "optimizer.pt", "state.json", "trainable.safetensors"}
RECORDS = {
    ".hydra/config.yaml",
    ".hydra/hydra.yaml",
    ".hydra/overrides.yaml",
    "config.yaml",
    "metrics.jsonl",
    "predictions.jsonl",
    "summary.json",
}


def test_a_run_leaves_exactly_these_files(finished: Path) -> None:
    checkpoints = {f"checkpoints/step-00000{step}/{name}" for step in (2, 4) for name in CHECKPOINT}
    assert files(finished) == RECORDS | checkpoints | {f"adapter/{name}" for name in RESULT}


def test_the_summary_tells_the_run_in_numbers(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["status"] == "finished"
    for column in ("base", "tuned"):
        for key in ("eval/sql_exact_match", "test/sql_exact_match", "eval/loss", "test/loss"):
            assert isinstance(summary[column][key], float)
        assert len(summary["intervals"][column]["test/sql_exact_match"]) == 2
    assert summary["objective"] == {
        "name": "eval/sql_exact_match",
        "value": summary["tuned"]["eval/sql_exact_match"],
    }
    assert 0 < summary["trainable_parameters"] < summary["parameters"]
    assert re.fullmatch("[0-9a-f]{64}", summary["data_sha256"])
    assert {"torch", "transformers", "peft", "python", "ftlab"} <= summary["versions"].keys()
    assert {"data", "load", "train", "eval", "total"} <= summary["seconds"].keys()
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    assert summary["model"].keys() == {"id", "revision", "origin", "sha256"}
    assert summary["model"]["revision"]
    assert (summary["step"], summary["planned_steps"], summary["vram"]) == (4, 4, {})
    assert summary["data"]["train_rows"] == 36


def test_metrics_have_rising_steps_and_the_agreed_keys(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4, 4]
    keys = set().union(*lines)
    assert keys >= {"train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_second", "eval/loss"}
    assert keys >= {"eval/sql_exact_match", "test/sql_exact_match", "test/loss"}
    assert [line for line in lines if "test/loss" in line] == lines[-1:]


def test_predictions_are_those_of_the_test_split(finished: Path, rows_folder: Path) -> None:
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    tests = [json.loads(line) for line in (rows_folder / "test.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert {row["gold"] for row in rows} <= {row["answer"] for row in tests}
    assert all(isinstance(row["base_pred"], str) and isinstance(row["pred"], str) for row in rows)
    for prefix in ("", "base_"):
        assert all(row[f"{prefix}ast_equal"] in (True, False) for row in rows)
        assert all(row[f"{prefix}reason"] for row in rows)
        wrong = [row for row in rows if row[f"{prefix}exec_equal"] and not row[f"{prefix}valid"]]
        assert wrong == []


def test_the_adapter_carries_all_that_prediction_needs(finished: Path, base_folder: Path) -> None:
    adapter = finished / "adapter"
    assert json.loads((adapter / "prompt.json").read_text())["template"] == "{context}\n{question}\n"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base_folder)
    assert json.loads((adapter / "generation_config.json").read_text())["max_new_tokens"] == 4
    assert "test/sql_exact_match" in (adapter / "README.md").read_text()


def test_next_commands_are_at_most_four(fit: Fit, terminal: Any) -> None:
    fit("trainer.max_steps=0")
    assert 1 <= len(terminal.commands) <= 4
    assert all(command.startswith(("python -m ftlab", "wandb ")) for command in terminal.commands)


def test_every_trackers_command_is_shown(fit: Fit, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit("tracker=[wandb,csv,tensorboard]", "trainer.max_steps=1")
    assert [command.split()[0] for command in terminal.commands[-2:]] == ["wandb", "tensorboard"]


def test_the_order_of_things(fit: Fit, terminal: Any) -> None:
    fit()
    assert [phase.split(" on ")[0] for phase in terminal.phases] == [
        "data",
        "load",
        "evaluate base",
        "evaluate base",
        "train",
        "evaluate tuned",
    ]


# --- determinism ------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_adapter_bit_for_bit(fit: Fit, tmp_path: Path) -> None:
    first = fit("lora.lora_dropout=0.2", run_dir=tmp_path / "a")
    torch.manual_seed(12345)
    second = fit("lora.lora_dropout=0.2", run_dir=tmp_path / "b")
    other = fit("lora.lora_dropout=0.2", "seed=1", run_dir=tmp_path / "c")
    assert adapter(first) == adapter(second)
    assert adapter(first) != adapter(other)
    assert first.summary.tuned == second.summary.tuned


@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_no_steps_give_equal_columns(fit: Fit, quant: str) -> None:
    summary = fit("trainer.max_steps=0", f"quant={quant}").summary.tree()
    assert summary["base"] == summary["tuned"]
    assert summary["step"] == 0


def test_training_changes_the_scores(fit: Fit) -> None:
    summary = fit("trainer.max_steps=8", "objective=eval/loss").summary.tree()
    assert summary["tuned"]["eval/loss"] < summary["base"]["eval/loss"] - 0.5
    assert summary["tuned"]["test/loss"] < summary["base"]["test/loss"] - 0.5


KINDS = {
    "pissa": ["lora=pissa", "lora.r=4"],
    "dora": ["lora=dora", "lora.r=4"],
    "nf4": ["quant=nf4"],
    "bfloat16": ["model.dtype=bfloat16"],
    "full": ["lora=none", "trainer.lr=1e-3"],
    "saved": ["lora.modules_to_save=[lm_head]"],
    "checkpointing": ["trainer.activation_checkpointing=true"],
    "paged": ["trainer.optim=paged_adamw_8bit"],
    "auto": ["trainer.micro_batch_size=auto"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_bit_identical(fit: Fit, kind: str, tmp_path: Path, terminal: Any) -> None:
    options = [*KINDS[kind], "data.max_length=128", "trainer.save_every=1"]
    name = "model/model.safetensors" if kind == "full" else "adapter/adapter_model.safetensors"
    whole = fit(*options, run_dir=tmp_path / "whole")

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 3 and "train/loss" in metrics:
            os.kill(os.getpid(), 15)

    terminal.on_update = stop
    with pytest.raises(Stopped):
        fit(*options, run_dir=tmp_path / "cut")
    assert json.loads((tmp_path / "cut/summary.json").read_text())["status"] == "stopped"
    terminal.on_update = lambda step, metrics: None
    phases = len(terminal.phases)
    again = fit(*options, run_dir=tmp_path / "cut")
    assert "resumed from step 3 of 4" in terminal.notes
    assert not [phase for phase in terminal.phases[phases:] if "base" in phase]  # known from before
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert again.summary.tuned == whole.summary.tuned
    assert again.summary.base == whole.summary.base
    rows = [(tmp_path / name / "predictions.jsonl").read_bytes() for name in ("cut", "whole")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("part", ["load_base", "add_adapter"])
def test_while_weights_are_made_ready_a_signal_ends_the_run_at_once(
    part: str, fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A download may take an hour, and the end of it is not waited for, nor for another try of it."""
    made = getattr(models, part)

    def slow(*arguments: Any, **options: Any) -> Any:
        for _ in range(2):
            with suppress(Exception):
                os.kill(os.getpid(), 2)
                time.sleep(0.1)
        pytest.fail("was waited for")

    monkeypatch.setattr(models, part, slow)
    with pytest.raises(Stopped, match="SIGINT: stopped while getting ready"):
        fit()
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "stopped"
    monkeypatch.setattr(models, part, made)
    assert fit().summary.status == "finished"


def test_stopped_during_the_last_scoring_the_run_resumes_there(fit: Fit, terminal: Any, tmp_path: Path) -> None:
    whole = fit(run_dir=tmp_path / "whole")

    def stop(step: int, metrics: dict[str, float]) -> None:
        if terminal.phases[-1].startswith("evaluate tuned"):
            os.kill(os.getpid(), 2)

    terminal.on_update = stop
    with pytest.raises(Stopped):
        fit()
    terminal.on_update = lambda step, metrics: None
    again = fit()
    assert adapter(again) == adapter(whole)
    assert again.summary.tuned == whole.summary.tuned


def test_stopped_between_two_verdicts_the_run_resumes_there(fit: Fit, terminal: Any, tmp_path: Path) -> None:
    whole = fit(run_dir=tmp_path / "whole")
    judged: list[int] = []

    def stop(step: int, metrics: dict[str, float]) -> None:
        if terminal.phases[-1].startswith("evaluate tuned") and step == 4:
            judged.append(step)
            if len(judged) == 3:  # all answers are written, one is judged
                os.kill(os.getpid(), 15)

    terminal.on_update = stop
    with pytest.raises(Stopped):
        fit()
    assert len(judged) == 3
    terminal.on_update = lambda step, metrics: None
    assert fit().summary.tuned == whole.summary.tuned


def test_the_base_of_an_older_record_is_scored_again(fit: Fit, terminal: Any, tmp_path: Path) -> None:
    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 3 and "train/loss" in metrics:
            os.kill(os.getpid(), 15)

    terminal.on_update = stop
    with pytest.raises(Stopped):
        fit()
    terminal.on_update = lambda step, metrics: None
    file = tmp_path / "run/predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        del row["base_ast_equal"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    phases = len(terminal.phases)
    assert fit().summary.status == "finished"
    assert [phase for phase in terminal.phases[phases:] if "base" in phase]


# --- what is scored ---------------------------------------------------------------------------------------


CHANGED = (
    r"the base model\.id=.* has changed since the run began \(model\.safetensors\)\. .*start again with force=true"
)


@pytest.mark.parametrize("when", ["train", "base scores"])
def test_a_base_that_changes_between_kill_and_resume_is_noticed(
    when: str, fit: Fit, base_folder: Path, terminal: Any, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    here = f"model.id={base}"

    def stop(step: int, metrics: dict[str, float]) -> None:
        if terminal.phases[-1] == "train" and step == 3:
            os.kill(os.getpid(), 15)

    terminal.on_update = stop
    with pytest.raises(Stopped):
        fit(here, "trainer.save_every=1")
    if when == "base scores":  # all that is left to go on from
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    terminal.on_update = lambda step, metrics: None
    weights = base / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + bytes([kept[-4] ^ 1]) + kept[-3:])
    for _ in range(2):  # being refused changes no record
        with pytest.raises(RunDirError, match=CHANGED):
            fit(here, "trainer.save_every=1")
    weights.write_bytes(kept)
    assert fit(here, "trainer.save_every=1").summary.step == 4


def test_a_record_without_a_hash_of_its_base_is_resumed_with_a_line(fit: Fit, terminal: Any, tmp_path: Path) -> None:
    summary = fit("trainer.max_steps=2").summary.tree()
    assert set(summary["model"]["sha256"]) == {"config.json", "model.safetensors"}
    file = tmp_path / "run" / "summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": {"id": "x"}}))
    terminal.notes.clear()
    assert fit().summary.model.sha256 == summary["model"]["sha256"]
    line = "the run has no hash of its base model on record: ftlab cannot check for changes"
    assert terminal.notes.count(line) == 1


@pytest.mark.parametrize("name", ["sql_ast_match", "sql_exec_match", "sql_valid", "sql_string_match", "loss"])
def test_any_score_may_be_the_objective(fit: Fit, name: str) -> None:
    outcome = fit("trainer.max_steps=2", f"objective=eval/{name}")
    assert outcome.objective == outcome.summary.tuned[f"eval/{name}"]
    assert outcome.summary.objective.name == f"eval/{name}"


def test_the_scores_of_a_run_are_rates_with_intervals_and_kinds(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for column in ("base", "tuned"):
        scores, intervals = summary[column], summary["intervals"][column]
        for prefix in ("eval", "test"):
            names = ("sql_string_match", "sql_ast_match", "sql_exec_match", "sql_valid", "sql_exact_match")
            for key in [f"{prefix}/{name}" for name in names]:
                assert intervals[key][0] <= scores[key] <= intervals[key][1]
            assert scores[f"{prefix}/sql_exact_match"] == scores[f"{prefix}/sql_ast_match"]
            assert scores[f"{prefix}/sql_ast_match/aggregate"] == scores[f"{prefix}/sql_ast_match"]  # all golds count
            assert scores[f"{prefix}/sql_gold_broken"] == 0
            assert f"{prefix}/sql_ast_match/multi_table" not in scores


def test_the_trackers_table_holds_the_verdicts(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[tuple[list[str], list[list[object]]]] = []

    class Tables(trackers.Tracker):
        name = "tables"

        def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
            tables.append((columns, rows))

    monkeypatch.setattr(trackers, "names", lambda: ["tables", "wandb"])
    monkeypatch.setattr(trackers, "get", lambda name: Tables)
    fit("tracker=tables", "trainer.max_steps=1")
    ((columns, rows),) = tables
    assert {"pred", "ast_equal", "exec_equal", "valid", "base_ast_equal", "reason"} <= set(columns)
    assert [len(row) for row in rows] == [len(columns)] * 4


# --- kinds of result --------------------------------------------------------------------------------------


def test_a_full_fine_tune_saves_a_model_that_loads(fit: Fit, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    outcome = fit("lora=none", "trainer.lr=1e-3")
    assert not (outcome.folder / "adapter").exists()
    model = AutoModelForCausalLM.from_pretrained(outcome.folder / "model")
    assert sum(p.numel() for p in model.parameters()) == outcome.summary.parameters
    assert outcome.summary.trainable_parameters == outcome.summary.parameters


def test_a_run_goes_on_from_the_adapter_of_another(fit: Fit, finished: Path, tmp_path: Path) -> None:
    outcome = fit(f"lora.init_from={finished}", "trainer.max_steps=0")
    before, now = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (finished, outcome.folder))
    assert before.keys() == now.keys()
    assert all(torch.equal(before[name], now[name]) for name in before)
    with pytest.raises(ConfigError, match=r"lora\.r=8 must be 4"):
        fit(f"lora.init_from={finished}", "lora.r=8", run_dir=tmp_path / "other")


def test_an_adapter_of_another_base_is_refused(fit: Fit, finished: Path, make_base: Any, tmp_path: Path) -> None:
    other = make_base(num_hidden_layers=3)
    with pytest.raises(WeightsError, match="another base"):
        fit(f"lora.init_from={finished}", f"model.id={other}")


def test_a_shared_output_layer_under_an_adapter_is_told(fit: Fit, terminal: Any) -> None:
    fit("lora.target_modules=[lm_head]", "trainer.max_steps=1")
    assert any("shares its weights" in warning for warning in terminal.warnings)


# --- trouble ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_fails_the_run_and_keeps_the_checkpoint(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ftlab.train.loop import Trainer

    accumulate = Trainer._accumulate

    def broken(self: Any, learner: Any, *given: Any) -> Any:
        return accumulate(self, learner, *given) * (math.nan if learner.progress.step >= 3 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_accumulate", broken)
        with pytest.raises(TrainingError, match="loss=nan at step 4; the checkpoint of step 2 is kept"):
            fit()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed"
    assert "nan" in summary["error"]
    assert not (tmp_path / "run/adapter").exists()
    assert "0.0" not in [
        str(json.loads(line).get("train/loss")) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert fit().summary.status == "finished"


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["data.max_length=16"], DataError, r"data\.max_length=16.*\n?.*data\.max_length=\d+"),
        (["lora.target_modules=[q_proj,v_prj]"], ConfigError, "nearest: v_proj"),
        (["lora.modules_to_save=[head]"], ConfigError, "lm_head"),
        (["data.path=/nowhere"], DataError, "nowhere"),
        (["data.columns.question=ask"], DataError, "question"),
        (["model.id=/nowhere/model"], WeightsError, "nowhere"),
        (["lora.init_from=/nowhere"], ConfigError, "adapter_config"),
        (["eval.rows_dir=/nowhere"], ConfigError, r"eval\.rows_dir=/nowhere is not a folder"),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_what_cannot_be_used_is_refused_before_weights_load(
    fit: Fit, overrides: list[str], error: type[FtlabError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any, **options: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(models, "load_base", load)
    with pytest.raises(error, match=said):
        fit(*overrides)


@pytest.mark.parametrize(("override", "said"), [("quant=nf4", "quant=nf4"), ("trainer.optim=adamw_8bit", "adamw")])
def test_bitsandbytes_is_asked_for_in_one_line(
    fit: Fit, override: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)
    )
    with pytest.raises(InputError, match=f"{said}.*pip install bitsandbytes") as caught:
        fit(override)
    assert len(str(caught.value).splitlines()) == 1


def test_rows_that_were_shortened_or_dropped_are_counted(fit: Fit, terminal: Any) -> None:
    summary = fit("trainer.max_steps=0", "data.max_length=84").summary.tree()
    counted = summary["data"]
    assert counted["truncated"] + counted["dropped"] > 0
    assert counted["validation_truncated"] + counted["validation_dropped"] > 0
    assert counted["test_truncated"] + counted["test_dropped"] > 0
    for name in ("train", "validation", "test"):
        lines = [line for line in terminal.warnings if line.startswith("data.max_length=84: of ")]
        assert any(f" {name} rows, " in line for line in lines)


def test_a_split_none_of_whose_rows_fit_is_named(fit: Fit, tmp_path: Path, rows_folder: Path) -> None:
    long = {"question": "q" * 300, "context": "CREATE TABLE t (a INT)", "answer": "SELECT a FROM t"}
    shutil.copy(rows_folder / "train.jsonl", tmp_path)
    (tmp_path / "test.jsonl").write_text(json.dumps(long))
    with pytest.raises(InputError, match=r"leaves no row of test to measure a loss on.*\n.*data\.max_length=384"):
        fit(f"data.path={tmp_path}")


def test_a_damaged_checkpoint_is_passed_over_with_one_warning(fit: Fit, terminal: Any, tmp_path: Path) -> None:
    whole = fit(run_dir=tmp_path / "whole")

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 3 and "train/loss" in metrics:
            os.kill(os.getpid(), 15)

    terminal.on_update = stop
    with pytest.raises(Stopped):
        fit()
    terminal.on_update = lambda step, metrics: None
    file = tmp_path / "run/checkpoints/step-000003/optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])
    again = fit()
    assert [warning for warning in terminal.warnings if "damaged" in warning] == [
        "checkpoint step-000003 is damaged (optimizer.pt changed or cut off); using an older one"
    ]
    assert "resumed from step 2 of 4" in terminal.notes
    assert adapter(again) == adapter(whole)
    assert again.summary.tuned == whole.summary.tuned


def test_a_tracker_that_breaks_does_not_end_the_run(fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "wandb", None)
    outcome = fit("tracker=wandb", "trainer.max_steps=1")
    assert outcome.summary.status == "finished"


# --- too little GPU memory --------------------------------------------------------------------------------

FULL = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 5.00 MiB is "
    "free. Including non-PyTorch memory, this process has 79.00 GiB memory in use. Of the allocated memory 70.00 GiB"
)
TOLD = "Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 5.00 MiB is free)"


@pytest.mark.parametrize(
    ("where", "phase", "remedies"),
    [
        ("ftlab.models.load_base", "load", ["quant=nf4", "a smaller model"]),
        ("ftlab.fast.scoring.answers", "evaluate base on validation", ["quant=nf4", "data.max_length below 128"]),
        ("ftlab.models.add_adapter", "adapter", ["quant=nf4"]),
        ("ftlab.fast.flat.Flat.like", "train", ["trainer.optim=paged_adamw_8bit", "data.max_length below 128"]),
        ("ftlab.models.save_result", "save", ["quant=nf4"]),
    ],
)
def test_too_little_memory_anywhere_is_one_message(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, phase: str, remedies: list[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError(FULL)

    monkeypatch.setattr(where, full)
    with pytest.raises(TrainingError) as caught:
        fit()
    said = str(caught.value)
    assert said.startswith(f"out of GPU memory in the phase {phase} (CUDA out of memory. {TOLD}. Try: ")
    assert all(remedy in said for remedy in remedies)
    assert "\n" not in said
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", f"TrainingError: {said}")


def test_a_trial_without_memory_fails_with_the_phase_as_its_cause(trial: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftlab.sweep.worker import in_one_line

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr("ftlab.fast.scoring.answers", full)
    with pytest.raises(TrainingError) as caught:
        trial(Watcher())
    cause = in_one_line(caught.value)
    assert cause.startswith("out of GPU memory in the phase evaluate on validation (CUDA error: out of memory). Try: ")


def test_another_error_of_torch_stays_itself(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("ftlab.models.add_adapter", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fit()


def test_what_has_all_weights_trained_or_is_small_already_is_not_told_to_be_smaller(make_base: Any) -> None:
    def ways(*overrides: str, trained: bool = False) -> str:
        cfg = compose(["model=tiny", f"model.id={make_base()}", "run_dir=x", *overrides])
        return ", ".join(oom_remedies(cfg, "train", trained=trained))

    assert "quant=nf4" not in ways("quant=nf4")
    assert "quant=nf4" not in ways("lora=none", "quant=none")
    assert "quant=nf4" not in ways("lora=pissa", "quant=none")
    assert "lora=r16" in ways("lora=none", "quant=none")
    assert "lora=r8" in ways("lora=r64")
    assert "lora" not in ways("lora=r4")
    assert "model" not in ways("quant=none", trained=True)


# --- an older checkpoint ----------------------------------------------------------------------------------


def test_an_optimizer_of_one_state_a_tensor_is_refused_with_a_remedy_that_works(
    fit: Fit, make_base: Any, tmp_path: Path
) -> None:
    from ftlab.train.checkpoint import write_manifest

    first = fit("trainer.max_steps=2")
    (folder,) = (path for path in (tmp_path / "run/checkpoints").iterdir() if path.name == "step-000002")
    tensors = [torch.nn.Parameter(tensor) for tensor in load_file(folder / "trainable.safetensors").values()]
    older = torch.optim.AdamW(tensors, lr=1e-2)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    older.step()
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    torch.save({**saved, "optimizer": older.state_dict()}, folder / "optimizer.pt")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(TrainingError, match=r"step-000002.*another version of ftlab.*force=true"):
        fit("trainer.max_steps=4")
    again = fit("trainer.max_steps=4", "force=true")
    assert (first.summary.step, again.summary.step) == (2, 4)


# --- trials of a sweep ------------------------------------------------------------------------------------

Told = list[tuple[int, float]]


class Watcher:
    """Keeps the reported evaluations, and prunes from step `prune_at` on."""

    def __init__(self, prune_at: float = math.inf) -> None:
        self.told: Told = []
        self.prune_at = prune_at

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        self.told.append((step, metrics["eval/loss"]))
        if step >= self.prune_at:
            raise Pruned(f"no better at step {step}")


@pytest.fixture
def trial(small: list[str], tmp_path: Path, terminal: Any) -> Fit:
    """Run the small experiment as a trial."""

    def trial(watch: Any, *more: str, run_dir: Path = tmp_path / "run", bases: Any = None) -> Any:
        probe = module.Trial(watch, bases or Bases())
        return module.run(composition([*small, f"run_dir={run_dir}", *more]), terminal, probe)

    return trial


def test_a_trial_scores_validation_only_and_can_be_asked(trial: Fit, terminal: Any, cli: Any, tmp_path: Path) -> None:
    watch = Watcher()
    outcome = trial(watch)
    assert [step for step, _ in watch.told] == [2, 4]
    assert [phase for phase in terminal.phases if "test" in phase or "base" in phase] == []
    assert outcome.summary.status == "finished"
    assert outcome.summary.base == {}
    assert not any(key.startswith("test/") for key in outcome.summary.tuned)
    assert "nan" not in (tmp_path / "run/adapter/README.md").read_text()
    run = tmp_path / "run"
    assert cli("predict", f"run={run}", "question=How many?", "context=CREATE TABLE a (b INT)")[0] == 0
    assert cli("eval", f"run={run}")[0] == 0
    assert "finished" in cli("runs", str(tmp_path), "status=finished")[1]
    assert cli("compare", str(run), str(run), "split=validation")[0] == 0
    again, phases = Watcher(prune_at=0), len(terminal.phases)
    assert trial(again).summary.tree() == json.loads((run / "summary.json").read_text())
    assert again.told == watch.told
    assert len(terminal.phases) == phases  # reported, not run again


def test_a_trials_answers_are_those_of_the_weights_it_keeps(
    trial: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    losses, answers = iter([1.0, 2.0]), []

    def score(self: Any, *arguments: Any) -> Any:
        found = whole(self, *arguments)
        answers.append([f"{answer} {len(answers)}" for answer in found.answers])
        metrics = {**found.metrics, "eval/loss": next(losses)}
        return Scores(metrics, found.intervals, answers[-1], found.judgements)

    whole = Split.score
    monkeypatch.setattr(Split, "score", score)
    outcome = trial(Watcher(), "objective=eval/loss")
    assert outcome.summary.best_step == 2
    rows = [json.loads(line) for line in (tmp_path / "run/evaluations/validation.jsonl").read_text().splitlines()]
    assert [row["pred"] for row in rows] == answers[0]
    assert {row["split"] for row in rows} == {"eval"}
    assert files(tmp_path / "run/evaluations") == {"validation.jsonl"}


def test_a_pruned_run_stops_at_once_and_leaves_its_records(trial: Fit, terminal: Any, tmp_path: Path) -> None:
    watch, run = Watcher(prune_at=2), tmp_path / "run"
    outcome = trial(watch)
    assert [step for step, _ in watch.told] == [2]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["tuned"]) == (outcome.summary.status, outcome.summary.tuned)
    assert (summary["status"], summary["step"], summary["planned_steps"]) == ("pruned", 2, 4)
    assert summary["objective"]["value"] == outcome.objective == summary["tuned"]["eval/sql_exact_match"]
    assert files(run) == (RECORDS - {"predictions.jsonl"}) | {"evaluations/validation.jsonl"}
    assert max(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()) == 2

    phases = len(terminal.phases)
    assert trial(watch).summary.tree() == summary
    assert len(terminal.phases) == phases
    assert f"{run} holds this run, pruned at step 2 of 4; force=true runs it to the end" in terminal.notes
    assert trial(Watcher(), "force=true").summary.status == "finished"


def test_another_run_in_the_folder_of_a_pruned_one_is_run(trial: Fit) -> None:
    trial(Watcher(prune_at=2))
    assert trial(Watcher(), "seed=1").summary.status == "finished"


def test_checkpoints_of_a_pruned_run_stay_where_asked(trial: Fit, tmp_path: Path) -> None:
    trial(Watcher(prune_at=4), "trainer.max_steps=6", "sweep.keep_pruned=true")
    assert (tmp_path / "run/checkpoints/step-000002/manifest.json").is_file()


def test_after_the_last_evaluation_nothing_is_pruned(trial: Fit) -> None:
    watch = Watcher(prune_at=4)
    assert trial(watch).summary.status == "finished"
    assert [step for step, _ in watch.told] == [2, 4]


def test_a_resumed_trial_tells_the_evaluations_before_first(trial: Fit, terminal: Any, tmp_path: Path) -> None:
    whole = Watcher()
    trial(whole, "trainer.max_steps=6", run_dir=tmp_path / "whole")

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 5 and "train/loss" in metrics:
            os.kill(os.getpid(), 15)

    terminal.on_update = stop
    with pytest.raises(Stopped):
        trial(Watcher(), "trainer.max_steps=6")
    terminal.on_update = lambda step, metrics: None
    again = Watcher(prune_at=6)  # evaluations before the stop end nothing
    assert trial(again, "trainer.max_steps=6").summary.status == "finished"
    assert "resumed from step 5 of 6" in terminal.notes
    assert again.told == whole.told
    assert [step for step, _ in again.told] == [2, 4, 6]


def test_an_evaluation_that_is_no_number_is_an_error_and_not_pruned(
    trial: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(self: Any, *arguments: Any) -> Any:
        found = whole(self, *arguments)
        return Scores({**found.metrics, "eval/loss": math.nan}, found.intervals, found.answers, found.judgements)

    whole = Split.score
    monkeypatch.setattr(Split, "score", score)
    watch = Watcher(prune_at=0)
    with pytest.raises(TrainingError, match="eval/loss=nan"):
        trial(watch)
    assert watch.told == []


def test_how_a_trial_ends_is_a_tag(trial: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tags: list[str] = []
    closed: list[int] = []

    class Ends(trackers.Tracker):
        name = "ends"

        def tag(self, name: str) -> None:
            assert len(closed) == len(tags)
            tags.append(name)

        def close(self, exit_code: int = 0) -> None:
            closed.append(exit_code)

    monkeypatch.setattr(trackers, "names", lambda: ["ends", "wandb"])
    monkeypatch.setattr(trackers, "get", lambda name: Ends)
    trial(Watcher(), "tracker=ends", run_dir=tmp_path / "a")
    trial(Watcher(prune_at=2), "tracker=ends", run_dir=tmp_path / "b")
    with pytest.raises(TrainingError):
        trial(Watcher(), "tracker=ends", "trainer.lr=1e30", run_dir=tmp_path / "c")
    assert tags == ["finished", "pruned", "failed"]
    assert closed == [0, 0, 1]


@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_a_base_kept_between_trials_changes_no_adapter(
    quant: str, trial: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loads: list[str] = []
    load = models.load_base
    monkeypatch.setattr(models, "load_base", lambda *a, **k: loads.append("load") or load(*a, **k))
    bases = Bases()
    options = [f"quant={quant}", "lora.lora_dropout=0.1"]
    alone = trial(Watcher(), *options, run_dir=tmp_path / "alone")
    trial(Watcher(), *options, "lora.r=8", run_dir=tmp_path / "a", bases=bases)
    trial(Watcher(prune_at=2), *options, "trainer.lr=1e-3", run_dir=tmp_path / "b", bases=bases)
    second = trial(Watcher(), *options, run_dir=tmp_path / "c", bases=bases)
    assert adapter(second) == adapter(alone)
    assert second.summary.tuned == alone.summary.tuned
    assert len(loads) == 2


def test_a_base_that_training_changes_is_loaded_again(
    trial: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loads: list[str] = []
    load = models.load_base
    monkeypatch.setattr(models, "load_base", lambda *a, **k: loads.append("load") or load(*a, **k))
    bases = Bases()
    kinds: list[list[str]] = [["lora=none", "trainer.lr=1e-3"], ["lora=pissa"], ["lora.bias=all"], []]
    for number, options in enumerate([["lora=none", "trainer.lr=1e-3"], *kinds]):
        trial(Watcher(), *options, run_dir=tmp_path / str(number), bases=bases)
    assert len(loads) == 5


# --- the plan without weights -----------------------------------------------------------------------------


def test_a_dry_run_needs_no_weights(small: list[str], base_folder: Path, tmp_path: Path, terminal: Any) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(base_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    module.dry_run(composition([*small, f"model.id={bare}", "run_dir=dry"]), terminal)
    text = "\n".join(terminal.notes)
    assert "train 36" in text
    assert "steps       4" in text
    assert re.search(r"parameters  [\d,]+ of [\d,]+ trained", text)
    assert not Path("dry").exists()


def test_arithmetic_of_a_token() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    def flops(tied: bool, *overrides: str) -> float:
        with torch.device("meta"):
            base = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=100, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, tie_word_embeddings=tied,
                )
            )  # fmt: skip
        cfg = compose(["model=tiny", "quant=none", *overrides])
        return flops_per_token(base, sum(p.numel() for p in base.parameters()), cfg)

    assert flops(True) == flops(False)  # an untied table is looked up, not multiplied
    assert flops(True, "lora=none") == 1.5 * flops(True)
    assert flops(True, "trainer.activation_checkpointing=true") == 1.5 * flops(True)
