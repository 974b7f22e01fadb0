"""Measure training in little GPU memory: python bench/memory.py --out DIR [--gib 20,10,9] [--long 16000] [--tree OLD]

The model has the shape of Llama-3.1-8B and random weights, with its linear layers in NF4. It is created on the GPU and
saved. Rows have 300 to 900 tokens (texts of `sql_synth` with several schemas joined), all of them trained. Training
uses LoRA r=16 on all linear layers, no dropout, 8-bit AdamW and 16 rows per update.

Each run is `python -m ftlab` in a process of its own, in which torch may use only the given number of GiB (0: all of
the GPU). Speed is useful tokens per second over the last three fifths of the updates. The ratio compares a run with the
first one. `--tree` names another checkout, which runs after each run of this one and is compared with it.

`--long` adds runs on rows of the given number of tokens. There, the peak while the base model loads is compared with
the size of the weights. `--tiny` runs a small model without a limit.

DIR/memory.jsonl gets one line per run, and DIR/NAME.txt what the run printed.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from gpu import LLAMA_8B, built

ROOT = Path(__file__).resolve().parents[1]
GIB = 1 << 30
STEPS = 60
FIXED = [
    "model.name=llama8b", "model.revision=main", "quant=nf4", "lora=r16", "lora.lora_dropout=0", "lora.lora_alpha=16",
    "data=jsonl", "data.validation=16", "trainer.loss_on=all", "trainer.optim=adamw_8bit", "trainer.log_every=2",
    "trainer.save_every=1000", "trainer.load_best=false", "eval.every=null", "eval.max_rows=4", "eval.max_new_tokens=8",
    "tracker=none", "force=true",
]  # fmt: skip
# Texts of printed lines that show how rows went through the model.
SETTING_LINES = ("out of memory", "fast step", "slower path")
# Program of a run: it limits torch's memory before any is allocated, then calls the command line.
LIMITED = """
import sys, torch
gib = float(sys.argv.pop(1))
if gib and torch.cuda.is_available():
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)
from ftlab.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def make_model(folder: Path, *, tiny: bool) -> float:
    """Save the model with the included tokenizer and return the GiB of its weights."""
    import torch
    from bitsandbytes.functional import QuantState
    from transformers import AutoTokenizer, BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    shape = LLAMA_8B.tiny() if tiny else LLAMA_8B
    if tiny:
        shape = type(shape)(**{**vars(shape), "vocab_size": 4200})
    model = built(shape, torch.device("cuda" if torch.cuda.is_available() else "cpu"), quant=True)
    model.config.max_position_embeddings = 131_072
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model.hf_quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    model.is_loaded_in_4bit = model.is_quantized = True
    model.quantization_method = model.hf_quantizer.quantization_config.quant_method
    model.config.quantization_config = model.hf_quantizer.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "ftlab" / "tiny").save_pretrained(folder)
    packed = [getattr(weight, "quant_state", None) for weight in model.parameters()]
    states = sum(tensor.nbytes for state in packed if isinstance(state, QuantState) for tensor in tensors_of(state))
    return (sum(weight.nbytes for weight in model.parameters()) + states) / GIB


def tensors_of(state: Any) -> Iterator[Any]:
    """The tensors that hold the scales of a 4-bit weight."""
    yield state.absmax
    if state.nested:
        yield state.state2.absmax


