import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

import flows.servers
from core.errors import ServerError
from flows.environment import applied, environment
from flows.processes import Process, alive, free_port, start, stop, this_process
from flows.servers import Servers, servers

HEALTHY = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path.endswith("/health") else 404); self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
BROKEN = "print('the database is from the future'); raise SystemExit(3)"

HOLDER = """
import sys, time
from dataclasses import replace
from pathlib import Path
import flows.servers as module
command = lambda _, port: [sys.executable, "-c", sys.argv[2], str(port)]
module.PREFECT, module.MLFLOW = replace(module.PREFECT, command=command), replace(module.MLFLOW, command=command)
with module.servers(Path(sys.argv[1])) as found:
    print(found.mlflow_uri, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def light(monkeypatch):
    """Servers that start at once, in the place of the real ones: what is tested here is who starts and stops them."""

    def use(prefect=HEALTHY, mlflow=HEALTHY):
        for name, code in (("PREFECT", prefect), ("MLFLOW", mlflow)):
            kind = getattr(flows.servers, name)
            command = lambda _, port, code=code: [sys.executable, "-c", code, str(port)]  # noqa: E731
            monkeypatch.setattr(flows.servers, name, replace(kind, command=command))

    use()
    return use


def registry(home: Path) -> dict:
    return json.loads((home / "servers.json").read_text())


def processes(home: Path) -> list[Process]:
    return [Process(entry["pid"], entry["created"]) for entry in registry(home)["servers"].values()]


@contextmanager
def holder(home: Path):
    """Another process that uses the (light) servers of `home`; its MLflow address and the process."""
    command = [sys.executable, "-c", HOLDER, str(home), HEALTHY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child.stdout.readline().strip(), child
        finally:
            child.kill()


def test_real_servers_answer_on_the_loopback_address_alone(running_servers: Servers, servers_home):
    assert httpx.get(f"{running_servers.prefect_api_url}/health").json() is True
    assert httpx.get(f"{running_servers.mlflow_uri}/health").text == "OK"
    assert (servers_home / "prefect" / "prefect.db").exists()
    assert (servers_home / "mlflow" / "mlflow.db").exists()
    for process in processes(servers_home):
        listening = [
            connection.laddr.ip
            for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for connection in member.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == {"127.0.0.1"}


def test_the_pages_of_prefect_ask_the_server_that_they_come_from(running_servers: Servers):
    settings = httpx.get(f"{running_servers.prefect_ui}/ui-settings").json()
    assert settings["api_url"] == running_servers.prefect_api_url


def test_prefect_imported_earlier_uses_the_servers_in_every_thread(running_servers: Servers, servers_home):
    from prefect.settings import get_current_settings

    seen = []
    thread = threading.Thread(target=lambda: seen.append(get_current_settings()))
    thread.start()
    thread.join()
    for settings in (get_current_settings(), *seen):
        assert settings.api.url == running_servers.prefect_api_url
        assert settings.home == servers_home / "prefect"
        assert settings.server.ephemeral.enabled is False


def test_telemetry_is_off_in_the_servers(running_servers: Servers):
    settings = httpx.get(f"{running_servers.prefect_api_url}/admin/settings").json()
    assert settings["server"]["analytics_enabled"] is False
    answer = httpx.get(f"{running_servers.mlflow_uri}/ajax-api/3.0/mlflow/ui-telemetry").json()
    assert answer["disable_ui_telemetry"] is True


TELEMETRY = """
import sys
from pathlib import Path
from mlflow.telemetry.utils import is_telemetry_disabled
from prefect._internal.analytics.enabled import is_telemetry_enabled
from prefect.settings import get_current_settings
from flows.environment import applied, environment

def tell():
    print(not is_telemetry_disabled(), is_telemetry_enabled(), get_current_settings().server.analytics_enabled)

tell()
with applied(environment(Path(sys.argv[1]))):
    tell()
    from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY
    print(not HF_HUB_DISABLE_TELEMETRY)
