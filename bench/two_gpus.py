"""Samples a second of one GPU and of several, at the same update: python bench/two_gpus.py --out DIR [--tiny]

One launch of `--processes` processes (torch's own launcher), each with Mistral-7B's shape on its GPU: random weights in
NF4 with a bfloat16 copy, LoRA r32 on all linears and the output layer, dropout 0.1 (bench/gpu.py). First the first
process alone does updates of `--rows` samples while the others wait, then all do the same updates together: each its
share of the rows, one all-reduce of the flat gradient, clipping and the optimizer everywhere. Both are timed over the
same samples after two passes in which their shapes are captured, three times, and the median counts. The parts of an
update together are timed once more with the GPU waited for after each: gradients, the wait for the slowest process,
the all-reduce, clipping, the optimizer, and asking whether anybody is to stop.

DIR/two_gpus.json gets the figures. `--tiny` runs small shapes on the CPU, over gloo.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu  # beside this file; it puts the repository on the path


class Shared:
    """A training variant of bench/gpu.py in this process, one of several."""

    def __init__(self, ranks: Any, rows: int, *, tiny: bool) -> None:
        import torch

        if not tiny:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        self.ranks, self.rows, self.tiny = ranks, rows, tiny
        self.bench = gpu.Bench(gpu.Training(rows=rows, micro=rows, kept=True), tiny=tiny)
        self.fast, self.device = self.bench.fast, self.bench.device
        ranks.same([self.fast.flat.parameter.detach()])
        self.spent: dict[str, float] | None = None

    def settle(self, micro: int) -> None:
        """Micro-batches of so many rows, in one."""
        from ftlab.fast.plan import Setting

        self.fast.micro = micro
        self.fast.step._settle(Setting(micro, True, 0.0))

    def update(self, rows: list[Any], seed: int, *, together: bool) -> None:
        """An optimizer step, as the loop does it."""
        from ftlab.train.batches import trained_of

        fast, ranks = self.fast, self.ranks
        mine = ranks.share(rows) if together else rows
        fast.step.begin()
        loss = fast.step.accumulate(mine, trained_of(rows), seed + ranks.rank, first=True)
        self.lap("gradients")
        if self.spent is not None:
            ranks.meet()
        self.lap("wait")
        if together:
            ranks.sum_([fast.flat.parameter], loss)
        self.lap("sum")
        gradient = fast.flat.gradient
        gradient.mul_((1.0 / (gradient.norm() + 1e-6)).clamp(max=1.0))
        self.lap("clip")
        fast.optimizer.step()
        self.lap("optimizer")
        if together:
            ranks.any("")
        self.lap("signal")

    def lap(self, part: str) -> None:
        """Where parts are timed: the time since the last lap is this one's."""
        if self.spent is None:
            return
        gpu.synced(self.device)
        now = time.perf_counter()
        self.spent[part] = self.spent.get(part, 0.0) + now - self.clock
        self.clock = now

    def begin_together(self) -> None:
        """The first process has stepped before the others: they take over its adapters, and nobody its moments."""
        from ftlab.config import TrainerConfig
        from ftlab.train.optim import build_optimizer

        parameter = self.fast.flat.parameter
        self.ranks.same([parameter.detach()])
        cfg = TrainerConfig(lr=2e-5, optim="adamw" if self.tiny else self.bench.variant.optim)
        self.fast.optimizer = build_optimizer([parameter], cfg)

    def passed(self, *, together: bool) -> float:
        """Seconds of an update, over all samples."""
        gpu.synced(self.device)
        if together:
            self.ranks.meet()
        self.clock = began = time.perf_counter()
        for batch in self.bench.batches:
            self.bench.seed += 1000
            self.update(batch, self.bench.seed, together=together)
        gpu.synced(self.device)
        return (time.perf_counter() - began) / len(self.bench.batches)

    def measured(self, micro: int, *, together: bool) -> float:
        """Seconds of an update once every shape is captured."""
        self.settle(micro)
        for _ in range(2):
            self.passed(together=together)
        return statistics.median(self.passed(together=together) for _ in range(3))

    def parts(self) -> dict[str, float]:
        """Milliseconds of the parts of an update together."""
        self.spent = {}
        self.passed(together=True)
        return {f"{part}_ms": 1e3 * spent / len(self.bench.batches) for part, spent in self.spent.items()}

    def apart(self) -> float:
        """The greatest difference between this process's adapters and those of the first."""
        mine = self.fast.flat.parameter.detach()
        firsts = mine.clone()
        self.ranks.same([firsts])
        return max(self.ranks.meet(float((mine - firsts).abs().max())))


def work(settings: argparse.Namespace) -> Callable[[Any], None]:
    """What each process does."""

    def measure(ranks: Any) -> None:
        began = time.perf_counter()
        shared = Shared(ranks, settings.rows, tiny=settings.tiny)
        built = time.perf_counter() - began
        alone = ranks.of_first(lambda: shared.measured(settings.rows, together=False))
        shared.begin_together()
        several = shared.measured(ranks.most(settings.rows), together=True)
        figures = {
            "processes": ranks.world,
            "rows": settings.rows,
            "alone_s_step": alone,
            "alone_samples_s": settings.rows / alone,
            "together_s_step": several,
            "together_samples_s": settings.rows / several,
            "ratio": alone / several,
            **shared.parts(),
            "gradient_mib": shared.fast.flat.gradient.numel() * 4 / 2**20,
            "adapters_apart": shared.apart(),
            "build_s": built,
            **gpu.peaks(shared.device),
        }
        if ranks.first:
            print(json.dumps({k: round(v, 5) for k, v in figures.items()}), flush=True)
            (settings.out / "two_gpus.json").write_text(json.dumps(figures, indent=1) + "\n")

    return measure


def launch(settings: argparse.Namespace) -> int:
    """Start the processes; their exit code."""
    words = ["--out", str(settings.out), "--rows", str(settings.rows), "--inner", *["--tiny"] * settings.tiny]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run([*launcher, f"--nproc_per_node={settings.processes}", __file__, *words]).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    if not settings.inner:
        return launch(settings)
    from ftlab.__main__ import failed
    from ftlab.train.ranks import together

    return together(work(settings), failed)


if __name__ == "__main__":
    sys.exit(main())
