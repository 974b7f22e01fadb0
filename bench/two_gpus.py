"""Compare the samples per second of one GPU with several: python bench/two_gpus.py --out DIR [--tiny]

One launch of torch's launcher starts `--processes` processes. Each has a model with the shape of Mistral-7B on its GPU:
random weights in NF4 with dequantized weights kept in memory, LoRA r=32 on all linear layers and the output layer, and
dropout 0.1 (bench/gpu.py).

First, the first process alone does updates of `--rows` samples while the others wait. Then all processes do the same
updates together: each takes its share of the rows, one all-reduce sums the flat gradient, and every process clips and
runs the optimizer. Both are timed over the same samples, after two passes in which CUDA graphs of their shapes are
captured. The median of three passes counts.

The parts of a joint update are timed once more, waiting for the GPU after each: gradients, the wait for the slowest
process, the all-reduce, clipping, the optimizer, and the exchange of stop signals.

DIR/two_gpus.json holds the figures. `--tiny` runs small shapes on the CPU, over gloo.
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
    """A training variant of bench/gpu.py in this process, which is one of several."""

    def __init__(self, ranks: Any, rows: int, *, tiny: bool) -> None:
        import torch

        if not tiny:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        self.ranks, self.rows, self.tiny = ranks, rows, tiny
        self.bench = gpu.Bench(gpu.Training(rows=rows, micro=rows, kept=True), tiny=tiny)
        self.fast, self.device = self.bench.fast, self.bench.device
        ranks.broadcast([self.fast.flat.parameter.detach()])
        self.spent: dict[str, float] | None = None

    def settle(self, micro: int) -> None:
        """Use micro-batches of `micro` rows."""
        from ftlab.fast.plan import Setting

        self.fast.micro = micro
        self.fast.step._apply(Setting(micro, True, 0.0))

    def update(self, rows: list[Any], seed: int, *, together: bool) -> None:
        """Do one optimizer step as the training loop does it."""
        from ftlab.train.batches import trained_of

        fast, ranks = self.fast, self.ranks
        mine = ranks.share(rows) if together else rows
        fast.step.begin()
        loss = fast.step.accumulate(mine, trained_of(rows), seed + ranks.rank, first=True)
        self.lap("gradients")
        if self.spent is not None:
            ranks.all_gather()
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
        """Add the time since the last lap to this part, if parts are timed."""
        if self.spent is None:
            return
        gpu.synced(self.device)
        now = time.perf_counter()
        self.spent[part] = self.spent.get(part, 0.0) + now - self.clock
        self.clock = now

    def begin_together(self) -> None:
        """Give all processes the adapters of the first, which has trained alone, and a new optimizer."""
        from ftlab.config import TrainerConfig
        from ftlab.train.optim import build_optimizer

        parameter = self.fast.flat.parameter
        self.ranks.broadcast([parameter.detach()])
        cfg = TrainerConfig(lr=2e-5, optim="adamw" if self.tiny else self.bench.variant.optim)
        self.fast.optimizer = build_optimizer([parameter], cfg)

    def passed(self, *, together: bool) -> float:
        """Run one pass over all samples and return the mean seconds per update."""
        gpu.synced(self.device)
        if together:
            self.ranks.all_gather()
        self.clock = began = time.perf_counter()
        for batch in self.bench.batches:
            self.bench.seed += 1000
            self.update(batch, self.bench.seed, together=together)
        gpu.synced(self.device)
        return (time.perf_counter() - began) / len(self.bench.batches)

    def measured(self, micro: int, *, together: bool) -> float:
        """The seconds per update after every shape is captured: the median of three passes."""
        self.settle(micro)
        for _ in range(2):
            self.passed(together=together)
        return statistics.median(self.passed(together=together) for _ in range(3))

    def parts(self) -> dict[str, float]:
        """The milliseconds of each part of a joint update."""
        self.spent = {}
        self.passed(together=True)
        return {f"{part}_ms": 1e3 * spent / len(self.bench.batches) for part, spent in self.spent.items()}

    def apart(self) -> float:
        """The greatest absolute difference between any process's adapters and those of the first."""
        mine = self.fast.flat.parameter.detach()
        firsts = mine.clone()
        self.ranks.broadcast([firsts])
        return max(self.ranks.all_gather(float((mine - firsts).abs().max())))


def work(settings: argparse.Namespace) -> Callable[[Any], None]:
    """The function that each process runs."""

    def measure(ranks: Any) -> None:
        began = time.perf_counter()
        shared = Shared(ranks, settings.rows, tiny=settings.tiny)
        built = time.perf_counter() - began
        alone = ranks.broadcast_from_first(lambda: shared.measured(settings.rows, together=False))
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
    """Start the processes and return their exit code."""
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
    from ftlab.train.ranks import run_distributed

    return run_distributed(work(settings), failed)


if __name__ == "__main__":
    sys.exit(main())
