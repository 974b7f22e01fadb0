"""`python -m ftlab doctor`: what this machine has for a run, what it lacks, and what to do about it.

    python -m ftlab doctor model=NAME     also checks whether that model's weights are on this machine
    python -m ftlab doctor run_dir=DIR    also checks whether that run folder can be written
    python -m ftlab doctor RUN|STUDY      checks only that folder: what is damaged, and from which step it can be
                                          resumed; the exit code is 1 if something is damaged

Each line is marked ok, warn (some runs need it) or fail (every run needs it; the exit code is then 1).
A missing or broken package is reported in its own line; the other checks still run.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ftlab.commands.finding import Line, Mark
from ftlab.errors import ConfigError, FtlabError, InputError
from ftlab.redact import redact

if TYPE_CHECKING:
    from ftlab.config import ExperimentConfig

# The version ranges for a checkout that is not installed; an installed package states its own.
PYTHON = ">=3.11"
FLOORS = ("hydra-core>=1.3.8", "torch>=2.10", "transformers>=5.3", "peft>=0.21")

# No run starts without these packages; without the others, only some runs do not.
ESSENTIAL = {
    "accelerate",
    "huggingface-hub",
    "hydra-core",
    "numpy",
    "omegaconf",
    "peft",
    "pyyaml",
    "rich",
    "safetensors",
    "torch",
    "transformers",
}

GB = 1e9
LITTLE_MEMORY = 4 * GB  # needed by the smallest base, its evaluation and torch itself
LITTLE_DISK = 5 * GB  # needed by a small base and a few checkpoints
NO_DISK = 0.2 * GB  # too little even for one adapter with its optimizer state
ANSWER_SECONDS = 4.0  # time limit for nvidia-smi and for the Hub


Check = Callable[[], Iterator[Line]]


def main(args: dict[str, str], folders: Sequence[str] = ()) -> int:
    """Print the report and return the exit code: 1 if something that every run needs is missing, otherwise 0. With
    `folders` of runs or studies, check only these; 1 if something in them is damaged.

    `args` are overrides as for a run: with `model=NAME` its weights are looked for too, `run_dir=DIR` names the folder
    that must be writable.

    Raises:
        ConfigError: an override is wrong.
        InputError: a folder is neither a run's nor a study's.
    """
    if folders:
        return check_folders(args, folders)
    marks = []
    for line in findings(args):
        print(redact(str(line)), flush=True)
        marks.append(line.mark)
    failed, warned = marks.count("fail"), marks.count("warn")
    if failed:
        print(f"\n{failed} of {len(marks)} checks failed: no run will work until they are fixed")
    else:
        print(f"\nready to run: {len(marks)} checks, {warned} {'warning' if warned == 1 else 'warnings'}")
    return 1 if failed else 0


def check_folders(args: dict[str, str], folders: Sequence[str]) -> int:
    """Print what is intact and what is damaged; return 1 if something is damaged."""
    from ftlab.commands.checkup import checkup

    if args:
        raise InputError(
            f"{next(iter(args))}= cannot be combined with a folder: python -m ftlab doctor {folders[0]} checks it"
        )
    damaged = False
    for folder in folders:
        for line in checkup(folder):
            print(redact(str(line)), flush=True)
            damaged |= line.mark == "fail"
    return int(damaged)


def findings(args: dict[str, str]) -> Iterator[Line]:
    """Yield the findings, in the order in which they are best fixed."""
    cfg = _configuration(args)
    checks: list[tuple[str, Check]] = [
        ("python", python),
        ("packages", packages),
        ("parts", parts),
        ("options", options),
        ("gpu", gpu),
        ("cpu", cpu),
        ("memory", memory),
        ("bitsandbytes", quantisation),
        ("disk", disk),
        ("output folder", partial(output, cfg.run_dir if cfg else "outputs/run")),
        ("hub", hub),
        ("trackers", trackers),
        ("embedded model", embedded),
    ]
    if cfg and args:
        checks.append(("model", partial(model, cfg)))
    for name, check in checks:
        yield from _guarded(name, check)


def _configuration(args: dict[str, str]) -> "ExperimentConfig | None":
    """Return the experiment that a run with these overrides would have; None if Hydra is missing or broken."""
    try:
        from ftlab.composition import compose
        from ftlab.shell import quoted

        simple = re.compile(r"[\w./:@-]*")  # other values are quoted: values of this command are plain text
        return compose([f"{k}={v if simple.fullmatch(v) else quoted(v)}" for k, v in args.items()])
    except ConfigError:
        if args:
            raise
        return None
    except Exception:  # the line of the package reports it
        return None


def _guarded(name: str, check: Check) -> Iterator[Line]:
    """Yield the findings of one check; if it raises, that is a finding too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from check()
    except ModuleNotFoundError as error:
        yield Line("warn", name, f"cannot be checked without {error.name}", f"pip install {error.name}")
    except Exception as error:
        yield Line("warn", name, f"cannot be checked ({_reason(error)})", "see the package's own message")


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


