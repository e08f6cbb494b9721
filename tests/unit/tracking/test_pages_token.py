"""The MLflow pages ask for the token of their start: each way to bring it, and another user who has none."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import psutil
import pytest
from mlflow import MlflowClient

from orchestrator.errors import StoreError
from orchestrator.report import mlflow_ui
from orchestrator.storage.uri import default_uri
from orchestrator.tracking import initialise
from orchestrator.tracking.authentication import ASSISTANT, with_token

ROOT = Path(__file__).parents[3]
TOKEN = "Zx-3_k"
NOBODY = 65534
SECONDS = 180


# ---- the app alone


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


def ask(headers: Mapping[str, str], *, path: str = "/x", query: str = "", method: str = "GET") -> Answer:
    """What the app says in front of one that answers 200 and the path to everything."""
    sent: list[dict[str, Any]] = []  # ASGI's messages

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode() + scope["query_string"]})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        "server": ("127.0.0.1", 5000),
    }
    asyncio.run(with_token(inner, TOKEN)(scope, receive, send))
    assert TOKEN not in str(scope["query_string"])  # which servers log
    start, body = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], found, body["body"].decode())


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {TOKEN}"},
        {"Authorization": f"bearer {TOKEN}"},
        {"authorization": basic(f"anybody:{TOKEN}")},
        {"cookie": f"orchestrate-5000={TOKEN}"},
        {"cookie": f"other={{; =; orchestrate-5000=old; orchestrate-5000={TOKEN}; last"},
    ],
)
def test_the_token_opens_the_pages(headers: dict[str, str]) -> None:
    assert ask(headers, query="?page_token=2") == Answer(200, {}, "/x?page_token=2")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": TOKEN},
        {"authorization": f"Digest {TOKEN}"},
        {"authorization": "Basic !"},
        {"authorization": "Basic \xff"},
        {"authorization": "Basic /w=="},  # a byte that is no text
        {"authorization": basic(TOKEN)},  # a user name
        {"authorization": basic(f"{TOKEN}:")},
        {"cookie": f"orchestrate-5001={TOKEN}"},  # another port's
        {"cookie": "orchestrate-5000="},
        {"cookie": f"orchestrate-5000={TOKEN.lower()}"},
        {"cookie": "orchestrate-5000"},
        {"cookie": "\xff=\xfe"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/health", "/version", "/static-files/a.js", "/graphql"])
def test_without_it_nothing_is_answered_but_how_to_have_it(headers: dict[str, str], path: str) -> None:
    answer = ask(headers, path=path)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert "`orchestrate ui`" in answer.body
    assert TOKEN not in answer.body


def test_an_address_with_the_token_gives_the_browser_its_cookie() -> None:
    answer = ask({}, path="/", query=f"token={TOKEN}")
    assert (answer.status, answer.headers["location"], answer.body) == (303, "/", "")
    assert answer.headers["set-cookie"] == f"orchestrate-5000={TOKEN}; Path=/; HttpOnly; SameSite=Lax"
    assert ask({"cookie": answer.headers["set-cookie"].partition(";")[0]}).status == 200


@pytest.mark.parametrize(
    ("path", "query", "method"),
    [
        ("/", "token=", "GET"),
        ("/", "token=wrong", "GET"),
        ("/", "token=%ff%00", "GET"),
        ("/", "token=wrong&token=wrong", "GET"),
    ],
)
def test_another_token_opens_nothing(path: str, query: str, method: str) -> None:
    assert ask({}, path=path, query=query, method=method).status == 401


@pytest.mark.parametrize(("path", "method"), [("/", "POST"), ("/graphql", "GET"), ("/graphql", "POST")])
def test_in_an_address_it_opens_the_first_page_alone(path: str, method: str) -> None:
    assert ask({}, path=path, query=f"token={TOKEN}", method=method).status == 401


@pytest.mark.parametrize(
    "origin",
    [
        {"origin": "https://elsewhere.example"},
        {"origin": "http://127.0.0.1:5001"},  # another program on this machine
        {"origin": "http://localhost:5000"},
        {"origin": "null"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"},
    ],
)
def test_a_page_from_elsewhere_cannot_use_the_cookie(origin: dict[str, str]) -> None:
    headers = {"host": "127.0.0.1:5000", "cookie": f"orchestrate-5000={TOKEN}"}
    for method in ("GET", "POST"):
        assert ask({**headers, **origin}, method=method).status == 403


@pytest.mark.parametrize(
    "origin",
    [
        {"origin": "http://127.0.0.1:5000"},
        {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},  # a link in a mail
    ],
)
def test_the_pages_themselves_and_links_to_them_can(origin: dict[str, str]) -> None:
    headers = {"host": "127.0.0.1:5000", "cookie": f"orchestrate-5000={TOKEN}"}
    assert ask({**headers, **origin}).status == 200


@pytest.mark.parametrize("path", ["/config", "/message", "/sessions/1/stream", "/skills/install"])
def test_the_assistant_answers_nobody(path: str) -> None:
    answer = ask({"authorization": f"Bearer {TOKEN}"}, path=f"{ASSISTANT}{path}", method="POST")
    assert answer.status == 403
    assert "switched off" in json.loads(answer.body)["detail"]


def test_web_sockets_are_closed_and_the_start_is_passed_on() -> None:
    inner: list[str] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        inner.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing is read")

    for kind in ("lifespan", "websocket"):
        asyncio.run(with_token(app, TOKEN)({"type": kind, "headers": [], "path": "/"}, receive, send))
    assert inner == ["lifespan"]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_there_are_no_pages_with_an_empty_token() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(ValueError, match="need a token"):
        with_token(app, "")


def test_only_a_server_of_our_own_is_waited_for() -> None:
    """Another program that is quicker to take the port is not taken for it."""
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        assert mlflow_ui.is_listening(os.getpid(), port)
        assert not mlflow_ui.is_listening(os.getpid(), port + 1)
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert not mlflow_ui.is_listening(child.pid, port)
        child.communicate(b"\n")
        assert not mlflow_ui.is_listening(child.pid, port)


def test_an_installation_that_does_not_know_the_app_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mlflow_ui, "APP_NAME", "an app of the time to come")
    with pytest.raises(StoreError, match=r"older than its source.*install it again"):
        mlflow_ui.serve(default_uri(tmp_path), port=5000)
    assert list(tmp_path.iterdir()) == []


# ---- the server


class Served(NamedTuple):
    base: str
    token: str
    process: subprocess.Popen[str]
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`orchestrate ui` on a store with one run, from a folder with a module that must not be imported."""
    folder = tmp_path_factory.mktemp("token")
    os.chmod(folder, 0o755)
    uri = default_uri(folder)
    initialise(uri)
    client = MlflowClient(uri)
    client.create_run(client.create_experiment("small"), tags={"kind": "sweep"})
    (folder / "mlflow.py").write_text("raise SystemExit('the module of the working folder was imported')\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "ui", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        head, _, rest = first.partition("/?token=")
        assert head == f"http://127.0.0.1:{port}", first
        token, _, fragment = rest.partition("#")
        assert fragment == "/experiments?workflowType=machine_learning\n"
        yield Served(head, token, process, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)


# MLflow's own list of what it answers; then every address is asked for as another user.
ROUTES = """
import json, re, sys
from mlflow.server import app as flask_app
from mlflow.server.fastapi_app import app
found = set()
for rule in flask_app.url_map.iter_rules():
    found |= {(method, re.sub("<[^>]*>", "x", rule.rule)) for method in rule.methods}
for route in app.routes:
    for inner in getattr(getattr(route, "original_router", None), "routes", [route]):
        prefix = getattr(getattr(route, "include_context", None), "prefix", "")
        for method in getattr(inner, "methods", None) or ():
            found.add((method, prefix + re.sub("{[^}]*}", "x", inner.path)))
print(json.dumps(sorted(found)))
"""
OTHER_USER = """
import encodings.idna, http.client, json, os, sys, urllib.error, urllib.request
os.setgroups([]); os.setgid(65534); os.setuid(65534)
base, process = sys.argv[1:]
answers = {}
for method, path in json.load(sys.stdin):
    body = b"{}" if method in ("POST", "PUT", "PATCH", "DELETE") else None
    request = urllib.request.Request(base + path, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answers[f"{method} {path}"] = answer.status
    except urllib.error.HTTPError as error:
        answers[f"{method} {path}"] = error.code
try:
    environ = open(f"/proc/{process}/environ").read()
except PermissionError:
    environ = ""
words = open(f"/proc/{process}/cmdline").read()
print(json.dumps([os.getuid(), answers, environ, words]))
"""
ATTACKS = (
    ("POST", "/api/2.0/mlflow/runs/set-tag"),
    ("POST", "/api/2.0/mlflow/runs/delete"),
    ("POST", "/api/2.0/mlflow/runs/search"),
    ("POST", "/api/2.0/mlflow/experiments/create"),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/x"),
    ("GET", "/get-artifact"),
    ("PUT", f"{ASSISTANT}/config"),
    ("POST", f"{ASSISTANT}/message"),
    ("POST", "/v1/traces"),
    ("POST", "/graphql"),
    ("GET", "/health"),
    ("GET", "/version"),
)


def run_python(code: str, *words: str, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], input=given, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_reads_and_writes_nothing(served: Served) -> None:
    routes = run_python(ROUTES)
    known = {(method, path) for method, path in json.loads(routes)}
    assert len(known) > 300
    assert {path for _, path in known} >= {path for _, path in ATTACKS}
    before = (served.folder / "mlruns" / "mlflow.db").read_bytes()
    parent = psutil.Process(served.process.pid)
    asked = json.dumps(sorted({*known, *ATTACKS}))
    for each in parent.children(recursive=True):
        uid, answers, environ, words = json.loads(
            run_python(OTHER_USER, served.base, str(each.pid), given=asked)
        )
        asked = "[]"
        assert uid == NOBODY
        assert {name: status for name, status in answers.items() if status != 401} == {}
        assert (environ, served.token in words) == ("", False)
    assert (served.folder / "mlruns" / "mlflow.db").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"])
def test_a_program_with_the_token_reads_and_writes(
    served: Served, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anybody")
    monkeypatch.setenv(name, served.token)
    client = MlflowClient(served.base)
    (experiment,) = [each for each in client.search_experiments() if each.name == "small"]
    (run,) = client.search_runs([experiment.experiment_id])
    client.set_tag(run.info.run_id, name, "written")
    assert client.get_run(run.info.run_id).data.tags[name] == "written"


@pytest.mark.slow
def test_a_web_page_of_another_port_is_not_let_read(served: Served) -> None:
    """MLflow alone allows every page of this machine to read, with the browser's cookies."""
    port = served.base.rpartition(":")[2]
    headers = {"Cookie": f"orchestrate-{port}={served.token}", "Origin": "http://127.0.0.1:9"}
    request = Request(f"{served.base}/api/2.0/mlflow/experiments/get?experiment_id=0", headers=headers)
    with pytest.raises(OSError, match="403"):
        urlopen(request, timeout=SECONDS)
    own = Request(request.full_url, headers={**headers, "Origin": served.base})
    with urlopen(own, timeout=SECONDS) as answer:
        assert json.load(answer)["experiment"]["name"] == "Default"


@pytest.mark.slow
def test_the_server_looks_for_no_modules_where_the_command_is_run(served: Served) -> None:
    server = psutil.Process(served.process.pid).children()[0]
    empty = Path(server.cwd())
    assert list(empty.iterdir()) == []
    assert empty.stat().st_mode & 0o777 == 0o700
