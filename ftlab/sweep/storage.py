"""The database behind a study: Optuna's tables, with every running trial's owner written in.

Optuna's own way of noticing dead workers waits for heartbeats, and sees no trial whose process died before its
first one. Here a trial begins to run and names its owner at once, so that on this host a dead one shows at once.
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
# What to do where SQLite says this.
FILE_REMEDIES = {
    "unable to open": "its folder must be there, readable and writable; copy it where it may only be read",
    "readonly": "it may only be read; a sweep must write it",
    "locked": f"another process has held it for {LOCK_TIMEOUT_S} s: is a sweep hanging?",
    "not a database": "it is damaged, or something else: put a copy of it back, or begin anew with sweep.study=NAME",
    "malformed": "it is damaged: put a copy of it back, or begin anew with sweep.study=NAME",
}

optuna.logging.set_verbosity(optuna.logging.ERROR)  # a sweep shows its trials itself


class OwnedStorage(RDBStorage):
    """RDBStorage whose running trials have the user attribute `owner`, and which leaves stale trials to
    `Study.reap`: what Optuna fails by itself cannot be told from a failure afterwards.

    `above` are the processes without which this one would not go on: its sweep's driver first."""

    above: Sequence[Process] = ()

    def me(self) -> dict[str, Any]:
        """This process as the owner of a trial."""
        return {**Process.me().record(), "above": [process.record() for process in self.above]}

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        return template  # a brace in a name is one

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        if template_trial is None:
            template_trial = create_trial(state=TrialState.RUNNING, user_attrs={"owner": self.me()})
            template_trial.datetime_start = datetime.now()
        return super()._create_new_trial(study_id, template_trial)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state is not TrialState.RUNNING:
            return super().set_trial_state_values(trial_id, state, values)
        # Several workers may reach for a waiting trial. Each leaves its claim first, so that whoever gets it and
        # dies before it says so was one of those.
        owner = self.me()
        self.set_trial_system_attr(trial_id, f"{_CLAIM}{owner['host']}:{owner['pid']}:{owner['started']}", owner)
        got = super().set_trial_state_values(trial_id, state, values)
        if got:
            self.set_trial_user_attr(trial_id, "owner", owner)
        return got

    def holder(self, study_id: int, configuration: str) -> int | None:
        """The number of the trial that has a configuration to run, by its name; None where nobody has asked for it."""
        with _create_scoped_session(self.scoped_session) as session:
            found = session.scalars(select(Held.value_json).where(*_held(study_id, configuration))).one_or_none()
        return None if found is None else int(found)

    def hold(self, study_id: int, configuration: str, number: int, after: int | None) -> bool:
        """Give a configuration to a trial to run, if `after` (None: nobody) has it still. Of several that ask at once
        the database lets one through: a key is there once in a study, and a row is changed by one after the other."""
        mine = {"value_json": str(number)}
        with _create_scoped_session(self.scoped_session) as session:
            if after is not None:
                mark = (*_held(study_id, configuration), Held.value_json == str(after))
                return bool(cast(CursorResult[Any], session.execute(update(Held).where(*mark).values(**mine))).rowcount)
            try:
                session.execute(insert(Held).values(study_id=study_id, key=_HELD + configuration, **mine))
            except sqlalchemy.exc.IntegrityError:  # another was faster
                session.rollback()
                return False
            return True

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return []

    def silent(self, study_id: int) -> list[int]:
        """Ids of running trials, of whatever host, that have not shown a heartbeat for the grace period."""
        return super()._get_stale_trial_ids(study_id) + self._never_heard(study_id)

    def _never_heard(self, study_id: int) -> list[int]:
        """Ids of trials that began a grace period ago and died before their first heartbeat, which Optuna
        leaves running for good."""
        before = datetime.now() - timedelta(seconds=self.grace_period or 0)
        running = (TrialModel.study_id == study_id, TrialModel.state == TrialState.RUNNING)
        with Session(self.engine) as session:
            trials = session.scalars(select(TrialModel).where(*running, ~TrialModel.heartbeats.any()))
            return [int(trial.trial_id) for trial in trials if trial.datetime_start and trial.datetime_start < before]