# --- software -------------------------------------------------------------------------------------------


def python() -> Iterator[Line]:
    """Check that the interpreter's version is in ftlab's range."""
    wanted = _requires_python()
    fits = _fits(platform.python_version(), wanted)
    remedy = "" if fits else f"ftlab needs Python {wanted}: create the environment with it"
    yield Line("ok" if fits else "fail", "python", f"{platform.python_version()} ({sys.executable})", remedy)


def packages() -> Iterator[Line]:
    """Check the version of every package that ftlab requires."""
    for name, wanted in requirements().items():
        missing: Mark = "fail" if name in ESSENTIAL else "warn"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Line(missing, name, "not installed", f"pip install '{name}{wanted}'")
            continue
        if _fits(version, wanted):
            yield Line("ok", name, version)
        else:
            yield Line(missing, name, f"{version}, but ftlab needs {wanted}", f"pip install '{name}{wanted}'")


def parts() -> Iterator[Line]:
    """Every task, source, stage and tracker that another package provides, with that package; a broken one with the
    cause."""
    from ftlab import declared, sources, stages, tasks, trackers
    from ftlab.registry import OWN

    kinds = ((tasks, "data.task"), (sources, "data.source"), (stages, "trainer.stage"), (trackers, "tracker"))
    for kind, key in kinds:
        broken = kind.broken()
        for name, providers in kind.providers().items():
            provided_by = " and ".join(f"{one.package} {one.version}" for one in providers if one.package != OWN)
            if not provided_by:
                continue
            problem = broken.get(name)
            if not problem and kind in (tasks, stages):  # the kinds that declare metrics
                refused = declared.refused(*((name, None) if kind is tasks else (None, name)))
                problem = next(iter(refused), None)
            yield (
                Line("warn", "part", f"{problem} ({provided_by})")
                if problem
                else Line("ok", "part", f"{key}={name}, {provided_by}")
            )


def options() -> Iterator[Line]:
    """Every folder of options that another package provides; a missing one with the reason."""
    from ftlab.conf_folders import folders

    for folder in folders():
        provided_by = f"{folder.provider.package} {folder.provider.version}"
        if not folder.path:
            yield Line("warn", "options", f"{folder.problem} ({provided_by})")
            continue
        files = sorted(folder.path.glob("*/*.yaml"))
        names = ", ".join(f"{file.parent.name}={file.stem}" for file in files)
        yield Line("ok", "options", f"{names or 'none'}, {provided_by} ({folder.path})")


def requirements() -> dict[str, str]:
    """Return the version range of each package, from the installed distribution or from FLOORS."""
    try:
        stated = importlib.metadata.requires("ftlab") or []
    except importlib.metadata.PackageNotFoundError:
        stated = []
    plain = [line for line in stated if "extra ==" not in line] or list(FLOORS)
    split = (re.match(r"([A-Za-z0-9._-]+)(?:\[.*?\])? *([^;]*)", line) for line in plain)
    return {found[1].lower(): found[2].strip(" ()") for found in split if found}


def _requires_python() -> str:
    try:
        return importlib.metadata.metadata("ftlab")["Requires-Python"] or PYTHON
    except importlib.metadata.PackageNotFoundError:
        return PYTHON


