"""Checkpoints that are complete or absent.

A checkpoint is written into a folder aside, every file fsynced and listed with its sha256 in manifest.json,
and the folder renamed last. Older ones go only then, so that from the first one on a whole one is on disk at every
moment. Reading verifies the manifest: a damaged checkpoint is passed over with one warning that names the file, and
the one before it is used.
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

Tensors = Mapping[str, nn.Parameter]  # what is trained, by name
NAME = re.compile(r"step-(\d+)")
REPLACED = ".replaced"  # ends the name of a checkpoint while another of the same step takes its place


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    step: int

    def restore_weights(self, tensors: Tensors) -> None:
        """Put the values of trained tensors back."""
        saved = self._read("trainable.safetensors", lambda file: load_file(str(file)))
        with torch.no_grad():
            for name, parameter in tensors.items():
                parameter.copy_(saved[name])

    def restore(self, tensors: Tensors, optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any]:
        """Put weights, optimizer, schedule and random generators back; return the loop's own state."""
        self.restore_weights(tensors)
        saved = self._read("optimizer.pt", lambda file: torch.load(file, weights_only=True, map_location="cpu"))
        try:
            optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise TrainingError(
                f"checkpoint {self.path} holds the optimizer of another version of ftlab ({error}): begin anew with "
                "force=true, or finish the run with the version that began it"
            ) from None
        schedule.load_state_dict(saved["schedule"])
        state: dict[str, Any] = self._read("state.json", lambda file: json.loads(file.read_text(encoding="utf-8")))
        restore_rng(saved["rng"], state.pop("python_rng"))
        return state

    def _read(self, name: str, reader: Callable[[Path], Any]) -> Any:
        """A file that is as its manifest says, and yet may be another's.

        Raises:
            TrainingError: it is nothing that ftlab wrote.
        """
        try:
            return reader(self.path / name)
        except Exception as error:  # what a foreign file meets depends on what is in it
            raise TrainingError(
                f"{self.path / name} is not what ftlab writes ({type(error).__name__}): remove the folder "
                f"{self.path}, and the run goes on from the checkpoint before"
            ) from None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What of a model is trained, by name; of several adapters the active one."""
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
        """Write the checkpoint of `state["step"]`, then remove old ones; that of step `best` stays.

        Raises:
            TrainingError: it cannot be written, e.g. on a full disk; the ones before are untouched.
        """
        final = self._path(state["step"])
        aside = final.with_name(final.name + ".part")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            _write(aside, tensors, optimizer, schedule, state)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise self._unwritten(final, tensors, error) from None
        self._put_in_place(aside, final)
        self._prune(state["step"], best)

    def _put_in_place(self, aside: Path, final: Path) -> None:
        """Rename the new checkpoint to its name. One that has it, of a run that saves a step again, makes way under
        another name, from which `at` takes it back where a kill came between the two."""
        replaced = _replaced(final)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(final, replaced)
        os.replace(aside, final)
        sync(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def _unwritten(self, final: Path, tensors: Tensors, error: Exception) -> TrainingError:
        # Adam keeps two numbers beside each weight.
        needed = 3 * sum(p.numel() * p.element_size() for p in tensors.values())
        reason = disk.full_disk(final.parent, needed) if disk.is_full(error) else first_line(error)
        return TrainingError(
            f"checkpoint {final} cannot be written: {reason}. The checkpoints before it are whole: make room, then the "
            "same command goes on"
        )

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose files are whole."""
        for step in sorted(self._steps(), reverse=True):
            found = self.at(step)
            if found:
                return found
        return None

    def at(self, step: int) -> Checkpoint | None:
        """The checkpoint of one step, or None (with a warning) where a file of it is missing or damaged."""
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
        """Remove what came before the checkpoint just saved, but for `keep`. Those of later steps are damaged, or the
        run would not have come back to this one: they count for nothing, and are replaced in their turn."""
        for leftover in self.folder.glob("*.part"):
            shutil.rmtree(leftover, ignore_errors=True)
        for step in sorted(step for step in self._steps() if step <= saved)[: -self.keep]:
            if step != best:
                shutil.rmtree(self._path(step), ignore_errors=True)


def steps_in(folder: Path) -> list[int]:
    """The steps of all checkpoints in a folder, whole or not; none where there is no folder."""
    if not folder.is_dir():
        return []
    names = {child.name.removesuffix(REPLACED) for child in folder.iterdir()}
    return [int(match[1]) for name in names if (match := NAME.fullmatch(name))]


def _replaced(path: Path) -> Path:
    """Where the checkpoint of a name waits until another of its step has that name."""
    return path.with_name(path.name + REPLACED)


def _write(folder: Path, tensors: Tensors, optimizer: Optimizer, schedule: LRScheduler, state: dict[str, Any]) -> None:
    """All files of a checkpoint, the manifest last."""
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
    shutil.copymode(folder / "state.json", folder / "trainable.safetensors")  # written for the owner only
    write_manifest(folder)


def write_manifest(folder: Path) -> None:
    """sha256 and size of every file, each fsynced, then the manifest itself."""
    listed = {}
    for file in sorted(folder.iterdir()):
        sync(file)
        listed[file.name] = {"sha256": sha256(file), "bytes": file.stat().st_size}
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(listed, indent=1), encoding="utf-8")
    sync(manifest)
    sync(folder)


def first_damage(folder: Path) -> str | None:
    """The first file that is missing or differs from the manifest, with what is wrong; None if all is well."""
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
    """Put torch's generators into a state of `rng_state`."""
    torch.set_rng_state(saved["cpu"])
    if saved["cuda"] and torch.cuda.is_available():
        for device, state in enumerate(saved["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)


def restore_rng(saved: dict[str, Any], python: list[Any]) -> None:
    set_rng(saved)
    version, internal, gauss = python
    random.setstate((version, tuple(internal), gauss))


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without its functions, which are rebuilt from the configuration."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"} | {"lr_lambdas": [None]}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
