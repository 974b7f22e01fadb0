"""Processes of this host and of others: whether one still lives, and ending with the one that started this."""

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
    """A process, as others may know it: `started` tells it from a later one with the same pid (clock ticks since
    boot; empty where the system does not say)."""

    host: str
    pid: int
    started: str

    @classmethod
    def me(cls) -> "Process":
        """This process."""
        return cls(this_host(), os.getpid(), _started(os.getpid()) or "")

    @classmethod
    def read(cls, node: Any) -> "Process | None":
        """The counterpart of `record`; None where there is no such record."""
        try:
            return cls(str(node["host"]), int(node["pid"]), str(node["started"]))
        except (KeyError, TypeError, ValueError):
            return None

    def record(self) -> dict[str, Any]:
        """The process as JSON."""
        return asdict(self)

    def here(self) -> bool:
        """Whether this process can see that one."""
        return self.host == this_host()

    def dead(self) -> bool:
        """Whether the process is known to be gone; that of another host never is."""
        if not self.here():
            return False
        if PROC.joinpath("self", "stat").exists():
            return _started(self.pid) != self.started
        return not psutil.pid_exists(self.pid)

    def frozen(self) -> bool:
        """Whether the process is known to be stopped, as by SIGSTOP or a debugger, and will not go on by itself."""
        if not self.here() or self.dead():
            return False
        try:
            return psutil.Process(self.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        except psutil.Error:
            return False


@cache
def this_host() -> str:
    """The machine's name with its boot and its space of pids: containers may share a name, and see each other's
    processes not at all."""
    return "/".join([socket.gethostname(), *_boot(), *_pid_space()])


def end_with(parent: int, parent_now: Callable[[], int] = os.getppid) -> None:
    """Stop as on SIGTERM once the parent is gone: a process that nobody looks after would hold its GPU unseen."""

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
    """When a process began; None where it is gone or waits as a zombie for its parent.

    Field 22 of /proc/PID/stat, which the clock does not move: psutil counts `create_time` from the time of boot, which
    follows the clock.
    """
    try:
        # The name in brackets may hold spaces and brackets itself; the state follows.
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if not fields or fields[0] in "ZX" else fields[19]
