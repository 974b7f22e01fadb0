"""Measure the kernels of the fast path on a CUDA device: python bench/kernels.py [word ...]

One line per kernel gives its microseconds, the TB/s at which it moves the bytes that must be read and written, the
share of the device's copy bandwidth that this is, and the same for the usual call of torch or bitsandbytes ("torch").
If words are given, only kernels whose names contain one of them are measured.

Calls are captured in a CUDA graph, so that the host's launches do not count for either side. Each call of a graph has
tensors of its own, which together are several times larger than the L2 cache. The median of several replays counts.
Optimizers are timed as whole steps that the host launches, because those of bitsandbytes cannot be captured; their
waiting for the device counts. A child process measures. If a kernel kills or hangs it, the next child continues with
the next kernel.
"""

import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from ftlab.fast import ops
from ftlab.fast.operands import Dropout

Call = Callable[[], Any]
BF16 = torch.bfloat16
ROTATED = 2**28  # bytes that the calls of one graph touch: several times the L2 cache
SECONDS = 100  # limit for one kernel, compilation included
FAILED = 3


@dataclass(frozen=True)
class Case:
    """A kernel to measure.

    `make` returns two calls on new tensors: ftlab's kernel, and the usual call of torch or bitsandbytes. `moved` is the
    number of bytes that one call reads and writes. Calls that are not `captured` in a graph are launched by the host.
    """

    name: str
    moved: int
    make: Callable[[], tuple[Call, Call]]
    captured: bool = True


def random(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def dropping(site: int = 3) -> Dropout:
    return Dropout(0.1, torch.tensor([17], device="cuda"), site)


def dequantise(rows: int, columns: int) -> tuple[Call, Call]:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    dense = torch.randn(rows, columns, device="cuda", dtype=BF16)
    weight = Params4bit(dense, requires_grad=False, quant_type="nf4", compress_statistics=True).to("cuda")
    out = torch.empty(rows, columns, device="cuda", dtype=BF16)
    return partial(ops.dequantise, weight, out), lambda: dequantize_4bit(weight.data, weight.quant_state, out=out)


def norm(tokens: int, width: int) -> tuple[Call, Call]:
    x, residual, weight, drop = random(tokens, width), random(tokens, width), random(width), dropping()

    def baseline() -> Tensor:
        return F.dropout(F.rms_norm(x + residual, (width,), weight, 1e-6), 0.1)

    return partial(ops.add_rms_norm, x, residual, weight, 1e-6, 0.0, drop), baseline


def norm_backward(tokens: int, width: int) -> tuple[Call, Call]:
    dy, stream, dstream, weight = (*(random(tokens, width) for _ in range(3)), random(width))
    rstd = stream.float().pow(2).mean(-1).add(1e-6).rsqrt()
    leaf = stream.detach().requires_grad_()

    def baseline() -> Tensor:
        return torch.autograd.grad(F.rms_norm(leaf, (width,), weight, 1e-6), leaf, dy)[0] + dstream

    return partial(ops.add_rms_norm_backward, dy, stream, rstd, weight, 0.0, dstream), baseline


def gated(tokens: int, width: int) -> tuple[Call, Call]:
    gu, drop = random(tokens, 2 * width), dropping()
    gate, up = gu.chunk(2, -1)
    return partial(ops.gated, gu, "silu", drop), lambda: F.dropout(F.silu(gate) * up, 0.1)


def gated_backward(tokens: int, width: int) -> tuple[Call, Call]:
    gu, dy = random(tokens, 2 * width), random(tokens, width)
    leaf = gu.clone().requires_grad_()

    def baseline() -> Tensor:
        gate, up = leaf.chunk(2, -1)
        return torch.autograd.grad(F.silu(gate) * up, leaf, dy)[0]

    return partial(ops.gated_backward, dy, gu, "silu"), baseline


def rotation(tokens: int, heads: int, kv: int, head_dim: int) -> tuple[Call, Call]:
    qkv = random(tokens, (heads + 2 * kv) * head_dim)
    cos, sin = random(2, tokens, head_dim, dtype=torch.float32)
    call = partial(ops.rotate_, qkv, cos, sin, heads + kv, head_dim)
    return call, plain(partial(ops.rotate_, qkv, cos, sin, heads + kv, head_dim))


def packing(tokens: int, heads: int, kv: int, head_dim: int) -> tuple[Call, Call]:
    parts = random(tokens, heads, head_dim), random(tokens, kv, head_dim), random(tokens, kv, head_dim)
    cos, sin = random(2, tokens, head_dim, dtype=torch.float32)
    call = partial(ops.pack_rotated, *parts, cos, sin)
    return call, plain(call)


def lora_up(tokens: int, outs: list[int], rank: int) -> tuple[Call, Call]:
    y, h = random(tokens, sum(outs)), random(tokens, rank * len(outs))
    starts = [sum(outs[:i]) for i in range(len(outs))]
    members = [
        (start, start + out, i * rank, (i + 1) * rank, random(out, rank))
        for i, (start, out) in enumerate(zip(starts, outs, strict=True))
    ]
    call = partial(ops.lora_up_, y, h, members, 0.01)
    return call, plain(call)


def lora_dx(tokens: int, width: int, rank: int) -> tuple[Call, Call]:
    dx, dh, a, drop = random(tokens, width), random(tokens, rank), random(rank, width), dropping()
    return partial(ops.lora_dx_, dx, dh, a, drop), lambda: dx.add_(F.dropout(dh @ a, 0.1))


def cross_entropy(rows: int, width: int) -> tuple[Call, Call]:
    logits, targets = random(rows, width), torch.randint(width, (rows,), device="cuda")
    leaf = logits.clone().requires_grad_()

    def baseline() -> Tensor:
        return torch.autograd.grad(F.cross_entropy(leaf.float(), targets, reduction="sum"), leaf)[0]

    return partial(ops.cross_entropy_, logits, targets, 0.01), baseline


def spread(rows: int) -> Tensor:
    """Lengths of `rows` cached sequences, spread evenly from 100 to 200."""
    return torch.linspace(100, 200, rows, device="cuda").int()


def decode(rows: int, heads: int, kv: int, head_dim: int, size: int = 256) -> tuple[Call, Call]:
    q, lengths = random(rows, heads, head_dim), spread(rows)
    k, v = (random(rows, size, kv, head_dim) for _ in range(2))
    seen = (torch.arange(size, device="cuda") < lengths[:, None])[:, None, None]

    def baseline() -> Tensor:
        keys, values = k.transpose(1, 2), v.transpose(1, 2)
        return F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=seen, enable_gqa=True)

    return partial(ops.decode_attention, q, k, v, lengths, head_dim**-0.5, None), baseline


