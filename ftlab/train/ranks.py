"""Data-parallel training with several processes: their ranks, their messages, and how they end together.

`torchrun` and `accelerate launch` start the processes and give each its rank. All run the same loop on their share of
each step's rows. The first process (rank 0) decides and keeps all records. They communicate by collectives, which all
processes call in the same order, over gloo on the host; only gradients are sent between GPUs. A process that ends, with
or without an error, sends an `ExitMessage` in its next collective, so that no other process waits for it. A process
that the system has killed is detected by its closed connection, which gloo sometimes misses, and by asking its host.
"""

import hashlib
import json
import os
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from ftlab.data.encode import Sample
from ftlab.errors import ConfigError, FtlabError, TrainingError, first_line
from ftlab.process import Process, end_with
from ftlab.train.signals import StopSignal

S = TypeVar("S", bound=Sample)

# How long to wait until all processes of the launch have started. Each first imports its libraries, at worst over a
# network.
RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
# How long to wait for a message: an evaluation by the first process may take hours.
MESSAGE_TIMEOUT = timedelta(days=7)
# How often a waiting process checks that the other processes of its host are alive.
POLL = timedelta(seconds=1)


@dataclass(frozen=True)
class ExitMessage:
    """The last message of a process: its exit code, and its error as class and message, empty if there is none."""

    code: int = 0
    error: str = ""


class PeerEnded(FtlabError):
    """Another process has ended and reports its error itself. This process ends with the same exit code."""

    def __init__(self, rank: int, end: ExitMessage) -> None:
        super().__init__(f"process {rank}: {end.error}")
        self.exit_code = end.code


