"""Scores pairs of queries in a separate process, so that no prediction can harm or stop this one."""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ftlab.sql.strict import check_text, exact_string
from ftlab.sql.verdict import Verdict

DATABASES = 32
SECONDS = 2.0
# The kernel limits a pair's processor time. These are wall-clock limits in seconds for a process that hangs.
SILENCE = 20.0
START = 60.0
STARTS = 3
# Longer predictions are not sent to the process. SQLite's own limit is lower (ftlab.sql.engine.SQL_BYTES).
CHARACTERS = 400_000
# Signals by which others end a process: the OOM killer, an administrator, a scheduler. No pair causes them.
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# The start of the reason of a pair without a verdict.
NOT_JUDGED = "not judged"


class ScorerError(Exception):
    """The scoring process cannot be started."""


class ScorerDied(Exception):
    """The scoring process ended, or was killed because it did not answer.

    `spent`: the pair had used up its budget. `outside`: someone else ended the process, so the pair is not the cause.
    """

    def __init__(self, reason: str, spent: bool = False, outside: bool = False) -> None:
        super().__init__(reason)
        self.spent = spent
        self.outside = outside


class Scorer:
    """Scores one pair at a time, from any thread. The process starts with the first pair and is replaced when it dies.

    `databases`: the number of generated databases on which two queries are compared, at least 1. `seconds`: the
    processor time for one pair, at least 2. Raises ValueError for other values. Use it as a context manager, or call
    `close`.
    """

    def __init__(self, databases: int = DATABASES, seconds: float = SECONDS) -> None:
        if not isinstance(databases, int) or databases < 1:
            raise ValueError(f"databases={databases!r} must be a whole number of at least 1")
        if not seconds >= 2:
            raise ValueError(f"seconds={seconds!r} must be at least 2")
        self.databases = databases
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        ALL.add(self)

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, gold: str, pred: object, context: str, rows_file: Path | None = None) -> Verdict:
        """The verdict on a prediction. `rows_file`: a SQLite database with real rows to compare on as well.

        If the scoring process is ended from outside twice, only `exact_string` is known: the reason begins with
        `NOT_JUDGED`, `exec_equal` is None, and the other scores are false.

        Raises ScorerError if the scoring process cannot be started, and TypeError if gold or context is not text. No
        content of a text and no kind of prediction raises an error.
        """
        check_text("gold", gold)
        check_text("context", context)
        with self._lock:
            if not isinstance(pred, str):
                return self._without_prediction(gold, context, rows_file, f"not text: {kind(pred)}")
            if len(pred) > CHARACTERS:
                reason = f"over the budget: more than {CHARACTERS:,} characters"
                return self._without_prediction(gold, context, rows_file, reason)
            try:
                return self._ask_twice(gold, pred, context, rows_file)
            except ScorerDied as death:
                verdict = self._without_prediction(gold, context, rows_file, str(death))
                known = None if death.outside else verdict.exec_equal
                return replace(verdict, exact_string=exact_string(gold, pred), exec_equal=known)

    def close(self) -> None:
        """End the scoring process. A later `score` starts another one."""
        with self._lock:
            self._end()

    def _without_prediction(self, gold: str, context: str, rows_file: Path | None, reason: str) -> Verdict:
        """A verdict with all scores false. Its facts on the gold query come from a pair with an empty prediction."""
        try:
            return replace(self._ask_twice(gold, "", context, rows_file), reason=reason)
        except ScorerDied as death:
            if death.outside:
                return Verdict(False, False, None, False, None, False, 0, str(death))
            return Verdict(False, False, None, False, None, True, 0, f"the gold query: {death}")

    def _ask_twice(self, gold: str, pred: str, context: str, rows_file: Path | None) -> Verdict:
        """Score a pair, and once more if the process died before the pair had used up its budget."""
        request = {
            "gold": gold,
            "pred": pred,
            "context": context,
            "databases": self.databases,
            "rows_file": None if rows_file is None else os.path.abspath(rows_file),
        }
        line = json.dumps(request).encode() + b"\n"
        try:
            return self._ask(line)
        except ScorerDied as death:
            if death.spent:
                raise
        return self._ask(line)

    def _ask(self, line: bytes) -> Verdict:
        process = self._running()
        try:
            send(process, line, SILENCE)
            fields = receive(process, SILENCE)
        except BaseException as error:
            death = self._cause_of_death(process, error)
            if isinstance(error, (OSError, EOFError)):
                raise death from None
            raise
        return Verdict(**fields | {"buckets": tuple(fields["buckets"])})

    def _cause_of_death(self, process: subprocess.Popen[bytes], error: BaseException) -> ScorerDied:
        """End a process that failed; returns why it died."""
        if isinstance(error, (EOFError, BrokenPipeError)):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
        self._end()
        if isinstance(error, TimeoutError):
            return ScorerDied(f"over the budget: no answer within {SILENCE:g} s", spent=True)
        if process.returncode == -signal.SIGXCPU:
            return ScorerDied(f"over the budget: {self.seconds:g} s of processor time", spent=True)
        how = ending(process.returncode)
        if -process.returncode in OUTSIDE:
            return ScorerDied(f"{NOT_JUDGED}: the scoring process was ended twice from outside ({how})", outside=True)
        return ScorerDied(f"over the budget: the scoring process ended ({how})")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = start(self.seconds)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            end(process)

    def _forget(self) -> None:
        """In a forked copy of this process: leave the scoring process to the original."""
        self._lock = threading.Lock()
        if self._process is not None:
            process, self._process = self._process, None
            process.returncode = 0
            close_pipes(process)


