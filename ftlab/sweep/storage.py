"""The database of a study: Optuna's tables, with the owner process of every running trial.

Optuna detects dead workers by missing heartbeats, and never detects a trial whose process died before its first one.
Here a trial records its owner in the moment it starts, so that a dead process on this host is detected at once.
"""

import os
import re
import shlex
import sqlite3
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

import optuna
import psutil  # type: ignore[import-untyped]
import sqlalchemy.exc
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import StudySystemAttributeModel as Held
from optuna.storages._rdb.models import TrialModel
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL, CursorResult, insert, make_url, select, update
from sqlalchemy.orm import Session

from ftlab import damaged
from ftlab.errors import InputError
from ftlab.process import Process
from ftlab.redact import redact

LOCK_TIMEOUT_S = 60
PASSWORD = "FTLAB_STORAGE_PASSWORD"  # PostgreSQL also finds one in PGPASSWORD and ~/.pgpass
NETWORKED = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "sshfs", "afs"}
_CLAIM = "claim:"
_HELD = "held:"
_CREDENTIALS = re.compile(r"(://[^:/@]*):([^?]*)@")
_PASSWORD_ARGUMENT = re.compile(r"(?P<before>[?&])password=(?P<password>[^&\"']*)(?P<more>&?)")
_POSTGRES = re.compile(r"^postgres(ql)?://")
DRIVER = "postgresql+psycopg://"
# Remedies, by a part of SQLite's message.
FILE_REMEDIES = {
    "unable to open": "its folder must exist and be readable and writable; copy a read-only one elsewhere",
    "readonly": "it is read-only, but a sweep must write it",
    "locked": f"another process has held it for {LOCK_TIMEOUT_S} s: is a sweep hanging?",
    "not a database": "it is damaged or no database: restore a backup, or start a new study with sweep.study=NAME",
    "malformed": "it is damaged: restore a backup, or start a new study with sweep.study=NAME",
}

optuna.logging.set_verbosity(optuna.logging.ERROR)  # a sweep prints its trials itself


class OwnedStorage(RDBStorage):
    """RDBStorage whose running trials have the user attribute `owner`. It leaves stale trials to `Study.reap`: those
    that Optuna fails by itself could not be distinguished from real failures.

    `above` are the parent processes, with which this one ends: its sweep's driver first."""

    above: Sequence[Process] = ()

    def me(self) -> dict[str, Any]:
        """This process as the owner of a trial."""
        return {**Process.me().record(), "above": [process.record() for process in self.above]}

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        return template  # braces in a file name are no placeholders

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        if template_trial is None:
            template_trial = create_trial(state=TrialState.RUNNING, user_attrs={"owner": self.me()})
            template_trial.datetime_start = datetime.now()
        return super()._create_new_trial(study_id, template_trial)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state is not TrialState.RUNNING:
            return super().set_trial_state_values(trial_id, state, values)
        # Several workers may try to start a waiting trial. Each first records a claim, so that the owner is among
        # the claims even if it dies before it records itself as the owner.
        owner = self.me()
        self.set_trial_system_attr(trial_id, f"{_CLAIM}{owner['host']}:{owner['pid']}:{owner['started']}", owner)
        got = super().set_trial_state_values(trial_id, state, values)
        if got:
            self.set_trial_user_attr(trial_id, "owner", owner)
        return got

    def holder(self, study_id: int, configuration: str) -> int | None:
        """The number of the trial that reserved a configuration, by the configuration's name; None if none has."""
        with _create_scoped_session(self.scoped_session) as session:
            found = session.scalars(select(Held.value_json).where(*_held(study_id, configuration))).one_or_none()
        return None if found is None else int(found)

    def hold(self, study_id: int, configuration: str, number: int, after: int | None) -> bool:
        """Reserve a configuration for a trial, if `after` (None: no trial) still has it; whether it succeeded. Of
        several concurrent calls one succeeds: the key is unique in a study, and updates of a row are serialised."""
        mine = {"value_json": str(number)}
        with _create_scoped_session(self.scoped_session) as session:
            if after is not None:
                mark = (*_held(study_id, configuration), Held.value_json == str(after))
                return bool(cast(CursorResult[Any], session.execute(update(Held).where(*mark).values(**mine))).rowcount)
            try:
                session.execute(insert(Held).values(study_id=study_id, key=_HELD + configuration, **mine))
            except sqlalchemy.exc.IntegrityError:  # another process was faster
                session.rollback()
                return False
            return True

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return []

    def silent(self, study_id: int) -> list[int]:
        """Ids of running trials on any host without a heartbeat during the grace period."""
        return super()._get_stale_trial_ids(study_id) + self._without_heartbeat(study_id)

    def _without_heartbeat(self, study_id: int) -> list[int]:
        """Ids of trials that started more than a grace period ago and died before their first heartbeat, which Optuna
        would leave running for ever."""
        before = datetime.now() - timedelta(seconds=self.grace_period or 0)
        running = (TrialModel.study_id == study_id, TrialModel.state == TrialState.RUNNING)
        with Session(self.engine) as session:
            trials = session.scalars(select(TrialModel).where(*running, ~TrialModel.heartbeats.any()))
            return [int(trial.trial_id) for trial in trials if trial.datetime_start and trial.datetime_start < before]


