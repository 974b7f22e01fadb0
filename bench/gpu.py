"""Measure the fast step and the fast generation on one GPU: python bench/gpu.py --out DIR [--baselines baselines.py]

No weights are read: every model gets normal(0, 0.02) weights on the GPU, and 4-bit ones are quantized there. Samples
are random tokens with lognormal lengths (mean 125, sigma 0.3, clipped to 60..256); all tokens but the first are
trained. The adapter is PEFT's LoRA with r=32, alpha=64 and dropout 0.1. Gradients are clipped to 1.0, and the optimizer
is paged 8-bit AdamW over one flat tensor.

A *step* is an optimizer step. Its time is wall time between two synchronisations over one pass of the samples, after
two passes over the same samples in which every batch shape is compiled and captured. *Useful* tokens are those of
samples, without padding. The *floor* is the time of 4 N FLOP per token (N parameters) at the rate of an 8192^3 bfloat16
product, measured in the same call. *NVML* is the peak of the process, including its context, its graphs and what
building the model took. The other peaks are counted after building.

Each variant has a process of its own, and the next one imports while this one runs. `--baselines` names the script
whose variants (BASELINES, and many_adapters.py beside it) run in between. The last column compares with them.
DIR/gpu.jsonl gets one line per variant, DIR/gpu.md the tables, and DIR/gpu.log the output of the processes.

  --only NAME,...     run these variants, in this order; `check` compares with PEFT's autograd in float32
  --profile NAME      run three steps of a training variant under torch's profiler: kernels, busy time, gaps
  --budget SECONDS    start no further variant after this time
  --tiny              small shapes, without a GPU
"""

import argparse
import copy
import gzip
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Record = dict[str, Any]
GIB = 2**30
STEPS = 24
LONGEST_JOB = 170.0  # limit in seconds for one process
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL = [*LINEARS, "lm_head"]


# --- what is measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; `family` is transformers' name of its architecture."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool = False

    @property
    def parameters(self) -> int:
        """The number of parameters of the frozen model."""
        hidden, kept = self.hidden_size, self.num_key_value_heads / self.num_attention_heads
        layer = 2 * hidden * hidden * (1 + kept) + 3 * hidden * self.intermediate_size + 2 * hidden
        vocabulary = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        return round(vocabulary + self.num_hidden_layers * layer + hidden)

    def tiny(self) -> "Shape":
        """A small model of the same family."""
        return Shape(self.family, 512, 64, 128, 2, 4, 2, self.tie_word_embeddings)


MISTRAL_7B = Shape("mistral", 32000, 4096, 14336, 32, 32, 8)
LLAMA_8B = Shape("llama", 128256, 4096, 14336, 32, 32, 8)
SMOLLM_135M = Shape("llama", 49152, 576, 1536, 30, 9, 3, tie_word_embeddings=True)


@dataclass(frozen=True)
class Training:
    """A training variant: `rows` samples per step in micro-batches of `micro`. If `kept`, the dequantized bfloat16
    weights are kept in memory."""

    shape: Shape = MISTRAL_7B
    rows: int = 8
    micro: int = 8
    quant: bool = True
    kept: bool = False
    share: float = 0.0  # fraction of the layers with activation checkpointing
    dropout: float = 0.1
    targets: list[str] = field(default_factory=lambda: ALL)
    optim: str = "paged_adamw_8bit"
    torch_gib: float | None = None  # memory that torch may reserve; None: all
    against: str | None = None


@dataclass(frozen=True)
class Generation:
    """A generation variant: `prompts` of about 100 tokens are each answered with 64 tokens, `batch` at a time, with the
    adapters merged."""

    shape: Shape = MISTRAL_7B
    prompts: int = 256
    batch: int = 256
    quant: bool = True
    targets: list[str] = field(default_factory=lambda: ALL)
    against: str | None = None


# The CUDA context, kernels and graphs take about 1.5 GiB in addition to what torch reserves.
CARD_24GB = 21.4
TRAININGS = {
    "ftlab8": Training(against="proto8_graph"),
    "ftlab8_bf16": Training(kept=True, against="proto8_cache_graph"),
    "ftlab8_bf16_unpaged": Training(kept=True, optim="adamw_8bit", against="proto8_cache_graph"),
    "ftlab8_bf16_nodrop": Training(kept=True, dropout=0.0, against="proto8_cache_graph"),
    "ftlab32_bf16": Training(rows=32, micro=32, kept=True, against="proto32_cache_graph"),
    "ftlab32_24gb": Training(rows=32, micro=8, torch_gib=CARD_24GB, against="proto32_cache_graph"),
    "ftlab32_24gb_16": Training(rows=32, micro=16, torch_gib=CARD_24GB, against="proto32_cache_graph"),
    "ftlab8_llama8b": Training(shape=LLAMA_8B, kept=True),
    "ftlab8_135m": Training(
        shape=SMOLLM_135M, quant=False, targets=LINEARS, optim="adamw", against="many_135m"
    ),
}  # fmt: skip
GENERATIONS = {
    "gen256": Generation(against="g_graph256"),
    "gen2012_135m": Generation(shape=SMOLLM_135M, prompts=2012, batch=512, quant=False, targets=LINEARS),
}
BASELINES = ["seed", "hf8", "proto8_graph", "proto8_cache_graph", "proto32_cache_graph", "g_graph256"]
MANY = "many_135m"  # many_adapters.py, one adapter with 8 samples; its output layer is not tied and has an adapter
USUAL = [
    "limits", "check", "ftlab8", "proto8_graph", "ftlab8_bf16", "proto8_cache_graph", "ftlab8_bf16_nodrop",
    "ftlab32_bf16", "proto32_cache_graph", "ftlab32_24gb", "ftlab32_24gb_16", "ftlab8_llama8b", "ftlab8_135m", MANY,
    "gen256", "g_graph256", "gen2012_135m",
]  # fmt: skip


