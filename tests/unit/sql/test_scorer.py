"""The scoring process and its parent: a verdict for every pair, whatever happens to the process."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ftlab.sql import ast_equal, exec_equal, valid
from ftlab.sql import scorer as scorer_module
from ftlab.sql.child import SHARE, Clock, serve
from ftlab.sql.scorer import CHARACTERS, NOT_JUDGED, Scorer, ScorerError, shared_scorer
from ftlab.sql.verdict import Verdict

CONTEXT = "CREATE TABLE a (x VARCHAR, y INTEGER)"
GOLD = "SELECT x FROM a WHERE y = 1"
RIGHT = "select x from a where 1 = y"
WRONG = "SELECT x FROM a WHERE y = 2"


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(databases=4) as scorer:
        yield scorer


def pid(scorer: Scorer) -> int:
    assert scorer._process is not None
    return scorer._process.pid


def scores(verdict: Verdict) -> tuple[bool, bool, bool | None, bool]:
    return verdict.exact_string, verdict.ast_equal, verdict.exec_equal, verdict.valid


def test_verdicts_come_back_whole(scorer: Scorer) -> None:
    assert scores(scorer.score(GOLD, GOLD, CONTEXT)) == (True, True, True, True)
    assert scores(scorer.score(GOLD, RIGHT, CONTEXT)) == (False, True, True, True)
    verdict = scorer.score(GOLD, WRONG, CONTEXT)
    assert scores(verdict) == (False, False, False, True)
    assert 1 <= verdict.databases <= 4
    assert isinstance(verdict.buckets, tuple)


@pytest.mark.parametrize(
    ("pred", "kind"),
    [(None, "null"), (5, "number"), (True, "boolean"), (["SELECT 1"], "array"), ({}, "object"), (b"SELECT 1", "bytes")],
)
def test_what_is_not_text_is_false_and_the_gold_is_still_judged(scorer: Scorer, pred: object, kind: str) -> None:
    verdict = scorer.score(GOLD, pred, CONTEXT)
    assert scores(verdict) == (False, False, False, False)
    assert (verdict.reason, verdict.gold_broken) == (f"not text: {kind}", False)
    assert scorer.score("SELECT nope FROM a", pred, CONTEXT).gold_broken


def test_a_text_too_long_to_send_is_false(scorer: Scorer) -> None:
    verdict = scorer.score(GOLD, "x" * (CHARACTERS + 1), CONTEXT)
    assert scores(verdict) == (False, False, False, False)
    assert "400,000 characters" in verdict.reason


def test_large_requests_do_not_block(scorer: Scorer) -> None:
    verdict = scorer.score(GOLD, GOLD + " " * (CHARACTERS - 100), CONTEXT + " " * 1_000_000)
    assert verdict.exact_string
    assert scorer.score(GOLD, GOLD, CONTEXT).exec_equal is True


@pytest.mark.parametrize("text", ["SELECT '\ud800'", "SELECT '\0'", "SELECT '\u2028\r\n'", '{"gold": 1}\n{', "\\"])
def test_any_text_passes_through(scorer: Scorer, text: str) -> None:
    before = pid(scorer)
    assert scorer.score(GOLD, text, CONTEXT).exec_equal is False
    assert scorer.score(text, GOLD, text).ast_equal is False
    assert pid(scorer) == before


def test_a_process_killed_between_pairs_is_replaced(scorer: Scorer) -> None:
    scorer.score(GOLD, GOLD, CONTEXT)
    before = pid(scorer)
    os.kill(before, signal.SIGKILL)
    assert scorer.score(GOLD, RIGHT, CONTEXT).exec_equal is True
    assert pid(scorer) != before


def test_a_pair_whose_process_is_killed_by_hand_is_tried_again(scorer: Scorer) -> None:
    scorer.score(GOLD, GOLD, CONTEXT)
    os.kill(pid(scorer), signal.SIGSTOP)
    killer = threading.Timer(0.2, os.kill, (pid(scorer), signal.SIGKILL))
    killer.start()
    assert scorer.score(GOLD, RIGHT, CONTEXT).exec_equal is True
    killer.join()


def killed_at_each_request(monkeypatch: pytest.MonkeyPatch, times: int, number: signal.Signals) -> None:
    """The process is ended by a signal, so many times, before it can answer."""
    left = iter(range(times))

    def send(process: "subprocess.Popen[bytes]", data: bytes, seconds: float) -> None:
        if next(left, None) is None:
            real(process, data, seconds)
        else:
            os.kill(process.pid, number)

    real = scorer_module.send
    monkeypatch.setattr(scorer_module, "send", send)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_pair_whose_process_is_ended_twice_from_outside_is_unknown(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    killed_at_each_request(monkeypatch, 2, number)
    verdict = scorer.score(GOLD, f" {GOLD}", CONTEXT)
    assert scores(verdict) == (True, False, None, False)
    assert (verdict.gold_broken, verdict.databases, verdict.vacuous) == (False, 0, None)
    assert verdict.reason == f"{NOT_JUDGED}: the scoring process was ended twice from outside ({number.name})"
    assert verdict.buckets == ("single_table",)
    assert scores(scorer.score(GOLD, RIGHT, CONTEXT)) == (False, True, True, True)


def test_a_broken_gold_is_known_of_a_pair_that_is_not(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at_each_request(monkeypatch, 2, signal.SIGKILL)
    verdict = scorer.score("SELECT nope FROM a", WRONG, CONTEXT)
    assert (verdict.gold_broken, verdict.exec_equal) == (True, None)
    assert verdict.reason.startswith(NOT_JUDGED)


def test_a_gold_is_not_called_broken_for_what_others_end(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at_each_request(monkeypatch, 4, signal.SIGKILL)
    verdict = scorer.score(GOLD, WRONG, CONTEXT)
    assert (verdict.gold_broken, verdict.exec_equal) == (False, None)
    assert verdict.reason.startswith(NOT_JUDGED)


def test_a_process_that_crashes_twice_is_the_pairs_fault(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at_each_request(monkeypatch, 2, signal.SIGSEGV)
    verdict = scorer.score(GOLD, RIGHT, CONTEXT)
    assert scores(verdict) == (False, False, False, False)
    assert verdict.reason == "over the budget: the scoring process ended (SIGSEGV)"


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"databases": 0}, "databases=0 must be a whole number of at least 1"),
        ({"databases": 2.5}, "databases=2.5 must be"),
        ({"databases": "32"}, "databases='32' must be"),
        ({"seconds": 1}, "seconds=1 must be at least 2"),
        ({"seconds": float("nan")}, "seconds=nan must be"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(budget: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Scorer(**budget)


def test_a_gold_or_context_that_is_no_text_is_the_callers_mistake(scorer: Scorer) -> None:
    calls: list[Callable[..., object]] = [ast_equal, exec_equal, scorer.score]
    for call in calls:
        with pytest.raises(TypeError, match=r"gold must be text \(str\), not NoneType"):
            call(None, GOLD, CONTEXT)
        with pytest.raises(TypeError, match=r"context must be text \(str\), not int"):
            call(GOLD, GOLD, 5)
    with pytest.raises(TypeError, match="context must be text"):
        valid(GOLD, None)  # type: ignore[arg-type]


def test_a_silent_process_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "SILENCE", 0.5)
    with Scorer(databases=2) as scorer:
        scorer.score(GOLD, GOLD, CONTEXT)
        stopped = pid(scorer)
        os.kill(stopped, signal.SIGSTOP)
        verdict = scorer.score(GOLD, RIGHT, CONTEXT)
        assert scores(verdict) == (False, False, False, False)
        assert verdict.reason == "over the budget: no answer within 0.5 s"
        assert not verdict.gold_broken
        assert scorer.score(GOLD, RIGHT, CONTEXT).exec_equal is True
        assert pid(scorer) != stopped


def test_a_closed_scorer_leaves_no_process_and_starts_again() -> None:
    scorer = Scorer(databases=2)
    assert scorer._process is None
    scorer.score(GOLD, GOLD, CONTEXT)
    process = pid(scorer)
    scorer.close()
    scorer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert scorer.score(GOLD, GOLD, CONTEXT).exec_equal is True
    scorer.close()


def test_threads_share_a_scorer(scorer: Scorer) -> None:
    results: list[bool] = []

    def work(number: int) -> None:
        for i in range(20):
            pred = f"SELECT x FROM a WHERE {number * 100 + i} = y"
            results.append(scorer.score(f"SELECT x FROM a WHERE y = {number * 100 + i}", pred, CONTEXT).ast_equal)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


def test_a_process_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "STARTS", 2)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ScorerError, match="cannot be started"):
        Scorer().score(GOLD, GOLD, CONTEXT)


SCRIPT = """
    import os, sys
    from ftlab.sql.scorer import shared_scorer
    pair = {gold!r}, {pred!r}, {context!r}
    assert shared_scorer().score(*pair).ast_equal
    parent = shared_scorer()._process.pid
    if os.fork() == 0:
        ok = shared_scorer().score(*pair).ast_equal and shared_scorer()._process.pid != parent
        shared_scorer().close()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert shared_scorer().score(*pair).ast_equal and shared_scorer()._process.pid == parent
    print(parent, flush=True)
    {end}
