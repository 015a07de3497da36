"""Servers with a socket: in a thread, and as a process of their own."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_lines import encoded, line

from runlog._http import Client, TransportError
from runlog.discovery import find_local_server
from runlog.exceptions import SettingsError, StorageError
from runlog.server.addresses import listen, require_auth, url_of
from runlog.server.app import BackgroundServer, ServeOptions, run_server, serve
from runlog.server.storage import storage_from_url
from runlog.server.storage.memory import MemoryStorage
from runlog.server.storage.sqlite import SQLiteStorage

# --- in a thread --------------------------------------------------------------------------------------


def test_a_background_server_answers_and_leaves_nothing_behind(tmp_path):
    """Inside the block it answers; afterwards its thread, port and database are free."""
    before = set(threading.enumerate())
    database = tmp_path / "runlog.db"
    server = BackgroundServer(str(database))
    assert repr(server) == "<BackgroundServer stopped>"
    with server, Client(base_url=server.url) as client:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.url.endswith("/api")
        assert server.url in repr(server)
        assert client.post("/runlog/v1/batches", content=encoded(line())).json() == {"acked": 0}
        assert find_local_server(tmp_path) is None
    assert set(threading.enumerate()) == before
    with pytest.raises(TransportError), Client() as client:
        client.get(server.url + "/health")
    with BackgroundServer(f"sqlite:///{database}") as again, Client(base_url=again.url) as client:
        assert client.get("/runlog/v1/status").json()["lines"] == 1
    server.stop()


def test_a_server_is_found_by_its_home(tmp_path):
    """A published server is found while it runs, and no longer."""
    with BackgroundServer(home=tmp_path) as server:
        assert find_local_server(tmp_path).url == server.url
        with BackgroundServer(home=tmp_path) as second:
            assert second.url != server.url
            assert find_local_server(tmp_path).url == server.url
    assert find_local_server(tmp_path) is None


def test_a_second_server_of_a_home_says_that_it_is_not_found(tmp_path, caplog):
    """The server that programs do not find says so in its log."""
    with BackgroundServer(home=tmp_path), BackgroundServer(home=tmp_path):
        pass
    (record,) = [record for record in caplog.records if record.name == "runlog.server"]
    assert "know another server already and do not find this one" in record.getMessage()


def test_trouble_at_the_start_is_raised_where_it_was_started(tmp_path):
    """A store that cannot be opened, and a port that is taken, are errors of `start`, which leaves nothing."""
    before = set(threading.enumerate())
    with BackgroundServer(str(tmp_path / "runlog.db")) as server:
        second = BackgroundServer(str(tmp_path / "runlog.db"))
        with pytest.raises(StorageError, match="in use by another runlog server"):
            second.start()
        port = int(server.url.split(":")[2].split("/")[0])
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1, port {port}: .*choose another"):
            BackgroundServer(port=port).start()
    assert set(threading.enumerate()) == before


def test_a_request_that_is_being_answered_is_finished(tmp_path):
    """Stopping waits for an answer that is under way."""
    entered, release = threading.Event(), threading.Event()

    class SlowStorage(MemoryStorage):
        async def append(self, batch, *, observed_ns):
            entered.set()
            await asyncio.to_thread(release.wait, 10)
            return await super().append(batch, observed_ns=observed_ns)

    with ThreadPoolExecutor(2) as pool, Client() as client:
        server = BackgroundServer(storage=SlowStorage()).start()
        answer = pool.submit(client.post, server.url + "/runlog/v1/batches", content=encoded(line()))
        assert entered.wait(10)
        stopping = pool.submit(server.stop)
        release.set()
        assert answer.result(10).json() == {"acked": 0}
        stopping.result(10)


def test_many_clients_at_once(tmp_path):
    """Eight clients with twenty batches each are all stored, through one file."""

    def produce(number):
        with Client(base_url=server.url) as client:
            for seq in range(20):
                body = encoded(line(), producer=f"{number:020x}", first_seq=seq)
                assert client.post("/runlog/v1/batches", content=body).json() == {"acked": seq}

    with BackgroundServer(str(tmp_path / "runlog.db")) as server:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(produce, range(8)))
        with Client(base_url=server.url) as client:
            assert client.get("/runlog/v1/status").json()["lines"] == 160


# --- addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_a_loopback_address_needs_no_credentials(host):
    """Only this machine reaches it."""
    require_auth(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org", "localhost.example.org"])
def test_an_open_address_needs_credentials(host):
    """An address that others may reach is refused without an auth string, and says what to set."""
    with pytest.raises(
        SettingsError, match=r"no auth string is set; set PREFECT_SERVER_API_AUTH_STRING=user:pass"
    ):
        require_auth(host, None)
    with pytest.raises(SettingsError):
        BackgroundServer(host=host)
    require_auth(host, "user:password")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "[::]"])
def test_the_address_of_a_socket_is_one_that_can_be_asked(host):
    """A URL names the port that was taken, and this machine where the socket listens everywhere."""
    try:
        listener = listen(host, 0)
    except SettingsError:
        pytest.skip(f"{host} is not to be had here")
    with listener:
        port = listener.getsockname()[1]
        name = "[::1]" if listener.family == socket.AF_INET6 else "127.0.0.1"
        assert url_of(listener) == f"http://{name}:{port}/api"


@pytest.mark.parametrize(("host", "port"), [("256.1.1.1", 0), ("127.0.0.1", 70_000), ("x" * 300, 0)])
def test_an_impossible_address_is_a_setting_that_is_wrong(host, port):
    """What cannot be listened on is told with its remedy."""
    with pytest.raises(SettingsError, match="cannot listen on"):
        listen(host, port)


# --- stores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("runlog.db", "runlog.db"),
        ("/var/lib/runlog.db", "/var/lib/runlog.db"),
        ("sqlite:///runlog.db", "runlog.db"),
        ("sqlite:////var/lib/runlog.db", "/var/lib/runlog.db"),
        ("memory://", "memory"),
        ("sqlite:///:memory:", "memory"),
        ("sqlite://", "memory"),
    ],
)
def test_a_url_names_a_store(url, location):
    """Paths and URLs of files are SQLite, memory is memory."""
    assert storage_from_url(url).location == location


@pytest.mark.parametrize("url", ["postgresql://user:secret@host/db", "sqlite://host/db", "x://"])
def test_an_unknown_store_is_refused(url):
    """Another scheme is told without what follows it, which may be a password."""
    with pytest.raises(SettingsError, match="expected sqlite:///path/to/file or memory://") as refusal:
        storage_from_url(url)
    assert "secret" not in str(refusal.value)


def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path):
    """``~`` in a path is expanded."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert storage_from_url("sqlite:///~/runlog.db").location == str(tmp_path / "runlog.db")


