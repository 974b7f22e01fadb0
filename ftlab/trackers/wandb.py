"""Weights & Biases: one W&B run per run folder, recorded below `run_dir/wandb`. Its failures never end a run."""

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from ftlab import declared
from ftlab.paths import short
from ftlab.redact import known, redact, redact_tree
from ftlab.trackers.jsonl import recorded
from ftlab.trackers.tracker import Start, Tracker
from ftlab.trackers.wandb_key import has_key

START_SECONDS = 15.0  # how long to wait for a server that does not answer
FINISH_SECONDS = 28.0  # how long to wait for uploads, tables included; `wandb sync` does the rest
STOP_SECONDS = 5.0  # of these, how long to wait before W&B's service is killed
TABLE_SECONDS = 10.0  # W&B asks the server where to store an artifact; metrics are sent without waiting

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
Mode = Literal["online", "offline", "disabled"]
MODES = ("auto", "online", "offline", "disabled")
T = TypeVar("T")


@dataclass
class WandbOptions:
    """Settings of W&B alone."""

    mode: str = "auto"  # auto: online with a key, otherwise offline; or online, offline, disabled
    entity: str | None = None  # the user or team; null: W&B's default
    job_type: str | None = None  # null: trial or study for those of a sweep

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown mode."""
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode} must be one of {', '.join(MODES)}")


class WandbTracker(Tracker):
    """Online when a key is set, otherwise offline.

    A resumed run keeps its id. Its row numbers never decrease, and a value that an earlier process recorded is not
    recorded again when its step is trained again. Metrics in metrics.jsonl that a killed process did not upload are
    recorded first.
    """

    name = "wandb"
    options = WandbOptions

    def __init__(self, start: Start, options: WandbOptions) -> None:
        """Start or resume the W&B run; returns within about `START_SECONDS` and never asks for anything.

        Raises:
            ImportError: the package wandb is not installed.
        """
        # If the server hangs, error reports to the vendor delay the end of the process by 20 s.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise ImportError("it needs the package wandb: pip install wandb") from None
        self._warn = start.warn
        self._tables = True  # false once a table has failed: waiting each time would slow down the run
        self._waited = 0.0  # seconds that tables and pages took
        self._folder = start.folder / "wandb"
        run_id = start.id if start.id and _ID.fullmatch(start.id) else None  # it becomes part of folder names
        self.id = run_id or secrets.token_hex(4)
        earlier = self._parts() if run_id else []
        self._run = self._start(start, options)
        self._before, following = self._recorded(earlier)
        self._step, self._row = -1, following - 1
        if self._run is None:
            self.id = run_id
            return
        self.id = self._run.id
        try:
            self._define_axis()
            for step, _, metrics in recorded(start.folder) if run_id else ():
                self._record(metrics, step)  # what an earlier process could not upload
        except Exception:  # whoever started this cannot close it: W&B's service would delay the end of the process
            self.close(1)
            raise

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record scalars; never waits for the network."""
        self._record(metrics, step)

    def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
        """Record a table; cells that are neither text nor numbers are shown as text."""
        import wandb

        def record() -> None:
            cells = [[_cell(value) for value in row] for row in rows]
            self._record({name: wandb.Table(columns=columns, data=cells, allow_mixed_types=True)}, step)

        if self._tables and self._run is not None:
            self._tables = False
            self._waiting(record)
            self._tables = True

    def page(self, name: str, file: Path, step: int) -> None:
        """Record an HTML page as it is."""
        import wandb

        def record() -> None:
            self._record({name: wandb.Html(file.read_text(encoding="utf-8"), inject=False)}, step)

        if self._run is not None:
            self._waiting(record)

    def _waiting(self, record: Callable[[], None]) -> None:
        """Call `record` with the limit `TABLE_SECONDS`, and count the time it takes."""
        began = time.monotonic()
        try:
            _within(TABLE_SECONDS, record)
        finally:
            self._waited += time.monotonic() - began

    def summary(self, values: dict[str, object]) -> None:
        """Record values of the run as a whole; nested values stay nested."""
        if self._run is not None:
            self._run.summary.update(redact_tree(values))

    def tag(self, name: str) -> None:
        """Add a tag to those that the run has."""
        if self._run is not None:
            self._run.tags = (*(self._run.tags or ()), redact(name))

    def close(self, exit_code: int = 0) -> str | None:
        """End the record within `FINISH_SECONDS`, the time for tables included. Returns the run's URL, or the command
        that uploads it."""
        run, self._run = self._run, None
        if run is None:
            return None
        try:
            left = max(FINISH_SECONDS - STOP_SECONDS - self._waited, STOP_SECONDS)
            _within(left, lambda: run.finish(exit_code=exit_code))
        except Exception as error:
            self._warn(f"W&B: not everything was uploaded ({_line(error)}); metrics.jsonl is complete")
            _stop_service()
            return self._sync_command()
        return self._sync_command() if run.offline else f"W&B {run.url}"

    def _start(self, start: Start, options: WandbOptions) -> Any:
        """The W&B run: online if that is chosen and works, otherwise offline; None if neither works."""
        mode, parts = self._usable_mode(options), set(self._parts())
        if mode == "online":
            try:
                return self._init(start, options, mode)
            except Exception as error:
                self._warn(f"W&B cannot be reached ({_line(error)}); recording offline")
                self._release(set(self._parts()) - parts)
        if mode == "disabled":
            return None
        try:
            return self._init(start, options, "offline")
        except Exception as error:
            self._warn(f"W&B cannot record ({_line(error)}); metrics.jsonl is still written")
            return None

    def _release(self, parts: set[Path]) -> None:
        """Clean up after a run that did not start: W&B's service keeps its id in use, and left an empty folder."""
        if not _stop_service():
            self.id = secrets.token_hex(4)
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)

    def _usable_mode(self, options: WandbOptions) -> Mode:
        """`_mode`, or offline if W&B's own settings are invalid, so that it refuses to start."""
        url = os.environ.get("WANDB_BASE_URL", "")
        if url and not (urlsplit(url).scheme in ("http", "https") and urlsplit(url).netloc):
            self._warn(f"WANDB_BASE_URL={redact(url)} is not a URL such as https://api.wandb.ai; recording offline")
            del os.environ["WANDB_BASE_URL"]  # W&B would refuse it offline too
            return "disabled" if self._mode(options) == "disabled" else "offline"
        try:
            return self._mode(options)
        except Exception as error:
            self._warn(f"W&B's settings cannot be used ({_line(error)}); recording offline")
            return "offline"

    def _mode(self, options: WandbOptions) -> Mode:
        """online, offline or disabled; of tracker.wandb.mode and WANDB_MODE, the one that sends less is used."""
        asked = {options.mode, os.environ.get("WANDB_MODE", "auto").lower()}
        if "disabled" in asked:
            return "disabled"
        if asked & {"offline", "dryrun"}:
            return "offline"
        if _logged_in():
            return "online"
        if "online" in asked:
            self._warn("W&B: no key is set for mode online (WANDB_API_KEY, or wandb login); recording offline")
        return "offline"

    def _init(self, start: Start, options: WandbOptions, mode: Mode) -> Any:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        return _within(
            START_SECONDS,
            lambda: wandb.init(
                dir=str(self._folder.parent),
                id=self.id,
                resume="allow",
                reinit="create_new",
                mode=mode,
                name=redact(start.run_name),
                project=redact(start.project),
                entity=options.entity and redact(options.entity),
                group=start.group and redact(start.group),
                job_type=redact(options.job_type or {"run": ""}.get(start.kind, start.kind)) or None,
                tags=[redact(tag) for tag in start.tags],
                config=redact_tree(start.config),
                settings=_settings(),
            ),
        )

    def _define_axis(self) -> None:
        """Use the optimizer step as the x axis of charts, independent of W&B's row numbers."""
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        for metric in (metric for metric in declared.known() if metric.of_split and metric.direction):
            for key in metric.keys:
                best = "max" if metric.rises else "min"  # shown in tables of runs beside the last value
                self._run.define_metric(key, step_metric="step", summary=f"{best},last")

    def _recorded(self, parts: list[Path]) -> tuple[dict[str, int], int]:
        """The last step of each key in the resumed record, and the next row number.

        Online the server's count is used: a killed process may have written more than it uploaded.
        """
        if self._run is None:
            return {}, 0
        rows = sorted((row for part in parts for row in _read(part)), key=lambda row: int(row["_step"]))
        following = rows[-1]["_step"] + 1 if rows else 0
        if not self._run.offline:
            following = self._run.starting_step
        steps = {
            key.removesuffix("._type"): int(row["step"]) for row in rows if row["_step"] < following for key in row
        }
        return steps, following

    def _record(self, values: dict[str, Any], step: int) -> None:
        """Log what is new; a row's number must not fall, or W&B drops the row."""
        new = {key: value for key, value in values.items() if step > self._before.get(key, -1)}
        if self._run is None or not new:
            return
        if step != self._step:
            self._step, self._row = step, max(step, self._row + 1)
        self._run.log({"step": step, **new}, step=self._row)

    def _parts(self) -> list[Path]:
        """The folders of this run's record, oldest first: each resume adds one."""
        found = self._folder.glob(f"*run-*-{self.id}")
        return sorted(found, key=lambda part: part.name.partition("run-")[2])

    def _sync_command(self) -> str:
        parts = self._parts()
        online = ["--include-online"] if any(part.name.startswith("run-") for part in parts) else []
        return shlex.join(["wandb", "sync", *online, *map(short, parts)])


