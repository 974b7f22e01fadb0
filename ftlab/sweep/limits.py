"""Limits of a trial: its run time, and the GPU memory that it must release at its end."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

GRACE_S = 60.0  # after the time limit, before a trial that did not end is given up with its process
DRIFT = 0.05  # the part of free memory that may be missing after a trial
GIB = 1 << 30


class Overdue(BaseException):
    """The time limit is over. A BaseException, so that no `except Exception` in between catches it."""


@contextmanager
def time_limit(seconds: float | None, hung: Callable[[], None], grace_s: float = GRACE_S) -> Iterator[None]:
    """Raise `Overdue` in the block after `seconds`. If the block still runs `grace_s` later, as in a C call that does
    not return, call `hung` from another thread. Only the main thread can be interrupted."""
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
    """Replace this process by a new one of the same command, which resumes the study."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # a pending alarm survives execv
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class Keeper(Protocol):
    """Keeps GPU memory between trials on purpose: `ftlab.models.Bases`."""

    def held_gib(self) -> float: ...
    def drop(self) -> None: ...


class Memory:
    """Free GPU memory in GiB, before the first trial and after each; None without a GPU."""

    def __init__(self, keeper: Keeper | None = None) -> None:
        self.keeper = keeper
        gpu = _gpu()
        if gpu and gpu.is_initialized():
            gc.collect()  # models from before the sweep
        gc.freeze()  # exempt imported modules, so that a collection takes a tenth of the time
        self.first = self.last = free_gib()

    def close(self) -> None:
        """After the last trial: let the garbage collector see everything again."""
        gc.unfreeze()

    def settle(self) -> float | None:
        """Release unreferenced memory. Returns the free GiB, counting a kept base as free. If that is less than before
        the first trial, the base is dropped as well."""
        free = self._settled()
        if self.drifted(free) and self.keeper:
            self.keeper.drop()
            free = self._settled()
        self.last = free
        return free

    def drifted(self, free: float | None) -> bool:
        """Whether more than `DRIFT` of the memory that was free before the first trial is missing."""
        return free is not None and self.first is not None and free < (1 - DRIFT) * self.first

    def _settled(self) -> float | None:
        gc.collect()
        gpu = _gpu()
        if gpu:
            gpu.empty_cache()
        free = free_gib()
        return None if free is None else free + (self.keeper.held_gib() if self.keeper else 0.0)


def free_gib() -> float | None:
    """Free memory of this process's GPU in GiB; None without one."""
    gpu = _gpu()
    return gpu.mem_get_info()[0] / GIB if gpu else None


def _gpu() -> Any:
    """torch.cuda if torch has been imported and sees a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