# --- samples and models -------------------------------------------------------------------------------------------


def samples(count: int, vocab: int, mean: float = 125, seed: int = 0) -> list[list[int]]:
    """Random token ids, the same as those of baselines.py for the same arguments."""
    draw, sigma = random.Random(seed), 0.3
    mu = math.log(mean) - sigma * sigma / 2
    lengths = [min(256, max(60, round(math.exp(draw.gauss(mu, sigma))))) for _ in range(count)]
    draw = random.Random(seed + 1)
    return [[draw.randrange(3, vocab) for _ in range(length)] for length in lengths]


def configured(shape: Shape) -> Any:
    """transformers' configuration of a shape."""
    from transformers import AutoConfig

    numbers = {name: value for name, value in vars(shape).items() if name != "family"}
    window = {"sliding_window": 4096} if shape.family == "mistral" else {}
    rest = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
    return AutoConfig.for_model(shape.family, **numbers, **window, **rest)


def built(shape: Shape, device: Any, *, quant: bool) -> Any:
    """A random bfloat16 model, created on the device. With `quant`, the linear layers of its blocks are in NF4, double
    quantized."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = configured(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            weight = torch.empty_like(module.weight, device=device).normal_(0, 0.02)
            if quant and isinstance(module, nn.Linear) and name != "lm_head":
                model.set_submodule(name, packed(weight))
            else:
                module.weight = nn.Parameter(weight, requires_grad=False)
        elif type(module).__name__.endswith("RMSNorm"):
            module.weight = nn.Parameter(torch.ones_like(module.weight, device=device), requires_grad=False)
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.tie_weights()
    model.is_loaded_in_4bit = quant  # PEFT asks for it
    return model


def packed(weight: Any) -> Any:
    """A bitsandbytes layer with these weights: NF4, double quantization, products in their precision."""
    import bitsandbytes as bnb

    out, columns = weight.shape
    layer = bnb.nn.Linear4bit(
        columns, out, bias=False, compute_dtype=weight.dtype, quant_type="nf4", compress_statistics=True, device="meta"
    )
    layer.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
    ).to(weight.device)
    return layer


def adapted(model: Any, targets: list[str], *, dropout: float, rank: int = 32) -> Any:
    """The model with LoRA adapters of PEFT."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=list(targets)
    )
    return get_peft_model(model, lora)


