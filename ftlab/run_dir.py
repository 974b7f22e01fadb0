"""The run folder: whose it is, what it holds, and how its files are written.

config.yaml        the resolved configuration, secrets masked
.hydra/            what Hydra composed from: config.yaml, hydra.yaml, overrides.yaml, secrets masked
metrics.jsonl      every metric with its step
summary.json       the run in numbers; `status` says how it stands
predictions.jsonl  test rows with the base's and the tuned answer
adapter/ or model/ the result, with tokenizer, prompt template and generation settings
checkpoints/       what a resumed run needs
"""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from ftlab.composition import Composition, flatten, load_tree
from ftlab.config import ExperimentConfig
from ftlab.errors import RunDirError
from ftlab.paths import special
from ftlab.redact import known, redact, redact_message, redact_tree

# A run may go on although these differ: they do not change what is learnt.
FREE_KEYS = (
    "trainer.log_every",
    "trainer.keep",
    "trainer.profile",
    "trainer.micro_batch_size",  # these four say how the same step is computed
    "trainer.weight_cache",
    "trainer.activation_checkpointing",
    "eval.batch_size",
    "run_dir",
    "run_name",
    "force",
)
FREE_NODES = ("tracker.", "sweep.")

OWN_ANSWERS = "validation.jsonl"  # of a trial, below evaluations/: those of its last or best evaluation

SPLITS = ("train", "validation", "test")
# What a run is trained and scored on, by part: its sha256 and, of a split, its number of rows (`ftlab.provenance`).
Record = dict[str, dict[str, Any]]

# What a run writes, and all that is ever removed.
FOLDERS = ("adapter", "model", "checkpoints", "wandb", ".hydra", "profile", "evaluations")
FILES = ("config.yaml", "metrics.jsonl", "summary.json", "predictions.jsonl")