"""


def run_script(root: Path, folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    script = textwrap.dedent(SCRIPT.format(gold=GOLD, pred=RIGHT, context=CONTEXT, end=end))
    (folder / "json.py").write_text("raise SystemExit('a file of the current folder was imported')")
    code = f"import sys; sys.path[:] = [p for p in sys.path if p] + [{str(root)!r}]\n{script}"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"], ids=["returns", "is killed"])
def test_no_process_outlives_its_parent(root: Path, tmp_path: Path, end: str) -> None:
    done = run_script(root, tmp_path, end)
    assert done.stderr == ""
    child = int(done.stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and alive(child):
        time.sleep(0.05)
    assert not alive(child)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_interrupts_are_left_to_the_parent(scorer: Scorer) -> None:
    scorer.score(GOLD, GOLD, CONTEXT)
    before = pid(scorer)
    os.kill(before, signal.SIGINT)
    assert scorer.score(GOLD, RIGHT, CONTEXT).exec_equal is True
    assert pid(scorer) == before


def test_the_shared_scorer_is_one() -> None:
    assert shared_scorer() is shared_scorer()


def test_a_round_trip_and_a_start_cost_little() -> None:
    with Scorer(databases=2) as scorer:
        start = time.monotonic()
        scorer.score(GOLD, GOLD, CONTEXT)
        assert time.monotonic() - start < 5
        start = time.monotonic()
        for _ in range(200):
            scorer.score(GOLD, GOLD, CONTEXT)
        assert (time.monotonic() - start) / 200 < 0.01


FALSE = Verdict(False, False, False, False, None, False, 0, "")


def answers(judge: object, rows: int = 1, seconds: float = 2.0) -> list[dict[str, object]]:
    """What the loop of the scoring process answers, with a judge of ours."""
    request = json.dumps({"gold": GOLD, "pred": WRONG, "context": CONTEXT, "databases": 1, "rows_file": None})
    out = io.BytesIO()
    requests = io.BytesIO((request + "\n").encode() * rows)
    clock = Clock(seconds)
    clock.move_end = lambda: None  # type: ignore[method-assign]
    serve(requests, out, judge, lambda *texts: Verdict(**asdict(FALSE) | {"reason": texts[-1]}), clock)  # type: ignore[arg-type]
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_judge_that_takes_too_long_is_given_up() -> None:
    def endless(*_: object) -> Verdict:
        while True:
            try:
                sum(range(1000))
            except Exception:  # as a careless library does
                continue

    start = time.process_time()
    first, second = answers(endless, rows=2, seconds=0.5)
    assert first["reason"] == second["reason"] == f"over the budget: {SHARE * 0.5:g} s of processor time"
    assert 0.3 < time.process_time() - start < 1.5


def test_a_judge_that_nests_too_deep_or_fails_costs_one_row() -> None:
    def deep(*texts: object) -> Verdict:
        return deep(*texts)

    def faulty(*_: object) -> Verdict:
        raise KeyError("x")

    assert [row["reason"] for row in answers(deep, rows=2)] == ["over the budget: levels of nesting"] * 2
    assert [row["reason"] for row in answers(faulty, rows=2)] == ["cannot be scored: KeyError: 'x'"] * 2


def test_a_process_out_of_memory_answers_and_makes_way_for_another() -> None:
    def greedy(*_: object) -> Verdict:
        raise MemoryError

    assert [row["reason"] for row in answers(greedy, rows=2)] == ["over the budget: memory"]