class Fast:
    """The fast step of a PEFT model, in a setting that the caller chooses."""

    def __init__(self, model: Any, *, micro: int, longest: int, optim: str, kept: bool = False, share: float = 0.0):
        from ftlab.config import TrainerConfig
        from ftlab.fast.decoder import Decoder
        from ftlab.fast.flat import Flat, Trainable
        from ftlab.fast.plan import Setting
        from ftlab.fast.step import FastStep
        from ftlab.train.optim import build_optimizer

        cfg = TrainerConfig(lr=2e-5, optim=optim)
        self.model, self.decoder, self.micro = model, Decoder(model), micro
        self.flat = Flat(self.decoder.parameters())
        self.step = FastStep(self.decoder, cfg, longest=longest, need=lambda *_: 0.0)
        self.step.attach(Trainable({}, self.flat))
        # In a run, the planner chooses the setting from the free memory; here each variant has its own.
        self.step._apply(Setting(micro, kept, share))
        self.optimizer = build_optimizer([self.flat.parameter], cfg)

    @property
    def graphs(self) -> int:
        """The number of batch shapes captured so far."""
        return len(self.step.graphs) if self.step.graphs else 0

    def gradients(self, rows: list[Any], seed: int) -> Any:
        """Compute gradients in the flat buffer and return the mean loss, still on the device."""
        trained = sum(row.trained for row in rows)
        self.step.begin()
        pieces = [rows[i : i + self.micro] for i in range(0, len(rows), self.micro)]
        losses = [self.step.accumulate(p, trained, seed + i, first=i == 0) for i, p in enumerate(pieces)]
        return sum(losses) / trained

    def update(self, rows: list[Any], seed: int) -> Any:
        """Do a whole optimizer step without waiting for the device, and return the mean loss."""
        loss = self.gradients(rows, seed)
        gradient = self.flat.gradient
        gradient.mul_((1.0 / (gradient.norm() + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        return loss


# --- training -----------------------------------------------------------------------------------------------------


class Bench:
    """A training variant with its model; `batches` are the rows of each step."""

    def __init__(self, variant: Training, *, tiny: bool) -> None:
        import torch

        from ftlab.data.encode import Encoded

        self.variant, self.device = variant, torch.device("cpu" if tiny else "cuda")
        self.shape = variant.shape.tiny() if tiny else variant.shape
        if variant.torch_gib and not tiny:
            whole = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(variant.torch_gib * GIB / whole)
        drawn = samples((2 if tiny else STEPS) * variant.rows, self.shape.vocab_size)
        rows = [Encoded(str(i), ids, ((1, len(ids)),)) for i, ids in enumerate(drawn)]
        self.batches = [rows[i : i + variant.rows] for i in range(0, len(rows), variant.rows)]
        began = time.perf_counter()
        model = adapted(
            built(self.shape, self.device, quant=variant.quant), variant.targets, dropout=variant.dropout
        )  # fmt: skip
        self.fast = Fast(
            model, micro=variant.micro, longest=max(map(len, drawn)), kept=variant.kept, share=variant.share,
            optim="adamw" if tiny else variant.optim,
        )  # fmt: skip
        cleaned(self.device)
        self.build_s = time.perf_counter() - began
        self.seed = 0

    def warm(self) -> tuple[float, float]:
        """Run every shape twice; return the seconds of the first step, and of the steps that captured a graph together.
        The largest shape comes first, as in a run, so that the others fit into its memory."""
        seconds = []
        for batch in sorted(self.batches, key=lambda rows: -sum(row.tokens for row in rows)) * 2:
            graphs = self.fast.graphs
            took = self.timed([batch])[0]
            seconds.append((took, self.fast.graphs > graphs))
        return seconds[0][0], sum(took for took, captured in seconds if captured)

    def timed(self, batches: list[Any]) -> tuple[float, Any]:
        """Run these steps; return their seconds and the loss of the last one."""
        synced(self.device)
        began = time.perf_counter()
        for batch in batches:
            self.seed += 1000
            loss = self.fast.update(batch, self.seed)
        synced(self.device)
        return time.perf_counter() - began, loss

    def padded(self) -> int:
        """The number of tokens that a pass computes, padding included."""
        from ftlab.fast.layout import Layout

        micro = self.variant.micro
        pieces = [batch[i : i + micro] for batch in self.batches for i in range(0, len(batch), micro)]
        return sum(Layout.of(piece, micro, padded=self.fast.step.cuda).tokens for piece in pieces)


def train(name: str, *, tiny: bool) -> Record:
    """Measure a training variant and return its record."""
    bench = Bench(TRAININGS[name], tiny=tiny)
    first, capture = bench.warm()
    took, loss = bench.timed(bench.batches)
    steps, rows = len(bench.batches), bench.variant.rows
    useful = sum(row.tokens for batch in bench.batches for row in batch)
    return dict(
        kind="train", name=name, s_step=took / steps, samples_step=rows, samples_s=rows * steps / took,
        tok_s=useful / took, useful=useful / bench.padded(), loss=float(loss), first_call_s=first, capture_s=capture,
        graphs=bench.fast.graphs, build_s=bench.build_s, steps=steps, parameters=bench.shape.parameters,
        trainable=sum(p.numel() for p in bench.fast.flat.members), **peaks(bench.device),
    )  # fmt: skip


def synced(device: Any) -> None:
    """Wait for the device."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def cleaned(device: Any) -> None:
    """Free unused memory and reset the peaks."""
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peaks(device: Any) -> Record:
    """The peaks of torch's memory in GiB since `cleaned`."""
    import torch

    if device.type != "cuda":
        return {}
    return {
        "alloc_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
    }


# --- generation ---------------------------------------------------------------------------------------------------


def generate(name: str, *, tiny: bool) -> Record:
    """Measure a generation variant and return its record: the first call, merging included, and a second one."""
    import torch

    from ftlab.fast.decoder import Decoder
    from ftlab.fast.generator import Generator

    variant, device = GENERATIONS[name], torch.device("cpu" if tiny else "cuda")
    shape = variant.shape.tiny() if tiny else variant.shape
    count, new, batch = (8, 4, 4) if tiny else (variant.prompts, 64, variant.batch)
    model = adapted(built(shape, device, quant=variant.quant), variant.targets, dropout=0.0)
    filled(model, 0.01)
    prompts = [ids[:200] for ids in samples(count, shape.vocab_size, mean=100, seed=7)]
    cleaned(device)
    began = time.perf_counter()
    decoder = Decoder(model.eval())
    with decoder.merged():
        synced(device)
        merged = time.perf_counter()
        # No token ends an answer, so every answer has full length.
        generator = Generator(decoder, end=-1, max_new_tokens=new, batch_size=batch)
        said = generator.run(prompts)
        first = time.perf_counter()
        again = generator.run(prompts)
        took = time.perf_counter() - first
    return dict(
        kind="gen", name=name, samples=count, secs=took, first_call_s=first - began, merge_s=merged - began,
        samples_s=count / took, new_tok_s=sum(map(len, again)) / took,
        same=sum(a == b for a, b in zip(said, again, strict=True)) / count, **peaks(device),
    )  # fmt: skip


def filled(model: Any, deviation: float) -> None:
    """Fill the B matrices of the adapters, which start as zeros, with random numbers."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, deviation)


# --- limits -------------------------------------------------------------------------------------------------------


def limits(*, tiny: bool) -> Record:
    """Measure the device's rate of products and copies; the record also has the versions of packages."""
    from importlib.metadata import version

    import torch

    packages = ("torch", "triton", "transformers", "peft", "bitsandbytes")
    record: Record = {"kind": "limits", "name": "limits", "versions": {name: version(name) for name in packages}}
    if tiny:
        return record
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    product = median_seconds(lambda: a @ b)
    copied = median_seconds(lambda: target.copy_(source))
    return record | {
        "matmul_tflops": 2 * 8192**3 / product / 1e12,
        "copy_tb_s": 8 * source.numel() / copied / 1e12,
        "device": torch.cuda.get_device_name(),
    }


def median_seconds(work: Callable[[], Any]) -> float:
    """The median seconds of 30 runs, after 10 that do not count."""
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(31)]
    for _ in range(10):
        work()
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in pairwise(events))[15] / 1e3


# --- profile ------------------------------------------------------------------------------------------------------


def profile(name: str, out: Path, *, tiny: bool) -> Record:
    """Run three steps under torch's profiler and write the trace to `out`."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    bench = Bench(TRAININGS[name], tiny=tiny)
    bench.warm()
    bench.timed(bench.batches)
    plain = bench.timed(bench.batches[:3])[0]
    activities = [ProfilerActivity.CPU if tiny else ProfilerActivity.CUDA]
    with profiler(activities=activities) as recorded:
        took = bench.timed(bench.batches[:3])[0]
    trace = out / f"{name}.trace.json"
    recorded.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    with gzip.open(f"{trace}.gz", "wt") as file:
        file.write(trace.read_text())
    trace.unlink()
    kinds = {"cpu_op"} if tiny else {"kernel", "gpu_memcpy", "gpu_memset"}
    text = spent([event for event in events if event.get("cat") in kinds])
    head = f"{name}: 3 steps, {1e3 * plain:.1f} ms without the profiler, {1e3 * took:.1f} ms with it"
    return {"kind": "profile", "name": name, "text": f"{head}\n{text}"}


def spent(events: list[Record]) -> str:
    """Describe a trace: how long the device was busy and idle, and its most expensive kernels."""
    durations: dict[str, list[float]] = defaultdict(list)
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events)
    for event in events:
        durations[event["name"]].append(event["dur"])
    busy, end, gaps = 0.0, spans[0][0], []
    for start, stop in spans:
        if start > end:
            gaps.append(start - end)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    total = end - spans[0][0]
    lines = [
        f"device: {total / 1e3:.2f} ms from first to last kernel, busy {busy / 1e3:.2f} ms ({busy / total:.1%}), "
        f"{len(events)} kernels, {len(gaps)} gaps of {sum(gaps) / 1e3:.2f} ms, "
        f"the longest {', '.join(f'{gap:.0f}' for gap in sorted(gaps)[:-6:-1])} us",
        "   calls  total ms   mean us  share  kernel",
    ]
    for name, times in sorted(durations.items(), key=lambda item: -sum(item[1]))[:40]:
        ms = sum(times) / 1e3
        lines.append(f"{len(times):8d} {ms:9.3f} {1e3 * ms / len(times):9.1f} {1e3 * ms / busy:6.1%}  {name[:110]}")
    return "\n".join(lines)


# --- correctness --------------------------------------------------------------------------------------------------

FAMILIES: dict[str, Record] = {
    "llama": {},
    "mistral": {"sliding_window": 17},
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 17, "query_pre_attn_scalar": 64},
}


class Small:
    """A random model of three layers with non-zero adapters, its fast step, and four rows.

    Two copies go through PEFT's forward pass and autograd: `reference` in float32 with dense layers, and `peer` in
    `dtype` with the layers as they are.
    """

    def __init__(self, family: str, device: Any, dtype: Any, *, quant: bool = False, dropout: float = 0.0) -> None:
        import torch
        from torch import nn
        from transformers import AutoConfig, AutoModelForCausalLM

        from ftlab.data.encode import Encoded

        torch.manual_seed(0)
        config = AutoConfig.for_model(
            family, vocab_size=1009, hidden_size=256, intermediate_size=512, num_hidden_layers=3, head_dim=64,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, **FAMILIES[family],
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model = model.to(device, dtype)
        if quant:
            for name, module in list(model.named_modules()):
                if isinstance(module, nn.Linear) and name != "lm_head":
                    model.set_submodule(name, packed(module.weight.detach()))
            model.is_loaded_in_4bit = True
        targets = LINEARS if config.tie_word_embeddings else ALL
        self.model = adapted(model, targets, dropout=dropout, rank=8)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.1).copy_(parameter.to(dtype).float())
        self.peer, self.reference = copy.deepcopy(self.model).train(), plain(self.model)
        draw, lengths = random.Random(1), (70, 33, 101, 52)
        self.rows = [
            Encoded("", [draw.randrange(3, 1009) for _ in range(n)], ((begin, n),))
            for n, begin in zip(lengths, (40, 1, 80, 20), strict=True)
        ]
        self.fast = Fast(self.model, micro=4, longest=max(lengths), optim="adamw")

    def compared(self, rows: list[Any], seed: int = 7) -> "Errors":
        """The errors of the fast step relative to autograd in float32."""
        expected = by_autograd(self.reference, rows)
        loss = float(self.fast.gradients(rows, seed))
        return Errors.of((loss, gradients_of(self.model)), expected)

    def usual(self, rows: list[Any]) -> "Errors":
        """The errors of PEFT's own forward pass in the fast step's precision, relative to float32; without dropout."""
        return Errors.of(by_autograd(self.peer, rows), by_autograd(self.reference, rows))


@dataclass(frozen=True)
class Errors:
    """Relative errors: of the loss, of all gradients together, and of the worst gradient tensor, with its name."""

    loss: float
    whole: float
    gradient: float
    worst: str

    @classmethod
    def of(cls, found: tuple[float, Record], expected: tuple[float, Record]) -> "Errors":
        """The errors of `found` relative to `expected`; both are a loss and gradients by name."""
        errors = {n: float((found[1][n] - g).norm() / g.norm()) for n, g in expected[1].items()}
        worst = max(errors, key=lambda name: above(errors[name]))
        apart = math.hypot(*(float((found[1][n] - g).norm()) for n, g in expected[1].items()))
        whole = apart / math.hypot(*(float(g.norm()) for g in expected[1].values()))
        loss = abs(found[0] - expected[0]) / expected[0]
        return cls(loss, whole, errors[worst], worst.removeprefix("base_model.model."))

    def __str__(self) -> str:
        return f"loss {self.loss:.1e}, gradient {self.whole:.1e}, worst tensor's {self.gradient:.1e} ({self.worst})"

    def outcome(self, bound: float, usual: "Errors | None" = None) -> tuple[bool, str]:
        """Whether the errors are small enough, and the figures as text. The loss must stay within `bound`; the gradient
        within `bound`, or within 1.1 times the error of PEFT's own forward pass in this precision."""
        allowed = max(bound, 1.1 * usual.whole) if usual else bound
        beside = f"; PEFT's own: {usual}" if usual else ""
        return self.loss <= bound and self.whole <= allowed, f"{self}{beside}"


def by_autograd(model: Any, rows: list[Any]) -> tuple[float, Record]:
    """Mean loss and gradients by name, from PEFT's forward pass and autograd, row by row."""
    from ftlab.train.batches import lay_flat
    from ftlab.train.loss import summed_loss

    model.zero_grad()
    trained = sum(row.trained for row in rows)
    device = next(model.parameters()).device
    loss = sum(summed_loss(model, lay_flat([row], device)) for row in rows) / trained
    loss.backward()
    return float(loss.detach()), gradients_of(model)


def above(error: float) -> float:
    """The error as a sort key: NaN is worse than any number."""
    return math.inf if math.isnan(error) else error


def gradients_of(model: Any) -> Record:
    """Copies of the trained tensors' gradients by name."""
    return {name: p.grad.float().clone() for name, p in model.named_parameters() if p.requires_grad}


def plain(model: Any) -> Any:
    """A float32 copy of the model whose 4-bit layers are dense."""
    import bitsandbytes as bnb
    import torch
    from torch import nn

    dense_copy = copy.deepcopy(model)
    for name, module in list(dense_copy.named_modules()):
        if type(module).__name__ == "Linear4bit" and not hasattr(module, "base_layer"):
            dense = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            dense.weight = nn.Parameter(weight.float(), requires_grad=False)
            dense_copy.set_submodule(name, dense)
    return dense_copy.to(torch.float32).train()


def masked(small: Small, seed: int) -> None:
    """Give the adapters of both copies the dropout masks of the fast step."""
    import torch
    from torch import nn

    from ftlab.fast import operands
    from ftlab.fast.decoder import SITES

    class Masked(nn.Module):
        def __init__(self, p: float, site: int) -> None:
            super().__init__()
            self.drop = operands.Dropout(p, torch.tensor([seed], device=small.fast.decoder.device), site)

        def forward(self, x: Any) -> Any:
            return x * operands.kept(x.shape[1:], self.drop) * self.drop.scale

    places = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    place = {name: i for i, names in enumerate(places) for name in names}
    for name, module in [*small.reference.named_modules(), *small.peer.named_modules()]:
        if hasattr(module, "lora_dropout"):
            parts = name.split(".")
            layers = len(small.fast.decoder.layers)
            site = SITES * layers if parts[-1] == "lm_head" else SITES * int(parts[-3]) + place[parts[-1]]
            module.lora_dropout["default"] = Masked(small.fast.decoder.dropout, site)


def check(*, tiny: bool) -> Iterator[Record]:
    """Yield one record per check."""
    import torch

    device, dtype = torch.device("cpu" if tiny else "cuda"), torch.float32 if tiny else torch.bfloat16
    bound = 1e-4 if tiny else 2e-2
    for family in FAMILIES:
        yield from guarded(f"gradients {family}", lambda f=family: agrees(Small(f, device, dtype), bound))
    if not tiny:
        for family in FAMILIES:
            yield from guarded(
                f"gradients {family} float32", lambda f=family: agrees(Small(f, device, torch.float32), 1e-4)
            )
    yield from guarded("gradients NF4", lambda: agrees(Small("mistral", device, dtype, quant=True), bound))
    yield from guarded("gradients under dropout", lambda: agrees_under_dropout(device, dtype, bound))
    small = Small("llama", device, dtype)
    yield from guarded("gradients checkpointed", lambda: agrees_checkpointed(small, bound))
    yield from guarded("gradients in micro-batches", lambda: agrees_in_pieces(small, bound))
    yield from guarded("rows do not interact", lambda: rows_do_not_interact(small))
    yield from guarded("dropout masks", lambda: masks_differ(device, dtype))
    if not tiny:
        yield from guarded("graph replay equals eager", lambda: replays(small))
    yield from guarded("generation float32", lambda: same_answers(device, torch.float32, 1.0))
    yield from guarded(f"generation {dtype}", lambda: same_answers(device, dtype, 0.0))


def guarded(name: str, work: Callable[[], tuple[bool, str]]) -> Iterator[Record]:
    """Yield the record of one check; an exception counts as a failure."""
    try:
        holds, figures = work()
    except Exception:
        holds, figures = False, traceback.format_exc()[-1500:]
    yield {"kind": "check", "name": name, "ok": holds, "text": figures}


def agrees(small: Small, bound: float) -> tuple[bool, str]:
    """Whether loss and gradients agree in three steps: eager, captured and replayed."""
    found = [small.compared(small.rows) for _ in range(3)]
    return max(found, key=lambda one: above(one.loss + one.whole)).outcome(bound, small.usual(small.rows))


def agrees_under_dropout(device: Any, dtype: Any, bound: float) -> tuple[bool, str]:
    """Whether loss and gradients agree under dropout, on one row, so that the masks of the flat batch are those of the
    row."""
    small, seed = Small("llama", device, dtype, dropout=0.3), 12345
    masked(small, seed)
    found = [small.compared(small.rows[:1], seed) for _ in range(3)]
    worst = max(found, key=lambda one: above(one.loss + one.whole))
    return worst.outcome(bound, small.usual(small.rows[:1]))


@contextmanager
def eager(fast: Fast) -> Iterator[None]:
    """Run the block without CUDA graphs."""
    graphs, fast.step.graphs = fast.step.graphs, None
    try:
        yield
    finally:
        fast.step.graphs = graphs


def agrees_checkpointed(small: Small, bound: float) -> tuple[bool, str]:
    """Whether loss and gradients agree with activation checkpointing of two of three layers."""
    small.fast.step.checkpointed = 2
    with eager(small.fast):
        found = small.compared(small.rows)
    small.fast.step.checkpointed = 0
    return found.outcome(bound, small.usual(small.rows))


def agrees_in_pieces(small: Small, bound: float) -> tuple[bool, str]:
    """Whether loss and gradients agree in micro-batches of two rows."""
    small.fast.micro = 2
    found = small.compared(small.rows)
    small.fast.micro = 4
    return found.outcome(bound, small.usual(small.rows))


def rows_do_not_interact(small: Small) -> tuple[bool, str]:
    """Whether the loss of a row in a flat batch stays the same with other neighbours, and changes with its own first
    token."""
    from ftlab.data.encode import Encoded

    first, row, last = small.rows[:3]

    def alone(ids: list[int], shift: int) -> float:
        others = [[(token + shift) % 1000 + 3 for token in one.input_ids] for one in (first, last)]
        flat = [Encoded("", one, ()) for one in others]
        return float(small.fast.gradients([flat[0], Encoded("", ids, row.spans), flat[1]], 7))

    with eager(small.fast):
        before, after = alone(row.input_ids, 0), alone(row.input_ids, 5)
        own = alone([row.input_ids[0] + 1, *row.input_ids[1:]], 0)
    return before == after != own, f"loss {before:.7f}, other neighbours {after:.7f}, other first token {own:.7f}"


def masks_differ(device: Any, dtype: Any) -> tuple[bool, str]:
    """Whether replays draw new dropout masks for new seeds, and the same masks for the same seed."""
    small = Small("llama", device, dtype, dropout=0.3)
    losses = [float(small.fast.gradients(small.rows, seed)) for seed in (1, 2, 3, 4, 5, 3)]
    holds = len(set(losses)) == 5 and losses[2] == losses[5]
    return holds, f"losses {', '.join(f'{loss:.5f}' for loss in losses)} of seeds 1, 2, 3, 4, 5, 3"


def replays(small: Small) -> tuple[bool, str]:
    """Whether a graph's replay gives the gradients of an eager step, on batches from which it was not captured."""
    from ftlab.data.encode import Encoded

    for _ in range(2):
        small.fast.gradients(small.rows, 7)
    worst = 0.0
    for shift in (1, 2, 3):
        rows = [Encoded("", [(token + shift) % 1000 + 3 for token in row.input_ids], row.spans) for row in small.rows]
        captured = float(small.fast.gradients(rows, 7)), small.fast.flat.gradient.clone()
        with eager(small.fast):
            plainly = float(small.fast.gradients(rows, 7)), small.fast.flat.gradient
        worst = max(worst, above(float((captured[1] - plainly[1]).norm() / plainly[1].norm())))
        worst = max(worst, above(abs(captured[0] - plainly[0]) / plainly[0]))
    return small.fast.graphs > 0 and worst <= 5e-3, f"{small.fast.graphs} graphs, worst relative difference {worst:.1e}"


def same_answers(device: Any, dtype: Any, share: float) -> tuple[bool, str]:
    """Whether at least `share` of the generator's answers, with merged adapters, equal those of PEFT's `generate`, and
    the weights are unchanged afterwards."""
    import torch

    from ftlab.fast.generator import Generator

    small, new = Small("llama", device, dtype), 16
    prompts = [row.input_ids[: 20 + 7 * i] for i, row in enumerate(small.rows)] * 3
    before = {name: value.clone() for name, value in small.model.state_dict().items()}
    with small.fast.decoder.merged():
        said = Generator(small.fast.decoder, end=-1, max_new_tokens=new, batch_size=5).run(prompts)
    changed = [name for name, value in small.model.state_dict().items() if not torch.equal(value, before[name])]
    small.model.eval()
    small.model.generation_config.eos_token_id = None
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=device)
        answer = small.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=0
        )
        expected.append(answer[0, len(prompt) :].tolist())
    same = sum(a == b for a, b in zip(said, expected, strict=True)) / len(prompts)
    figures = f"{same:.0%} of {len(prompts)} answers identical, {len(changed)} weights changed"
    return same >= share and not changed, figures


