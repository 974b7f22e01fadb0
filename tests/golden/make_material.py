"""Makes the folders of tests/golden/material with the sources of an earlier commit: python make_material.py TREE OUT.

TREE holds those sources. OUT gets rows/, a finished run, one that was stopped, and a study that was stopped while one
trial was finished, one pruned and one under way. README.md beside the material says what is left out.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TABLES = ("cat", "dog", "emu", "fox", "gnu", "hen", "owl", "pig", "ram", "yak")
WORDS = (
    "model=tiny",
    "quant=none",
    # Few weights make small checkpoints.
    "lora.r=1",
    "lora.lora_alpha=32",
    "lora.target_modules=[layers.2.self_attn.v_proj]",
    "data.validation=4",
    "trainer=quick",
    "trainer.lr=1e-2",
    "trainer.warmup_steps=0",
    "trainer.global_batch_size=4",
    "trainer.micro_batch_size=2",
    "trainer.log_every=1",
    "trainer.save_every=2",
    "trainer.keep=1",
    "eval.every=2",
    "eval.max_new_tokens=12",
    "tracker=none",
)
FINISHED = (*WORDS, "data=sql_synth", "data.train_rows=24", "data.test_rows=4", "trainer.max_steps=6")
ROWS = (*WORDS, "data=jsonl", "data.path=rows", "lora.lora_dropout=0.1")
STOPPED = (*ROWS, "trainer.max_steps=12")
# The first trial learns, the second does not, the third is interrupted, and one more is left.
SWEEP = (
    *ROWS,
    "trainer.max_steps=8",
    "trainer.lr=5e-3,1e-7,1e-2,2e-2",
    "sweep.study=golden",
    "sweep.n_trials=4",
    "sweep.pruner=median",
)
LEFT_OUT = ("tokenizer.json", "report.html", "report.md", "output.txt", "*.lock")


def rows(count: int, offset: int = 0) -> list[dict[str, str]]:
    return [
        {
            "question": f"How many {table}s over {i}?",
            "context": f"CREATE TABLE {table}{i // 10} (age INT)",
            "answer": f"SELECT COUNT(*) FROM {table}{i // 10} WHERE age > {i}",
            "db_id": f"{table}{i // 10}",
        }
        for i in range(offset, offset + count)
        for table in [TABLES[i % 10]]
    ]


def write_rows(folder: Path) -> None:
    folder.mkdir()
    for name, part in (("train", rows(40)), ("test", rows(4, offset=100))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def start(tree: Path, cwd: Path, *words: str) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, "-m", "ftlab", *words], cwd=cwd, env=env)


def stop_when(process: "subprocess.Popen[bytes]", reached: Callable[[], bool]) -> None:
    while not reached():
        if process.poll() is not None:
            sys.exit("it ended before it could be stopped")
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    if process.wait(timeout=60) != 75:
        sys.exit(f"it ended with exit code {process.returncode}, not 75")


def status(folder: Path) -> str:
    file = folder / "summary.json"
    return str(json.loads(file.read_text())["status"]) if file.is_file() else ""


def is_interruptible(study: Path) -> bool:
    """Whether two trials have ended, one of them pruned, and a third has saved a checkpoint."""
    found = [status(folder) for folder in study.glob("[0-9]*")]
    under_way = [folder for folder in study.glob("[0-9]*") if status(folder) == "running"]
    saved = any(list(folder.glob("checkpoints/step-00000[4-9]/manifest.json")) for folder in under_way)
    return found.count("pruned") >= 1 and found.count("finished") >= 1 and saved


def main(tree: Path, out: Path) -> None:
    out.mkdir(parents=True)
    write_rows(out / "rows")
    if start(tree, out, *FINISHED, "run_name=finished", "run_dir=finished").wait():
        sys.exit("the run failed")
    saved = (out / "stopped/checkpoints/step-000004/manifest.json").is_file
    stop_when(start(tree, out, *STOPPED, "run_name=stopped", "run_dir=stopped"), saved)
    stop_when(start(tree, out, "--multirun", *SWEEP, "run_dir=study"), lambda: is_interruptible(out / "study"))
    for name in LEFT_OUT:
        for file in out.rglob(name):
            file.unlink()
    for file in out.rglob(".hydra/hydra.yaml"):
        file.write_text(file.read_text().replace(str(tree), "tree").replace(str(out), "out"))
    with sqlite3.connect(out / "study/study.db") as database:
        database.executescript("PRAGMA journal_mode=DELETE; PRAGMA page_size=512; VACUUM")
    database.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
