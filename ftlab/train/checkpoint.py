"""Checkpoints that are complete or absent.

A checkpoint is written into a temporary folder. Every file is fsynced and listed with its sha256 in manifest.json, and
the folder is renamed last. Older checkpoints are removed only after that, so that after the first one a complete
checkpoint is on disk at every moment. Reading verifies the manifest: a damaged checkpoint is skipped with one warning
that names the file, and the previous one is used.
"""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ftlab import disk
from ftlab.errors import TrainingError, first_line

Tensors = Mapping[str, nn.Parameter]  # the trained tensors by name
NAME = re.compile(r"step-(\d+)")
REPLACED = ".replaced"  # suffix of a checkpoint's name while another one of the same step replaces it


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    step: int

    def restore_weights(self, tensors: Tensors) -> None:
        """Restore the values of the trained tensors."""
        saved = self._read("trainable.safetensors", lambda file: load_file(str(file)))
        with torch.no_grad():
            for name, parameter in tensors.items():
                parameter.copy_(saved[name])

    def restore(self, tensors: Tensors, optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any]:
        """Restore weights, optimizer, schedule and random generators; return the loop's own state."""
        self.restore_weights(tensors)
        saved = self._read("optimizer.pt", lambda file: torch.load(file, weights_only=True, map_location="cpu"))
        try:
            optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise TrainingError(
                f"checkpoint {self.path} holds the optimizer state of another version of ftlab ({error}): start over "
                "with force=true, or finish the run with the version that began it"
            ) from None
        schedule.load_state_dict(saved["schedule"])
        state: dict[str, Any] = self._read("state.json", lambda file: json.loads(file.read_text(encoding="utf-8")))
        restore_rng(saved["rng"], state.pop("python_rng"))
        return state

    def _read(self, name: str, reader: Callable[[Path], Any]) -> Any:
        """Read a file. It matches its manifest, but another program may have written both.

        Raises:
            TrainingError: ftlab did not write the file.
        """
        try:
            return reader(self.path / name)
        except Exception as error:  # a foreign file may raise anything
            raise TrainingError(
                f"{self.path / name} was not written by ftlab ({type(error).__name__}): remove the folder "
                f"{self.path}, and the run resumes from the previous checkpoint"
            ) from None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained tensors of a model by name; of several adapters those of the active one."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class Checkpoints:
    """The folder `checkpoints/` of a run."""

    def __init__(self, folder: Path, keep: int, warn: Callable[[str], None]) -> None:
        self.folder, self.keep, self.warn = folder, keep, warn

    def save(
        self,
        tensors: Tensors,
        optimizer: Optimizer,
        schedule: LRScheduler,
        state: dict[str, Any],
        best: int | None,
    ) -> None:
        """Write the checkpoint of `state["step"]`, then remove old ones; the checkpoint of step `best` stays.

        Raises:
            TrainingError: it cannot be written, e.g. on a full disk; the previous checkpoints are untouched.
        """
        final = self._path(state["step"])
        temporary = final.with_name(final.name + ".part")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _write(temporary, tensors, optimizer, schedule, state)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise self._unwritten(final, tensors, error) from None
        self._put_in_place(temporary, final)
        self._prune(state["step"], best)

    def _put_in_place(self, temporary: Path, final: Path) -> None:
        """Rename the new checkpoint to its final name. If a checkpoint of the same step exists, because the run saves
        the step again, it is renamed first. If the process is killed between the two renames, `at` restores it."""
        replaced = _replaced(final)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(final, replaced)
        os.replace(temporary, final)
        sync(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def _unwritten(self, final: Path, tensors: Tensors, error: Exception) -> TrainingError:
        # Adam keeps two further numbers for each weight.
        needed = 3 * sum(p.numel() * p.element_size() for p in tensors.values())
        reason = disk.full_disk(final.parent, needed) if disk.is_full(error) else first_line(error)
        return TrainingError(
            f"checkpoint {final} cannot be written: {reason}. The checkpoints before it are intact: free disk space, "
            "and the same command resumes the run"
        )

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose files are intact, or None."""
        for step in sorted(self._steps(), reverse=True):
            found = self.at(step)
            if found:
                return found
        return None

    def at(self, step: int) -> Checkpoint | None:
        """Return the checkpoint of one step, or None (with a warning) if one of its files is missing or damaged."""
        path = self._path(step)
        if not path.exists() and _replaced(path).exists():
            os.replace(_replaced(path), path)
        damaged = first_damage(path)
        if damaged:
            self.warn(f"checkpoint {path.name} is damaged ({damaged}); using an older one")
            return None
        return Checkpoint(path, step)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _steps(self) -> list[int]:
        return steps_in(self.folder)

    def _prune(self, saved: int, best: int | None) -> None:
        """Keep the newest `keep` checkpoints up to the one just saved, and the one of step `best`; remove older ones.
        Checkpoints of later steps do not count: they must be damaged, or the run would have resumed from them, and they
        will be overwritten."""
        for leftover in self.folder.glob("*.part"):
            shutil.rmtree(leftover, ignore_errors=True)
        for step in sorted(step for step in self._steps() if step <= saved)[: -self.keep]:
            if step != best:
                shutil.rmtree(self._path(step), ignore_errors=True)


def steps_in(folder: Path) -> list[int]:
    """Return the steps of all checkpoints in a folder, intact or not; an empty list if there is no folder."""
    if not folder.is_dir():
        return []
    names = {child.name.removesuffix(REPLACED) for child in folder.iterdir()}
    return [int(match[1]) for name in names if (match := NAME.fullmatch(name))]


def _replaced(path: Path) -> Path:
    """Return the temporary name of a checkpoint that is being replaced by another one of the same step."""
    return path.with_name(path.name + REPLACED)


def _write(folder: Path, tensors: Tensors, optimizer: Optimizer, schedule: LRScheduler, state: dict[str, Any]) -> None:
    """Write all files of a checkpoint, the manifest last."""
    folder.mkdir(parents=True)
    values = {name: p.detach().cpu().contiguous().clone() for name, p in tensors.items()}
    save_file(values, str(folder / "trainable.safetensors"))
    pieces = {
        "optimizer": optimizer.state_dict(),
        "schedule": _plain(schedule.state_dict()),
        "rng": rng_state(),
    }
    torch.save(pieces, folder / "optimizer.pt")
    everything = {**state, "python_rng": list(map(_listed, random.getstate()))}
    (folder / "state.json").write_text(json.dumps(everything), encoding="utf-8")
    # safetensors creates files that only their owner may read.
    shutil.copymode(folder / "state.json", folder / "trainable.safetensors")
    write_manifest(folder)


def write_manifest(folder: Path) -> None:
    """Fsync every file, and write a manifest with the sha256 and size of each."""
    listed = {}
    for file in sorted(folder.iterdir()):
        sync(file)
        listed[file.name] = {"sha256": sha256(file), "bytes": file.stat().st_size}
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(listed, indent=1), encoding="utf-8")
    sync(manifest)
    sync(folder)


def first_damage(folder: Path) -> str | None:
    """Return the first file that is missing or differs from the manifest, with what is wrong; None if there is none."""
    try:
        listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = {str(name): (entry["sha256"], entry["bytes"]) for name, entry in listed.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "manifest.json missing or unreadable"
    if not files:
        return "manifest.json lists no file"
    for name, (digest, size) in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} missing"
        if file.stat().st_size != size or sha256(file) != digest:
            return f"{name} changed or cut off"
    return None


def sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng(saved: dict[str, Any]) -> None:
    """Set torch's generators to a state that `rng_state` returned."""
    torch.set_rng_state(saved["cpu"])
    if saved["cuda"] and torch.cuda.is_available():
        for device, state in enumerate(saved["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)


def restore_rng(saved: dict[str, Any], python: list[Any]) -> None:
    set_rng(saved)
    version, internal, gauss = python
    random.setstate((version, tuple(internal), gauss))


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule's state without its functions, which are rebuilt from the configuration."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"} | {"lr_lambdas": [None]}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
