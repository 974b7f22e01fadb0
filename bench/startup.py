"""Measure how fast the command line answers: python bench/startup.py [--beside OLD] [--runs 5]

The calls are `--help`, `--hydra-help` and `--cfg job`. Each runs as `python -m ftlab` in a process of its own in an
empty folder, with the packages of the Python that runs this script. Install every extra, because Hydra also looks at
the launchers. The table shows the median and the slowest wall-clock seconds, with the target of 1.0 s. `--beside` names
another checkout, whose calls alternate with those of this one; the ratio is the median over the pairs of calls.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CALLS = (["--help"], ["--hydra-help"], ["--cfg", "job"])
TARGET = 1.0


def seconds(tree: Path, words: list[str], folder: str) -> float:
    """The wall-clock seconds of one call of a checkout's command line."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ftlab", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def table_row(words: list[str], pairs: list[list[float]]) -> str:
    """The table's row for one call; `pairs` holds the seconds of this checkout, and of the other if there is one."""
    ours, *others = (list(side) for side in zip(*pairs, strict=True))
    verdict = "ok" if statistics.median(ours) <= TARGET else "too slow"
    cells = [f"{statistics.median(side):.2f} (slowest {max(side):.2f})" for side in (ours, *others)]
    ratio = [f"{statistics.median(other / own for own, other in pairs):.1f}x"] if others else []
    return " | ".join(["", f"`{' '.join(words)}`", *cells, *ratio, verdict, ""]).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="OLD", help="another checkout to compare with")
    parser.add_argument("--runs", type=int, default=5, help="calls of each kind")
    settings = parser.parse_args()
    trees = [ROOT, *([settings.beside.resolve()] if settings.beside else [])]
    heads = ["call", "s", *(["s of OLD", "OLD / this"] if settings.beside else []), f"<= {TARGET} s"]
    print(f"load before: {os.getloadavg()[0]:.2f}\n\n| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    with tempfile.TemporaryDirectory() as folder:
        for words in CALLS:
            for tree in trees:  # so that files are in the disk cache and compiled
                seconds(tree, words, folder)
            pairs = [[seconds(tree, words, folder) for tree in trees] for _ in range(settings.runs)]
            print(table_row(words, pairs), flush=True)


if __name__ == "__main__":
    main()
