"""SIGTERM and SIGINT as a wish to stop: after the step under way, or at once where nothing is under way."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ftlab.errors import Stopped


class StopSignal:
    """`name` is that of the first signal that came, or empty; no later one changes it."""

    def __init__(self) -> None:
        self.name = ""
        self.urgent = False

    def __bool__(self) -> bool:
        return bool(self.name)

    @contextmanager
    def caught(self) -> Iterator["StopSignal"]:
        """Listen while the block runs; elsewhere than in the main thread signals cannot be caught."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        if self.urgent:  # no Exception: libraries answer those by another attempt
            self.urgent = False
            raise KeyboardInterrupt