class Ranks:
    """This process among the `world` processes of a launch; by default a single one, without torch.distributed.
    `others` are the other processes; those on the same host can be checked for being alive."""

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None, others: Iterable[Process] = ()) -> None:
        self.rank, self.world, self.store, self.others = rank, world, store, list(others)
        self.stop = StopSignal()
        self.lost = False  # whether another process has ended without an exit message

    @classmethod
    def join(cls) -> "Ranks":
        """Find the other processes of the launch, which environment variables describe.

        Raises:
            ConfigError: the variables describe no launch.
            TrainingError: some processes have not started in time.
        """
        with warnings.catch_warnings(action="ignore"):
            return cls(*_rendezvous())

    def connect(self) -> None:
        """Open the connections to the other processes, in a thread: torch's timeout for this is that of all messages,
        and it does not notice if a process is gone.

        Raises:
            TrainingError: a process is gone.
        """
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = self.store.clone()  # a thread that waits in a store blocks it for other threads
        open_all = partial(dist.init_process_group, store=store, rank=self.rank, world_size=self.world)
        with warnings.catch_warnings(action="ignore"), self._connected():
            opened = ThreadPoolExecutor(1).submit(open_all, backend, timeout=MESSAGE_TIMEOUT)
            self._until(opened.done, lambda look: opened.result(look.total_seconds()))
            opened.result()

    @property
    def first(self) -> bool:
        """Whether this process decides and keeps the records."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is only this process."""
        return self.world == 1

    def check_devices(self) -> None:
        """Raise ConfigError if there are more processes on this host than GPUs."""
        local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if torch.cuda.is_available() and local >= gpus:
            raise ConfigError(
                f"the launcher starts {os.environ.get('LOCAL_WORLD_SIZE', local + 1)} processes on a host with {gpus} "
                f"GPU{'s' * (gpus > 1)}, and each needs one: --nproc_per_node={gpus}"
            )

    # --- rows and gradients -----------------------------------------------------------------------------------

    def most(self, rows: int) -> int:
        """Return the number of rows of the largest share of `rows` rows."""
        return -(-rows // self.world)

    def share(self, rows: Sequence[S]) -> Sequence[S]:
        """Return this process's rows, in their order. All processes get about the same number of rows and of tokens.
        The longest rows are assigned first, each to the process with the fewest tokens whose share is not full."""
        if self.alone:
            return rows
        most, tokens, shares = self.most(len(rows)), [0] * self.world, [list[int]() for _ in range(self.world)]
        for i in sorted(range(len(rows)), key=lambda i: -rows[i].tokens):
            rank = min((r for r in range(self.world) if len(shares[r]) < most), key=tokens.__getitem__)
            shares[rank].append(i)
            tokens[rank] += rows[i].tokens
        return [rows[i] for i in sorted(shares[self.rank])]

    def number(self, local: int) -> int:
        """Return the number of this process's micro-batch `local` among the micro-batches of all processes."""
        return local * self.world + self.rank

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Set the tensors to the values of the first process, in place."""
        if self.alone:
            return
        self.all_gather()
        with self._connected():
            for tensor in tensors:
                self._collective(dist.broadcast, tensor, 0, host=tensor.device.type == "cpu")

    def sum_(self, parameters: list[nn.Parameter], loss: Tensor) -> None:
        """Sum the gradients and losses of all processes, in place (all-reduce). The `all_gather` before it ensures that
        all have computed theirs: nothing would end a GPU's wait for a process that has failed."""
        if self.alone:
            return
        sole = parameters[0].grad if len(parameters) == 1 else None
        bucket = _bucket(parameters) if sole is None else sole
        self.all_gather()
        with self._connected():
            self._sum(bucket)
            self._sum(loss)
        if sole is None:
            _unpack_bucket(bucket, parameters)

    # --- messages ---------------------------------------------------------------------------------------------

    def all_gather(self, message: Any = None) -> list[Any]:
        """Return the messages of all processes, by rank; a message is None or a value of JSON. This waits for all
        processes, so without a message it is a barrier.

        Raises:
            PeerEnded: a process has ended.
            TrainingError: a process has ended without an exit message.
        """
        messages = self._exchange(message)
        for rank, received in enumerate(messages):
            if isinstance(received, ExitMessage):
                raise PeerEnded(rank, received)
        return messages

    def any(self, text: str) -> str:
        """Return the first text that is not empty, by rank; empty if there is none."""
        return next((received for received in self.all_gather(text or None) if received), "")

    def broadcast_from_first(self, make: Callable[[], Any]) -> Any:
        """Call `make` in the first process, and return its result in all processes."""
        return self.all_gather(make() if self.first else None)[0]

    def check_same(self, settings: dict[str, Any]) -> None:
        """Check that all processes have the same settings.

        Raises:
            ConfigError: names the settings in which a process differs from the first one.
        """
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        if len(set(self.all_gather(digest))) == 1:
            return
        all_settings = self.all_gather({key: str(value) for key, value in settings.items()})
        rank = next(rank for rank, theirs in enumerate(all_settings) if theirs != all_settings[0])
        first, other = all_settings[0], all_settings[rank]
        differ = [key for key in sorted({*first, *other}) if first.get(key) != other.get(key)]
        lines = [f"  {key}: {first.get(key)} in process 0, {other.get(key)} in process {rank}" for key in differ]
        listed = "\n".join(lines)
        raise ConfigError(f"the processes of this launch differ:\n{listed}\nstart all with the same command and data")

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process run the block before the others, for example to download files that they then use."""
        if not self.first:
            self.all_gather()
        yield
        if self.first:
            self.all_gather()

    def _exchange(self, message: Any) -> list[Any]:
        """Return the messages and exit messages of all processes. Usually there are none, which costs one small sum."""
        if self.alone:
            return [message]
        data = b"" if message is None else _encoded(message)
        with self._connected():
            longest = torch.tensor([len(data)])
            self._sum(longest, dist.ReduceOp.MAX)
            if not longest:
                return [None] * self.world
            mine = torch.frombuffer(bytearray(data.ljust(int(longest))), dtype=torch.uint8)
            received = [torch.empty_like(mine) for _ in range(self.world)]
            self._collective(dist.all_gather, received, mine, host=True)
        return [_decoded(bytes(one.tolist())) for one in received]

    def _sum(self, tensor: Tensor, how: Any = dist.ReduceOp.SUM) -> None:
        self._collective(dist.all_reduce, tensor, how, host=tensor.device.type == "cpu")

    def _collective(self, operation: Callable[..., Any], *arguments: Any, host: bool) -> None:
        """Run a collective operation of torch.distributed. One on the `host` is waited for, one between GPUs is not.

        Raises:
            RuntimeError: a process is gone.
        """
        work = operation(*arguments, async_op=host)
        if host:
            self._until(work.is_completed, work.wait)
            work.wait()

    def _until(self, done: Callable[[], bool], wait: Callable[[timedelta], Any]) -> None:
        """Wait until `done()`, as long as all processes are alive.

        Raises:
            RuntimeError: a process is gone.
        """
        while not done():
            with suppress(RuntimeError, TimeoutError):  # a time-out, or a failure that the caller's wait raises again
                wait(POLL)
            if not done() and any(other.dead() for other in self.others):
                raise RuntimeError("its host no longer has it")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn a failed message between processes into one error, which says that another process is gone.

        Raises:
            TrainingError: a process has ended without an exit message.
        """
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.lost = True
            # Leave out gloo's source line, and its guesses about the cause.
            cause = re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0]
            raise TrainingError(
                "another process of this launch ended without reporting an error, as when the system kills it "
                f"({cause}): see the launcher's output. The same command resumes the run"
            ) from None

    # --- the end ----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Tell the other processes that this one has finished.

        Raises:
            TrainingError: another process has ended without an exit message.
        """
        self._exchange(ExitMessage())

    def fail(self, code: int, error: BaseException) -> bool:
        """Tell the other processes that an error ends this one; return whether it is the one to show an error.

        If a process is lost, the others are not waited for. They may still wait in the collective in which this process
        noticed the loss, and will notice it when this process is gone too.
        """
        with suppress(TrainingError):
            messages = [] if self.lost else self._exchange(ExitMessage(code, f"{type(error).__name__}: {error}"))
        if self.lost:
            return self._first_to_report()
        failed = [rank for rank, one in enumerate(messages) if isinstance(one, ExitMessage) and one.code]
        return failed[:1] == [self.rank]

    def _first_to_report(self) -> bool:
        """Whether no other remaining process has shown the loss to the user yet."""
        try:
            return bool(self.store.add("reported", 1) == 1)
        except RuntimeError:  # the lost process held the store
            return True

    def leave(self) -> None:
        """Wait until all processes have reported: launchers end the others as soon as one fails."""
        with suppress(TrainingError):
            if not self.lost:
                self._exchange(None)
                dist.destroy_process_group()


def _bucket(parameters: list[nn.Parameter]) -> Tensor:
    """Return all gradients in one float32 buffer, after one number per parameter: whether it has a gradient."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    there = torch.tensor([float(p.grad is not None) for p in parameters], device=grads[0].device)
    return torch.cat([there, *(grad.flatten().float() for grad in grads)])


