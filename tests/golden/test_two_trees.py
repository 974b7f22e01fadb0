"""One experiment with the sources of an earlier commit and with the present ones, on one machine, ends the same."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden.changes import CHANGED, NEW, covered
from golden.records import digests, leaves, read_json, read_lines

# What may differ between two runs of the same sources: names, times, versions and memory.
VARYING = {
    "summary.json": ("run_name", "started", "seconds", "versions"),
    "metrics.jsonl": ("time", "perf/", "vram"),
}
SAME = (
    "predictions.jsonl",
    *(
        f"adapter/{name}"
        for name in ("adapter_model.safetensors", "README.md", "generation_config.json", "prompt.json")
    ),
    *(f"adapter/{name}" for name in ("tokenizer.json", "tokenizer_config.json")),
)
QUICKSTART = ("experiment=quickstart", "tracker=none", "run_name=golden")
SHORT = (
    "data.train_rows=96",
    "data.validation=4",
    "data.test_rows=4",
    "trainer.max_steps=4",
    "trainer.warmup_steps=1",
    "trainer.log_every=2",
    "trainer.save_every=2",
    "eval.every=2",
    "trainer.global_batch_size=8",
    "eval.max_new_tokens=16",
)
# The step without the fast path, which does not know biases; dropout; a loss on whole rows.
PLAIN = (*SHORT, "quant=none", "lora=r4", "lora.bias=lora_only", "lora.lora_dropout=0.1", "trainer.loss_on=all")


def differences(record: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for each value that was lost, has changed or is new without a reason in `changes`."""
    before, after = (
        {key: value for key, value in leaves(node) if not key.startswith(VARYING[record])} for node in (old, new)
    )
    held = {key: value for key, value in before.items() if not covered(key, CHANGED[record])}
    added = [key for key in after if key not in before and not covered(key, NEW[record])]
    return [
        *(f"{record}: {key} is lost" for key in held if key not in after),
        *(f"{record}: {key} is new" for key in added),
        *(
            f"{record}: {key} was {value!r}, is {after[key]!r}"
            for key, value in held.items()
            if key in after and after[key] != value
        ),
    ]


def compare(old: Path, new: Path) -> list[str]:
    """What differs between two run folders, for whoever reads them."""
    files = [digests(run) for run in (old, new)]
    found = [f"{name} is lost" for name in files[0].keys() - files[1]]
    found += [f"{name} is a new file" for name in files[1].keys() - files[0]]
    summaries = [read_json(run / "summary.json") for run in (old, new)]
    found += differences("summary.json", *summaries)
    for kind in ("base", "tuned"):
        order = [list(summary[kind]) for summary in summaries]
        found += [f"{kind}: metric keys were {order[0]}, are {order[1]}"] * (order[0] != order[1])
    metrics = [read_lines(run / "metrics.jsonl") for run in (old, new)]
    if len(metrics[0]) != len(metrics[1]):
        found.append(f"metrics.jsonl: {len(metrics[0])} lines, now {len(metrics[1])}")
    for before, after in zip(*metrics, strict=False):
        found += differences("metrics.jsonl", before, after)
        # Clocks and memory have other values, but the same keys.
        found += [f"metrics.jsonl: {key} is lost" for key in before if key not in after]
    answers = [read_lines(run / "predictions.jsonl") for run in (old, new)]
    columns = [[list(row) for row in rows] for rows in answers]
    if columns[0] != columns[1]:
        found.append(f"predictions.jsonl: columns were {columns[0][0]}, are {columns[1][0]}")
    found += [f"{name} has other bytes" for name in SAME if files[0][name] != files[1].get(name)]
    adapters = [read_json(run / "adapter/adapter_config.json") for run in (old, new)]
    for adapter in adapters:
        adapter["target_modules"].sort()  # PEFT writes a set
    return found + ["adapter/adapter_config.json has other values"] * (adapters[0] != adapters[1])


def compare_runs(
    runs: dict[str, tuple[str, ...]],
    trees: dict[str, Path],
    folder: Path,
    start: Callable[..., "subprocess.Popen[str]"],
    finish: Callable[..., str],
) -> list[str]:
    """The differences between runs of the two trees, by name; the trees run side by side."""
    commands = [(*QUICKSTART, *words, f"run_dir={name}") for name, words in runs.items()]
    processes = [start(tree, folder / name, *commands) for name, tree in trees.items()]
    for process in processes:
        finish(process, timeout=700)
    return [f"{run}: {line}" for run in runs for line in compare(*(folder / name / run for name in trees))]


@pytest.fixture
def trees(old_tree: Path, root: Path) -> dict[str, Path]:
    return {"old": old_tree, "new": root}


def test_short_runs_end_as_with_the_old_sources(
    trees: dict[str, Path], tmp_path: Path, start: Any, finish: Any
) -> None:
    assert compare_runs({"fast": SHORT, "plain": PLAIN}, trees, tmp_path, start, finish) == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_quickstart_ends_as_with_the_old_sources(
    trees: dict[str, Path], tmp_path: Path, start: Any, finish: Any
) -> None:
    assert compare_runs({"whole": ()}, trees, tmp_path, start, finish) == []