# --- one variant, in a process of its own -------------------------------------------------------------------------


def run_variant(settings: argparse.Namespace) -> None:
    """Import, wait for this variant's turn, run it and write its records."""
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers

    import ftlab.fast.generator
    import ftlab.train.loss
    import ftlab.train.optim  # noqa: F401

    transformers.logging.set_verbosity_error()
    while settings.gate and not (settings.gate.exists() and settings.gate.stat().st_size):
        time.sleep(0.05)
    if not settings.tiny:
        # Paged optimizers take managed memory, so some of the GPU is left free for it.
        torch.cuda.set_per_process_memory_fraction(0.9)
    with open(settings.out, "a") as file:
        for record in records_of(settings):
            file.write(json.dumps(record) + "\n")
            file.flush()


def records_of(settings: argparse.Namespace) -> Iterator[Record]:
    """Yield the records of the variant named by `--run`."""
    name, tiny = settings.run, settings.tiny
    if settings.profile:
        yield profile(name, settings.traces, tiny=tiny)
    elif name in TRAININGS:
        yield train(name, tiny=tiny)
    elif name in GENERATIONS:
        yield generate(name, tiny=tiny)
    elif name == "limits":
        yield limits(tiny=tiny)
    else:
        yield from check(tiny=tiny)


# --- all of them --------------------------------------------------------------------------------------------------


