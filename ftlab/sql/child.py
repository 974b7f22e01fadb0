"""The process that judges pairs of queries: `python -m ftlab.sql.child SECONDS`, started by ftlab.sql.scorer.

It reads one JSON object a line, {gold, pred, context, databases, rows_file}, and answers each with the fields of a
`Verdict`; its first line is {"ready": true}, or {"failed": reason}. A pair gets `SECONDS` of processor time: after
`SHARE` of it the process gives up on the pair by itself and says so, after all of it the kernel ends the process. It
may allocate `MEMORY` bytes more than it needs to start, and can neither write a file nor, unless it is root's, start
a process. Budgets are counted in processor time, so that a busy machine changes no verdict.
"""

import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ftlab.sql.verdict import Verdict

MEMORY = 224 * 2**20
# The kernel counts whole seconds, so of 2 it may grant little more than 1; some must be left to say so.
SHARE = 0.4
FILES = 16
# Queries nest: SQLite takes about 90 parentheses, and an AND of 900 terms is a tree of 900 levels.
RECURSION = 20_000
STACK = 64 * 2**20
# Between two reminders that the time is up, in seconds; the first can get lost in a library's clean-up.
REMINDER = 0.05

Judge = Callable[[str, str, str, int, Path | None], Verdict]
OverBudgetJudge = Callable[[str, str, str, str], Verdict]


class BudgetExceeded(BaseException):
    """The processor time of a pair is used up. No Exception, so that no library takes it for a fault of its own."""


class Clock:
    """Raises BudgetExceeded in Python code that has used its share of a pair's processor time, in seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.share = SHARE * seconds
        self.armed = False
        signal.signal(signal.SIGPROF, self._ring)

    def _ring(self, *_: object) -> None:
        if self.armed:
            raise BudgetExceeded

    def move_end(self) -> None:
        """Let the kernel end this process when it has used at most so many more seconds; it counts whole ones."""
        end = math.floor(time.process_time()) + max(2, math.floor(self.seconds))
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (end, hard))

    @contextmanager
    def budget(self) -> Iterator[None]:
        self.move_end()
        self.armed = True
        signal.setitimer(signal.ITIMER_PROF, self.share, REMINDER)
        try:
            yield
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_PROF, 0)


def serve(requests: BinaryIO, answers: BinaryIO, judge: Judge, over_budget: OverBudgetJudge, clock: Clock) -> None:
    """Answer requests until there are none, or until memory ran out: then a fresh process is better."""
    for line in requests:
        request = json.loads(line)
        verdict, sound = decide(request, judge, over_budget, clock)
        answers.write(json.dumps(vars(verdict)).encode() + b"\n")
        answers.flush()
        if not sound:
            return


def decide(request: dict[str, Any], judge: Judge, over_budget: OverBudgetJudge, clock: Clock) -> tuple[Verdict, bool]:
    """The verdict of a pair, and whether the process is still fit for another."""
    gold, pred, context = request["gold"], request["pred"], request["context"]
    rows_file = Path(request["rows_file"]) if request.get("rows_file") else None
    sound = True
    try:
        with clock.budget():
            return judge(gold, pred, context, request["databases"], rows_file), sound
    except BudgetExceeded:
        reason = f"over the budget: {clock.share:g} s of processor time"
    except MemoryError:
        reason, sound = "over the budget: memory", False
    except RecursionError:
        reason = "over the budget: levels of nesting"
    except Exception as error:
        # One row must not end the scoring of the others; the reason shows the fault.
        reason = f"cannot be scored: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return over_budget(gold, pred, context, reason), sound


def lock_down() -> None:
    """Take from this process, for good, what judging does not need. Limits that a system lacks are left out."""
    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_FSIZE, 0)
    lower(resource.RLIMIT_NOFILE, FILES)
    lower(resource.RLIMIT_NPROC, 0)
    with suppress(OSError):  # there is no /proc outside Linux
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        lower(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY)


def lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(limit, (value, value))


def deepen() -> None:
    """Let Python recurse as deep as queries nest, with the stack that this takes."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    stack = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
        sys.setrecursionlimit(RECURSION * stack // STACK)


def take_stdout() -> BinaryIO:
    """The real standard output for answers; what anything else prints goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    return answers


def ready() -> tuple[Judge, OverBudgetJudge]:
    """Import what judging needs and use it once, before limits are set, so that no file is opened later."""
    from ftlab.sql import judge

    gold, pred = "SELECT a FROM t WHERE b > DATE('now')", "SELECT a FROM t WHERE STRFTIME('%Y', b) = '2001'"
    judge.judge(gold, pred, "CREATE TABLE t (a TEXT, b DATE)", 2, None)
    return judge.judge, judge.over_budget


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    answers = take_stdout()
    deepen()
    try:
        judges = ready()
    except Exception as error:
        answers.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        answers.flush()
        return 1
    os.environ["TZ"] = "UTC"  # dates in local time must not depend on the machine
    time.tzset()
    clock = Clock(float(arguments[0]))
    lock_down()
    answers.write(b'{"ready": true}\n')
    answers.flush()
    serve(sys.stdin.buffer, answers, *judges, clock)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