def _read(part: Path) -> list[dict[str, Any]]:
    """The rows of an earlier part of the record; empty if it cannot be read. W&B has no function for it."""
    command = [sys.executable, "-P", "-m", "wandb", "leet", "inspect", "--json", str(part)]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS).stdout
        records = [json.loads(line) for line in text.splitlines() if '"history"' in line]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    rows = [record["history"]["item"] for record in records if record.get("type") == "history"]
    return [row for row in rows if "_step" in row and "step" in row]


def _settings() -> Any:
    """W&B's settings: no output and no data of the machine, since code, command line and patches can hold secrets."""
    import wandb

    wanted = {
        "silent": True,
        "quiet": True,
        "console": "off",
        "save_code": False,
        "disable_code": True,
        "disable_git": True,  # W&B itself would add a diff of all that is uncommitted to the commit
        "git_commit": _commit(),
        "disable_job_creation": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "x_transaction_log_flush_interval": 1.0,
        "symlink": False,
        "allow_val_change": True,
        "init_timeout": START_SECONDS - 2,
        "finish_timeout": FINISH_SECONDS - STOP_SECONDS - 3,
        "finish_timeout_raises": True,
    }
    known = wandb.Settings.model_fields
    return wandb.Settings(**{key: value for key, value in wanted.items() if key in known})


