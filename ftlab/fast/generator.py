"""Greedy decoding of many prompts at once (continuous batching): a static KV cache, whose slots are refilled when their
rows have ended.

A row is a prompt and its answer so far. Rows occupy the first slots of the cache, without a gap. Prompts are prefilled
as flat batches, rows end to end. Then each step generates one token for every row, on CUDA as one graph. The host sees
one step late which rows have ended, collects their answers and puts further prompts in their slots.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ftlab.errors import DataError
from ftlab.fast import ops
from ftlab.fast.attention import attend_row, inside
from ftlab.fast.frozen import free_bytes
from ftlab.fast.streams import side_stream

if TYPE_CHECKING:
    from ftlab.fast.decoder import AttentionShape, Decoder

# Prompt tokens that are prefilled together. More would not speed up matrix products, and fewer suit a CPU's caches.
PREFILL_TOKENS = {"cuda": 8192, "cpu": 2048}
# The capacity of a slot, in positions, is a multiple of this.
CAPACITY_MULTIPLE = 16
# The KV cache may take this fraction of the GPU's free memory; the rest is for activations and graphs.
CACHE_SHARE = 0.8
# On a GPU, ended rows are replaced once they are 1/REFILL_PART of a step's rows. A prefill of many rows costs little
# more than one of few rows, and a step costs the same however many of its rows have ended. On a CPU a step costs as
# much as its rows, so they are replaced at once.
REFILL_PART = 4
# The last rows use a smaller graph if there are at least this many slots and if at least this many steps may follow.
# With fewer slots a step costs no more than reading the weights; with fewer steps the capture costs more than it saves.
SMALL_GRAPH_SLOTS = 64
SMALL_GRAPH_STEPS = 16

Prompt = tuple[int, list[int]]  # the prompt's number and its token ids


class Generator:
    """Generates a decoder's answers to prompts.

    Args:
        decoder: the model, see `ftlab.fast.decoder.Decoder`; call inside `decoder.merged()` to have adapters merged.
        end: id of the token that ends an answer.
        max_new_tokens: the maximum number of tokens of an answer, the end token included.
        batch_size: the number of prompts answered at a time; on CUDA fewer if memory does not suffice.
    """

    def __init__(self, decoder: "Decoder", *, end: int, max_new_tokens: int, batch_size: int) -> None:
        self.decoder, self.end = decoder, end
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def run(self, prompts: list[list[int]], on_done: Callable[[int], None] = lambda done: None) -> list[list[int]]:
        """Return the token ids of each answer, in the order of the prompts, without the end token. Each token is the
        most likely one.

        `on_done` is called with the number of answered prompts whenever it grows; an exception that it raises ends the
        generation. The cache and the graphs are freed in every case.

        Raises:
            DataError: a prompt is empty.
            torch.cuda.OutOfMemoryError: not even one row fits on the GPU.
        """
        if not all(prompts):
            raise DataError(f"prompt {prompts.index([])} has no token: a model can only continue a text")
        device, answers, report = self.decoder.device, dict[int, list[int]](), AnswerCount(on_done)
        capacity = (
            -(-(max(map(len, prompts), default=0) + self.max_new_tokens) // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
        )
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            slots, piece = self._slots(len(prompts), capacity), PREFILL_TOKENS.get(device.type, PREFILL_TOKENS["cpu"])
            while len(answers) < len(prompts):
                try:
                    self._answer(prompts, answers, DecodeBatch(self, slots, capacity, piece), report)
                except torch.cuda.OutOfMemoryError:
                    if slots == 1:
                        raise
                    slots, piece = slots // 2, piece // 2
        return [answers[i] for i in range(len(prompts))]

    def _answer(
        self,
        prompts: list[list[int]],
        answers: dict[int, list[int]],
        batch: "DecodeBatch",
        report: Callable[[int], None],
    ) -> None:
        """Generate the answers that are missing in `answers`.

        The longest prompts come first. Memory then peaks at the start, and the number of steps is smallest. In any
        order the slots are busy until the queue is empty. The order decides only about the tail after that, in which a
        long answer keeps steps running for few rows. Long answers should therefore start early, and the length of a
        prompt is the only sign of a long answer that is known in advance.
        """
        waiting = deque(sorted(((i, p) for i, p in enumerate(prompts) if i not in answers), key=lambda p: -len(p[1])))
        try:
            batch.allocate()
            while waiting or batch.rows:
                batch.fill([waiting.popleft() for _ in range(min(batch.free, len(waiting)))])
                while (ended := batch.find_ended()) < batch.refill_at:
                    report(len(answers) + ended)
                    batch.step()
                answers |= batch.collect()
                report(len(answers))
        finally:
            batch.close()

    def _slots(self, prompts: int, capacity: int) -> int:
        """Return the number of rows at a time: `batch_size`, and on CUDA at most as many as fit into memory."""
        wanted = max(1, min(self.batch_size, prompts))
        if self.decoder.device.type != "cuda":
            return wanted
        shapes = [layer.attention for layer in self.decoder.layers]
        row = sum(2 * capacity * shape.kv_heads * shape.head_dim for shape in shapes) * self.decoder.dtype.itemsize
        return max(1, min(wanted, int(CACHE_SHARE * free_bytes(self.decoder.device)) // row))


class AnswerCount:
    """Reports the number of answered prompts to a callback, each number once, even if prompts are answered again."""

    def __init__(self, on_done: Callable[[int], None]) -> None:
        self.on_done, self.most = on_done, 0

    def __call__(self, done: int) -> None:
        if done > self.most:
            self.most = done
            self.on_done(done)


@dataclass
class OpenAnswer:
    """The answer in progress to prompt `number`, which began after `start_step` steps."""

    number: int
    start_step: int


class RunningSnapshot:
    """Which rows were still running at one point of the device's work."""

    def __init__(self, alive: Tensor) -> None:
        self.event = torch.cuda.Event() if alive.is_cuda else None  # type: ignore[no-untyped-call]
        self.alive = torch.empty(alive.shape, dtype=alive.dtype, pin_memory=alive.is_cuda)
        self.alive.copy_(alive, non_blocking=True)
        if self.event:
            self.event.record()

    def ended(self) -> set[int]:
        """Return the slots of the rows that had ended. This waits until the device has reached that point."""
        if self.event:
            self.event.synchronize()
        return {slot for slot, alive in enumerate(self.alive.tolist()) if not alive}