def _held(study_id: int, configuration: str) -> tuple[Any, Any]:
    return Held.study_id == study_id, Held.key == _HELD + configuration


def owners(trial: FrozenTrial) -> list[Process]:
    """The running trial's owner; if none is recorded yet, all processes that claimed it."""
    return [owner for owner in map(Process.read, _owner_nodes(trial)) if owner]


def above(trial: FrozenTrial) -> list[Process]:
    """The parent processes of the trial's owner; empty if an older ftlab recorded it."""
    nodes = [node for owner in _owner_nodes(trial) for node in owner.get("above", [])]
    return [process for process in map(Process.read, nodes) if process]


def _owner_nodes(trial: FrozenTrial) -> list[dict[str, Any]]:
    return [trial.user_attrs["owner"]] if "owner" in trial.user_attrs else list(claims(trial).values())


def claims(trial: FrozenTrial) -> dict[str, Any]:
    """The claims of workers that tried to start the waiting trial."""
    return {key: value for key, value in trial.system_attrs.items() if key.startswith(_CLAIM)}


def default_url(folder: Path) -> str:
    """The URL of the database in the study's folder."""
    return file_url(folder.resolve() / "study.db")


def file_url(file: Path | str) -> str:
    """The URL of an SQLite file, with characters such as `?`, `#` and `%` in its name escaped."""
    return URL.create("sqlite", database=str(file)).render_as_string()


def file_of(url: str) -> Path | None:
    """The file that holds the database; None for a server or a database in memory.

    Raises:
        sqlalchemy.exc.ArgumentError: not a database URL.
    """
    read = make_url(url)
    in_file = read.get_backend_name() == "sqlite" and read.database not in (None, "", ":memory:")
    return Path(read.database or "") if in_file and "uri" not in read.query else None


