"""Stop signals: a run stops after its current step, or at once if no work would be lost.

The signals are SIGTERM and SIGINT, SIGHUP (a terminal was closed), and SIGXCPU and SIGUSR1, by which batch systems
announce a time limit. A signal that was ignored when the process began stays ignored, as SIGHUP under `nohup`.
This module does not import torch.
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
    """Records stop signals. `name` is the name of the first one received, or empty; later signals do not change it."""

    def __init__(self) -> None:
        self.name = ""
        self.urgent = False

    def __bool__(self) -> bool:
        return bool(self.name)

    @contextmanager
    def caught(self) -> Iterator["StopSignal"]:
        """Handle the stop signals while the block runs, instead of the previous handlers. A signal that a previous
        `StopSignal` has received counts for this one too. Outside the main thread signals cannot be handled."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        handled = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in handled}
        for previous in (getattr(handler, "__self__", None) for handler in before.values()):
            if isinstance(previous, StopSignal):
                self.name = self.name or previous.name
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the run at once within the block, because nothing done there would be lost.

        Raises:
            Stopped: a signal was received, in the block or before.
        """
        try:
            self.urgent = True
            if self:
                raise KeyboardInterrupt
            yield
            if self:  # a library has swallowed the signal's KeyboardInterrupt
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise Stopped(f"{self.name or 'SIGINT'}: stopped while getting ready, nothing is lost") from None
        finally:
            self.urgent = False

    @staticmethod
    def end_at_once(code: int) -> None:
        """Let a signal end the process with this exit code from now on: all work is done, only cleanup is left."""
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: os._exit(code))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        if self.urgent:  # not an Exception, because libraries retry after those
            self.urgent = False
            raise KeyboardInterrupt
