"""The sha256 of a base model's files, to check that a resumed run uses the same base as before.

Hashes are cached by path, size and modification time in ~/.cache/ftlab/sha256.json (or $FTLAB_CACHE/sha256.json), so
that only the first run on a base reads its files twice. Files are hashed in threads while the model loads.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

THREADS = 4  # each hashes one file at a time; a core hashes 1 to 2 GB/s

Known = dict[str, tuple[int, int, str]]  # by path: size in bytes, modification time in ns, and sha256


class Checksums:
    """The sha256 of each file, by name. Threads begin at once to hash the files that are not in the cache."""

    def __init__(self, files: list[Path], cache_file: Path | None = None) -> None:
        self.files, self.cache_file = files, cache_file or default_cache_file()
        known = _read(self.cache_file)
        self._found: dict[Path, str] = {}
        self._wanted: list[tuple[Path, Future[tuple[int, int, str]]]] = []
        for file in files:
            size, changed = _state(file)
            before = known.get(_key(file))
            if before and before[:2] == (size, changed):
                self._found[file] = before[2]
            else:
                self._wanted.append((file, Future()))
        for number in range(min(THREADS, len(self._wanted))):
            work = self._wanted[number::THREADS]
            threading.Thread(target=_hash_all, args=(work,), daemon=True).start()

    def result(self) -> dict[str, str]:
        """Return the sha256 of each file, by name. This waits for the threads, and caches their results.

        Raises:
            OSError: a file cannot be read.
        """
        new = {file: future.result() for file, future in self._wanted}
        if new:
            _remember(self.cache_file, {_key(file): entry for file, entry in new.items()})
        digests = self._found | {file: entry[2] for file, entry in new.items()}
        return {file.name: digests[file] for file in self.files}


def default_cache_file() -> Path:
    """Return the file that caches hashes for all runs of this user."""
    return Path(os.environ.get("FTLAB_CACHE") or "~/.cache/ftlab").expanduser() / "sha256.json"


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of files that differ, are missing or are new."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _hash_all(work: list[tuple[Path, Future[tuple[int, int, str]]]]) -> None:
    for file, future in work:
        _fulfil(future, lambda file=file: (*_state(file), _sha256(file)))  # type: ignore[misc]


def _fulfil(future: Future[tuple[int, int, str]], call: Callable[[], tuple[int, int, str]]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # passed on to the thread that waits
        future.set_exception(error)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _state(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_size, state.st_mtime_ns


def _key(file: Path) -> str:
    return str(file.resolve())


def _read(cache_file: Path) -> Known:
    """Return the cached hashes; none if the file is absent or damaged."""
    try:
        return {str(path): (int(s), int(t), str(d)) for path, (s, t, d) in json.loads(cache_file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(cache_file: Path, new: Known) -> None:
    """Add hashes to the cache file, which is replaced atomically. If it cannot be written, the next run hashes
    again."""
    temporary = cache_file.with_name(f"{cache_file.name}.{os.getpid()}")
    kept = {path: entry for path, entry in _read(cache_file).items() if Path(path).exists()}
    with contextlib.suppress(OSError):
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept | new))
        temporary.replace(cache_file)
