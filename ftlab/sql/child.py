"""The process that judges pairs of queries: `python -m ftlab.sql.child SECONDS`, started by ftlab.sql.scorer.

It reads one JSON object per line, {gold, pred, context, databases, rows_file}, and answers each with the fields of a
`Verdict`; its first line is {"ready": true}, or {"failed": reason}. A pair gets `SECONDS` of processor time: after
`SHARE` of it the process gives up on the pair and reports that, and after all of it the kernel kills the process. The
process may allocate `MEMORY` bytes more than it needs to start. It can neither write files nor, unless it runs as root,
start processes. Budgets are in processor time, so that a busy machine changes no verdict.
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
# The kernel counts whole seconds, so of 2 s it may grant little more than 1 s; some must remain for the report.
SHARE = 0.4
FILES = 16
# Queries nest: SQLite takes about 90 parentheses, and an AND of 900 terms is a tree of 900 levels.
RECURSION = 20_000
STACK = 64 * 2**20
# Seconds between two signals that the time is up; the first can get lost in a library's clean-up code.
REMINDER = 0.05

Judge = Callable[[str, str, str, int, Path | None], Verdict]
OverBudgetJudge = Callable[[str, str, str, str], Verdict]


class BudgetExceeded(BaseException):
    """The processor time of a pair is used up. A BaseException, so that no library catches it as its own error."""


class Clock:
    """Raises BudgetExceeded once Python code has used its share of a pair's processor time, in seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.share = SHARE * seconds
        self.armed = False
        signal.signal(signal.SIGPROF, self._ring)

    def _ring(self, *_: object) -> None:
        if self.armed:
            raise BudgetExceeded

    def move_end(self) -> None:
        """Let the kernel kill this process after at most `seconds` more of processor time, in whole seconds."""
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
    """Answer requests until the input ends, or until memory ran out, when a fresh process is safer."""
    for line in requests:
        request = json.loads(line)
        verdict, sound = decide(request, judge, over_budget, clock)
        answers.write(json.dumps(vars(verdict)).encode() + b"\n")
        answers.flush()
        if not sound:
            return


def decide(request: dict[str, Any], judge: Judge, over_budget: OverBudgetJudge, clock: Clock) -> tuple[Verdict, bool]:
    """The verdict on a pair, and whether the process can score another one."""
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
        # One row must not stop the scoring of the others; the reason shows the error.
        reason = f"cannot be scored: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return over_budget(gold, pred, context, reason), sound


def lock_down() -> None:
    """Permanently remove resources that judging does not need. Limits that a system lacks are skipped."""
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
    """Raise Python's recursion limit and the stack size to the depth to which queries may nest."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    stack = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_STACK, (stack, hard))
        sys.setrecursionlimit(RECURSION * stack // STACK)


def take_stdout() -> BinaryIO:
    """The real standard output, for answers; all other output is discarded."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    return answers


def ready() -> tuple[Judge, OverBudgetJudge]:
    """Import the judge and use it once before limits are set, so that no file has to be opened later."""
    from ftlab.sql import judge

    gold, pred = "SELECT a FROM t WHERE b > DATE('now')", "SELECT a FROM t WHERE STRFTIME('%Y', b) = '2001'"
    judge.judge(gold, pred, "CREATE TABLE t (a TEXT, b DATE)", 2, None)
    return judge.judge, judge.over_budget


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes our input
    answers = take_stdout()
    deepen()
    try:
        judges = ready()
    except Exception as error:
        answers.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        answers.flush()
        return 1
    os.environ["TZ"] = "UTC"  # results of local-time functions must not depend on the machine
    time.tzset()
    clock = Clock(float(arguments[0]))
    lock_down()
    answers.write(b'{"ready": true}\n')
    answers.flush()
    serve(sys.stdin.buffer, answers, *judges, clock)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