def damage(file: Path) -> str | None:
    """What is wrong with the structure of an SQLite file; None if it is intact, or only locked by another process."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro", uri=True, timeout=5)) as database:
            found = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        return None if "malformed" not in str(error) else str(error)
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if found == "ok" else found.splitlines()[-1]


def set_damaged_aside(database: Path) -> Path:
    """Rename an SQLite file together with its log and index files. Returns the new path."""
    aside = damaged.set_aside(database)
    for suffix in ("-wal", "-shm"):
        beside = database.with_name(database.name + suffix)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + suffix))
    return aside


def without_password(url: str) -> str:
    """A database URL without its password, safe to store and to show."""
    return _PASSWORD_ARGUMENT.sub(lambda found: found["before"] * bool(found["more"]), _CREDENTIALS.sub(r"\1@", url))


def set_password_aside(text: str) -> str:
    """A database URL, or an override with one, without its password. The password goes into this process's
    environment, where workers inherit it and no file, log or message shows it."""
    found = _CREDENTIALS.search(text) or _PASSWORD_ARGUMENT.search(text)
    if found:
        os.environ[PASSWORD] = unquote(found[2])
    return without_password(text)


def connect(url: str, heartbeat_s: int, grace_s: int) -> OwnedStorage:
    """The storage at a URL; missing tables are created.

    Raises:
        InputError: the database cannot be reached, or its driver package is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats are experimental in Optuna
            # The driver package that SQLAlchemy picks for PostgreSQL differs between its versions.
            return _made(_POSTGRES.sub(DRIVER, url), _engine(url), heartbeat_s, grace_s)
    except ImportError:
        package = "'ftlab[postgres]'" if url.startswith("postgres") else "PyMySQL"
        raise InputError(
            f"sweep.storage={redact(without_password(url))} needs a package that is not installed: "
            f"pip install {package}"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        raise InputError(_unreachable(url, error)) from None


def _engine(url: str) -> dict[str, Any]:
    """Arguments of SQLAlchemy's engine for a URL."""
    if not url.startswith("sqlite"):
        password = os.environ.get(PASSWORD)
        return {"pool_pre_ping": True, "connect_args": {"password": password} if password else {}}
    file = file_of(url)
    if file and _only_readable(file):
        return {"creator": partial(_reader, file)}
    set_up = _locked_only if file and networked(file.parent) else _seldom_synced
    return {"connect_args": {"timeout": LOCK_TIMEOUT_S}, "pool_events": [(set_up, "connect")]}


def _only_readable(file: Path) -> bool:
    """Whether the database exists, and this process may not write it or its folder."""
    ids = os.access in os.supports_effective_ids
    return file.is_file() and not all(os.access(place, os.W_OK, effective_ids=ids) for place in (file, file.parent))


def _reader(file: Path) -> sqlite3.Connection:
    """A read-only connection. If there is a log, SQLite reads it too, with the index that its writer keeps or left
    behind. Without a log nobody has the database open, and the file alone is read (sqlite.org/wal.html#readonly)."""
    mode = "mode=ro" if file.with_name(f"{file.name}-wal").exists() else "mode=ro&immutable=1"
    uri = f"file:{quote(str(file.resolve()))}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_S, check_same_thread=False)


def _seldom_synced(connection: Any, record: Any) -> None:
    """Use a write-ahead log that is seldom synced: a trial commits about twenty times, and waiting for the disk each
    time would dominate. The log survives the death of every process. A power cut may lose the last trials but leaves
    the database intact (sqlite.org/wal.html)."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _locked_only(connection: Any, record: Any) -> None:
    """Use the rollback journal, which needs locks only. The write-ahead log needs shared memory, which processes on
    two machines do not have, and would corrupt the database."""
    connection.execute("PRAGMA journal_mode=DELETE")


def networked(folder: Path) -> str:
    """The type of network file system that holds a folder; empty for a local disk, or if unknown."""
    try:
        mounts = psutil.disk_partitions(all=True)
    except (OSError, psutil.Error):
        return ""
    holding = [mount for mount in mounts if folder.resolve().is_relative_to(mount.mountpoint)]
    deepest = max(reversed(holding), key=lambda mount: len(mount.mountpoint), default=None)
    kind = str(deepest.fstype) if deepest else ""  # of several mounts at one place the last counts
    return kind if kind.removeprefix("fuse.") in NETWORKED else ""


def _made(url: str, engine: dict[str, Any], heartbeat_s: int, grace_s: int) -> OwnedStorage:
    """The storage. Hosts that create the tables of a server at the same time collide; on the second try they exist."""
    try:
        made = OwnedStorage(url, engine, heartbeat_interval=heartbeat_s, grace_period=grace_s)
    except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
        time.sleep(1)
        made = OwnedStorage(url, engine, heartbeat_interval=heartbeat_s, grace_period=grace_s)
    weakref.finalize(made, made.engine.dispose)  # Optuna does not close its connections itself
    return made


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn errors of the database into an `InputError` of one line."""
    try:
        yield
    except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
        raise InputError(_unreachable(url, error)) from None


def _unreachable(url: str, error: Exception) -> str:
    """The message for a database that cannot be used: the reason and the remedy."""
    shown = without_password(url)
    if isinstance(error, sqlalchemy.exc.ArgumentError):
        return redact(f"sweep.storage={shown} is not a database URL: postgresql://USER@HOST/DATABASE, sqlite:///FILE")
    file = file_of(url)
    name = str(file or f"sweep.storage={shown}")
    if isinstance(error, RuntimeError):
        return redact(f"{name} {_of_another_optuna(shown, str(error))}")
    cause = error.__cause__ or error
    reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
    if file:
        return redact(f"{name} cannot be used ({reason}): {_file_remedy(reason)}")
    remedy = "start the database, or leave sweep.storage out to use a file in the study's folder"
    if "password" in reason:
        remedy = f"set the right one in {PASSWORD}"
    return redact(f"{name} cannot be used ({reason}): {remedy}")


def _of_another_optuna(url: str, message: str) -> str:
    """The message for a database of another Optuna version, with the command that upgrades it."""
    made = re.search(r"set up by optuna ([\w.]+)", message)
    version = f" ({made[1]})" if made else ""
    if "storage upgrade" not in message:
        return f"was made by a newer Optuna{version}: pip install -U optuna"
    command = f"optuna storage upgrade --storage {shlex.quote(_POSTGRES.sub(DRIVER, url))}"
    return f"was made by an older Optuna{version}: make a copy of it, then upgrade it with {command}"


def _file_remedy(reason: str) -> str:
    found = [remedy for part, remedy in FILE_REMEDIES.items() if part in reason]
    return found[0] if found else "check its disk, then run the same command again"