def store(rows: int, heads: int, kv: int, head_dim: int, size: int = 256) -> tuple[Call, Call]:
    qkv = random(rows, (heads + 2 * kv) * head_dim)
    k, v = (random(rows, size, kv, head_dim) for _ in range(2))
    call = partial(ops.store_kv_, qkv, k, v, torch.arange(rows, device="cuda"), spread(rows).long())
    return call, plain(call)


def adam8bit(name: str, numbers: int) -> tuple[Call, Call]:
    import bitsandbytes

    from ftlab.fast.adam import fused

    def step(kind: Any) -> Call:
        parameter = torch.nn.Parameter(random(numbers, dtype=torch.float32))
        parameter.grad = random(numbers, dtype=torch.float32)
        stepped: Call = kind([parameter], lr=1e-5).step
        return stepped

    kind = getattr(bitsandbytes.optim, name)
    return step(fused(kind)), step(kind)


def plain(call: Call) -> Call:
    """The same operation with torch instead of ftlab's kernels."""

    def instead() -> Any:
        kernels, ops._kernels = ops._kernels, lambda x: None
        try:
            return call()
        finally:
            ops._kernels = kernels

    return instead


def cases() -> Iterator[Case]:
    for rows, columns in [(4096, 4096), (1024, 4096), (14336, 4096), (28672, 4096)]:
        moved = rows * columns * 2 + rows * columns // 2 + rows * columns // 64
        yield Case(f"dequantise {rows}x{columns}", moved, partial(dequantise, rows, columns))
    t = 1024
    for width in (4096, 576):
        yield Case(f"add_rms_norm {t}x{width}", t * width * 2 * 5, partial(norm, t, width))
        yield Case(f"add_rms_norm_backward {t}x{width}", t * width * 2 * 4, partial(norm_backward, t, width))
    heads = t * 40
    yield Case(f"add_rms_norm_backward {heads}x128", heads * 128 * 2 * 4, partial(norm_backward, heads, 128))
    yield Case(f"gated {t}x14336", t * 14336 * 2 * 4, partial(gated, t, 14336))
    yield Case(f"gated_backward {t}x14336", t * 14336 * 2 * 5, partial(gated_backward, t, 14336))
    for shape in [(32, 8, 128), (9, 3, 64)]:
        q_and_k, whole = (shape[0] + shape[1]) * shape[2], (shape[0] + 2 * shape[1]) * shape[2]
        yield Case(f"rotate_ {t}x{shape}", t * q_and_k * 2 * 2, partial(rotation, t, *shape))
        yield Case(f"pack_rotated {t}x{shape}", t * whole * 2 * 2, partial(packing, t, *shape))
    for outs, rank in [([4096], 32), ([4096, 1024, 1024], 32), ([14336, 14336], 32), ([576, 192, 192], 16)]:
        yield Case(f"lora_up_ {t}x{outs} r{rank}", t * sum(outs) * 2 * 2, partial(lora_up, t, outs, rank))
    for width, rank in [(4096, 96), (14336, 32), (576, 48)]:
        yield Case(f"lora_dx_ {t}x{width} R{rank}", t * width * 2 * 2, partial(lora_dx, t, width, rank))
    for width in (32000, 128256):
        yield Case(f"cross_entropy_ {t}x{width}", t * width * 2 * 2, partial(cross_entropy, t, width))
    yield Case("decode_attention 256x(32, 8, 128)", 256 * 150 * 8 * 128 * 2 * 2, partial(decode, 256, 32, 8, 128))
    yield Case("decode_attention 256x(9, 3, 64)", 256 * 150 * 3 * 64 * 2 * 2, partial(decode, 256, 9, 3, 64))
    yield Case("store_kv_ 256x(32, 8, 128)", 256 * 8 * 128 * 2 * 2 * 2, partial(store, 256, 32, 8, 128))
    numbers = 85_041_152  # parameters of LoRA r=32 on all linear layers and the output layer of Mistral-7B
    for kind in ("AdamW8bit", "PagedAdamW8bit"):
        yield Case(f"adam8bit {kind} {numbers}", numbers * 16, partial(adam8bit, kind, numbers), captured=False)