class DecodeBatch:
    """The rows in progress: their KV cache, their generated tokens, and the decoding step.

    On the device each slot has its last token, the position of that token, the number of generated tokens, and whether
    it is still running. An ended slot is computed all the same, but it attends to nothing and its output is ignored.
    """

    def __init__(self, generator: Generator, slots: int, capacity: int, piece: int) -> None:
        self.decoder, self.end, self.new = generator.decoder, generator.end, generator.max_new_tokens
        self.slots, self.capacity, self.piece = slots, capacity, piece
        self.device = self.decoder.device
        self.cuda = self.device.type == "cuda"
        self.shapes = [layer.attention for layer in self.decoder.layers]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.rows: list[OpenAnswer] = []
        self.ended: set[int] = set()
        self.snapshots: deque[RunningSnapshot] = deque()
        self.steps = 0

    def allocate(self) -> None:
        """Allocate the cache, a pair of [slots, capacity, kv_heads, head_dim] per layer, and the state of the slots."""
        self.decoder.prepare_positions(self.capacity)
        for shape in self.shapes:
            for cache in (self.keys, self.values):
                size = (self.slots, self.capacity, shape.kv_heads, shape.head_dim)
                cache.append(torch.zeros(size, dtype=self.decoder.dtype, device=self.device))
        self.slot = torch.arange(self.slots, device=self.device)
        self.token, self.position, self.count = (torch.zeros_like(self.slot) for _ in range(3))
        self.alive = torch.zeros_like(self.slot, dtype=torch.bool)
        # A slot that has ended keeps writing after its answer, at most into the extra last column.
        self.generated = torch.zeros(self.slots, self.new + 1, dtype=torch.long, device=self.device)

    def close(self) -> None:
        """Free the memory of the cache and the graphs."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        for graph in self.graphs.values():
            graph.reset()
        for held in (self.graphs, self.keys, self.values, self.snapshots):
            held.clear()
        if self.cuda:
            torch.cuda.empty_cache()

    @property
    def free(self) -> int:
        """The number of slots without a row."""
        return self.slots - len(self.rows)

    @property
    def refill_at(self) -> int:
        """The number of ended rows at which their answers are collected and their slots refilled."""
        return min(len(self.rows), max(1, self._width() // REFILL_PART)) if self.cuda else 1

    # --- prefill -----------------------------------------------------------------------------------------------

    def fill(self, prompts: list[Prompt]) -> None:
        """Prefill further prompts, at most as many as there are free slots, and generate the first token of each."""
        for piece in _pieces(prompts, self.piece):
            self._prefill([ids for _, ids in piece])
            self.rows += [OpenAnswer(number, self.steps) for number, _ in piece]

    def _prefill(self, prompts: list[list[int]]) -> None:
        rows = slice(len(self.rows), len(self.rows) + len(prompts))
        lengths = [len(ids) for ids in prompts]
        sizes = torch.tensor(lengths, device=self.device)
        bounds = functional.pad(sizes.cumsum(0), (1, 0))
        starts = bounds.int()
        slots = self.slot[rows].repeat_interleave(sizes, output_size=sum(lengths))
        positions = torch.arange(sum(lengths), device=self.device) - bounds[slots - rows.start]

        def attend(layer: int, qkv: Tensor) -> Tensor:
            ops.store_kv_(qkv, self.keys[layer], self.values[layer], slots, positions)
            return _attend_rows(self.shapes[layer], qkv, lengths, starts)

        ids = torch.tensor([token for ids in prompts for token in ids], device=self.device)
        hidden = self.decoder.hidden(ids, positions, attend)[bounds[1:] - 1]
        self.count[rows], self.alive[rows], self.position[rows] = 0, True, sizes - 1
        self._append(rows, hidden)

    # --- a step ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Generate one more token for every running row."""
        width = self._width()
        if not self.cuda or not self.decoder.capturable:
            self._decode(width)
        elif width in self.graphs:
            self.graphs[width].replay()
        else:
            self._capture(width)
        self.steps += 1

    def _width(self) -> int:
        """Return the number of slots that a step computes: on a CPU those with a row, on CUDA those of a graph."""
        small = self.slots // REFILL_PART
        if not self.cuda:
            return len(self.rows)
        if self.slots < SMALL_GRAPH_SLOTS or len(self.rows) > small:
            return self.slots
        return small if small in self.graphs or self._steps_left() >= SMALL_GRAPH_STEPS else self.slots

    def _steps_left(self) -> int:
        return max((self.new - 1 - (self.steps - row.start_step) for row in self.rows), default=0)

    def _capture(self, width: int) -> None:
        """Make one step without a graph, on the side stream, and capture a graph for the next ones."""
        side = side_stream(self.device)
        main = torch.cuda.current_stream(self.device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            self._decode(width)
        main.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._decode(width)
        self.graphs[width] = graph

    def _decode(self, width: int) -> None:
        rows = slice(0, width)
        positions, slots = self.position[rows], self.slot[rows]
        lengths = torch.where(self.alive[rows], positions + 1, 0).int()

        def attend(layer: int, qkv: Tensor) -> Tensor:
            shape, keys, values = self.shapes[layer], self.keys[layer][rows], self.values[layer][rows]
            ops.store_kv_(qkv, keys, values, slots, positions)
            query = shape.split(qkv)[0]
            return ops.decode_attention(query, keys, values, lengths, shape.scale, shape.window).flatten(1)

        self._append(rows, self.decoder.hidden(self.token[rows], positions, attend))

    def _append(self, rows: slice, hidden: Tensor) -> None:
        """Append the most likely next token to each row, given the rows' hidden states [n, hidden]."""
        token = self.decoder.logits(hidden).argmax(-1)
        alive, count = self.alive[rows], self.count[rows]
        self.generated[rows].scatter_(1, count[:, None], token[:, None])
        self.token[rows] = token
        self.position[rows] += alive
        count += alive
        alive &= (token != self.end) & (count < self.new)

    # --- rows that have ended ----------------------------------------------------------------------------------

    def find_ended(self) -> int:
        """Return how many rows are known to have ended.

        On CUDA this is the state of one step earlier, so that the device computes its next step while the host reads
        the state. Rows that have reached the maximum length are known without reading.
        """
        self.snapshots.append(RunningSnapshot(self.alive[: len(self.rows)]))
        if len(self.snapshots) > (1 if self.cuda else 0):
            self.ended |= self.snapshots.popleft().ended()
        self.ended |= {slot for slot, row in enumerate(self.rows) if self.steps - row.start_step >= self.new - 1}
        return len(self.ended)

    def collect(self) -> dict[int, list[int]]:
        """Return the answers of the ended rows, by prompt number. The other rows move into the first slots."""
        ended = sorted(self.ended)
        generated = self.generated[torch.tensor(ended, device=self.device)].tolist()
        answers = {self.rows[slot].number: self._until_end(ids) for slot, ids in zip(ended, generated, strict=True)}
        self._close_up()
        return answers

    def _until_end(self, generated: list[int]) -> list[int]:
        ids = generated[: self.new]
        return ids[: ids.index(self.end)] if self.end in ids else ids

    def _close_up(self) -> None:
        """Move the n running rows into the first n slots."""
        going = [slot for slot in range(len(self.rows)) if slot not in self.ended]
        gaps = [slot for slot in sorted(self.ended) if slot < len(going)]
        moved = going[len(going) - len(gaps) :]
        if moved:
            self._move(moved, gaps)
        for source, target in zip(moved, gaps, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[len(going) :]
        self.alive[len(going) :] = False
        # Earlier snapshots no longer describe the slots.
        self.ended.clear()
        self.snapshots.clear()

    def _move(self, sources: list[int], targets: list[int]) -> None:
        source, target = (torch.tensor(slots, device=self.device) for slots in (sources, targets))
        for state in (*self.keys, *self.values, self.token, self.position, self.count, self.alive, self.generated):
            state[target] = state[source]


def _pieces(prompts: list[Prompt], tokens: int) -> Iterator[list[Prompt]]:
    """Yield consecutive prompts that have at most `tokens` tokens together; a longer prompt comes alone."""
    piece: list[Prompt] = []
    for prompt in prompts:
        if piece and sum(len(ids) for _, ids in piece) + len(prompt[1]) > tokens:
            yield piece
            piece = []
        piece.append(prompt)
    if piece:
        yield piece


def _attend_rows(shape: "AttentionShape", qkv: Tensor, lengths: list[int], starts: Tensor) -> Tensor:
    """Return the causal attention [tokens, heads * head_dim] within each row of a flat batch
    [tokens, (heads + 2 kv_heads) * head_dim]. Rows of `lengths` tokens begin at `starts` (int32 [rows + 1])."""
    if qkv.is_cuda:
        return inside(starts, max(lengths), qkv.dtype).forward(shape, qkv)[0]
    parts = (torch.split(part.transpose(0, 1)[None], lengths, dim=2) for part in shape.split(qkv))
    attended = torch.cat([attend_row(shape, *row) for row in zip(*parts, strict=True)], dim=2)
    return attended[0].transpose(0, 1).flatten(1)