class Job:
    """The process of one variant; its records are files in `folder`."""

    def __init__(self, name: str, settings: argparse.Namespace, folder: Path) -> None:
        self.name, self.settings = name, settings
        self.gate, self.part, self.log = (folder / f"{name}.{kind}" for kind in ("gate", "jsonl", "log"))
        self.process: subprocess.Popen[bytes] | None = None
        if name != MANY:  # it would not wait for its turn
            self.start()

    def start(self) -> None:
        """Start the process, which imports; its work starts with `finish`."""
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self._command(), stdout=log, stderr=log)

    def _command(self) -> list[str]:
        python, settings = [sys.executable, "-W", "ignore"], self.settings
        tiny = ["--tiny"] if settings.tiny else []
        if self.name == MANY:
            script = settings.baselines.with_name("many_adapters.py")
            return [*python, str(script), "--shape", "135m", "--runs", "1:8:bf16", *tiny]
        mine = [__file__] if self.name not in BASELINES else [str(settings.baselines)]
        command = [*python, *mine, "--run", self.name, "--gate", str(self.gate), "--out", str(self.part), *tiny]
        return command + (["--profile", self.name, "--traces", str(settings.out)] if settings.profile else [])

    def finish(self, seconds: float) -> list[Record]:
        """Let the process work for at most `seconds`; return its records, with the peak of its memory."""
        if self.process is None:
            self.start()
        assert self.process is not None
        self.gate.write_text(str(seconds))
        memory, until = Memory(self.process.pid), time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            memory.look()
            time.sleep(0.1)
        self.stop()
        records = self._records()
        if self.process.returncode or not records:
            why = f"ended with {self.process.returncode} (limit {seconds:.0f} s)"
            records.append(
                {"kind": "fail", "name": self.name, "error": f"{why}\n{self.log.read_text(errors='replace')[-2500:]}"}
            )
        for record in records:
            record.update(memory.found() if record["kind"] in ("train", "gen") else {})
        return records

    def stop(self) -> None:
        """Kill the process if it still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _records(self) -> list[Record]:
        if self.name == MANY:
            found = [
                line[7:] for line in self.log.read_text(errors="replace").splitlines() if line.startswith("RESULT ")
            ]
            return [many(json.loads(line)) for line in found]
        return [json.loads(line) for line in self.part.read_text().splitlines()] if self.part.exists() else []


def many(found: Record) -> Record:
    """Convert a record of many_adapters.py into the form of the others."""
    if "error" in found:
        return {"kind": "fail", "name": MANY, "error": found["error"]}
    seconds = found["ms_step"] / 1e3
    untied = SMOLLM_135M.parameters + SMOLLM_135M.vocab_size * SMOLLM_135M.hidden_size
    kept = {key: found[key] for key in ("loss", "capture_s", "alloc_gib", "reserved_gib") if key in found}
    return dict(
        kind="train", name=MANY, s_step=seconds, samples_s=found["mb"] / seconds, tok_s=found["useful_tok_s"],
        parameters=untied, **kept,
    )  # fmt: skip


class Memory:
    """The peak GPU memory of a process by NVML, or of the whole GPU if NVML does not list processes."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak, self.whole = pid, 0.0, 0.0
        try:
            import pynvml

            pynvml.nvmlInit()
            self.nvml, self.handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        except Exception:
            self.nvml = None

    def look(self) -> None:
        """Update the peaks from the current state."""
        if self.nvml is None:
            return
        self.whole = max(self.whole, self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used / GIB)
        for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle):
            if process.pid == self.pid and process.usedGpuMemory:
                self.peak = max(self.peak, process.usedGpuMemory / GIB)

    def found(self) -> Record:
        """The fields that are added to a record, in GiB."""
        return {"nvml_gib": self.peak or self.whole, "nvml_whole_gib": self.whole} if self.nvml else {}


