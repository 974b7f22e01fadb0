"""The folder of a base model: the files it needs, and what is wrong with it. Only configuration, tokenizer and
safetensors files are read, never a pickle. Never imports torch."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ftlab import architecture
from ftlab.disk import is_full
from ftlab.errors import FtlabError, WeightsError, first_line
from ftlab.paths import special

What = Literal["weights", "tokenizer"]
WeightsOrigin = Literal["embedded", "folder", "converted", "cache", "hub", "package"]
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


@dataclass(frozen=True)
class WeightsFolder:
    """A folder for `from_pretrained`: configuration, tokenizer and, if they were requested, weights."""

    folder: Path
    origin: WeightsOrigin
    revision: str | None  # the Hub's commit, or 12 hex digits of a hash of configuration, file names and sizes
    note: str  # where the files come from, for the user


def files(folder: Path) -> list[Path]:
    """Return the model's own files in `folder`, sorted: configuration, tokenizer, safetensors, licence."""
    patterns = (CONFIG, *WEIGHT_FILES, *TOKENIZER_FILES, *COMPANIONS)
    return sorted({file for pattern in patterns for file in folder.glob(pattern)})


def base_files(folder: Path) -> list[Path]:
    """Return the files that define a base: its configuration and its weight files."""
    return [folder / CONFIG, *_shards(folder)]


@contextmanager
def readable(place: str) -> Iterator[None]:
    """Turn errors of the block, in which a library reads a user's files, into WeightsError. If files do not contain
    what they should, libraries raise arbitrary exceptions, and Rust tokenizers even panic.

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
        message = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
        reason = message if plain else f"{type(error).__name__}: {message}"
        raise WeightsError(f"{place} ({reason})") from None


def fingerprint(folder: Path) -> str:
    """Return 12 hex digits of a hash of the configuration and of the names and sizes of the other files."""
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for file in files(folder):
        digest.update(f"\n{file.name} {file.stat().st_size}".encode())
    return digest.hexdigest()[:12]


def flaw_of(folder: Path, what: What) -> str | None:
    """Return why `folder` cannot be used, as the rest of a sentence that begins with its name; None if it can."""
    if not (folder / CONFIG).is_file():
        return _without_config(folder)
    odd = next((file for file in files(folder) if not file.is_file()), None)
    if odd is not None:
        return f"has a {odd.name} that is {special(odd) or 'a folder, or a broken link'}, not a file"
    if not _first(folder, VOCABULARIES):
        return "has no tokenizer (tokenizer.json or tokenizer.model): copy its base's tokenizer files there"
    if (broken := next(filter(None, map(_object_flaw, map(folder.joinpath, OBJECTS))), None)) is not None:
        return broken
    if (flaw := architecture.flaw(folder / CONFIG, _weight_bytes(folder))) is not None:
        return flaw
    return _weights_flaw(folder) if what == "weights" else None


def _object_flaw(file: Path) -> str | None:
    """Return why a file of a model's folder is not a JSON object; None if it is one, or does not exist."""
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
        return without_safetensors(file.name for file in folder.iterdir())
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        return f"lacks {missing[0]} ({len(missing)} of {len(shards)} weight files): copy or download it again"
    return next((flaw for flaw in map(_shard_flaw, shards) if flaw), None)


def _weight_bytes(folder: Path) -> int | None:
    """Return the bytes of all weight files; None if some are missing or broken, which `_weights_flaw` reports."""
    try:
        shards = _shards(folder)
        return None if any(map(_shard_flaw, shards)) else sum(shard.stat().st_size for shard in shards) or None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _shards(folder: Path) -> list[Path]:
    """Return the weight files that transformers reads, whether they exist or not; an empty list without safetensors."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        return []
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def without_safetensors(names: Iterable[str]) -> str:
    pickle = next((name for name in sorted(names) if any(Path(name).match(p) for p in PICKLES)), None)
    if pickle is None:
        return "has no weights: model.safetensors, or an index with its parts, is missing"
    return (
        f"has its weights only as a pickle ({pickle}), which can run code when read: "
        "choose a revision with *.safetensors, or convert it if you trust it"
    )


def _shard_flaw(shard: Path) -> str | None:
    """Return what is wrong with a weight file, or None. A safetensors header states the file's size, so that a
    truncated or replaced file is detected without reading it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="np"):
            return None
    except (SafetensorError, OSError) as error:
        return f"has a broken weight file {shard.name} ({error}): copy or download it again"


def _first(folder: Path, patterns: Iterable[str]) -> Path | None:
    return next((file for pattern in patterns for file in folder.glob(pattern)), None)


def own_code(folder: Path) -> str:
    """Return why a folder whose model or tokenizer needs Python code is refused: what would run, and how to allow
    it."""
    files = [f"{file.name} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()})" for file in _code(folder)]
    elsewhere = sorted({name for name in named_code(folder) if "--" in name or not _code(folder)})
    listed = ", ".join([*files, *(f"{name} (not in the folder)" for name in elsewhere)])
    return (
        f"{folder} needs Python code of its own, which would run on this machine: {listed}. "
        "Nothing of it has run. Read it first; to let it run, add model.trust_remote_code=true to this command"
    )


def _code(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.py") if file.is_file())


def named_code(folder: Path) -> Iterator[str]:
    """Yield the classes outside transformers that a folder's configuration names."""
    for file in (CONFIG, "tokenizer_config.json"):
        try:
            named = json.loads((folder / file).read_text(encoding="utf-8")).get("auto_map") or {}
        except (OSError, ValueError, AttributeError):
            continue
        for value in named.values() if isinstance(named, dict) else [named]:
            yield from (str(name) for name in (value if isinstance(value, list) else [value]) if name)
