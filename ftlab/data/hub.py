"""Data sets of the Hugging Face Hub, or their copies in the cache of the library `datasets`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftlab.data.folder import names_of
from ftlab.errors import DataError

PATIENCE = 4.0  # seconds to wait for the first answer of the Hub
Tables = dict[str, list[dict[str, Any]]]


def tables(hub_id: str, revision: str | None) -> tuple[Tables, str]:
    """Return the rows of each split of a data set (at least train), and a description of where they were read from.

    The Hub is asked whether the cached copy of `revision` is current; nothing is downloaded twice. If the Hub cannot be
    reached (HF_HUB_OFFLINE, no network), the cached copy is used. HF_ENDPOINT is honoured. Code of a data set never
    runs. Raises DataError within seconds if there is neither the Hub nor a copy.
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
    where = "the Hub" if reachable else "the local cache (the Hub was not reached)"
    at = f"@{commit[:12]}" if commit else ""
    return {name: split.to_list() for name, split in by_name.items()}, f"{hub_id}{at}, {where}"


def _answers(endpoint: str) -> bool:
    """Whether the Hub answers at all. Asked first because huggingface_hub retries a refused connection for 23 s."""
    from huggingface_hub import get_session

    try:
        return get_session().head(endpoint, timeout=PATIENCE).status_code < 500
    except Exception:  # which errors it raises depends on the HTTP library of huggingface_hub's version
        return False


@contextmanager
def _quiet(offline: bool) -> Iterator[None]:
    """Use cached copies only, if `offline`, without the library's warning about it: the notes of the data say so."""
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
    """Return the commit that a split was built from, which is the name of its folder in the `datasets` cache."""
    names = [Path(file["filename"]).parent.name for file in split.cache_files]
    return next((name for name in names if re.fullmatch("[0-9a-f]{40}", name)), "")


def _check_revision(hub_id: str, revision: str | None, cached: str) -> None:
    """Refuse a cached copy of another commit: `datasets` takes the latest copy whatever commit is requested."""
    if revision and re.fullmatch("[0-9a-f]{40}", revision) and cached != revision:
        raise DataError(
            f"data.hub_revision={revision}: the Hub was not reached, and the cached copy of {hub_id} is of "
            f"{cached or 'an unknown commit'}.\nRun it once with a network, or accept that copy: data.hub_revision=main"
        )


def _refusal(hub_id: str, revision: str | None, reachable: bool, error: Exception) -> DataError:
    at = f" at revision {revision}" if revision not in (None, "main") else ""
    if reachable:
        reason = f"data.hub_id={hub_id}{at} cannot be read: {(str(error) or repr(error)).splitlines()[0]}"
    else:
        reason = f"data.hub_id={hub_id}{at}: the Hub cannot be reached, and the local cache holds no copy."
    return DataError(
        f"{reason}\n"
        "Read it from files instead: data.path=FOLDER, a folder with train.jsonl and optionally test.jsonl,\n"
        'one {"question": ..., "context": ..., "answer": ...} per line; .json, .csv and .parquet work too.\n'
        "Generated rows need no download: data=sql_synth"
    )