def microseconds(calls: list[Call], *, captured: bool = True) -> float:
    """The microseconds of one call: all are replayed as one graph, or launched by the host if not `captured`."""
    if captured:
        return timed(graph_of(calls).replay) / len(calls)

    def launch() -> None:
        for call in calls:
            call()

    return timed(launch) / len(calls)


def graph_of(calls: list[Call]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for call in calls:
            call()
    return graph


def timed(work: Call, repeats: int = 9) -> float:
    """The median microseconds of `work` on the device."""
    work()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times) * 1000


def copy_bandwidth() -> float:
    """The bytes per second that the device's own copy reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / (microseconds([partial(target.copy_, source)]) * 1e-6)


def line(case: Case, copy: float) -> str:
    calls = [case.make() for _ in range(min(64, max(4, ROTATED // case.moved)))]
    ours = microseconds([call for call, _ in calls], captured=case.captured)
    speed = case.moved / (ours * 1e-6)
    head = f"{case.name:44} {ours:8.1f} us  {speed / 1e12:5.2f} TB/s  {speed / copy:4.0%} of copy"
    try:
        theirs = microseconds([call for _, call in calls], captured=case.captured)
    except (RuntimeError, TypeError) as error:
        return f"{head}  torch failed: {_short(error)}"
    return f"{head}  torch {theirs:8.1f} us  {theirs / ours:5.2f}x"


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextmanager
def killed_after(seconds: int) -> Iterator[None]:
    """Kill the process if the block takes longer, even inside a call that waits for the device."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def measure(first: int, words: list[str]) -> int:
    """Print the lines of the cases from `first` on and return the exit code: FAILED after a case that left the device
    unusable."""
    with killed_after(SECONDS):
        copy = copy_bandwidth()
        print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}: copy {copy / 1e12:.2f} TB/s", flush=True)
    for case in chosen(words)[first:]:
        with killed_after(SECONDS):
            try:
                print(line(case, copy), flush=True)
            except Exception as error:
                print(f"{case.name:44} FAILED {_short(error)}", flush=True)
                try:
                    torch.cuda.synchronize()
                except RuntimeError:
                    return FAILED
        torch.cuda.empty_cache()
    return 0


def chosen(words: list[str]) -> list[Case]:
    return [case for case in cases() if not words or any(word in case.name for word in words)]


def main(words: list[str]) -> int:
    if not torch.cuda.is_available():
        print("bench/kernels.py needs a CUDA device")
        return 2
    names, done = [case.name for case in chosen(words)], 0
    while done < len(names):
        command = [sys.executable, __file__, "--from", str(done), *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for text in child.stdout:
                print(text, end="", flush=True)
                done += not text.startswith("#")
        if child.returncode not in (0, FAILED):
            print(f"{names[min(done, len(names) - 1)]:44} FAILED: exit code {child.returncode}", flush=True)
            done += 1
    return 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--from"]:
        sys.exit(measure(int(arguments[1]), arguments[2:]))
    sys.exit(main(arguments))