def run_all(settings: argparse.Namespace) -> list[Record]:
    """Run every variant, one after another, and return all records."""
    began, records = time.monotonic(), list[Record]()
    with tempfile.TemporaryDirectory() as folder:
        jobs: list[Job] = []
        try:
            for i, name in enumerate(settings.only):
                left = settings.budget - (time.monotonic() - began)
                if left < 20:
                    print(f"SKIPPED for time: {', '.join(settings.only[i:])}", flush=True)
                    break
                jobs += [Job(n, settings, Path(folder)) for n in settings.only[len(jobs) : i + 2]]
                start = time.monotonic()
                found = jobs[i].finish(min(left, LONGEST_JOB))
                keep(settings.out, jobs[i], found)
                records += found
                print(f"-- {name}: {time.monotonic() - start:.1f} s", flush=True)
        finally:
            for job in jobs:
                job.stop()
    return records


def keep(out: Path, job: Job, records: list[Record]) -> None:
    """Write a variant's records to files and print them."""
    with open(out / "gpu.log", "a") as log:
        log.write(f"\n===== {job.name}\n{job.log.read_text(errors='replace')}")
    with open(out / "gpu.jsonl", "a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    for record in records:
        if record["kind"] == "check":
            print("PASS" if record["ok"] else "FAIL", f"{record['name']}: {record['text']}", flush=True)
        elif record["kind"] == "profile":
            print(record["text"], flush=True)
            (out / f"{job.name}.profile.txt").write_text(record["text"] + "\n")
        elif record["kind"] == "fail":
            print("FAIL", record["name"], record["error"], flush=True)
        else:
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}), flush=True)