def _fits(version: str, wanted: str) -> bool:
    """Whether a version lies in a range; true if the package `packaging` is missing."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True)


def quantisation() -> Iterator[Line]:
    """Check that bitsandbytes works: quantise a small matrix to NF4 and back, on the device of a run."""
    import torch

    try:
        import bitsandbytes.functional as bnb

        device = "cuda" if torch.cuda.is_available() else "cpu"
        matrix = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
        packed, state = bnb.quantize_4bit(matrix, quant_type="nf4")
        error = float((bnb.dequantize_4bit(packed, state) - matrix).abs().max())
    except Exception as problem:
        yield Line("warn", "bitsandbytes", f"does not work ({_reason(problem)})", "use quant=none, or reinstall it")
        return
    if error > 0.2:  # the widest gap of NF4 is 0.30, so a correct result is at most 0.15 off
        yield Line("warn", "bitsandbytes", f"quantises wrongly (NF4 error {error:.2f})", "use quant=none")
    else:
        yield Line("ok", "bitsandbytes", f"NF4 quantisation works on {device}")


# --- hardware -------------------------------------------------------------------------------------------


def gpu() -> Iterator[Line]:
    """List every GPU that torch can use, or the reason why there is none."""
    try:
        import torch
    except Exception as error:
        yield Line("fail", "gpu", f"torch cannot be imported ({_reason(error)})", "pip install 'torch>=2.10'")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        yield _without_gpu(torch.__version__, [str(one.message).splitlines()[0] for one in caught])
        return
    driver = _driver() or "unknown"
    for index in range(torch.cuda.device_count()):
        yield _gpu_line(index, driver)


def _gpu_line(index: int, driver: str) -> Line:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    major, minor = torch.cuda.get_device_capability(index)
    bf16 = major >= 8
    text = (
        f"{torch.cuda.get_device_name(index)}, driver {driver}, {free / GB:.1f} of {total / GB:.1f} GB free, "
        f"compute capability {major}.{minor}, bf16 {'yes' if bf16 else 'no'}"
    )
    if not bf16:
        return Line("warn", f"gpu {index}", text, "set model.dtype=float16 quant.bnb_4bit_compute_dtype=float16")
    if free < total / 2:
        return Line("warn", f"gpu {index}", text, "another process uses its memory (nvidia-smi lists it)")
    return Line("ok", f"gpu {index}", text)


def _without_gpu(version: str, caught: list[str]) -> Line:
    driver = _driver()
    if driver is None:
        return Line("warn", "gpu", "none: runs use the CPU", "choose a small model: model=tiny or model=smollm2_135m")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Line("warn", "gpu", "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES to use it")
    reason = caught[0] if caught else "a build without CUDA, or one for a newer driver"
    text = f"driver {driver} is installed, but torch {version} cannot use it ({reason})"
    return Line("warn", "gpu", text, "install torch for that driver: https://pytorch.org/get-started/locally")


def _driver() -> str | None:
    """Return the version of the NVIDIA driver, or None if there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(found.stdout.split()), None)


def cpu() -> Iterator[Line]:
    """Compare the cores that this process may use with torch's threads."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    text = f"{cores} cores, {threads} torch threads"
    if threads > cores:
        yield Line("warn", "cpu", text, f"set OMP_NUM_THREADS={cores}")
    else:
        yield Line("ok", "cpu", text)


def memory() -> Iterator[Line]:
    """Check how much memory is free, on the machine or within the container's limit."""
    total, free = _machine_memory()
    limit, used = _container_memory()
    total, free = min(total, limit), min(free, limit - used)
    text = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    if free < LITTLE_MEMORY:
        yield Line("warn", "memory", text, "choose model=tiny, or a smaller eval.batch_size")
    else:
        yield Line("ok", "memory", text)


def _machine_memory() -> tuple[float, float]:
    """Return the machine's total memory and that available to new processes, in bytes."""
    import psutil  # type: ignore[import-untyped]

    found = psutil.virtual_memory()
    return float(found.total), float(found.available)


def _container_memory() -> tuple[float, float]:
    """Return limit and usage of the control group in bytes, without file cache; infinity and 0 without a group."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = float((group / "memory.max").read_text()), float((group / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return float("inf"), 0.0
    return limit, used - (float(cached[1]) if cached else 0.0)


# --- folders --------------------------------------------------------------------------------------------


def disk() -> Iterator[Line]:
    """Check the free space here and where weights are cached."""
    places = {"disk here": Path.cwd()}
    try:
        from huggingface_hub import constants

        from ftlab import weights

        places |= {"disk ftlab cache": weights.cache(), "disk Hub cache": Path(constants.HF_HUB_CACHE)}
    except Exception:
        pass  # the lines of the packages report it
    for name, folder in places.items():
        yield _disk_line(name, folder)


def _disk_line(name: str, folder: Path) -> Line:
    free = shutil.disk_usage(_nearest(folder)).free
    text = f"{free / GB:.1f} GB free at {folder}"
    if free < NO_DISK:
        return Line("fail" if name == "disk here" else "warn", name, text, "free some space")
    if free < LITTLE_DISK:
        remedy = "enough for a small model only: free some space, or set HF_HOME or FTLAB_CACHE to another disk"
        return Line("warn", name, text, remedy)
    return Line("ok", name, text)


def _nearest(folder: Path) -> Path:
    """Return `folder`, or its closest parent that exists."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def output(run_dir: str) -> Iterator[Line]:
    """Check that the parent of the run folder can be written."""
    folder = Path(run_dir).expanduser().absolute().parent
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)) as file:
            file.write(b"ftlab")
    except OSError as error:
        remedy = "name another folder: run_dir=DIR"
        yield Line("fail", "output folder", f"{folder} cannot be written ({error.strerror})", remedy)
        return
    yield Line("ok", "output folder", f"{folder} is writable")