ALL: "weakref.WeakSet[Scorer]" = weakref.WeakSet()


def forget_all() -> None:
    for scorer in list(ALL):
        scorer._forget()


os.register_at_fork(after_in_child=forget_all)


@lru_cache(maxsize=1)
def shared_scorer() -> Scorer:
    """The scorer that all of this process shares, with default settings; closed at exit."""
    scorer = Scorer()
    atexit.register(scorer.close)
    return scorer


def kind(pred: object) -> str:
    """The JSON type of a prediction that is not text."""
    if pred is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(type(pred), type(pred).__name__)


def start(seconds: float) -> "subprocess.Popen[bytes]":
    """A new scoring process, ready for its first pair. Retries, since memory may be short for a while only.

    Raises ScorerError if all attempts fail.
    """
    for attempt in range(STARTS):
        try:
            return start_once(seconds)
        except (OSError, EOFError) as error:
            fault = error
            time.sleep(attempt)
    raise ScorerError(f"the SQL scoring process cannot be started: {fault}")


def start_once(seconds: float) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        # -P, since -m alone would import modules from the current folder first.
        [sys.executable, "-P", "-W", "ignore", "-m", "ftlab.sql.child", f"{seconds:g}"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # Ctrl-C in a terminal goes to all processes of a session
    )
    try:
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        first = receive(process, START)
    except BaseException:
        end(process)
        raise
    if "failed" in first:
        end(process)
        raise OSError(first["failed"])
    return process


def environment() -> dict[str, str]:
    """This process's environment, with its module path absolute and numeric libraries limited to one thread."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": path}


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    close_pipes(process)


def close_pipes(process: "subprocess.Popen[bytes]") -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def send(process: "subprocess.Popen[bytes]", data: bytes, seconds: float) -> None:
    """Write a request. Raises TimeoutError if the process does not read it, OSError if it has ended."""
    assert process.stdin is not None
    pipe, deadline, rest = process.stdin.fileno(), time.monotonic() + seconds, memoryview(data)
    while rest:
        wait(pipe, select.POLLOUT, deadline)
        rest = rest[os.write(pipe, rest) :]


def receive(process: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any]:
    """Read an answer. Raises TimeoutError if none comes, EOFError if the process has ended."""
    assert process.stdout is not None
    pipe, deadline, data = process.stdout.fileno(), time.monotonic() + seconds, b""
    while not data.endswith(b"\n"):
        wait(pipe, select.POLLIN, deadline)
        part = os.read(pipe, 65536)
        if not part:
            raise EOFError("it ended before it answered")
        data += part
    answer: dict[str, Any] = json.loads(data)
    return answer


def wait(pipe: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError("it does not answer")
