"""Scores pairs of queries in a process of their own, so that no prediction can harm or stop this one."""

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
# The kernel counts a pair's processor time. These are for a process that neither computes nor answers.
SILENCE = 20.0
START = 60.0
STARTS = 3
# No longer prediction goes to the other process. SQLite takes shorter ones (ftlab.sql.engine.SQL_BYTES), blanks aside.
CHARACTERS = 400_000
# With these others end a process: the system when memory is short, an administrator, a scheduler. No pair causes them.
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# How the reason begins where a pair has no verdict.
NOT_JUDGED = "not judged"


class ScorerError(Exception):
    """The process that scores cannot be started."""


class Died(Exception):
    """The process that scores ended, or was silent and was ended.

    `spent`: it had used up a pair's budget. `outside`: someone else ended it, which is no fault of the pair.
    """

    def __init__(self, reason: str, spent: bool = False, outside: bool = False) -> None:
        super().__init__(reason)
        self.spent = spent
        self.outside = outside


class Scorer:
    """Scores one pair at a time, from any thread. The process is started for the first pair and replaced when it dies.

    `databases`: on how many made-up databases two queries are compared. `seconds`: processor time that one pair may
    take, at least 2. Raises ValueError for others. Used as a context manager, or closed with `close`.
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
        """The verdict of a prediction. `rows_file`: a SQLite database with real rows, compared on as well.

        Where the scoring process is ended from outside twice, nothing is known but `exact_string`: the reason begins
        with `NOT_JUDGED`, `exec_equal` is None, what must be a boolean is false.

        Raises ScorerError where the scoring process cannot be started, TypeError where gold or context is not text;
        nothing for what a text holds or a prediction is.
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
            except Died as death:
                verdict = self._without_prediction(gold, context, rows_file, str(death))
                known = None if death.outside else verdict.exec_equal
                return replace(verdict, exact_string=exact_string(gold, pred), exec_equal=known)

    def close(self) -> None:
        """End the process. A later `score` starts another."""
        with self._lock:
            self._end()

    def _without_prediction(self, gold: str, context: str, rows_file: Path | None, reason: str) -> Verdict:
        """All scores false. What is said of the gold query comes from a pair with an empty prediction."""
        try:
            return replace(self._ask_twice(gold, "", context, rows_file), reason=reason)
        except Died as death:
            if death.outside:
                return Verdict(False, False, None, False, None, False, 0, str(death))
            return Verdict(False, False, None, False, None, True, 0, f"the gold query: {death}")

    def _ask_twice(self, gold: str, pred: str, context: str, rows_file: Path | None) -> Verdict:
        """Ask again where the process died although the pair had not used up its budget: someone else ended it."""
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
        except Died as death:
            if death.spent:
                raise
        return self._ask(line)

    def _ask(self, line: bytes) -> Verdict:
        process = self._running()
        try:
            send(process, line, SILENCE)
            fields = receive(process, SILENCE)
        except BaseException as error:
            death = self._bury(process, error)
            if isinstance(error, (OSError, EOFError)):
                raise death from None
            raise
        return Verdict(**fields | {"buckets": tuple(fields["buckets"])})

    def _bury(self, process: subprocess.Popen[bytes], error: BaseException) -> Died:
        """End a process that is of no more use, and say what it died of."""
        if isinstance(error, (EOFError, BrokenPipeError)):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
        self._end()
        if isinstance(error, TimeoutError):
            return Died(f"over the budget: no answer within {SILENCE:g} s", spent=True)
        if process.returncode == -signal.SIGXCPU:
            return Died(f"over the budget: {self.seconds:g} s of processor time", spent=True)
        how = ending(process.returncode)
        if -process.returncode in OUTSIDE:
            return Died(f"{NOT_JUDGED}: the scoring process was ended twice from outside ({how})", outside=True)
        return Died(f"over the budget: the scoring process ended ({how})")

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
        """In a forked copy of this process: the scoring process is the original's."""
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
    """The scorer of this process, with the defaults; closed when the process ends."""
    scorer = Scorer()
    atexit.register(scorer.close)
    return scorer


def kind(pred: object) -> str:
    """What a prediction is that is not text, in the words of JSON."""
    if pred is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(type(pred), type(pred).__name__)


def start(seconds: float) -> "subprocess.Popen[bytes]":
    """A new scoring process, ready for its first pair. Tried some times: a machine can be short of memory for a while.

    Raises ScorerError where there is none.
    """
    for attempt in range(STARTS):
        try:
            return start_once(seconds)
        except (OSError, EOFError) as error:
            fault = error
            time.sleep(attempt)
    raise ScorerError(f"the process that scores SQL cannot be started: {fault}")


def start_once(seconds: float) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        # Not -m alone, which would look for modules in the current folder first.
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
    """That of this process, with its modules found from any folder; one thread is all that scoring uses."""
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
    """Write a request. Raises TimeoutError where the process does not take it, OSError where it is gone."""
    assert process.stdin is not None
    pipe, deadline, rest = process.stdin.fileno(), time.monotonic() + seconds, memoryview(data)
    while rest:
        wait(pipe, select.POLLOUT, deadline)
        rest = rest[os.write(pipe, rest) :]


def receive(process: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any]:
    """Read an answer. Raises TimeoutError where none comes, EOFError where the process is gone."""
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
