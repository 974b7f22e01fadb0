"""Models in the Hub cache and from the Hub. Only configuration, tokenizer and safetensors files are downloaded."""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import TIMEOUT_MAX, Thread
from typing import Any, TypeVar

from ftlab.config import ModelConfig
from ftlab.disk import free_bytes, size
from ftlab.errors import WeightsError
from ftlab.redact import redact
from ftlab.weights.folder import (
    COMPANIONS,
    CONFIG,
    TOKENIZER_FILES,
    WEIGHT_FILES,
    WeightsFolder,
    What,
    flaw_of,
    without_safetensors,
)
from ftlab.weights.messages import show_progress

T = TypeVar("T")
HUB_SECONDS = 5.0  # the time limit of a connection, and of an answer
HUB_DEADLINE = 10.0  # the time limit of both and of the name look-up, which has no limit of its own


class HubUnreachable(Exception):
    """The Hub gave no answer that shows whether it has the model."""


def offline() -> bool:
    """Whether the environment forbids the network (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)."""
    flag = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return flag.upper() in {"1", "ON", "YES", "TRUE"}


def endpoint() -> str:
    """Return the address of the Hub, or of the mirror in HF_ENDPOINT."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def within(seconds: float, call: Callable[[], T]) -> T:
    """Run `call()` in a thread and return its result. After `seconds` the thread is no longer waited for.

    Raises:
        TimeoutError: there is no result in time; other exceptions are those of `call`.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # passed on to the caller
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {seconds:g} s") from None


def cached(model: ModelConfig, what: What) -> WeightsFolder | None:
    folder = snapshot_of(model)
    if folder is None or flaw_of(folder, what):
        return None
    return WeightsFolder(folder, "cache", folder.name, f"Hub cache of {model.id}, revision {model.revision or 'main'}")


def snapshot_of(model: ModelConfig) -> Path | None:
    """Return the model's folder in the Hub cache, or None. It must contain `config.json`, which is downloaded after the
    other small files."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model.id, CONFIG, revision=model.revision)
    return Path(config).parent if isinstance(config, str) else None


def from_hub(model: ModelConfig, what: What) -> WeightsFolder:
    """Download the repository's files into the Hub cache, under the revision's name, so that they are found offline."""
    from huggingface_hub import snapshot_download

    show_progress(f"model {model.name}: looking for {model.id} at {endpoint()}")
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
                ignore_patterns=["*/*"],  # subfolders contain other formats
            )
            folder = Path(within(TIMEOUT_MAX, download))  # in a thread, so that a signal can end the process at once
    flaw = flaw_of(folder, what)
    if flaw:
        raise WeightsError(f"model.id={model.id}: the download {flaw}")
    note = f"downloaded from {endpoint()}, revision {model.revision or 'main'}"
    return WeightsFolder(folder, "hub", folder.name, redact(note))


def _listing(model: ModelConfig) -> dict[str, int]:
    """Return every file of the repository with its size in bytes (0 if a mirror does not report it).

    This is one small request with a deadline, before any download: the Hub's client has no deadline at that point.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint())
    info = within(
        HUB_DEADLINE,
        lambda: api.model_info(model.id, revision=model.revision, timeout=HUB_SECONDS, files_metadata=True),
    )
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _check_listing(model: ModelConfig, what: What, sizes: dict[str, int]) -> None:
    """Refuse a model that could not be used, before anything is downloaded."""
    if CONFIG not in sizes:
        raise WeightsError(f"model.id={model.id} has no {CONFIG} on the Hub: it is not a model of transformers")
    if what == "tokenizer":
        return
    chosen = [name for name in sizes if "/" not in name and Path(name).match("model*.safetensors")]
    if not chosen:
        raise WeightsError(f"model.id={model.id} {without_safetensors(sizes)}")
    from huggingface_hub import constants

    needed, free = sum(sizes[name] for name in chosen), free_bytes(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise WeightsError(
            f"model.id={model.id} needs {size(needed)}, but {constants.HF_HUB_CACHE} has {size(free)} free: "
            "free disk space, or set HF_HOME to a folder on a larger disk"
        )


@contextmanager
def _hub_errors(model: ModelConfig) -> Iterator[None]:
    """Turn refusals by the Hub into WeightsError, and everything that is not an answer into HubUnreachable."""
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
            f"model.id={model.id} is not at {endpoint()}: check the spelling (ORG/NAME); a private model "
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
        raise HubUnreachable(reason(error)) from None
    except Exception as error:  # an exception of the HTTP library, which the Hub's client has changed twice
        raise HubUnreachable(reason(error)) from None


def _refusal(model: ModelConfig, error: Any) -> Exception:
    """Return an HTTP status as an error. A 403 alone is not final: it often comes from a company's proxy."""
    status = error.response.status_code
    if status == 401:
        return WeightsError(
            f"model.id={model.id}: {endpoint()} refused the login (401): log in again with `hf auth login`, "
            "or correct HF_TOKEN"
        )
    if status == 403:
        return HubUnreachable("403 Forbidden; a gated or private repository needs `hf auth login` or HF_TOKEN")
    return HubUnreachable(f"HTTP status {status}")


def reason(error: BaseException) -> str:
    """Return the innermost cause in one line: the Hub's client wraps it in advice of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return redact(text[0]) if text else type(error).__name__
