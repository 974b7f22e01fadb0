"""The run folder: which run it belongs to, what it holds, and how its files are written.

config.yaml        the resolved configuration, secrets masked
.hydra/            the inputs of Hydra: config.yaml, hydra.yaml, overrides.yaml, secrets masked
metrics.jsonl      every metric with its step
summary.json       the run in numbers; `status` is its state
predictions.jsonl  test rows with the answers of the base and of the tuned model
adapter/ or model/ the result, with tokenizer, prompt template and generation settings
checkpoints/       what a resumed run needs

A damaged record is renamed, for example to summary.json.damaged-1, and the run continues without it.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from ftlab.composition import Composition, flatten, load_tree
from ftlab.config import ExperimentConfig
from ftlab.damaged import set_aside
from ftlab.disk import write_atomic
from ftlab.errors import ConfigError, RunDirError
from ftlab.paths import special
from ftlab.redact import known, redact, redact_message, redact_tree
from ftlab.summary import Sources, Summary

REMOVAL_S = 0.2  # seconds after which a lock file that its holder is removing is gone

# A resumed run may change these keys: they do not change what is learnt.
FREE_KEYS = (
    "trainer.log_every",
    "trainer.keep",
    "trainer.profile",
    "trainer.micro_batch_size",  # these four determine how the same step is computed
    "trainer.weight_cache",
    "trainer.activation_checkpointing",
    "eval.batch_size",
    "run_dir",
    "run_name",
    "force",
)
FREE_NODES = ("tracker.", "sweep.")

OWN_ANSWERS = "validation.jsonl"  # a trial's answers, below evaluations/: those of its last or best evaluation

SPLITS = ("train", "validation", "test")
# What a run writes, and all that is ever removed, in this order. If the removal is interrupted, what remains is still a
# run that can be resumed, shown or replaced: checkpoints are removed while their configuration exists, a result after
# the summary with its status, and last the file that marks the folder as a run's.
CLEARED = (
    "checkpoints",
    "summary.json",
    "adapter",
    "model",
    *("wandb", "tensorboard", "profile", "evaluations"),
    *("metrics.jsonl", "predictions.jsonl", "metrics.csv", "predictions.csv"),
    "config.yaml",
    ".hydra",
)
MARK = ".hydra/overrides.yaml"  # the first file that a run writes; it marks the folder as a run's
CONFIGS = ("config.yaml", ".hydra/config.yaml")  # two copies of the configuration
# The consequence of a damaged record, for the user.
LOST = {
    "config.yaml": "the copy in .hydra/ is used",
    ".hydra/config.yaml": "config.yaml is used",
    "summary.json": "scores are computed again; the start time and the run's id at the tracker are lost",
}


class RunDir:
    """The folder of one run. It must be claimed (`claim`) before anything else is written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def claim(self) -> Iterator["RunDir"]:
        """Create the folder, check that it can be written, and lock it for this process.

        Raises:
            RunDirError: it cannot be written, or another process has locked it (the message names its pid).
        """
        made = not self.path.exists()
        if self.path.exists() and not self.path.is_dir():
            what = special(self.path) or "a file"
            raise RunDirError(f"run_dir={self.path} is {what}, not a folder: choose another with run_dir=DIR")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._locked()
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunDirError(
                f"run_dir={self.path} cannot be written ({reason}): choose another folder with run_dir=DIR"
            ) from None
        try:
            (self / ".lock").write_text(str(os.getpid()))
            yield self
        finally:
            (self / ".lock").unlink(missing_ok=True)
            lock.release()
            if made and not any(self.path.iterdir()):  # refused before anything was written
                self.path.rmdir()

    def _locked(self) -> FileLock:
        """Lock `.lock`; the operating system releases the lock when the process ends. If the holder removes the file
        between opening and locking it here, a new file is tried. On a file system without locks this fails: a mark file
        instead of a lock would outlive a killed process."""
        lock = FileLock(self / ".lock", timeout=REMOVAL_S, poll_interval=REMOVAL_S / 10, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            owner = (self / ".lock").read_text(errors="replace").strip() or "unknown"
            raise RunDirError(
                f"run_dir={self.path} is in use by process {owner}: wait for it, or choose another run_dir=DIR"
            ) from None
        return lock

    @property
    def summary(self) -> Summary:
        """The readable part of summary.json."""
        return Summary.read(self / "summary.json")

    @property
    def base_sha256(self) -> dict[str, str]:
        """The sha256 of each file of the base that the run was trained on; empty if they are not recorded."""
        model = self.summary.model
        return model.sha256 if model else {}

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        write_atomic(self / name, known("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)))

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a JSON-lines file; none if it is absent or incomplete."""
        try:
            rows = [json.loads(line) for line in (self / name).read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, RecursionError):
            return []
        return rows if all(isinstance(row, dict) for row in rows) else []

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records of metrics.jsonl, without damaged lines."""
        return list(_records(_lines(self / "metrics.jsonl")))

    def evaluated(self) -> list[Path]:
        """Return the files of answers below evaluations/, newest first, without those of weights that a longer training
        has replaced."""
        files = list((self / "evaluations").glob("*.jsonl"))
        records = {file: _json(file.with_suffix(".json")) for file in files}
        step = self.summary.step
        kept = [file for file in files if records[file].get("step", step) == step]
        return sorted(kept, key=lambda file: (_written(file, records[file]), file.name), reverse=True)

    def record(self, composition: Composition) -> None:
        """Write config.yaml and .hydra/, secrets masked."""
        hydra = self / ".hydra"
        hydra.mkdir(exist_ok=True)
        write_yaml(hydra / "overrides.yaml", composition.overrides)
        write_yaml(hydra / "hydra.yaml", redact_tree({"hydra": composition.hydra}, redact_message))
        write_yaml(hydra / "config.yaml", composition.tree)
        write_yaml(self / "config.yaml", composition.tree)

    def check_same(self, tree: dict[str, Any], force: bool = False) -> None:
        """Refuse a folder that is not a run's, or whose run has another configuration. A run without a checkpoint may
        be replaced, and with `force` any run.

        Raises:
            RunDirError: lists every difference that matters.
        """
        if not self._ours():
            # .hydra alone is of a run that was killed while it wrote its first record or removed its last.
            foreign = [name for name in CLEARED if name != ".hydra" and (self / name).exists()]
            if foreign:
                raise RunDirError(
                    f"run_dir={self.path} holds {', '.join(foreign)}, which ftlab did not write: "
                    "choose another run_dir=DIR"
                )
            return
        refused = self._differences(tree)
        if refused and not force and self._has_progress():
            raise RunDirError(
                f"run_dir={self.path} holds a run of another configuration:\n"
                + "\n".join(refused)
                + "\nchoose another run_dir=DIR, or replace that run with force=true"
            )

    def check_sources(self, now: Sources, force: bool = False) -> list[str]:
        """Refuse to resume or to show a run that had other rows, another template or tokenizer; a run without a
        checkpoint may be replaced. Return the parts for which the folder has no hash, as written by an older ftlab.

        Raises:
            RunDirError: lists every difference.
        """
        if force or not self._ours() or not (self._has_progress() or self.ended_pruned()):
            return []
        before = self._sources()
        different = differences(before, now, "in the folder")
        if different:
            raise RunDirError(
                f"run_dir={self.path} holds a run on other data:\n"
                + "\n".join(f"  {line}" for line in different)
                + "\nrestore its data, choose another run_dir=DIR, or replace that run with force=true"
            )
        return [part for part in _parts(before) if part not in before]

    def begin(self, composition: Composition, force: bool, sources: Sources) -> None:
        """Record this run in the folder. A run of another configuration, or on other data, is removed."""
        other = self._differences(composition.tree) or differences(self._sources(), sources, "")
        if self._ours() and (force or other):
            self.clear()
        self.record(composition)

    def set_damaged_aside(self, tree: dict[str, Any]) -> list[str]:
        """Rename damaged records, so that the run with the configuration `tree` can continue without them; return a
        warning for each."""
        lines = []
        for name, reason in self.damage(tree).items():
            aside = set_aside(self / name)
            lost = LOST[name] if name == "summary.json" or self.copies() else "this command's configuration is used"
            lines.append(f"{self.path}/{name} is damaged ({reason}) and was renamed to {aside.name}: {lost}")
        return lines

    def damage(self, tree: dict[str, Any] | None = None) -> dict[str, str]:
        """Return the reason for each damaged record, by its name. If the two copies of the configuration differ, the
        one that is less like `tree` is damaged."""
        copies = self.copies()
        found = {name: "not readable" for name in CONFIGS if (self / name).exists() and name not in copies}
        if tree is not None and len(copies) == 2:
            apart = {name: len(self._apart(copy, tree)) for name, copy in copies.items()}
            found |= {name: "it differs from its copy" for name in CONFIGS if apart[name] > min(apart.values())}
        damage = self.summary.damage
        if damage and (self / "summary.json").exists():
            found["summary.json"] = damage
        return found

    def done(self, max_steps: int | None) -> Summary | None:
        """Return the summary of the finished run in the folder; None if there is none, its result is missing, or
        `max_steps` asks for more steps."""
        if not any((self / name).is_dir() for name in ("adapter", "model")):
            return None
        summary = self._ended("finished")
        more = summary is not None and max_steps is not None and max_steps > (summary.planned_steps or 0)
        return None if more else summary

    def pruned(self, tree: dict[str, Any]) -> Summary | None:
        """Return the summary of the run in the folder if it was pruned and has the configuration `tree`."""
        return None if self._differences(tree) else self.ended_pruned()

    def ended_pruned(self) -> Summary | None:
        """Return the summary of the run in the folder if it was pruned, whatever its configuration."""
        return self._ended("pruned")

    def check_result(self, name: str) -> None:
        """Refuse to use a run that has no result yet.

        Raises:
            RunDirError: names the state of the run.
        """
        if (self / name).is_dir():
            return
        summary = self.summary
        how = {
            "failed": f"it failed ({summary.error})",
            "pruned": "its sweep pruned it",
        }.get(summary.status, "it has not finished (the same command resumes it)")
        raise RunDirError(f"run={self.path} holds no {name}/: {how}")

    def clear(self) -> None:
        """Remove what a run wrote here; other files stay, and so do damaged records that were renamed."""
        for name in CLEARED[:-1]:
            for path in (self / name, self / f"{name}.part"):
                _remove(path)
        for file in (self / ".hydra").glob("*"):
            if file.name != Path(MARK).name:
                _remove(file)
        _remove(self / ".hydra")

    def _ours(self) -> bool:
        """Whether a run wrote this folder: it has the mark file or, if that is lost, other files of a run."""
        summary = self.summary
        known = bool(summary.objective.name) and "ftlab" in summary.versions
        return (self / MARK).is_file() or known or any(map(_is_checkpoint, self.path.glob("checkpoints/step-*")))

    def _has_progress(self) -> bool:
        """Whether the run is finished or has a checkpoint."""
        return bool(self._ended("finished")) or any(self.path.glob("checkpoints/step-*"))

    def _sources(self) -> Sources:
        summary = self.summary
        return {} if summary.damage else summary.known_sources

    def _ended(self, status: str) -> Summary | None:
        summary = self.summary
        return summary if summary.status == status and not summary.damage else None

    def copies(self) -> dict[str, dict[str, Any]]:
        """Return the readable copies of the recorded configuration, by the names of their files. If a copy lacks keys
        of the other, it was truncated and is left out."""
        found = {}
        for name in CONFIGS:
            with suppress(ConfigError):
                found[name] = load_tree(self / name)
        keys = {name: set(flatten(tree)) for name, tree in found.items()}
        return {name: tree for name, tree in found.items() if not any(keys[name] < other for other in keys.values())}

    def _differences(self, tree: dict[str, Any]) -> list[str]:
        """Return the differences between the configuration `tree` and the recorded one; of two copies, the more similar
        one counts, since the other is damaged. Empty if nothing is recorded."""
        return min((self._apart(copy, tree) for copy in self.copies().values()), key=len, default=[])

    def _apart(self, recorded: dict[str, Any], tree: dict[str, Any]) -> list[str]:
        mine = flatten(redact_tree(tree))
        # Keys that an older ftlab did not record had their default values.
        theirs = {**flatten(defaults()), **flatten(recorded)}
        return [
            f"  {key}: {theirs.get(key)} in the folder, {mine.get(key)} now"
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key) and not _may_differ(key, theirs.get(key), mine.get(key))
        ]


def differences(before: Sources, now: Sources, where: str) -> list[str]:
    """Return a line for each part whose hash differs between two records; `where` names the place of the first."""
    parts = [part for part in _parts(before) if part in before and part in now]
    return [
        _difference(part, before[part], now[part], where)
        for part in parts
        if before[part]["sha256"] != now[part]["sha256"]
    ]


def _parts(record: Sources) -> tuple[str, ...]:
    """Return the parts that a record can have: each split or, in an old record, all rows together; and the others."""
    return (*(("data",) if "data" in record and "train" not in record else SPLITS), "template", "tokenizer")


def _difference(part: str, before: dict[str, Any], now: dict[str, Any], where: str) -> str:
    if "rows" not in before or "rows" not in now:
        return f"{part}: another one now than {where}"
    if before["rows"] == now["rows"]:
        return f"{part}: {now['rows']:,} rows {where} and now, but they differ"
    return f"{part}: {before['rows']:,} rows {where}, {now['rows']:,} now"


def _may_differ(key: str, before: Any, now: Any) -> bool:
    if key == "trainer.max_steps":
        return before is not None and now is not None and now > before
    return key in FREE_KEYS or key.startswith(FREE_NODES)


def defaults() -> dict[str, Any]:
    """Return the default values of the schema, as a tree."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(ExperimentConfig)))


def find_run(text: str) -> RunDir:
    """Return the run folder that a command's `run=DIR` names; a plain name is also looked up in outputs/.

    Raises:
        RunDirError: there is no such run.
    """
    for path in (Path(text).expanduser(), Path("outputs") / text):
        if any((path / name).is_file() for name in CONFIGS):
            return RunDir(path)
    what = special(Path(text).expanduser()) or "not a run folder (it has no config.yaml)"
    raise RunDirError(f"run={text} is {what}: list the run folders with python -m ftlab runs")


def tree_of(folder: RunDir) -> dict[str, Any]:
    """Return the resolved configuration of a run, from the second copy if the first is damaged."""
    return next(iter(folder.copies().values()), None) or load_tree(folder / "config.yaml")


def _json(file: Path) -> dict[str, Any]:
    """Return the values of a JSON file; none if it is absent or broken."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def count_damaged_lines(file: Path) -> int:
    """Return the number of damaged lines of metrics.jsonl; an incomplete last line, left by a kill, does not count."""
    whole = (
        [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if file.is_file() else []
    )
    return len(whole) - len(list(_records(whole)))


def _records(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row


def _lines(file: Path) -> list[bytes]:
    try:
        return file.read_bytes().splitlines()
    except OSError:
        return []


def _is_checkpoint(folder: Path) -> bool:
    """Whether the folder is a checkpoint of ftlab."""
    return {"trainable.safetensors", "optimizer.pt", "state.json"} <= _json(folder / "manifest.json").keys()


def _remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _written(answers: Path, record: dict[str, Any]) -> float:
    """Return when answers were written, in seconds since the epoch: as recorded next to them, which a copy of the
    folder keeps, or by the file's time. The run's own answers count as the oldest."""
    if answers.name == OWN_ANSWERS:
        return -math.inf
    written = record.get("written")
    return float(written) if isinstance(written, (int, float)) else answers.stat().st_mtime


def write_yaml(path: Path, node: Any) -> None:
    masked = [redact(item) for item in node] if isinstance(node, list) else redact_tree(node)
    write_atomic(path, yaml.safe_dump(masked, sort_keys=False, allow_unicode=True))
