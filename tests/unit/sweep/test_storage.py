"""The database of a study: a file of any name, a read-only file, and one that cannot be used."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.storages._rdb.models import SCHEMA_VERSION

from ftlab.config import SweepConfig
from ftlab.errors import InputError
from ftlab.sweep import storage
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.study_report import _storage
from ftlab.sweep.worker import work

ODD = ["what?x", "per%20cent", "a#b", "{SCHEMA_VERSION}", "{0", "a b&c=d", "sqlite:///x", "ü"]
NOBODY = 65534


def opened(folder: Path, cfg: SweepConfig | None = None) -> Study:
    space, _ = Space.read(["lora.r=4,8"], {})
    return Study.open("toy", folder, cfg or SweepConfig(), space, ["eval/loss"], [])


def finished(folder: Path) -> None:
    """A study of two trials."""
    study = opened(folder)
    work(study, lambda trial: float(trial.params["lora.r"]))
    study.close()


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD)
def test_the_database_is_in_the_folder_whatever_its_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    finished(folder)
    assert (folder / "study.db").is_file()
    assert storage.file_of(storage.default_url(folder)) == folder / "study.db"
    assert len(Study.load(str(folder)).trials()) == 2


@pytest.mark.parametrize("name", ODD)
def test_the_url_that_is_shown_leads_others_to_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna.storages import RDBStorage

    finished(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    url = _storage(Study.load(name))
    dashboards = RDBStorage(url)  # as optuna-dashboard makes it
    assert [study.study_name for study in dashboards.get_all_studies()] == ["toy"]
    dashboards.engine.dispose()


# --- reading alone ------------------------------------------------------------------------------------------


@pytest.fixture
def anyones() -> Iterator[Path]:
    """A folder that other users may enter."""
    folder = Path(tempfile.mkdtemp(prefix="ftlab-"))
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


@contextmanager
def only_read(folder: Path) -> Iterator[None]:
    """Nothing below the folder may be written, by a user who is not root."""
    root = os.geteuid() == 0
    paths = [*folder.rglob("*"), folder]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="needs another user")
def test_a_study_that_may_only_be_read_is_read_and_not_touched(anyones: Path) -> None:
    folder = anyones / "what?x"
    finished(folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with only_read(folder):
        study = Study.load(str(folder))
        assert [row.value for row in study.leaderboard()] == [4.0, 8.0]
        study.close()
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.skipif(os.name != "posix", reason="needs another user")
def test_what_stands_in_the_log_of_somebody_elses_running_sweep_is_read(anyones: Path) -> None:
    folder = anyones / "s"
    study = opened(folder)
    work(study, lambda trial: float(trial.params["lora.r"]))
    assert (folder / "study.db-wal").stat().st_size
    with only_read(folder):
        assert Study.load(str(folder)).counts().complete == 2
    study.close()


@pytest.mark.skipif(os.name != "posix", reason="needs another user")
def test_a_sweep_on_it_is_told_that_it_may_only_be_read(anyones: Path) -> None:
    finished(anyones / "s")
    url = storage.default_url(anyones / "s")
    said = r"study\.db cannot be used .*it is read-only"
    with only_read(anyones / "s"), pytest.raises(InputError, match=said), storage.explained(url):
        storage.connect(url, 60, 180).create_new_study([], "another")


# --- what cannot be used ----------------------------------------------------------------------------------------


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path / 'study.db'} cannot be used (file is not a database)")
    assert "restore a backup" in said
    assert "sweep.storage" not in said


def test_a_file_with_a_damaged_page_is_named(tmp_path: Path) -> None:
    finished(tmp_path)
    file = tmp_path / "study.db"
    held = file.read_bytes()
    file.write_bytes(held[:4096] + b"\xff" * (len(held) - 4096))
    said = refusal(tmp_path)
    assert said.startswith(f"{file} cannot be used (")
    assert "it is damaged" in said


def tables_of(file: Path, revision: str) -> None:
    """Have the tables be of another version of Optuna."""
    database = sqlite3.connect(file)
    with database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        database.execute("UPDATE version_info SET library_version = '2.9.0', schema_version = ?", (SCHEMA_VERSION,))
    database.close()


def test_tables_of_an_older_optuna_come_with_the_command_that_mends_them(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    finished(folder)
    tables_of(folder / "study.db", "v2.6.0.a")
    said = refusal(folder)
    assert said.startswith(f"{folder / 'study.db'} was made by an older Optuna (2.9.0)")
    assert said.endswith(f"optuna storage upgrade --storage 'sqlite:///{folder / 'study.db'}'")
    assert "$" not in said


def test_tables_of_a_newer_optuna_ask_for_it(tmp_path: Path) -> None:
    finished(tmp_path)
    tables_of(tmp_path / "study.db", "v99.0.0.a")
    assert refusal(tmp_path).endswith("was made by a newer Optuna (2.9.0): pip install -U optuna")


@pytest.mark.parametrize("url", ["garbage", "postgres", "//host/db"])
def test_what_is_no_url_is_told_so(url: str) -> None:
    with pytest.raises(
        InputError, match=f"^sweep.storage={url} is not a database URL: postgresql://USER@HOST/DATABASE"
    ):
        storage.connect(url, 60, 180)


def test_a_file_in_a_folder_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"x\.db cannot be used \(unable to open database file\): its folder must exist"
    ):
        storage.connect(f"sqlite:///{tmp_path}/absent/x.db", 60, 180)
