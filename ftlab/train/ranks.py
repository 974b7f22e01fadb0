"""Several processes that train one model: who they are, what they tell each other, and how they end together.

`torchrun` and `accelerate launch` start them and tell each its rank. All run the same loop on their share of each
step's rows; the first one (rank 0) decides and keeps all records. They speak in *meetings*, which all attend in the
same order, over gloo on the host; only gradients go from GPU to GPU. A process that comes to its end, well or not, says
so in its next meeting, and the others hear of it in theirs: nobody waits for one that has gone. One that the system has
killed is told by its closed connection, which gloo misses at times, and by its host.
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

# Until all have come that the launcher said it starts: each imports its libraries first, at worst over a network.
RENDEZVOUS_TIMEOUT = timedelta(minutes=10)
# An evaluation by the first process may take hours.
PATIENCE = timedelta(days=7)
# How often those who wait for a message see whether all of their host are still there.
POLL = timedelta(seconds=1)


@dataclass(frozen=True)
class ExitMessage:
    """The last word of a process: its exit code, and its error as the class and message; empty where all is well."""

    code: int = 0
    error: str = ""


class PeerEnded(FtlabError):
    """Another process has come to its end, and says why itself; this one ends with it."""

    def __init__(self, rank: int, end: ExitMessage) -> None:
        super().__init__(f"process {rank}: {end.error}")
        self.exit_code = end.code


class Ranks:
    """This process among `world` of them; alone by default, without torch.distributed. `others` are those whom their
    host may know to be gone."""

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None, others: Iterable[Process] = ()) -> None:
        self.rank, self.world, self.store, self.others = rank, world, store, list(others)
        self.stop = StopSignal()
        self.lost = False  # whether another process has gone without a word

    @classmethod
    def join(cls) -> "Ranks":
        """Find the other processes of the launch, as its environment describes it.

        Raises:
            ConfigError: the environment describes none.
            TrainingError: some have not come in time.
        """
        with warnings.catch_warnings(action="ignore"):
            return cls(*_rendezvous())

    def connect(self) -> None:
        """Open the connections to the others, in a thread: torch waits here as long as for any message, and does not
        see that one has gone.

        Raises:
            TrainingError: one has.
        """
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = self.store.clone()  # the thread that waits in one keeps it from others
        open_all = partial(dist.init_process_group, store=store, rank=self.rank, world_size=self.world)
        with warnings.catch_warnings(action="ignore"), self._connected():
            opened = ThreadPoolExecutor(1).submit(open_all, backend, timeout=PATIENCE)
            self._until(opened.done, lambda look: opened.result(look.total_seconds()))
            opened.result()

    @property
    def first(self) -> bool:
        """Whether this process decides and keeps the records."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    def check_devices(self) -> None:
        """Raises ConfigError where processes of this host outnumber its GPUs."""
        local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if torch.cuda.is_available() and local >= gpus:
            raise ConfigError(
                f"the launcher starts {os.environ.get('LOCAL_WORLD_SIZE', local + 1)} processes on a host with {gpus} "
                f"GPU{'s' * (gpus > 1)}, and each needs one: --nproc_per_node={gpus}"
            )

    # --- rows and gradients -----------------------------------------------------------------------------------

    def most(self, rows: int) -> int:
        """Rows of the largest share of so many."""
        return -(-rows // self.world)

    def share(self, rows: Sequence[S]) -> Sequence[S]:
        """This process's rows, in their order: about as many rows and about as many tokens as everybody's. Long rows
        are dealt first, each to the process with the fewest tokens that has room."""
        if self.alone:
            return rows
        most, tokens, shares = self.most(len(rows)), [0] * self.world, [list[int]() for _ in range(self.world)]
        for i in sorted(range(len(rows)), key=lambda i: -rows[i].tokens):
            rank = min((r for r in range(self.world) if len(shares[r]) < most), key=tokens.__getitem__)
            shares[rank].append(i)
            tokens[rank] += rows[i].tokens
        return [rows[i] for i in sorted(shares[self.rank])]

    def number(self, local: int) -> int:
        """The number of this process's micro-batch `local` among those of all."""
        return local * self.world + self.rank

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Everybody's values become those of the first process."""
        if self.alone:
            return
        self.all_gather()
        with self._connected():
            for tensor in tensors:
                self._collective(dist.broadcast, tensor, 0, host=tensor.device.type == "cpu")

    def sum_(self, parameters: list[nn.Parameter], loss: Tensor) -> None:
        """Add up everybody's gradients and losses, in place. All have computed theirs before anything is sent, since
        nothing would end a GPU's wait for a process that failed."""
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

    # --- meetings ---------------------------------------------------------------------------------------------

    def all_gather(self, word: Any = None) -> list[Any]:
        """What everybody says, by rank, as JSON gives it back; waits for all.

        Raises:
            PeerEnded: one of them has come to its end.
            TrainingError: one of them has gone without a word.
        """
        words = self._exchange(word)
        for rank, said in enumerate(words):
            if isinstance(said, ExitMessage):
                raise PeerEnded(rank, said)
        return words

    def any(self, word: str) -> str:
        """The first word that anybody says; empty where nobody does."""
        return next((said for said in self.all_gather(word or None) if said), "")

    def broadcast_from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives in the first process, in all of them."""
        return self.all_gather(make() if self.first else None)[0]

    def check_same(self, settings: dict[str, Any]) -> None:
        """Everybody must have the same settings.

        Raises:
            ConfigError: the first few in which another process differs from the first one.
        """
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        if len(set(self.all_gather(digest))) == 1:
            return
        everybody = self.all_gather({key: str(value) for key, value in settings.items()})
        rank = next(rank for rank, theirs in enumerate(everybody) if theirs != everybody[0])
        first, other = everybody[0], everybody[rank]
        apart = [key for key in sorted({*first, *other}) if first.get(key) != other.get(key)]
        told = "\n".join(f"  {key}: {first.get(key)} in process 0, {other.get(key)} in process {rank}" for key in apart)
        raise ConfigError(f"the processes of this launch differ:\n{told}\nstart all with the same command and data")

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process goes through the block alone, such as to download what the others then find."""
        if not self.first:
            self.all_gather()
        yield
        if self.first:
            self.all_gather()

    def _exchange(self, word: Any) -> list[Any]:
        """One small message where nobody says anything, which is the rule."""
        if self.alone:
            return [word]
        data = (
            b""
            if word is None
            else json.dumps({"end": vars(word)} if isinstance(word, ExitMessage) else [word]).encode()
        )
        with self._connected():
            longest = torch.tensor([len(data)])
            self._sum(longest, dist.ReduceOp.MAX)
            if not longest:
                return [None] * self.world
            mine = torch.frombuffer(bytearray(data.ljust(int(longest))), dtype=torch.uint8)
            everybody = [torch.empty_like(mine) for _ in range(self.world)]
            self._collective(dist.all_gather, everybody, mine, host=True)
        return [_read(bytes(said.tolist())) for said in everybody]

    def _sum(self, tensor: Tensor, how: Any = dist.ReduceOp.SUM) -> None:
        self._collective(dist.all_reduce, tensor, how, host=tensor.device.type == "cpu")

    def _collective(self, message: Callable[..., Any], *arguments: Any, host: bool) -> None:
        """Send a message, and wait until all have come; what goes from GPU to GPU the host does not wait for.

        Raises:
            RuntimeError: some never will.
        """
        work = message(*arguments, async_op=host)
        if host:
            self._until(work.is_completed, work.wait)
            work.wait()

    def _until(self, done: Callable[[], bool], wait: Callable[[timedelta], Any]) -> None:
        """Wait, for as long as all are there.

        Raises:
            RuntimeError: one is not.
        """
        while not done():
            with suppress(RuntimeError, TimeoutError):  # not yet, or never: whoever asks for the result hears why
                wait(POLL)
            if not done() and any(other.dead() for other in self.others):
                raise RuntimeError("its host no longer has it")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Messages between processes, which end with an error where another one has gone."""
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.lost = True
            # Without the line of gloo's own source, and its guesses.
            told = re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0]
            raise TrainingError(
                "another process of this launch has gone without a word, as when the system kills it "
                f"({told}): see the launcher's output. The same command resumes"
            ) from None

    # --- the end ----------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Say that this process has come to its end.

        Raises:
            TrainingError: another one has gone without a word.
        """
        self._exchange(ExitMessage())

    def fail(self, code: int, error: BaseException) -> bool:
        """Say that an error ends this process; whether it is the one to say so to the user.

        Where one is lost nobody is waited for: one that is left may wait itself, for the rest of the message in which
        this process met the loss, and hears of it when this process has gone too.
        """
        with suppress(TrainingError):
            words = [] if self.lost else self._exchange(ExitMessage(code, f"{type(error).__name__}: {error}"))
        if self.lost:
            return self._first_to_report()
        return next((r for r, said in enumerate(words) if isinstance(said, ExitMessage) and said.code), -1) == self.rank

    def _first_to_report(self) -> bool:
        """Whether no other process has said to the user what all of those that are left have met."""
        try:
            return bool(self.store.add("reported", 1) == 1)
        except RuntimeError:  # the store was the process's that has gone
            return True

    def leave(self) -> None:
        """Wait until everybody has said what there is to say: launchers end the others as soon as one fails."""
        with suppress(TrainingError):
            if not self.lost:
                self._exchange(None)
                dist.destroy_process_group()


def _bucket(parameters: list[nn.Parameter]) -> Tensor:
    """All gradients in one float32 buffer, behind a number for each that says whether there is one."""
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    there = torch.tensor([float(p.grad is not None) for p in parameters], device=grads[0].device)
    return torch.cat([there, *(grad.flatten().float() for grad in grads)])


def _unpack_bucket(bucket: Tensor, parameters: list[nn.Parameter]) -> None:
    """The summed gradients of a bucket; what has one in no process has none afterwards."""
    found, *sums = torch.split(bucket, [len(parameters), *(p.numel() for p in parameters)])
    for parameter, total, known in zip(parameters, sums, found.tolist(), strict=True):
        parameter.grad = total.view_as(parameter).to(parameter.dtype) if known else None


def _rendezvous() -> tuple[int, int, Any, list[Process]]:
    """This process's rank, how many they are, a store common to all, and who the others are, once all have come."""
    try:
        store, rank, world = next(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
    except ValueError as error:
        raise ConfigError(
            f"RANK and WORLD_SIZE say that a launcher started several processes, but {error}: start them with torchrun "
            "or accelerate launch, or unset RANK for a single one"
        ) from None
    except RuntimeError as error:
        raise TrainingError(f"the processes of this launch do not meet: {first_line(error)}") from None
    # What those of an earlier attempt have left there (torchrun's --max_restarts) is not of this one.
    store = dist.PrefixStore(f"ftlab/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # type: ignore[attr-defined]
    names = [str(other) for other in range(world)]
    store.set(names[rank], json.dumps(Process.me().record()))
    try:
        store.wait(names, RENDEZVOUS_TIMEOUT)
    except RuntimeError:
        missing = [str(other) for other, name in enumerate(names) if not store.check([name])]
        raise TrainingError(
            f"of {world} processes that this launch should have, {', '.join(missing)} did not come within "
            f"{RENDEZVOUS_TIMEOUT.total_seconds() / 60:g} minutes: see what the launcher says of them"
        ) from None
    came = [Process(**json.loads(store.get(name))) for name in names]
    return rank, world, store, came[:rank] + came[rank + 1 :]


def _read(text: bytes) -> Any:
    """A word as it was sent; blank where nothing was said."""
    if not text.strip():
        return None
    found = json.loads(text)
    return ExitMessage(**found["end"]) if isinstance(found, dict) else found[0]


def run_distributed(work: Callable[[Ranks], None], show: Callable[[FtlabError], int]) -> int:
    """Do this process's part of a launch of several, and end with the others; the exit code. `show` tells the user of
    an error, in one process.

    A launcher that has seen one process die sends SIGTERM to all others at once: they heed it, as any wish to stop, but
    not before they have said what there is to say.
    """
    ranks = Ranks.join()
    with ranks.stop.caught():
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun or accelerate launch, which waits for all that it starts
            end_with(os.getppid())
        code = _run_to_end(ranks, work, show)
        ranks.leave()
    return code


def _run_to_end(ranks: Ranks, work: Callable[[Ranks], None], show: Callable[[FtlabError], int]) -> int:
    """The exit code of this process's part, once the others have heard of it."""
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
    except BaseException as error:  # also SystemExit, as when nobody reads what is printed
        if ranks.fail(1, error) and isinstance(error, Exception):
            traceback.print_exc()
        return 1
    return 0