def _held(study_id: int, configuration: str) -> tuple[Any, Any]:
    return Held.study_id == study_id, Held.key == _HELD + configuration


def owners(trial: FrozenTrial) -> list[Process]:
    """The running trial's owner; where it has not said so yet, all who reached for it."""
    return [owner for owner in map(Process.read, _owner_nodes(trial)) if owner]


def above(trial: FrozenTrial) -> list[Process]:
    """Those without which the trial's owner does not go on: none of an older ftlab."""
    nodes = [node for owner in _owner_nodes(trial) for node in owner.get("above", [])]
    return [process for process in map(Process.read, nodes) if process]


def _owner_nodes(trial: FrozenTrial) -> list[dict[str, Any]]:
    return [trial.user_attrs["owner"]] if "owner" in trial.user_attrs else list(claims(trial).values())


def claims(trial: FrozenTrial) -> dict[str, Any]:
    """What workers wrote who reached for the waiting trial."""
    return {key: value for key, value in trial.system_attrs.items() if key.startswith(_CLAIM)}


def default_url(folder: Path) -> str:
    """The database in the study's folder."""
    return file_url(folder.resolve() / "study.db")


def file_url(file: Path | str) -> str:
    """The URL of SQLite's database in a file, whatever its name: `?`, `#` and `%` mean something in a URL."""
    return URL.create("sqlite", database=str(file)).render_as_string()


def file_of(url: str) -> Path | None:
    """The file that holds the database; None where a server does, or nothing.

    Raises:
        sqlalchemy.exc.ArgumentError: no URL of a database.
    """
    read = make_url(url)
    in_file = read.get_backend_name() == "sqlite" and read.database not in (None, "", ":memory:")
    return Path(read.database or "") if in_file and "uri" not in read.query else None


def damage(file: Path) -> str | None:
    """What is wrong with SQLite's database in a file, as far as its structure tells; None if it is whole, or is just
    held by another process."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro", uri=True, timeout=5)) as database:
            found = str(database.execute("PRAGMA integrity_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        return None if "malformed" not in str(error) else str(error)
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if found == "ok" else found.splitlines()[-1]


def set_damaged_aside(database: Path) -> Path:
    """Rename SQLite's database with what SQLite keeps beside it; the new name of its file."""
    aside = damaged.set_aside(database)
    for suffix in ("-wal", "-shm"):
        beside = database.with_name(database.name + suffix)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + suffix))
    return aside


def without_password(url: str) -> str:
    """A database URL that may be written down."""
    return _PASSWORD_ARGUMENT.sub(lambda found: found["before"] * bool(found["more"]), _CREDENTIALS.sub(r"\1@", url))


def set_password_aside(text: str) -> str:
    """A database URL, or an override that names one, without its password, which goes into this process's
    environment: workers inherit it there, and no file, log or message shows it."""
    found = _CREDENTIALS.search(text) or _PASSWORD_ARGUMENT.search(text)
    if found:
        os.environ[PASSWORD] = unquote(found[2])
    return without_password(text)