def test_options_hide_the_auth_string():
    """The representation of the options has no secret in it."""
    assert "secret" not in repr(ServeOptions("memory://", auth_string="user:secret"))
    assert isinstance(storage_from_url("x.db"), SQLiteStorage)


# --- in the foreground --------------------------------------------------------------------------------


def test_a_server_for_others_does_not_start_without_credentials(tmp_path):
    """`run_server` refuses an open address before it touches anything."""
    with pytest.raises(SettingsError, match="no auth string is set"):
        run_server("0.0.0.0", 0, None, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_the_auth_string_is_a_setting(tmp_path, monkeypatch):
    """`run_server` takes the auth string from the settings, here to find the next mistake."""
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:password")
    from runlog.settings import reset_settings_cache

    reset_settings_cache()
    try:
        with pytest.raises(SettingsError, match="RUNLOG_SERVER_DATABASE"):
            run_server("0.0.0.0", 0, "nonsense://", tmp_path)
    finally:
        reset_settings_cache()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_serving_and_is_not_raised_again(tmp_path, number):
    """`run_server` tells its address, is found by its home, and returns after a signal; handlers are as before."""
    before = signal.getsignal(number)
    told = []

    def on_ready(url):
        told.append((url, find_local_server(tmp_path).url))
        signal.raise_signal(number)

    run_server("127.0.0.1", 0, "memory://", tmp_path, on_ready=on_ready)
    ((url, found),) = told
    assert url == found
    assert signal.getsignal(number) is before
    assert find_local_server(tmp_path) is None


def test_a_server_for_others_asks_for_credentials(tmp_path):
    """An auth string that is given lets a server listen everywhere, and everyone is asked for it."""
    statuses = []

    def on_ready(url):
        def ask():
            with Client(base_url=url) as client:
                statuses.append(client.get("/runlog/v1/status").status_code)
                statuses.append(client.get("/runlog/v1/status", auth=("user", "password")).status_code)
            signal.raise_signal(signal.SIGINT)

        asker.append(threading.Thread(target=ask))
        asker[0].start()

    asker = []
    run_server("0.0.0.0", 0, "memory://", tmp_path, auth_string="user:password", on_ready=on_ready)
    asker[0].join()
    assert statuses == [401, 200]


def test_a_second_signal_does_not_wait(tmp_path):
    """Whoever presses Ctrl-C twice does not wait for requests; no one need be told the address."""

    class Impatient(MemoryStorage):
        async def open(self):
            asyncio.get_running_loop().call_later(0, self.interrupt)

        def interrupt(self):
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                asyncio.get_running_loop().call_later(0, self.interrupt)
                return
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    servers = []
    with listen("127.0.0.1", 0) as listener:
        serve(ServeOptions("memory://"), listener, storage=Impatient(), on_server=servers.append)
    assert servers[0].force_exit


def test_reloading_hands_the_socket_on(tmp_path, monkeypatch):
    """The process that serves gets the socket and the options, both fit to be sent to it."""
    from runlog.server import reload

    seen = []

    class Watcher:
        def __init__(self, config, target, sockets):
            assert config.should_reload
            self.target = pickle.loads(pickle.dumps(target))
            self.sockets = sockets

        def run(self):
            self.target(sockets=self.sockets)

    monkeypatch.setattr(reload, "ChangeReload", Watcher)
    monkeypatch.setattr(reload, "serve", lambda options, listener: seen.append((options, url_of(listener))))
    told = []
    run_server("127.0.0.1", 0, "memory://", tmp_path, reload=True, on_ready=told.append)
    run_server("127.0.0.1", 0, "memory://", tmp_path, reload=True)
    assert seen[0] == (ServeOptions("memory://", tmp_path), told[0])
    assert len(seen) == 2


PROGRAM = textwrap.dedent("""
    import sys
    from pathlib import Path
    from runlog.server.app import run_server

    if __name__ == "__main__":
        ready = lambda url: print(url, flush=True)
        run_server("127.0.0.1", 0, None, Path(sys.argv[1]), reload="--reload" in sys.argv, on_ready=ready)
        print("stopped", flush=True)
""")


def start_program(tmp_path, *arguments):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path / "home"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith(("COV_", "COVERAGE"))},
    )
    return process, process.stdout.readline().strip()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another system")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_in_good_order(tmp_path, number):
    """It answers, is found by its home, and a signal closes the database and ends it with exit code 0."""
    process, url = start_program(tmp_path)
    try:
        assert find_local_server(tmp_path / "home").url == url
        with Client(base_url=url) as client:
            assert client.post("/runlog/v1/batches", content=encoded(line())).json() == {"acked": 0}
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, output, errors) == (0, "stopped\n", "")
    assert find_local_server(tmp_path / "home") is None
    files = {path.name for path in (tmp_path / "home").iterdir()}
    assert "runlog.db" in files
    assert "runlog.db-wal" not in files
    assert stat.S_IMODE((tmp_path / "home" / "runlog.db").stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another system")
def test_a_reloading_server_answers_and_stops(tmp_path):
    """With reload the watcher tells the address, a child of its own serves, and a signal ends both."""
    process, url = start_program(tmp_path, "--reload")
    try:
        with Client(base_url=url, timeout=30) as client:
            assert client.post("/runlog/v1/batches", content=encoded(line())).json() == {"acked": 0}
        assert find_local_server(tmp_path / "home").pid != process.pid
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, output) == (0, "stopped\n")
    assert find_local_server(tmp_path / "home") is None
