"""A run killed at the calls by which it changes the disk, each in turn, and started again, ends with the same adapter.

Runs are forked from a process that has imported everything, so that one takes a second. strace kills one as it enters
a call that writes, renames, removes, makes or cuts a file, or waits for the disk. FTLAB_SOAK_EVERY=3 tries every third
of these calls only.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

CALLS = (
    "write,pwrite64,writev,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,ftruncate,truncate,"
    "fsync,fdatasync,fallocate,link,linkat"
)
Call = tuple[str, int]  # the name of a system call, and how many of that name came before, itself included
EVERY = int(os.environ.get("FTLAB_SOAK_EVERY", "1"))

FORKS = """
import json, os, subprocess, sys
import ftlab.experiment, ftlab.data, ftlab.provenance, ftlab.run_report, ftlab.run_dir, ftlab.terminal
from ftlab.__main__ import main

for line in sys.stdin:
    order = json.loads(line)
    waiting, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        os.read(waiting, 1)
        code = main(order["words"])
        os._exit(code)
    tracer = None
    if order["strace"]:
        tracer = subprocess.Popen([*order["strace"], "-p", str(pid)], stderr=subprocess.PIPE, text=True)
        assert "attached" in tracer.stderr.readline()
    os.write(go, b"x")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if tracer:
        tracer.stderr.close()
        tracer.wait()
    os.close(waiting), os.close(go)
    print(code, flush=True)
"""


class Runs:
    """Runs in processes forked from one."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.words, self.folder = words, folder
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-W", "ignore", "-c", FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, run_dir: Path, *more: str, strace: tuple[str, ...] = ()) -> int:
        """The exit code of one."""
        assert self.process.stdin
        assert self.process.stdout
        words = [*self.words, *more, f"run_dir={run_dir}"]
        order = {"words": words, "log": f"{run_dir}.log", "strace": strace and ("strace", *strace)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def changes(self, run_dir: Path, *more: str) -> list[Call]:
        """The calls by which a run changes the disk, of one that is not disturbed."""
        trace = self.folder / "trace.txt"
        assert self.run(run_dir, *more, strace=("-o", str(trace), "-e", f"trace={CALLS}")) == 0
        names = [line.partition("(")[0] for line in trace.read_text(errors="replace").splitlines() if "(" in line]
        return [(name, names[: i + 1].count(name)) for i, name in enumerate(names) if name in CALLS.split(",")]

    def filled(self, call: Call, run_dir: Path) -> int:
        """The exit code of a run for which the disk is full from such a call on."""
        full = ("-e", "trace=write,pwrite64,fsync", "-e", f"inject={call[0]}:error=ENOSPC:when={call[1]}+")
        return self.run(run_dir, strace=("-o", os.devnull, *full))

    def killed(self, call: Call, run_dir: Path, *more: str) -> bool:
        """Whether a run was killed as it entered such a call."""
        kill = ("-e", f"trace={call[0]}", "-e", f"inject={call[0]}:signal=KILL:when={call[1]}")
        code = self.run(run_dir, *more, strace=("-o", os.devnull, *kill))
        assert code in (0, -9), Path(f"{run_dir}.log").read_text()
        return code == -9


@pytest.fixture(scope="module")
def runs(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    if shutil.which("strace") is None:
        pytest.skip("needs strace, which kills at a system call: apt-get install strace")
    made = Runs([*small, "trainer.save_every=1", "trainer.keep=1"], tmp_path_factory.mktemp("forked"))
    yield made
    made.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> tuple[Path, list[Call]]:
    """The run that nobody disturbs, and the calls by which it changes the disk."""
    folder = runs.folder / "whole"
    return folder, runs.changes(folder)


def outcome(folder: Path) -> dict[str, Any]:
    """All of a run's result that must not depend on how often it was killed."""
    summary = json.loads((folder / "summary.json").read_text())
    files = ("adapter/adapter_model.safetensors", "predictions.jsonl")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    left = sorted(path.name for path in folder.rglob("*") if path.suffix in (".part", ".replaced", ".lock"))
    kept = {key: summary[key] for key in ("status", "base", "tuned", "intervals", "step", "best_step")}
    return kept | digests | {"steps": steps, "left": left}


def check(runs: Runs, whole: Path, calls: list[Call], make: Callable[[Path], Any], *more: str) -> int:
    """Kill a run at each of the calls, in a folder that is made ready, and run it again; the number of kills."""
    expected, kills = outcome(whole), 0
    for name, number in calls:
        folder = runs.folder / f"{name}-{number}"
        make(folder)
        kills += runs.killed((name, number), folder, *more)
        assert runs.run(folder, *more) == 0, f"killed at {name} {number}: " + Path(f"{folder}.log").read_text()[-2000:]
        assert outcome(folder) == expected, f"killed at {name} {number}"
        shutil.rmtree(folder)
    return kills


def test_killed_at_some_changes_of_the_disk_it_ends_bit_identical(runs: Runs, whole: tuple[Path, list[Call]]) -> None:
    folder, calls = whole
    assert len(calls) > 60
    some = [calls[round(len(calls) * part)] for part in (0.2, 0.45, 0.6, 0.85)]
    assert check(runs, folder, some, lambda folder: None) == len(some)


@pytest.mark.parametrize("part", [0.3, pytest.param(0.5, marks=pytest.mark.slow), 0.68])
def test_on_a_full_disk_it_ends_in_one_message_and_then_bit_identical(
    part: float, runs: Runs, whole: tuple[Path, list[Call]]
) -> None:
    """From the first write on that meets a full disk, all of them do."""
    writes = [call for call in whole[1] if call[0] == "write"]
    folder = runs.folder / f"full-{part}"
    assert runs.filled(writes[round(len(writes) * part)], folder) == 1
    assert "Traceback" not in Path(f"{folder}.log").read_text()
    assert not list(folder.glob("checkpoints/*.part"))
    assert runs.run(folder) == 0, Path(f"{folder}.log").read_text()[-2000:]
    assert outcome(folder) == outcome(whole[0])


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_killed_at_every_change_of_the_disk_it_ends_bit_identical(runs: Runs, whole: tuple[Path, list[Call]]) -> None:
    folder, calls = whole
    kills = check(runs, folder, calls[::EVERY], lambda folder: None)
    print(f"{kills} kills at {len(calls[::EVERY])} of {len(calls)} calls")
    assert kills > 0.95 * len(calls[::EVERY])  # a run may write a line less than another


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_killed_at_every_change_while_force_replaces_a_run(runs: Runs, whole: tuple[Path, list[Call]]) -> None:
    """The run before is of another learning rate: nothing of it may reach the new one."""
    before, copied = runs.folder / "before", runs.folder / "copied"
    assert runs.run(before, "trainer.lr=3e-3") == 0
    shutil.copytree(before, copied)
    calls = runs.changes(copied, "force=true")
    removals = [call for call in calls if call[0] in ("unlink", "unlinkat", "rmdir")][:60:EVERY]
    kills = check(runs, whole[0], removals, partial(shutil.copytree, before), "force=true")
    print(f"{kills} kills at {len(removals)} removals while a run was replaced")
    assert kills == len(removals)