def connect(url: str, heartbeat_s: int, grace_s: int) -> OwnedStorage:
    """The storage at a URL; its tables are made where they are missing.

    Raises:
        InputError: no database there, or the package that speaks to it is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats, used knowingly
            # SQLAlchemy's own choice of a package for PostgreSQL differs from version to version.
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
    """How SQLAlchemy connects."""
    if not url.startswith("sqlite"):
        password = os.environ.get(PASSWORD)
        return {"pool_pre_ping": True, "connect_args": {"password": password} if password else {}}
    file = file_of(url)
    if file and _only_readable(file):
        return {"creator": partial(_reader, file)}
    set_up = _locked_only if file and networked(file.parent) else _seldom_synced
    return {"connect_args": {"timeout": LOCK_TIMEOUT_S}, "pool_events": [(set_up, "connect")]}


def _only_readable(file: Path) -> bool:
    """Whether the database is there, and this process may not write it or beside it."""
    ids = os.access in os.supports_effective_ids
    return file.is_file() and not all(os.access(place, os.W_OK, effective_ids=ids) for place in (file, file.parent))


def _reader(file: Path) -> sqlite3.Connection:
    """A connection that writes nothing. Beside a log SQLite reads both, which takes the index that its writer left or
    still keeps; without one nobody has the database open, and it is read as it is (sqlite.org/wal.html#readonly)."""
    mode = "mode=ro" if file.with_name(f"{file.name}-wal").exists() else "mode=ro&immutable=1"
    uri = f"file:{quote(str(file.resolve()))}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_S, check_same_thread=False)


def _seldom_synced(connection: Any, record: Any) -> None:
    """A trial commits some twenty times, and waiting for the disk each time costs more than all else. So it is
    written to a log that survives the death of every process; a power cut may take the last trials with it, but
    leaves the database whole (sqlite.org/wal.html)."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _locked_only(connection: Any, record: Any) -> None:
    """Over a network the processes of two machines have no memory in common, which the log needs: they would destroy
    the database. Its older journal needs locks alone."""
    connection.execute("PRAGMA journal_mode=DELETE")


def networked(folder: Path) -> str:
    """The kind of network file system that holds a folder; empty on a disk, or where the system does not say."""
    try:
        mounts = psutil.disk_partitions(all=True)
    except (OSError, psutil.Error):
        return ""
    holding = [mount for mount in mounts if folder.resolve().is_relative_to(mount.mountpoint)]
    deepest = max(reversed(holding), key=lambda mount: len(mount.mountpoint), default=None)
    kind = str(deepest.fstype) if deepest else ""  # of one place the last mount counts
    return kind if kind.removeprefix("fuse.") in NETWORKED else ""


def _made(url: str, engine: dict[str, Any], heartbeat_s: int, grace_s: int) -> OwnedStorage:
    """Hosts that make the tables of one server at once disturb each other; the second time they are there."""
    try:
        made = OwnedStorage(url, engine, heartbeat_interval=heartbeat_s, grace_period=grace_s)
    except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
        time.sleep(1)
        made = OwnedStorage(url, engine, heartbeat_interval=heartbeat_s, grace_period=grace_s)
    weakref.finalize(made, made.engine.dispose)  # Optuna would leave its connections to the server open
    return made


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Errors of the database in one line."""
    try:
        yield
    except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
        raise InputError(_unreachable(url, error)) from None


def _unreachable(url: str, error: Exception) -> str:
    """What is wrong with the database at a URL, and what to do."""
    shown = without_password(url)
    if isinstance(error, sqlalchemy.exc.ArgumentError):
        return redact(f"sweep.storage={shown} is no database's URL: postgresql://USER@HOST/DATABASE, sqlite:///FILE")
    file = file_of(url)
    name = str(file or f"sweep.storage={shown}")
    if isinstance(error, RuntimeError):
        return redact(f"{name} {_of_another_optuna(shown, str(error))}")
    cause = error.__cause__ or error
    reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
    if file:
        return redact(f"{name} cannot be used ({reason}): {_file_remedy(reason)}")
    remedy = "start the database, or leave sweep.storage out for a file in the study's folder"
    if "password" in reason:
        remedy = f"name the right one in {PASSWORD}"
    return redact(f"{name} cannot be used ({reason}): {remedy}")


def _of_another_optuna(url: str, message: str) -> str:
    """What Optuna says of tables of another version, with the URL in its place."""
    made = re.search(r"set up by optuna ([\w.]+)", message)
    version = f" ({made[1]})" if made else ""
    if "storage upgrade" not in message:
        return f"was made by a newer Optuna{version}: pip install -U optuna"
    command = f"optuna storage upgrade --storage {shlex.quote(_POSTGRES.sub(DRIVER, url))}"
    return f"was made by an older Optuna{version}: make a copy of it, then bring it up to date with {command}"


def _file_remedy(reason: str) -> str:
    found = [remedy for part, remedy in FILE_REMEDIES.items() if part in reason]
    return found[0] if found else "look after its disk, then run the same command again"