def _unpack_bucket(bucket: Tensor, parameters: list[nn.Parameter]) -> None:
    """Copy the summed gradients of a bucket into the parameters. A parameter without a gradient in any process keeps
    none."""
    found, *sums = torch.split(bucket, [len(parameters), *(p.numel() for p in parameters)])
    for parameter, total, known in zip(parameters, sums, found.tolist(), strict=True):
        parameter.grad = total.view_as(parameter).to(parameter.dtype) if known else None


def _rendezvous() -> tuple[int, int, Any, list[Process]]:
    """Wait for all processes of the launch; return this process's rank, their number, their common store, and the other
    processes."""
    try:
        store, rank, world = next(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
    except ValueError as error:
        raise ConfigError(
            f"RANK and WORLD_SIZE say that a launcher started several processes, but {error}: start them with torchrun "
            "or accelerate launch, or unset RANK for a single one"
        ) from None
    except RuntimeError as error:
        raise TrainingError(f"the processes of this launch cannot connect: {first_line(error)}") from None
    # The prefix keeps apart what an earlier attempt (torchrun's --max_restarts) has left in the store.
    store = dist.PrefixStore(f"ftlab/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # type: ignore[attr-defined]
    names = [str(other) for other in range(world)]
    store.set(names[rank], json.dumps(Process.me().record()))
    try:
        store.wait(names, RENDEZVOUS_TIMEOUT)
    except RuntimeError:
        missing = [str(other) for other, name in enumerate(names) if not store.check([name])]
        raise TrainingError(
            f"of the {world} processes of this launch, {', '.join(missing)} did not start within "
            f"{RENDEZVOUS_TIMEOUT.total_seconds() / 60:g} minutes: see the launcher's output"
        ) from None
    processes = [Process(**json.loads(store.get(name))) for name in names]
    return rank, world, store, processes[:rank] + processes[rank + 1 :]


def _encoded(message: Any) -> bytes:
    return json.dumps({"end": vars(message)} if isinstance(message, ExitMessage) else [message]).encode()


def _decoded(text: bytes) -> Any:
    """Return the message that `_encoded` made a text of; None for a blank text."""
    if not text.strip():
        return None
    found = json.loads(text)
    return ExitMessage(**found["end"]) if isinstance(found, dict) else found[0]


def run_distributed(work: Callable[[Ranks], None], show: Callable[[FtlabError], int]) -> int:
    """Run `work` in this process of a launch, and end together with the others; return the exit code. `show` shows an
    error to the user; only one process calls it.

    A launcher that has seen one process die sends SIGTERM to all others at once. They handle it like any stop signal,
    so that they can still exchange their exit messages.
    """
    ranks = Ranks.join()
    with ranks.stop.caught():
        if "TORCHELASTIC_RUN_ID" in os.environ:  # the parent is torchrun or accelerate launch, which waits for us
            end_with(os.getppid())
        code = _run_to_end(ranks, work, show)
        ranks.leave()
    return code


def _run_to_end(ranks: Ranks, work: Callable[[Ranks], None], show: Callable[[FtlabError], int]) -> int:
    """Run this process's part; return its exit code once the other processes have received it."""
    try:
        ranks.connect()
        ranks.check_devices()
        work(ranks)
        ranks.end()
    except PeerEnded as error:
        return error.exit_code
    except FtlabError as error:
        if ranks.fail(error.exit_code, error):
            show(error)
        return error.exit_code
    except BaseException as error:  # including SystemExit, as after a broken pipe
        if ranks.fail(1, error) and isinstance(error, Exception):
            traceback.print_exc()
        return 1
    return 0