def _logged_in() -> bool:
    """Whether W&B has an API key: in its own settings, or on this machine."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True, quiet=True)).settings
    return bool(settings.api_key) or has_key(settings.base_url)


def _commit() -> str | None:
    """The commit of the checkout this file belongs to; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _stop_service() -> bool:
    """End W&B's service process. Returns False if another run of this process still needs it.

    After a failure the service would retry for many minutes, and the process would wait for it at its end. The record
    is already on disk.
    """
    import wandb

    setup = wandb.setup()
    if getattr(setup, "most_recent_active_run", True):
        return False
    service = getattr(getattr(setup, "_connection", None), "_proc", None)
    process = getattr(service, "_process", None)
    try:
        _within(STOP_SECONDS, wandb.teardown)
    except Exception:
        if isinstance(process, subprocess.Popen):
            process.kill()
    return True


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, or TimeoutError after `seconds`; W&B's own limits do not cover every wait."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="wandb")
    thread.start()
    thread.join(seconds)
    if failure:
        raise RuntimeError(_line(failure[0])) from failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return outcome[0]


def _cell(value: object) -> object:
    return value if value is None or isinstance(value, (int, float)) else known(str(value))


def _line(error: BaseException) -> str:
    """An error as part of one line."""
    text = redact(str(error)).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".: ")[:160]


TRACKER = WandbTracker