# --- elsewhere ------------------------------------------------------------------------------------------


def hub() -> Iterator[Line]:
    """Check whether the Hub is enabled, answers, and whether a login is stored."""
    from huggingface_hub import get_token

    from ftlab import weights

    address = weights.endpoint() + (" (HF_ENDPOINT)" if os.environ.get("HF_ENDPOINT") else "")
    login = "logged in" if get_token() else "not logged in (gated models need `hf auth login`)"
    if weights.offline():
        remedy = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to download"
        yield Line("ok", "hub", f"switched off by your environment, only cached models are used; {remedy}")
        return
    problem = _unreachable(weights.endpoint())
    if problem:
        remedy = "set HF_ENDPOINT to a mirror, or use model=tiny or model=smollm2_135m, which need no Hub"
        yield Line("warn", "hub", f"{address} does not answer ({problem})", remedy)
    else:
        yield Line("ok", "hub", f"{address} answers; {login}")


def _unreachable(address: str) -> str | None:
    """Return why an address does not answer, or None if it does; an HTTP error is an answer too."""
    from ftlab import weights

    def ask() -> None:
        urllib.request.urlopen(address, timeout=ANSWER_SECONDS).close()

    try:
        weights.within(ANSWER_SECONDS, ask)
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def trackers() -> Iterator[Line]:
    """Whether the trackers that need a package or a key can be used."""
    yield wandb()
    yield tensorboard()


def tensorboard() -> Line:
    """Whether the package that writes event files is installed."""
    try:
        return Line("ok", "tracker", f"tensorboard {importlib.metadata.version('tensorboard')}")
    except importlib.metadata.PackageNotFoundError:
        return Line("ok", "tracker", "tensorboard is not installed (pip install 'ftlab[tensorboard]')")


def wandb() -> Line:
    """Whether W&B would record online or offline; the key itself is never shown."""
    from ftlab.trackers.wandb_key import has_key

    try:
        version = importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        return Line("warn", "tracker", "wandb is not installed", "pip install wandb, or set tracker=none")
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode in ("offline", "dryrun", "disabled"):
        return Line("ok", "tracker", f"wandb {version}, {mode} by WANDB_MODE")
    if has_key():
        return Line("ok", "tracker", f"wandb {version}, a key is set: runs are recorded online")
    text = f"wandb {version}, no key: runs are recorded offline (`wandb login` or WANDB_API_KEY: online)"
    return Line("ok", "tracker", text)


def embedded() -> Iterator[Line]:
    """Check that the model of the quickstart is complete."""
    from ftlab import weights
    from ftlab.config import ModelConfig

    try:
        weights.on_disk(ModelConfig(name="tiny", id="embedded:tiny"))
    except FtlabError as error:
        yield Line("warn", "embedded model", str(error))
        return
    yield Line("ok", "embedded model", "model=tiny is complete and needs no network")


def model(cfg: "ExperimentConfig") -> Iterator[Line]:
    """Check whether the named model's weights are on this machine."""
    from ftlab import weights

    try:
        located = weights.on_disk(cfg.model)
    except FtlabError as error:
        yield Line("warn", "model", str(error))
        return
    if located is None:
        remedy = f"python -m ftlab fetch {weights.named(cfg.model)}"
        yield Line("warn", "model", f"{cfg.model.name} ({cfg.model.id}) is not on this machine", remedy)
    else:
        yield Line("ok", "model", f"{cfg.model.name} needs no network: {located.folder} ({located.note})")