# --- tables -------------------------------------------------------------------------------------------------------


def tables(records: list[Record]) -> str:
    """All records as Markdown tables."""
    limit = next((record for record in records if record["kind"] == "limits"), {})
    lines = [json.dumps(limit)] if limit else []
    trainings = [record for record in records if record["kind"] == "train"]
    if trainings:
        titles = (
            "variant", "s/step", "samples/s", "useful tok/s", "useful share", "of 4N floor", "alloc GiB",
            "reserved GiB", "NVML GiB", "capture s", "first step s", "loss", "compared with",
        )  # fmt: skip
        lines += ["", *markdown(titles, [training_row(r, trainings, limit.get("matmul_tflops")) for r in trainings])]
    generations = [record for record in records if record["kind"] == "gen"]
    if generations:
        titles = (
            "generation", "prompts", "s", "first call s", "merge s", "samples/s", "new tok/s", "alloc GiB",
            "reserved GiB", "NVML GiB", "compared with",
        )  # fmt: skip
        lines += ["", *markdown(titles, [generation_row(record, generations) for record in generations])]
    return "\n".join(lines)


def training_row(record: Record, others: list[Record], tflops: float | None) -> list[str]:
    """The table cells of a training variant; `tflops` is the measured rate for the floor."""
    parameters = record.get("parameters", MISTRAL_7B.parameters)
    floor = 4 * parameters * record["tok_s"] / tflops / 1e12 if tflops else None
    variant = TRAININGS.get(record["name"])
    return [
        record["name"], cell(record, "s_step", ".4f"), cell(record, "samples_s", ".1f"), cell(record, "tok_s", ".0f"),
        cell(record, "useful", ".0%"), f"{floor:.1%}" if floor else "-", *memory_cells(record),
        cell(record, "capture_s", ".1f"), cell(record, "first_call_s", ".1f"), cell(record, "loss", ".4f"),
        against(record, others, variant.against if variant else None, "s_step"),
    ]  # fmt: skip


