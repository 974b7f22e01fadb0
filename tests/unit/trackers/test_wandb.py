"""A W&B run is recorded once, holds no secret, and never ends or delays the run it records."""

import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ftlab.trackers
from ftlab.trackers import JsonlTracker, Start, Trackers

wandb = pytest.importorskip("wandb")
wandb_tracker = importlib.import_module("ftlab.trackers.wandb")

_spec = importlib.util.spec_from_file_location("wandb_stub", Path(__file__).with_name("stub.py"))
assert _spec is not None
assert _spec.loader is not None
stub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stub)

KEY = "0123456789abcdef" * 2 + "01234567"
SECRET = "planted-secret-value"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no settings and no service of the machine; W&B reads the environment anew in each test."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_PROJECT", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MY_API_KEY", SECRET)
    yield
    wandb.teardown()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


class Heard(list[str]):
    """The warnings of a tracker."""

    def __call__(self, line: str) -> None:
        assert "\n" not in line
        self.append(line)


@pytest.fixture
def heard() -> Heard:
    return Heard()


class Alone(Trackers):
    """W&B as a run starts it, without metrics.jsonl."""

    @property
    def id(self) -> str | None:
        return self.ids.get("wandb")

    @property
    def wandb(self) -> Any:
        return self._running["wandb"]

    def close(self, exit_code: int = 0) -> Any:
        lines = super().close(exit_code)
        return lines[0] if lines else None


def start(
    run_dir: Path, heard: Heard, run_id: str | None = None, lines: JsonlTracker | None = None, **node: Any
) -> Alone:
    config = {"lora": {"r": 16}, "hub": {"token": "hunter2"}, "note": f"url?x={SECRET}"}
    own = {key: node.pop(key) for key in ("mode", "job_type") if key in node}
    chosen = ftlab.trackers.settings({**node, "wandb": own})
    begun = Start(run_dir, "tiny-1", config, kind="trial" if "group" in node else "run", warn=heard)
    return Alone(chosen, begun, lines, {"wandb": run_id} if run_id else {})


def records(run_dir: Path) -> list[dict[str, Any]]:
    """What lies in the offline files, oldest first."""
    wandb.teardown()  # its service closes a file a moment after the run has ended
    found: list[dict[str, Any]] = []
    for part in sorted((run_dir / "wandb").glob("offline-run-*")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found += [json.loads(line) for line in text.splitlines()]
    return found


def history(run_dir: Path) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records(run_dir) if record["type"] == "history"]


def everything(folder: Path) -> bytes:
    wandb.teardown()
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_offline_records_metrics_config_table_and_summary(run_dir: Path, heard: Heard) -> None:
    tracker = start(run_dir, heard, group="study", tags=["a", "b"], project="sql")
    tracker.log({"train/loss": 0.5}, 10)
    tracker.log({"train/loss": 0.25, "eval/sql_exact_match": 0.1}, 20)
    tracker.table("predictions", ["question", "right"], [["Who?", True], ["[x]", None]], 20)
    tracker.summary({"eval/sql_exact_match": 0.1, "model": {"id": "m"}})
    said = tracker.close()

    found = records(run_dir)
    (run,) = [record["run"] for record in found if record["type"] == "run"][:1]
    assert run["run_id"] == tracker.id
    assert (run["project"], run["run_group"], run["job_type"]) == ("sql", "study", "trial")
    assert run["tags"] == ["a", "b"]
    assert run["display_name"] == "tiny-1"
    assert run["config"]["update"]["lora"] == {"r": 16}
    rows = history(run_dir)
    assert [(row["_step"], row["step"], row["train/loss"]) for row in rows] == [(10, 10, 0.5), (20, 20, 0.25)]
    assert rows[1]["predictions.nrows"] == 2
    metrics = [record["metric"] for record in found if record["type"] == "metric"]
    assert {"glob_name": "*", "step_metric": "step"}.items() <= metrics[1].items()
    assert said is not None
    command, verb, folder = said.split()
    assert (command, verb) == ("wandb", "sync")
    assert Path(folder).is_dir()
    assert heard == []


