"""A study in a real PostgreSQL server on loopback, whose password no file and no output shows."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftlab.errors import InputError
from ftlab.sweep import storage
from ftlab.sweep.study import Study

pytestmark = pytest.mark.slow

Ftlab = Callable[..., Any]

PASSWORD = "k0rrekt-pferd"
ENCODED = "k0rrekt%2Dpferd"  # as a URL may hold it
GRID = ("trainer.lr=1e-2,3e-3", "lora.r=2,4")


def program(name: str) -> str:
    """One of the server's programs, which Debian keeps out of PATH."""
    places = [os.environ["PATH"], *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"needs a PostgreSQL server: no {name} on this machine (apt-get install postgresql)")
    return found


def unprivileged() -> dict[str, Any]:
    """How to start the server, which refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of a server with the user ftlab."""
    pytest.importorskip("psycopg", reason="needs pip install 'ftlab[postgres]'")
    initdb, pg_ctl, who = program("initdb"), program("pg_ctl"), unprivileged()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    folder = Path(tempfile.mkdtemp(prefix="ftlab-postgres-"))
    (folder / "password").write_text(PASSWORD + "\n")
    for path in (folder, folder / "password"):
        os.chown(path, who.get("user", -1), who.get("group", -1))

    def call(*words: str) -> None:
        done = subprocess.run(
            words, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=120, check=False, **who
        )
        assert done.returncode == 0, (folder / "log").read_text()

    data = str(folder / "data")
    with open(folder / "log", "a") as log:
        try:
            made = ["-A", "scram-sha-256", "-U", "ftlab", f"--pwfile={folder / 'password'}", "--no-locale", "-N"]
            call(initdb, "-D", data, "-E", "UTF8", *made)
            options = f"-c listen_addresses=127.0.0.1 -c port={port} -c fsync=off -k {folder}"
            call(pg_ctl, "start", "-w", "-D", data, "-o", options)
            yield port
            call(pg_ctl, "stop", "-w", "-m", "immediate", "-D", data)
        finally:
            shutil.rmtree(folder)


def running_worker(folder: Path) -> int:
    """The pid of a worker that trains."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if list(folder.glob("*/metrics.jsonl")):
            for trial in Study.load(str(folder)).trials():
                if trial.state.name == "RUNNING" and (folder / str(trial.number) / "metrics.jsonl").exists():
                    return int(trial.user_attrs["owner"]["pid"])
    raise TimeoutError("no trial began")


def leaks(folder: Path) -> list[Path]:
    """Files that show the password."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    return [path for path in files for word in (PASSWORD, ENCODED) if word.encode() in path.read_bytes()]


@pytest.mark.parametrize("launcher", ["basic", "submitit_local"])
def test_two_workers_reach_the_total_though_one_is_killed(
    launcher: str, server: int, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://ftlab:{ENCODED}@127.0.0.1:{server}/postgres"
    words = [
        *small,
        *GRID,
        f"sweep.study={launcher}",
        "sweep.workers=2",
        "trainer.max_steps=40",
        "trainer.save_every=4",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "ftlab", "--multirun", *words, f"sweep.storage={url}", f"hydra/launcher={launcher}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    monkeypatch.setenv(storage.PASSWORD, PASSWORD)
    folder = tmp_path / "outputs" / launcher
    killed = running_worker(folder)
    os.kill(killed, signal.SIGKILL)
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output
    study = Study.load(str(folder))
    assert (study.counts().complete, study.counts().failed, study.counts().running) == (4, 0, 0)
    assert any(trial.user_attrs.get("interrupted") == "killed" for trial in study.trials())
    finished = [trial for trial in study.trials() if trial.state.name == "COMPLETE"]
    assert {trial.user_attrs["owner"]["pid"] for trial in finished} - {killed}
    assert not (folder / "study.db").exists()
    assert leaks(tmp_path) == []
    assert PASSWORD not in output
    assert ENCODED not in output


def test_a_wrong_password_and_a_dead_server_are_one_line(server: int, ftlab: Ftlab, small: list[str]) -> None:
    place = "127.0.0.1:{}/postgres"
    words = ("--multirun", *small, *GRID, "sweep.study=w")
    wrong = ftlab(*words, f"sweep.storage=postgresql://ftlab:never-this-one@{place.format(server)}")
    assert wrong.returncode == 2
    assert f"sweep.storage=postgresql://ftlab@{place.format(server)} cannot be used" in wrong.stderr
    assert storage.PASSWORD in wrong.stderr
    assert "never-this-one" not in wrong.stdout + wrong.stderr
    dead = ftlab(*words, f"sweep.storage=postgresql://ftlab:never-this-one@{place.format(1)}")
    assert dead.returncode == 2
    assert "start the database" in dead.stderr
    assert dead.stderr.count("\n") == 1


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"pip install 'ftlab\[postgres\]'"):
        storage.connect("postgresql://ftlab@127.0.0.1:1/postgres", 60, 180)


@pytest.mark.parametrize(
    ("url", "without", "password"),
    [
        ("postgresql://me:a%40b@host/db", "postgresql://me@host/db", "a@b"),
        ("sweep.storage='postgresql://me:a/b:c@host:5432/db'", "sweep.storage='postgresql://me@host:5432/db'", "a/b:c"),
        ("postgresql://me@host:5432/db?options=x@y", "postgresql://me@host:5432/db?options=x@y", None),
        ("sqlite:////tmp/a:b@c.db", "sqlite:////tmp/a:b@c.db", None),
    ],
)
def test_a_password_is_set_aside(url: str, without: str, password: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.PASSWORD, "")
    assert storage.set_password_aside(url) == without
    assert os.environ[storage.PASSWORD] == (password or "")