def generation_row(record: Record, others: list[Record]) -> list[str]:
    """The table cells of a generation variant."""
    variant = GENERATIONS.get(record["name"])
    return [
        record["name"], cell(record, "samples", "d"), cell(record, "secs", ".2f"), cell(record, "first_call_s", ".1f"),
        cell(record, "merge_s", ".1f"), cell(record, "samples_s", ".1f"), cell(record, "new_tok_s", ".0f"),
        *memory_cells(record), against(record, others, variant.against if variant else None, "secs"),
    ]  # fmt: skip


def memory_cells(record: Record) -> list[str]:
    """The table cells of the three memory peaks."""
    return [cell(record, key, ".1f") for key in ("alloc_gib", "reserved_gib", "nvml_gib")]


def cell(record: Record, key: str, form: str) -> str:
    """A figure as text, or a dash if the record has none."""
    value = record.get(key)
    return "-" if value is None else format(value, form)


def against(record: Record, others: list[Record], name: str | None, key: str) -> str:
    """The speed-up over another variant of the same call, or a dash."""
    other = next((one for one in others if one["name"] == name), None)
    return f"{other[key] / record[key]:.2f}x {name}" if other else "-"


def markdown(titles: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--baselines", type=Path)
    parser.add_argument("--only", type=lambda text: text.split(","))
    parser.add_argument("--profile")
    parser.add_argument("--budget", type=float, default=math.inf)
    parser.add_argument("--tiny", action="store_true")
    for inner in ("--run", "--gate", "--traces"):
        parser.add_argument(inner, type=str if inner == "--run" else Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.run:
        return run_variant(settings)
    theirs = [*BASELINES, MANY]
    settings.only = [settings.profile] if settings.profile else settings.only
    settings.only = settings.only or [name for name in USUAL if settings.baselines or name not in theirs]
    known = {"limits", "check", *TRAININGS, *GENERATIONS, *(theirs if settings.baselines else [])}
    if settings.profile:
        known = set(TRAININGS)
    if unknown := set(settings.only) - known:
        raise SystemExit(f"not a variant: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    settings.out.mkdir(parents=True, exist_ok=True)
    found = tables(run_all(settings))
    (settings.out / "gpu.md").write_text(found + "\n")
    print("\n" + found, flush=True)


if __name__ == "__main__":
    main()
