"""Processes of this host and of others: whether a process is alive, and ending this one when its parent has ended."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

PROC = Path("/proc")
POLL_S = 1.0


@dataclass(frozen=True)
class Process:
    """The identity of a process. `started` (clock ticks since boot; empty if the system does not provide it)
    distinguishes it from a later process with the same pid."""

    host: str
    pid: int
    started: str

    @classmethod
    def me(cls) -> "Process":
        """Return the identity of this process."""
        return cls(this_host(), os.getpid(), _started(os.getpid()) or "")

    @classmethod
    def read(cls, node: Any) -> "Process | None":
        """Return the process of a record that `record` made; None if it is not such a record."""
        try:
            return cls(str(node["host"]), int(node["pid"]), str(node["started"]))
        except (KeyError, TypeError, ValueError):
            return None

    def record(self) -> dict[str, Any]:
        """Return the process as a JSON object."""
        return asdict(self)

    def here(self) -> bool:
        """Whether the process is on this host, with the same space of pids."""
        return self.host == this_host()

    def dead(self) -> bool:
        """Whether the process is known to have ended. For a process of another host this is never known."""
        if not self.here():
            return False
        if PROC.joinpath("self", "stat").exists():
            return _started(self.pid) != self.started
        return not psutil.pid_exists(self.pid)

    def frozen(self) -> bool:
        """Whether the process is known to be stopped, as by SIGSTOP or a debugger, and will not continue by itself."""
        if not self.here() or self.dead():
            return False
        try:
            return psutil.Process(self.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        except psutil.Error:
            return False


@cache
def this_host() -> str:
    """Return the machine's name with the ids of its boot and of its pid namespace: containers may share a name without
    seeing each other's processes."""
    return "/".join([socket.gethostname(), *_boot(), *_pid_space()])


def end_with(parent: int, parent_now: Callable[[], int] = os.getppid) -> None:
    """Send SIGTERM to this process once its parent has ended: an orphaned process would keep its GPU unnoticed."""

    def watch() -> None:
        while parent_now() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _boot() -> list[str]:
    try:
        return [(PROC / "sys/kernel/random/boot_id").read_text()[:8]]
    except OSError:
        return []


def _pid_space() -> list[str]:
    try:
        return [os.readlink(PROC / "self/ns/pid")]
    except OSError:
        return []


def _started(pid: int) -> str | None:
    """Return when a process began; None if it has ended or is a zombie.

    This is field 22 of /proc/PID/stat, which changes of the system clock do not affect. psutil's `create_time` is
    relative to the time of boot, which depends on the clock.
    """
    try:
        # The name in brackets may contain spaces and brackets; the state follows it.
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if not fields or fields[0] in "ZX" else fields[19]
