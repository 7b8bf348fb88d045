"""A PostgreSQL server of a test's own, by the programs of the system; the test is skipped where there are none."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

USER, DATABASES = "tracker", ("tracking", "users")
UNPRIVILEGED = ("postgres", "nobody")  # the server refuses to run as root
START_SECONDS = 120


def programs() -> Path | None:
    """The folder of initdb and postgres; None where there is none."""
    folders = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in folders if (one / "initdb").is_file() and (one / "postgres").is_file()), None)


@contextmanager
def postgres() -> Iterator[dict[str, str]]:
    """Addresses of two empty databases, as SQLAlchemy takes them, for as long as the block lasts."""
    driver = pytest.importorskip("psycopg2", reason="PostgreSQL's driver (psycopg2-binary) is not installed")
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed (initdb, postgres)")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to the other user
    user = _user()
    if user is not None:
        shutil.chown(folder, user)
    password, port = secrets.token_hex(16), free_port()
    try:
        _initialise(found, folder, password, user)
        words = [found / "postgres", "-D", folder / "data", "-p", port, "-c", "listen_addresses=127.0.0.1",
                 "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]  # fmt: skip
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen([str(word) for word in words], stdout=log, stderr=log, user=user, cwd=folder)
        try:
            place = {"host": "127.0.0.1", "port": port, "user": USER, "password": password}
            _wait(lambda: driver.connect(dbname="postgres", **place).close(), driver.OperationalError, server, folder)
            with closing(driver.connect(dbname="postgres", **place)) as connection:
                connection.autocommit = True  # a database is not made in a transaction
                for name in DATABASES:
                    connection.cursor().execute(f"CREATE DATABASE {name}")
            yield {name: f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{port}/{name}" for name in DATABASES}
        finally:
            server.send_signal(signal.SIGINT)  # ends connections and itself
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _user() -> str | None:
    """Whom to run as; None where this user will do."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip(f"PostgreSQL refuses to run as root, and there is none of the users {', '.join(UNPRIVILEGED)}")


def _initialise(programs: Path, folder: Path, password: str, user: str | None) -> None:
    secret = folder / "password"
    secret.write_text(password, encoding="utf-8")
    if user is not None:
        shutil.chown(secret, user)
    words = [programs / "initdb", "-D", folder / "data", "-U", USER, "-A", "scram-sha-256", "--pwfile", secret,
             "-E", "UTF8", "--locale", "C"]  # fmt: skip
    done = subprocess.run([str(w) for w in words], user=user, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _wait(attempt: Callable[[], None], error: type[Exception], server: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            return attempt()
        except error:
            time.sleep(0.1)
    raise AssertionError(f"PostgreSQL did not start:\n{(folder / 'log').read_text(errors='replace')[-3000:]}")