class RunDir:
    """One run's folder. `claim` must hold before anything else is written."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def claim(self) -> Iterator["RunDir"]:
        """Make the folder, prove that it can be written, and hold it for this process alone.

        Raises:
            RunDirError: it cannot be written, or another process holds it (the message names its pid).
        """
        made = not self.path.exists()
        if self.path.exists() and not self.path.is_dir():
            what = special(self.path) or "a file"
            raise RunDirError(f"run_dir={self.path} is {what}, not a folder: choose another with run_dir=DIR")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = self._locked()
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunDirError(
                f"run_dir={self.path} cannot be written ({reason}): choose another folder with run_dir=DIR"
            ) from None
        try:
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            yield self
        finally:
            (self / ".lock").unlink(missing_ok=True)
            os.close(handle)
            if made and not any(self.path.iterdir()):  # refused before anything was written
                self.path.rmdir()

    def _locked(self) -> int:
        """An open and locked handle of `.lock`. A file that its holder removed between our opening and locking
        it locks nothing: then there is a new one to try."""
        while True:
            handle = os.open(self / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(handle), os.stat(self / ".lock")):
                    return handle
            except BlockingIOError:
                owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
                os.close(handle)
                raise RunDirError(
                    f"run_dir={self.path} is in use by process {owner}: wait for it, or choose another run_dir=DIR"
                ) from None
            except FileNotFoundError:
                pass
            os.close(handle)

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json, or an empty dict where there is none or it is broken."""
        return _json(self / "summary.json")

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_atomic(self / "summary.json", json.dumps(finite(redact_tree(summary)), indent=2) + "\n")

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        write_atomic(self / name, known("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)))

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of a JSON-lines file; an absent or torn file has none."""
        try:
            rows = [json.loads(line) for line in (self / name).read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, RecursionError):
            return []
        return rows if all(isinstance(row, dict) for row in rows) else []

    def evaluated(self) -> list[Path]:
        """Files of answers below evaluations/, what was written last first. Those of weights that a longer training has
        replaced are left out."""
        files = list((self / "evaluations").glob("*.jsonl"))
        records = {file: _json(file.with_suffix(".json")) for file in files}
        step = self.summary.get("step")
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
        """Refuse a folder that is not a run's, or whose run was configured otherwise. A run that saved no
        checkpoint has nothing to lose, and `force` gives up what is there.

        Raises:
            RunDirError: lists every difference that matters.
        """
        if not self._ours():
            # .hydra alone is a run that was killed while it wrote its first record.
            foreign = [name for name in (*FOLDERS, *FILES) if name != ".hydra" and (self / name).exists()]
            if foreign:
                raise RunDirError(
                    f"run_dir={self.path} holds {', '.join(foreign)}, which no run of ftlab wrote: "
                    "choose another run_dir=DIR"
                )
            return
        refused = self._differences(tree)
        if refused and not force and self._kept():
            raise RunDirError(
                f"run_dir={self.path} holds a run of another configuration:\n"
                + "\n".join(refused)
                + "\nchoose another run_dir=DIR, or replace that run with force=true"
            )

    def check_sources(self, now: Record, force: bool = False) -> list[str]:
        """Refuse to go on with a run of other rows, template or tokenizer, or to report it as one of these; a run that
        saved no checkpoint has nothing to lose. The parts of which the folder, of an older ftlab, has no hash.

        Raises:
            RunDirError: lists every difference.
        """
        if force or not self._ours() or not (self._kept() or self.summary.get("status") == "pruned"):
            return []
        before = self._sources()
        different = differences(before, now, "in the folder")
        if different:
            raise RunDirError(
                f"run_dir={self.path} holds a run on other data:\n"
                + "\n".join(f"  {line}" for line in different)
                + "\nrestore what it was begun with, choose another run_dir=DIR, or replace that run with force=true"
            )
        return [part for part in _parts(before) if part not in before]

    def begin(self, composition: Composition, force: bool, sources: Record) -> None:
        """Make the folder this run's: go on from what fits, remove what a run of another configuration, or on other
        data, left."""
        other = self._differences(composition.tree) or differences(self._sources(), sources, "")
        if self._ours() and (force or other):
            self.clear()
        self.record(composition)

    def done(self, max_steps: int | None) -> dict[str, Any] | None:
        """The summary of the finished run in the folder; None where there is none, or more steps are wanted."""
        if not self._finished():
            return None
        summary = self.summary
        return None if max_steps is not None and max_steps > summary["planned_steps"] else summary

    def pruned(self, tree: dict[str, Any]) -> dict[str, Any] | None:
        """The summary of this very run where a sweep gave it up in this folder."""
        summary = self.summary
        return summary if summary.get("status") == "pruned" and not self._differences(tree) else None

    def check_result(self, name: str) -> None:
        """Refuse to ask a run that has no result yet.

        Raises:
            RunDirError: says how the run stands.
        """
        if (self / name).is_dir():
            return
        summary = self.summary
        how = {
            "failed": f"it failed ({summary.get('error')})",
            "pruned": "its sweep gave it up",
        }.get(str(summary.get("status")), "it has not finished (the same command resumes it)")
        raise RunDirError(f"run={self.path} holds no {name}/: {how}")

    def clear(self) -> None:
        """Remove what a run wrote here; files of others stay."""
        for name in FOLDERS:
            shutil.rmtree(self / name, ignore_errors=True)
        for name in FILES:
            (self / name).unlink(missing_ok=True)

    def _ours(self) -> bool:
        return (self / ".hydra" / "overrides.yaml").is_file()

    def _kept(self) -> bool:
        """Whether there is something to lose."""
        return self._finished() or any(self.path.glob("checkpoints/step-*"))

    def _sources(self) -> Record:
        return sources_of(self.summary)

    def _finished(self) -> bool:
        return self.summary.get("status") == "finished"

    def _differences(self, tree: dict[str, Any]) -> list[str]:
        if not (self / "config.yaml").exists():
            return []
        mine = flatten(redact_tree(tree))
        # What a run of an older ftlab does not name was as it is by default.
        theirs = {**flatten(defaults()), **flatten(load_tree(self / "config.yaml"))}
        return [
            f"  {key}: {theirs.get(key)} in the folder, {mine.get(key)} now"
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key) and not _may_differ(key, theirs.get(key), mine.get(key))
        ]


def sources_of(summary: dict[str, Any]) -> Record:
    """What a run was begun with, as its summary tells; an older one has one hash for all its rows."""
    found = summary.get("sources")
    if isinstance(found, dict):
        return found
    return {"data": {"sha256": summary["data_sha256"]}} if summary.get("data_sha256") else {}


def differences(before: Record, now: Record, where: str) -> list[str]:
    """A line for each part that two records hold and that is not the same; `where` is that of the first."""
    parts = [part for part in _parts(before) if part in before and part in now]
    return [
        _difference(part, before[part], now[part], where)
        for part in parts
        if before[part]["sha256"] != now[part]["sha256"]
    ]


def _parts(record: Record) -> tuple[str, ...]:
    """What can be compared with a record: splits, or all rows together."""
    return (*(("data",) if "data" in record and "train" not in record else SPLITS), "template", "tokenizer")


def _difference(part: str, before: dict[str, Any], now: dict[str, Any], where: str) -> str:
    if "rows" not in before or "rows" not in now:
        return f"{part}: another now than {where}"
    if before["rows"] == now["rows"]:
        return f"{part}: {now['rows']:,} rows {where} and now, but not the same"
    return f"{part}: {before['rows']:,} rows {where}, {now['rows']:,} now"


def _may_differ(key: str, before: Any, now: Any) -> bool:
    if key == "trainer.max_steps":
        return before is not None and now is not None and now > before
    return key in FREE_KEYS or key.startswith(FREE_NODES)


def defaults() -> dict[str, Any]:
    """What the schema has keys be that a configuration does not name."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(ExperimentConfig)))


def find_run(text: str) -> RunDir:
    """The run folder that a command's `run=DIR` names; a bare name is looked for in outputs/ too.

    Raises:
        RunDirError: there is no run.
    """
    for path in (Path(text).expanduser(), Path("outputs") / text):
        if (path / "config.yaml").is_file():
            return RunDir(path)
    what = special(Path(text).expanduser()) or "no run folder (no config.yaml)"
    raise RunDirError(f"run={text} is {what}: list them with python -m ftlab runs")


def tree_of(folder: RunDir) -> dict[str, Any]:
    """The resolved configuration of a run."""
    return load_tree(folder / "config.yaml")


def _json(file: Path) -> dict[str, Any]:
    """The values of a JSON file; none where it is absent or broken."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _written(answers: Path, record: dict[str, Any]) -> float:
    """When answers were written, in seconds since the epoch: as recorded beside them, which a copy keeps, else by their
    file. The run's own come before any that were asked for later."""
    if answers.name == OWN_ANSWERS:
        return -math.inf
    written = record.get("written")
    return float(written) if isinstance(written, (int, float)) else answers.stat().st_mtime


def write_atomic(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new, never a part."""
    aside = path.with_name(path.name + ".part")
    with open(aside, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(aside, path)


def write_yaml(path: Path, node: Any) -> None:
    masked = [redact(item) for item in node] if isinstance(node, list) else redact_tree(node)
    write_atomic(path, yaml.safe_dump(masked, sort_keys=False, allow_unicode=True))


def finite(node: Any) -> Any:
    """NaN and infinities as null: JSON has no word for them."""
    if isinstance(node, dict):
        return {key: finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
