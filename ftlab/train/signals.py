"""Signals as a wish to stop: after the step under way, or at once where nothing is under way.

SIGTERM and SIGINT; SIGHUP of a terminal that is closed; SIGXCPU and SIGUSR1, by which batch systems say that time is
nearly over. One that was ignored when this process began stays so, as SIGHUP under `nohup`. No torch.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ftlab.errors import Stopped

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1)


class StopSignal:
    """`name` is that of the first signal that came, or empty; no later one changes it."""

    def __init__(self) -> None:
        self.name = ""
        self.urgent = False

    def __bool__(self) -> bool:
        return bool(self.name)

    @contextmanager
    def caught(self) -> Iterator["StopSignal"]:
        """Listen while the block runs, in the place of whoever has listened until now, and whose signal is this one's
        too; elsewhere than in the main thread signals cannot be caught."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heard}
        for listener in (getattr(handler, "__self__", None) for handler in before.values()):
            if isinstance(listener, StopSignal):
                self.name = self.name or listener.name
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal ends the run, which has done nothing yet that would be lost.

        Raises:
            Stopped: one came, here or before.
        """
        try:
            self.urgent = True
            if self:
                raise KeyboardInterrupt
            yield
            if self:  # that of the signal was swallowed on its way
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise Stopped(f"{self.name or 'SIGINT'}: stopped while getting ready, nothing is lost") from None
        finally:
            self.urgent = False

    @staticmethod
    def end_at_once(code: int) -> None:
        """From here on a signal ends the process with this exit code: all is done, and the interpreter leaves."""
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: os._exit(code))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        if self.urgent:  # no Exception: libraries answer those by another attempt
            self.urgent = False
            raise KeyboardInterrupt