def make_rows(folder: Path, lengths: Iterator[int], count: int) -> float:
    """Write `count` rows of about these numbers of tokens, each with several schemas joined before a question, and
    return their approximate mean number of tokens. One row in ten is a test row."""
    from transformers import AutoTokenizer

    from ftlab.data.sql_synth import generate

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "ftlab" / "tiny")
    texts = generate("train", 1500)
    sizes = [len(tokenizer(row["context"] + ";")["input_ids"]) for row in texts]
    draw = random.Random(0)
    rows, tokens = [], 0
    for wanted, row in zip(lengths, texts[:count], strict=False):
        contexts, held = [row["context"]], len(tokenizer(" ".join(row.values()))["input_ids"]) + 20
        while True:
            more = draw.randrange(len(texts))
            if held + sizes[more] > wanted:
                break
            contexts.append(texts[more]["context"])
            held += sizes[more]
        tokens += held
        rows.append({"question": row["question"], "context": "; ".join(contexts), "answer": row["answer"]})
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[len(rows) // 10 :]), ("test", rows[: len(rows) // 10])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return tokens / len(rows)


def short_lengths() -> Iterator[int]:
    """Endless row lengths in tokens, from 300 to 900, lognormal with a mean of about 520."""
    draw = random.Random(1)
    while True:
        yield min(900, max(300, round(draw.lognormvariate(6.2, 0.35))))


def constant(length: int) -> Iterator[int]:
    while True:
        yield length


def run(
    name: str, tree: Path, out: Path, gib: float, overrides: list[str], tokens: float, *, tiny: bool
) -> dict[str, Any]:
    """Run one command line with torch limited to `gib`, and return its figures; `tokens` is the number per update."""
    folder = out / f"run_{name}"
    words = [*FIXED, f"model.id={out / 'model'}", f"run_dir={folder}", *overrides]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH", "")]))
    began = time.perf_counter()
    with open(out / f"{name}.txt", "w") as output:
        command = [sys.executable, "-c", LIMITED, str(0 if tiny else gib), *words]
        code = subprocess.run(command, cwd=out, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    summary, steps = {}, []
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [(line["step"], line["time"]) for line in lines if line.get("perf/tokens_per_second")]
    late = steps[len(steps) * 2 // 5 :]
    each = (late[-1][1] - late[0][1]) / (late[-1][0] - late[0][0]) if len(late) > 1 else None
    lines = (out / f"{name}.txt").read_text().splitlines()
    return {
        "name": name,
        "exit_code": code,
        "tokens_per_second": tokens / each if each else None,
        "vram": summary.get("vram", {}),
        "setting": summary.get("setting"),
        "seconds": round(time.perf_counter() - began, 1),
        "told": [line for line in lines if any(words in line for words in SETTING_LINES)][:12],
        "end": "" if code == 0 else lines[-1][:300],
    }


def described(found: dict[str, Any], first: float | None, weights: float) -> str:
    """The lines that are printed for a run; `first` is the speed that it is compared with."""
    vram = found["vram"]
    peaks = ", ".join(f"{phase} {vram[phase]['allocated']:.1f}/{vram[phase]['reserved']:.1f}" for phase in vram)
    rate = found["tokens_per_second"]
    speed = f"{rate:,.0f} tokens/s" + (f" ({rate / first:.2f}x)" if first else "") if rate else "no steps recorded"
    load = vram.get("load", {}).get("allocated")
    over = f"; peak while loading: {load - weights:+.2f} GiB over the weights" if load else ""
    return (
        f"{found['name']}: exit code {found['exit_code']}, {speed}; GiB allocated/reserved: {peaks or '-'}{over}\n"
        f"    {found['setting']} {found['end']}\n" + "".join(f"    {line}\n" for line in found["told"])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="folder of the model and the rows; DIR by default")
    parser.add_argument("--gib", default="20,10,9", help="limits in GiB, one run each; 0: no limit")
    parser.add_argument("--long", default="16000", help="row lengths in tokens, one run each")
    parser.add_argument("--tree", type=Path, help="another checkout to compare with")
    parser.add_argument("--steps", type=int, default=STEPS, help="updates of each run")
    parser.add_argument("--tiny", action="store_true", help="a small model, without a limit")
    settings = parser.parse_args()
    out = settings.out.resolve()
    work = (settings.model or out).resolve()
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    weights = make_model(work / "model", tiny=settings.tiny)
    print(f"weights: {weights:.2f} GiB", flush=True)
    mean = make_rows(work / "rows", short_lengths(), 1400)
    orders: list[tuple[str, float, list[str], float]] = []
    for gib in filter(None, settings.gib.split(",")):
        more = [f"data.path={work / 'rows'}", "data.max_length=1024", "trainer.global_batch_size=16"]
        orders.append((f"{gib}gib", float(gib), [*more, f"trainer.max_steps={settings.steps}"], 16 * mean))
    for length in map(int, filter(None, settings.long.split(","))):
        long = make_rows(work / f"rows{length}", constant(length), 40)
        more = [f"data.path={work / f'rows{length}'}", f"data.max_length={length + 384}", "trainer.max_steps=8"]
        more += ["trainer.log_every=1", "trainer.global_batch_size=2", "data.validation=4"]
        orders.append((f"rows_of_{length}", 22.0, more, 2 * long))
    first: float | None = None
    with open(out / "memory.jsonl", "a") as lines:
        for name, gib, overrides, tokens in orders:
            ours = run(name, ROOT, work, gib, overrides, tokens, tiny=settings.tiny)
            first = first or ours["tokens_per_second"]
            print(described(ours, first, weights), flush=True)
            lines.write(json.dumps(ours) + "\n")
            if settings.tree:
                other = run(f"{name}_other", settings.tree.resolve(), work, gib, overrides, tokens, tiny=settings.tiny)
                print(described(other, ours["tokens_per_second"], weights), flush=True)
                lines.write(json.dumps(other) + "\n")


if __name__ == "__main__":
    main()