"""


def test_telemetry_is_on_without_our_environment_and_off_within_it(tmp_path):
    # a bare environment: the libraries also keep quiet when they see the marks of CI or of pytest
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-c", TELEMETRY, str(tmp_path)]
    told = subprocess.run(command, env=bare, capture_output=True, text=True, check=True).stdout.split()
    assert told == ["True"] * 3 + ["False"] * 4


def test_environment_keeps_what_the_user_set_and_restores_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    before = dict(os.environ)
    with applied(environment(tmp_path, prefect_api_url="http://here/api", mlflow_uri="http://here")):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost"
        assert os.environ["PREFECT_API_URL"] == "http://here/api"
    assert dict(os.environ) == before


def test_second_process_joins_and_the_last_one_out_stops_even_after_a_kill(light, tmp_path):
    with holder(tmp_path) as (uri, first):
        begun = processes(tmp_path)
        with servers(tmp_path) as second:
            assert second.mlflow_uri == uri, "joined, not started"
            assert processes(tmp_path) == begun
            first.kill()
            first.wait()
            assert httpx.get(f"{uri}/health").status_code == 200, "the second still uses it"
        assert registry(tmp_path) == {"servers": {}, "users": []}
        assert not any(alive(process) for process in begun)


def test_sigterm_leaves_the_servers_properly(light, tmp_path):
    with servers(tmp_path) as mine:
        with holder(tmp_path) as (uri, other):
            assert uri == mine.mlflow_uri
            assert len(registry(tmp_path)["users"]) == 2
            other.terminate()
            assert other.wait(20) == 143
        assert len(registry(tmp_path)["users"]) == 1
        assert not httpx.get(f"{uri}/health").is_error


def test_nested_use_in_one_process_stops_at_the_outermost_end(light, tmp_path):
    with servers(tmp_path) as outer:
        begun = processes(tmp_path)
        with servers(tmp_path) as inner:
            assert inner == outer
        assert all(alive(process) for process in begun)
    assert not any(alive(process) for process in begun)


def test_entry_with_a_reused_process_id_is_neither_joined_nor_killed(light, tmp_path):
    sleeper = start(
        [sys.executable, "-c", "import time; time.sleep(60)"], env=os.environ, cwd=tmp_path, log=tmp_path / "l"
    )
    try:
        stale = {"pid": sleeper.pid, "created": sleeper.created - 1000, "port": 0}
        content = {"servers": {"prefect": stale, "mlflow": stale}, "users": [{"pid": sleeper.pid, "created": 1.0}]}
        (tmp_path / "servers.json").write_text(json.dumps(content))
        with servers(tmp_path):
            assert sleeper not in processes(tmp_path)
            assert [user["pid"] for user in registry(tmp_path)["users"]] == [os.getpid()]
        assert alive(sleeper)
        assert registry(tmp_path)["servers"] == {}
    finally:
        stop([sleeper], grace=1)


def test_clock_that_is_set_changes_neither_users_nor_servers(light, tmp_path, monkeypatch):
    with servers(tmp_path) as first:
        begun = processes(tmp_path)
        real = psutil.boot_time()
        for step in (1, -1, 86400):  # one second is what rounding alone does
            monkeypatch.setattr(psutil._psplatform, "boot_time", lambda step=step: real + step)
            assert alive(this_process())
            with servers(tmp_path) as second:
                assert second == first
                assert processes(tmp_path) == begun
    assert not any(alive(process) for process in begun)


def test_server_that_died_is_started_again_on_its_port(light, tmp_path):
    with servers(tmp_path) as first:
        entry = registry(tmp_path)["servers"]["mlflow"]
        stop([Process(entry["pid"], entry["created"])])
        with servers(tmp_path) as second:
            assert second == first, "those who joined earlier keep a valid address"
            assert httpx.get(f"{second.mlflow_uri}/health").status_code == 200


def test_broken_registry_file_is_replaced(light, tmp_path):
    (tmp_path / "servers.json").write_text('{"servers": {"pre')
    with servers(tmp_path):
        assert set(registry(tmp_path)["servers"]) == {"prefect", "mlflow"}


def test_deleted_home_leaves_no_server_behind(light, tmp_path):
    home = tmp_path / "home"
    with servers(home):
        begun = processes(home)
        shutil.rmtree(home)
    assert not any(alive(process) for process in begun)


def test_failed_start_shows_the_log_and_stops_the_other_server(light, tmp_path):
    light(mlflow=BROKEN)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ServerError, match=r"mlflow server did not start \(it ended by itself\)(.|\n)*from the future"):
        servers(tmp_path).__enter__()
    left = [child for child in psutil.Process().children(recursive=True) if child not in before]
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]


def test_stop_kills_what_ignores_sigterm_and_its_children(tmp_path):
    code = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
        subprocess.Popen([sys.executable, "-c", child])
        print("ready", flush=True)
        time.sleep(60)
    """
    log = tmp_path / "log"
    stubborn = start([sys.executable, "-c", textwrap.dedent(code)], env=os.environ, cwd=tmp_path, log=log)
    while "ready" not in log.read_text():
        time.sleep(0.05)
    child = psutil.Process(stubborn.pid).children()[0]
    time.sleep(0.3)  # until the child ignores the signal too
    stop([stubborn], grace=0.5)
    assert not alive(stubborn)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("option", ["prefect_url", "mlflow_url"])
def test_configured_server_that_refuses_is_named_before_anything_starts(light, tmp_path, option):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerError, match=rf"{url}.*does not answer.*Start it, correct the address"):
        servers(tmp_path, **{option: url}).__enter__()
    assert not (tmp_path / "servers.json").exists()


def test_configured_address_that_is_no_url_is_named(tmp_path):
    with pytest.raises(ServerError, match="sqlite:///x"):
        servers(tmp_path, mlflow_url="sqlite:///x.db").__enter__()


def test_configured_prefect_address_may_leave_out_the_api_path(running_servers: Servers, tmp_path):
    with servers(tmp_path, prefect_url=running_servers.prefect_ui, mlflow_url=running_servers.mlflow_uri) as found:
        assert found == running_servers
    assert not (tmp_path / "servers.json").exists(), "nothing of ours was started"