def test_no_secret_reaches_the_record(
    run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ftlab", f"+hub.token={SECRET}", "data.path=plainargument"])
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = start(run_dir, heard, mode="offline", tags=[SECRET])
    tracker.log({"train/loss": 0.5}, 1)
    tracker.summary({"note": SECRET})
    tracker.close()
    written = everything(run_dir)
    assert b"tiny-1" in written
    for secret in (SECRET, "hunter2", KEY, "plainargument"):
        assert secret.encode() not in written
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_keeps_its_id_its_order_and_repeats_nothing(run_dir: Path, heard: Heard) -> None:
    first = start(run_dir, heard)
    for step in (10, 20, 30):
        first.log({"train/loss": step / 100}, step)
    first.close()
    time.sleep(1.1)  # W&B names folders by the second
    second = start(run_dir, heard, run_id=first.id)
    second.log({"train/loss": 0.3}, 30)  # trained again after a resume from step 20
    second.log({"eval/loss": 1.0}, 30)  # had not been reached before
    second.log({"train/loss": 0.4}, 40)
    said = second.close()

    assert second.id == first.id
    rows = history(run_dir)
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    assert [row["step"] for row in rows if "train/loss" in row] == [10, 20, 30, 40]
    assert [row["step"] for row in rows if "eval/loss" in row] == [30]
    assert said is not None
    assert said.count("offline-run-") == 2


def test_a_resumed_online_run_goes_on_from_what_the_server_has(
    run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stub.serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        first = start(run_dir, heard)
        for step in (10, 20, 30, 40):
            first.log({"train/loss": step / 100}, step)
        first.close()
        del server.rows[3:]  # a kill can lose what was written down but not yet sent
        wandb.teardown()
        second = start(run_dir, heard, run_id=first.id)
        for step in (20, 30, 40, 50):
            second.log({"train/loss": step / 100}, step)
        second.log({"eval/loss": 1.0}, 50)
        second.close()
        assert [row["step"] for row in server.rows] == [10, 20, 30, 40, 50]
        assert [row["_step"] for row in server.rows] == sorted({row["_step"] for row in server.rows})
        assert server.rows[-1]["eval/loss"] == 1.0
        assert set(server.names) == {first.id}
    assert heard == []


def test_what_two_killed_processes_never_sent_arrives_with_the_third(
    run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps before the checkpoint are not trained again; metrics.jsonl still has them."""
    with stub.serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        run_id = None
        for steps in ((1, 2, 3), (4, 5), (6, 7)):
            lines = JsonlTracker(run_dir / "metrics.jsonl")
            both = start(run_dir, heard, run_id=run_id, lines=lines)
            run_id = both.id
            for step in steps:
                both.log({"train/loss": step / 10}, step)
            both.close()
            wandb.teardown()
            if 7 not in steps:
                server.rows.clear()  # as if the process had been killed before anything was sent
        assert [(row["step"], row["train/loss"]) for row in server.rows] == [(n, n / 10) for n in range(1, 8)]
        numbers = [row["_step"] for row in server.rows]
        assert numbers == sorted(set(numbers))
    assert heard == []


@pytest.mark.parametrize("url", ["not a url", "api.wandb.ai", "https://"])
@pytest.mark.parametrize("mode", ["auto", "online", "disabled"])
def test_a_base_url_that_is_none_costs_one_line(
    url: str, mode: str, run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = start(run_dir, heard, mode=mode)
    tracker.log({"train/loss": 0.5}, 10)
    tracker.close()
    assert [row["train/loss"] for row in history(run_dir)] == ([] if mode == "disabled" else [0.5])
    assert len(heard) == 1
    assert "WANDB_BASE_URL" in heard[0]


def test_two_runs_in_one_process_do_not_mix(tmp_path: Path, heard: Heard) -> None:
    one, two = start(tmp_path / "one", heard), start(tmp_path / "two", heard)
    one.log({"x": 1.0}, 1)
    two.log({"x": 2.0}, 1)
    one.close()
    two.close()
    assert one.id != two.id
    assert [row["x"] for row in history(tmp_path / "one")] == [1.0]
    assert [row["x"] for row in history(tmp_path / "two")] == [2.0]


def test_online_with_a_key(run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    with stub.serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        tracker = start(run_dir, heard)
        tracker.log({"train/loss": 0.5}, 10)
        tracker.log({"train/loss": 0.4}, 20)
        said = tracker.close()
        assert [(row["step"], row["train/loss"]) for row in server.rows] == [(10, 0.5), (20, 0.4)]
        assert set(server.names) == {tracker.id}
        assert SECRET.encode() not in b"".join(server.bodies)
        assert said == f"W&B {server.url}/e/p/runs/{tracker.id}"
    assert heard == []


def test_a_key_in_netrc_counts(run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    with stub.serving() as server:
        netrc = run_dir.parent / "home" / ".netrc"
        netrc.parent.mkdir()
        netrc.write_text(f"machine 127.0.0.1:{server.server_port} login user password {KEY}\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        tracker = start(run_dir, heard)
        tracker.log({"train/loss": 0.5}, 10)
        tracker.close()
        assert len(server.rows) == 1


@pytest.mark.parametrize("fault", ["refused", "500", "hangs"])
def test_a_server_that_fails_costs_seconds_and_one_line(
    fault: str, run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_tracker, "START_SECONDS", 3.5)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with stub.serving() as server:
        server.fails, server.stall = fault == "500", 60.0 if fault == "hangs" else 0.0
        url = f"http://127.0.0.1:{stub.closed_port()}" if fault == "refused" else server.url
        monkeypatch.setenv("WANDB_BASE_URL", url)
        began = time.monotonic()
        tracker = start(run_dir, heard)
        assert time.monotonic() - began < 6
        tracker.log({"train/loss": 0.5}, 10)
        said = tracker.close()
    assert len(heard) == 1
    assert "recording offline" in heard[0]
    assert [row["train/loss"] for row in history(run_dir)] == [0.5]
    assert said is not None
    assert said.startswith("wandb sync ")
    assert "--include-online" not in said


def test_a_server_that_hangs_later_delays_neither_steps_nor_the_end(
    run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_tracker, "FINISH_SECONDS", 9.5)
    monkeypatch.setattr(wandb_tracker, "TABLE_SECONDS", 0.5)
    with stub.serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        tracker = start(run_dir, heard)
        server.stall = 60.0
        began = time.monotonic()
        for step in range(1, 51):
            tracker.log({"train/loss": 0.5}, step)
        assert time.monotonic() - began < 1
        for step in (51, 52, 53):
            tracker.table("predictions", ["a"], [["x"]], step)
        assert time.monotonic() - began < 2.5
        began = time.monotonic()
        said = tracker.close()
        assert time.monotonic() - began < 8
    assert said is not None
    assert said.startswith("wandb sync --include-online ")
    assert len(heard) == 2, heard


def test_tables_and_the_end_share_one_limit(run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tracker, "FINISH_SECONDS", 7.0)
    monkeypatch.setattr(wandb_tracker, "STOP_SECONDS", 2.0)
    monkeypatch.setattr(wandb_tracker, "TABLE_SECONDS", 3.0)
    with stub.serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        tracker = start(run_dir, heard)
        server.stall = 60.0
        began = time.monotonic()
        tracker.table("predictions", ["a"], [["x"]], 1)
        tracker.summary({"step": 1})
        tracker.close()
        assert time.monotonic() - began < 8.5


def test_wandb_mode_disabled_records_nothing(run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = start(run_dir, heard)
    tracker.log({"train/loss": 0.5}, 10)
    assert tracker.close() is None
    assert tracker.id is None
    assert not run_dir.exists()
    assert heard == []


def test_wandb_mode_offline_holds_against_a_key(run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = start(run_dir, heard)
    tracker.close()
    assert list((run_dir / "wandb").glob("offline-run-*"))


def test_online_without_a_key_goes_offline_and_does_not_ask(run_dir: Path, heard: Heard) -> None:
    tracker = start(run_dir, heard, mode="online")
    tracker.close()
    assert len(heard) == 1
    assert "no key" in heard[0]
    assert list((run_dir / "wandb").glob("offline-run-*"))


def test_a_failure_while_logging_is_told_once(run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = start(run_dir, heard)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full\nsecond line")

    monkeypatch.setattr(tracker.wandb._run, "log", fail)
    for step in range(3):
        tracker.log({"a": 1.0}, step)
    tracker.close()
    assert len(heard) == 1
    assert "disk full" in heard[0]


def test_wandb_that_cannot_start_leaves_the_run_alone(
    run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError(f"no service, key {SECRET}")

    monkeypatch.setattr(wandb, "init", fail)
    tracker = start(run_dir, heard)
    tracker.log({"a": 1.0}, 1)
    tracker.summary({"a": 1})
    assert tracker.close() is None
    assert len(heard) == 1
    assert SECRET not in heard[0]


def test_a_missing_package_is_one_line(run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = start(run_dir, heard)
    tracker.log({"a": 1.0}, 1)
    assert tracker.close() is None
    assert len(heard) == 1
    assert "pip install wandb" in heard[0]


def test_wandb_is_imported_where_it_is_chosen_alone() -> None:
    code = (
        "import sys; from pathlib import Path; from ftlab import compose, trackers;"
        "cfg = compose(['tracker=none']); compose();"
        "trackers.Trackers(trackers.settings(cfg.tracker), trackers.Start(Path('x'), 'x', {})).log({'a': 1.0}, 1);"
        "print('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_summary_keeps_the_best_of_each_score_by_its_declared_direction(run_dir: Path, heard: Heard) -> None:
    tracker = wandb_tracker.WandbTracker(
        Start(run_dir, "best", {}, warn=heard), wandb_tracker.WandbOptions(mode="offline")
    )
    defined: dict[str, dict[str, Any]] = {}
    tracker._run.define_metric = lambda key, **how: defined.update({key: how})
    tracker._define_axis()
    tracker.close()
    assert defined["eval/loss"]["summary"] == "min,last"
    assert defined["test/sql_exec_match"]["summary"] == "max,last"
    assert "summary" not in defined["*"]
    assert not {"eval/sql_gold_broken", "train/loss"} & defined.keys()  # neither is a score of which one is the best
    assert heard == []


def test_a_run_that_cannot_be_prepared_is_ended_with_one_line(
    run_dir: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left open, its service would delay the end of the process."""
    ended: list[Any] = []
    init = wandb.init

    def broken(**settings: Any) -> Any:
        run = init(**settings)
        finish = run.finish
        monkeypatch.setattr(run, "define_metric", lambda *_, **__: 1 / 0)
        monkeypatch.setattr(run, "finish", lambda **words: (ended.append(words), finish(**words)))
        return run

    monkeypatch.setattr(wandb, "init", broken)
    tracker = start(run_dir, heard, mode="offline")
    tracker.log({"a": 1.0}, 1)
    assert tracker.close() is None
    assert ended == [{"exit_code": 1}]
    assert len(heard) == 1
