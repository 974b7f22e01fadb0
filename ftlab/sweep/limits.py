"""What bounds a trial: its time, and the GPU memory that it must leave as it found it."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

GRACE_S = 60.0  # after its time limit until a trial that did not end is left with its process
DRIFT = 0.05  # of the free memory, which a trial may fail to give back
GIB = 1 << 30


class Overdue(BaseException):
    """The time limit is over. No `except Exception` on the way may take it for its own."""


@contextmanager
def time_limit(seconds: float | None, hung: Callable[[], None], grace_s: float = GRACE_S) -> Iterator[None]:
    """Raise `Overdue` in the block once `seconds` are over; call `hung` from another thread where the block still
    runs `grace_s` later, as in a call into C that does not return. The main thread alone can be interrupted."""
    if seconds is None:
        yield
        return
    watchdog = threading.Timer(seconds + grace_s, hung)
    watchdog.daemon = True
    watchdog.start()
    try:
        with _alarm(seconds):
            yield
    finally:
        watchdog.cancel()


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    armed = True

    def ring(number: int, frame: FrameType | None) -> None:
        if armed:
            raise Overdue(f"it took longer than sweep.trial_limit_s={seconds:g}")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def start_again() -> None:
    """Replace this process by one of the same command, which goes on with the study."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm under way would outlive the process's program
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class Keeper(Protocol):
    """What holds GPU memory between trials on purpose: `ftlab.models.Bases`."""

    def held_gib(self) -> float: ...
    def drop(self) -> None: ...


class Memory:
    """Free GPU memory in GiB, before the first trial and after each; without a GPU there is nothing to read."""

    def __init__(self, keeper: Keeper | None = None) -> None:
        self.keeper = keeper
        gpu = _gpu()
        if gpu and gpu.is_initialized():
            gc.collect()  # models of before the sweep
        gc.freeze()  # what is imported by now stays: collecting after a trial takes a tenth of the time without it
        self.first = self.last = free_gib()

    def close(self) -> None:
        """After the last trial: what was there before the first one may be collected again."""
        gc.unfreeze()

    def settle(self) -> float | None:
        """Give back what nobody refers to any more; what is free then, a kept base counted as free. The base goes
        too where that is less than before the first trial."""
        free = self._settled()
        if self.drifted(free) and self.keeper:
            self.keeper.drop()
            free = self._settled()
        self.last = free
        return free

    def drifted(self, free: float | None) -> bool:
        """Whether memory is missing that was free before the first trial."""
        return free is not None and self.first is not None and free < (1 - DRIFT) * self.first

    def _settled(self) -> float | None:
        gc.collect()
        gpu = _gpu()
        if gpu:
            gpu.empty_cache()
        free = free_gib()
        return None if free is None else free + (self.keeper.held_gib() if self.keeper else 0.0)


def free_gib() -> float | None:
    """Free memory of this process's GPU; None without one."""
    gpu = _gpu()
    return gpu.mem_get_info()[0] / GIB if gpu else None


def _gpu() -> Any:
    """torch.cuda where torch has been imported and sees a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
