"""How fast something is shown: python bench/startup.py [--beside OLD] [--runs 5]

`--help`, `--hydra-help` and `--cfg job`, each as `python -m ftlab` in a process of its own in an empty folder, with the
packages of the Python that runs this (install every extra: launchers add to what Hydra looks at). Wall-clock seconds,
the median and the slowest, with the target of 1.0 s. `--beside` names another checkout, whose runs alternate with ours;
the ratio is the median of the pairs'.
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
    """One call of a checkout's command line."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ftlab", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def told(words: list[str], pairs: list[list[float]]) -> str:
    """A line of the table."""
    ours, *others = (list(side) for side in zip(*pairs, strict=True))
    verdict = "ok" if statistics.median(ours) <= TARGET else "too slow"
    cells = [f"{statistics.median(side):.2f} (slowest {max(side):.2f})" for side in (ours, *others)]
    ratio = [f"{statistics.median(other / own for own, other in pairs):.1f}x"] if others else []
    return " | ".join(["", f"`{' '.join(words)}`", *cells, *ratio, verdict, ""]).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="OLD")
    parser.add_argument("--runs", type=int, default=5)
    settings = parser.parse_args()
    trees = [ROOT, *([settings.beside.resolve()] if settings.beside else [])]
    heads = ["call", "s", *(["s of OLD", "OLD / ours"] if settings.beside else []), f"<= {TARGET} s"]
    print(f"load before: {os.getloadavg()[0]:.2f}\n\n| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    with tempfile.TemporaryDirectory() as folder:
        for words in CALLS:
            for tree in trees:  # files are read once, compiled ones written
                seconds(tree, words, folder)
            pairs = [[seconds(tree, words, folder) for tree in trees] for _ in range(settings.runs)]
            print(told(words, pairs), flush=True)


if __name__ == "__main__":
    main()
