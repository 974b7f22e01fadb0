"""Data sets of the Hugging Face Hub, or the copy of one that the `datasets` cache holds."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftlab.data.folder import names_of
from ftlab.errors import DataError

PATIENCE = 4.0  # seconds the Hub has for its first answer
Tables = dict[str, list[dict[str, Any]]]


def tables(hub_id: str, revision: str | None) -> tuple[Tables, str]:
    """The rows of each split of a data set (train at least), and where they were read from.

    The Hub is asked whether the cache holds the present state of `revision`; nothing is downloaded twice.
    Without the Hub (HF_HUB_OFFLINE, no network) the cached copy is used. HF_ENDPOINT is honoured. Code of a
    data set never runs. Raises DataError within seconds where neither can be had.
    """
    import datasets

    reachable = not datasets.config.HF_HUB_OFFLINE and _answers(datasets.config.HF_ENDPOINT)
    try:
        with _quiet(offline=not reachable):
            found = datasets.load_dataset(hub_id, revision=revision)
    except Exception as error:
        raise _refusal(hub_id, revision, reachable, error) from None
    by_name = {split: found[name] for split, name in names_of(f"data.hub_id={hub_id}", found).items()}
    if "train" not in by_name and len(found) == 1:
        by_name = {"train": next(iter(found.values()))}
    if "train" not in by_name:
        raise DataError(
            f"data.hub_id={hub_id} has no train split, only {', '.join(found)}.\n"
            "Save the rows to train on as a file and read that: data.path=FILE"
        )
    commit = _commit(by_name["train"])
    if not reachable:
        _check_revision(hub_id, revision, commit)
    where = "the Hub" if reachable else "the cache (the Hub was not asked)"
    at = f"@{commit[:12]}" if commit else ""
    return {name: split.to_list() for name, split in by_name.items()}, f"{hub_id}{at}, {where}"


def _answers(endpoint: str) -> bool:
    """Whether the Hub answers at all. huggingface_hub itself retries a refused connection for 23 s."""
    from huggingface_hub import get_session

    try:
        return get_session().head(endpoint, timeout=PATIENCE).status_code < 500
    except Exception:  # which errors it raises depends on the HTTP library of huggingface_hub's version
        return False


@contextmanager
def _quiet(offline: bool) -> Iterator[None]:
    """Cached copies only, if `offline`; no warning that one is used, since the notes say it."""
    import datasets

    before, level = datasets.config.HF_HUB_OFFLINE, datasets.utils.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = offline
    datasets.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        datasets.utils.logging.set_verbosity(level)


def _commit(split: Any) -> str:
    """The commit a split was built from, which `datasets` keeps as the name of its cache folder."""
    names = [Path(file["filename"]).parent.name for file in split.cache_files]
    return next((name for name in names if re.fullmatch("[0-9a-f]{40}", name)), "")


def _check_revision(hub_id: str, revision: str | None, cached: str) -> None:
    """`datasets` takes the latest cached copy whatever commit was asked for."""
    if revision and re.fullmatch("[0-9a-f]{40}", revision) and cached != revision:
        raise DataError(
            f"data.hub_revision={revision}: the Hub was not reached, and the cached copy of {hub_id} is of "
            f"{cached or 'an unknown commit'}.\nGo online once, or accept that copy: data.hub_revision=main"
        )


def _refusal(hub_id: str, revision: str | None, reachable: bool, error: Exception) -> DataError:
    at = f" at revision {revision}" if revision not in (None, "main") else ""
    if reachable:
        reason = f"data.hub_id={hub_id}{at} cannot be read: {(str(error) or repr(error)).splitlines()[0]}"
    else:
        reason = f"data.hub_id={hub_id}{at}: the Hub cannot be reached, and the cache holds no copy of it."
    return DataError(
        f"{reason}\n"
        "Read it from files instead: data.path=FOLDER, with train.jsonl and perhaps test.jsonl in it:\n"
        'one {"question": ..., "context": ..., "answer": ...} a line; also .json, .csv, .parquet.\n'
        "Without any download: data=sql_synth"
    )
