"""Compare the fast path with PEFT's own forward pass on one run: python bench/curve.py --out DIR [ftlab overrides ...]

Both train in one call, one after the other, on the same rows in the same order and from the same initial adapter.
Without overrides, the run is the quickstart cut to 60 steps. For the tutorial's settings on real weights:

  python bench/curve.py --out DIR experiment=smollm2_sql trainer=tutorial lora=tutorial quant=nf4 data.path=FOLDER \
      lora.lora_dropout=0 trainer.max_steps=200 eval.every=null

The steps are divided into ten equal parts. The script prints the mean loss of each part on both paths and their
relative difference, then seconds and useful tokens per second of each path and the ratio of the speeds. The two paths
draw different dropout masks, so their losses are closer without dropout.

DIR/curve.json holds the figures, DIR/fast and DIR/plain are the run folders, and DIR/fast.txt and DIR/plain.txt hold
what the runs printed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STRETCHES = 10
BOTH = ["tracker=none", "trainer.log_every=1", "trainer.load_best=false"]
SIDES = {
    "fast": "",
    "plain": "import ftlab.experiment.base as b; b.fast_path = lambda *_: (None, 'requested by bench/curve.py');",
}


def trained(side: str, overrides: list[str], out: Path) -> dict[str, Any]:
    """Train one run and return its losses by step, seconds of training and of the process, and useful tokens per
    second."""
    code = f"import sys; {SIDES[side]} from ftlab.__main__ import main; sys.exit(main(sys.argv[1:]))"
    words = [*BOTH, *overrides, f"run_dir={out / side}", "force=true"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-c", code, *words]
    began = time.perf_counter()
    with open(out / f"{side}.txt", "w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        sys.exit(f"{side}: exit code {done.returncode}\n{(out / f'{side}.txt').read_text()[-2000:]}")
    rows = [json.loads(line) for line in (out / side / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row.get("train/loss") is not None]
    summary = json.loads((out / side / "summary.json").read_text())
    return {
        "losses": [row["train/loss"] for row in steps],
        "tokens_per_second": steps[-1]["perf/tokens_per_second_mean"],
        "train_s": summary["seconds"]["train"],
        "process_s": time.perf_counter() - began,
        "eval_loss": summary["tuned"]["eval/loss"],
        "allocated_gib": summary["vram"].get("train", {}).get("allocated"),
    }


def stretches(losses: list[float]) -> list[float]:
    """The mean losses of `STRETCHES` equal parts of the steps; a part has at least one step."""
    size = max(1, -(-len(losses) // STRETCHES))
    parts = [losses[i : i + size] for i in range(0, len(losses), size)]
    return [sum(part) / len(part) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    out = settings.out.resolve()
    overrides = settings.overrides or ["experiment=quickstart", "trainer.max_steps=60"]
    found = {side: trained(side, overrides, out) for side in SIDES}
    fast, plain = found["fast"], found["plain"]
    curves = list(zip(stretches(fast["losses"]), stretches(plain["losses"]), strict=True))
    print("mean loss     fast    plain    diff.")
    for part, (ours, theirs) in enumerate(curves, 1):
        print(f"{part:6} of {len(curves)} {ours:8.4f} {theirs:8.4f} {abs(ours - theirs) / theirs:8.2%}")
    print(f"eval/loss     {fast['eval_loss']:.4f}   {plain['eval_loss']:.4f}")
    print(f"training      {fast['train_s']:.1f} s   {plain['train_s']:.1f} s")
    print(f"tokens/s      {fast['tokens_per_second']:,.0f}   {plain['tokens_per_second']:,.0f}")
    print(f"ratio         {fast['tokens_per_second'] / plain['tokens_per_second']:.2f}x")
    (out / "curve.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
