"""MLflow's server behind a token: the app `orchestrate` of the entry point group `mlflow.app`.

MLflow's own app answers whoever reaches its port: any user of the machine. Its assistant would even run shell
commands for them. Here every request brings the token of this start, and the assistant answers nobody.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

APP_NAME = "orchestrate"  # as in pyproject.toml
TOKEN_VARIABLE = "ORCHESTRATE_UI_TOKEN"  # only its owner can read a process's environment
ASSISTANT = "/ajax-api/3.0/mlflow/assistant"
MISSING = (
    "These pages ask for a token. Open one of the addresses that `orchestrate ui` printed: they hold it. "
    "Programs send it as MLFLOW_TRACKING_TOKEN.\n"
)
FOREIGN = "A page from elsewhere asked for this: refused.\n"
NO_ASSISTANT = '{"detail": "The assistant is switched off: it could run commands on this machine."}'

Message = MutableMapping[str, Any]  # ASGI's own types
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def create_app() -> App:
    """For uvicorn, in a server process: its token is in TOKEN_VARIABLE, and taken out there."""
    from mlflow.server.fastapi_app import app

    return with_token(app, os.environ.pop(TOKEN_VARIABLE, ""))


def with_token(app: App, token: str) -> App:
    """The app, asked only by who knows the token: in a cookie, as Bearer, or as the password of Basic.

    `/?token=TOKEN` sets the cookie and sends the browser on; what stands behind # stays. ValueError where the
    token is empty.
    """
    if not token:
        raise ValueError(f"the pages need a token: set {TOKEN_VARIABLE}")

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        if scope["type"] != "http":  # MLflow's pages use no web sockets
            return await send({"type": "websocket.close", "code": 1008})
        headers = _headers(scope)
        if _asks_to_enter(scope, token):
            scope["query_string"] = b""  # servers log it
            return await _respond(send, 303, "", _entry_headers(scope, token))
        if not _is_known(headers, token, cookie_name(scope["server"][1])):
            scope["query_string"] = b""
            return await _respond(send, 401, MISSING, [("www-authenticate", "Bearer")])
        if _is_foreign(headers):
            return await _respond(send, 403, FOREIGN)
        if ASSISTANT in scope["path"]:
            return await _respond(send, 403, NO_ASSISTANT, [("content-type", "application/json")])
        return await app(scope, receive, send)

    return answer


def cookie_name(port: int) -> str:
    """Browsers give a cookie of 127.0.0.1 to every port of it: each port has a name of its own."""
    return f"orchestrate-{port}"


def _headers(scope: Message) -> dict[str, str]:
    """The last of each name, in lower case."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _asks_to_enter(scope: Message, token: str) -> bool:
    given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
    return bool(
        scope["path"] == "/" and scope["method"] == "GET" and len(given) == 1 and _same(given[0], token)
    )


def _entry_headers(scope: Message, token: str) -> list[tuple[str, str]]:
    # Lax: a link in a report, a mail or a notebook opens the pages; requests of other sites come without it.
    cookie = f"{cookie_name(scope['server'][1])}={token}; Path=/; HttpOnly; SameSite=Lax"
    return [("location", "/"), ("set-cookie", cookie), ("referrer-policy", "no-referrer")]


def _is_known(headers: dict[str, str], token: str, name: str) -> bool:
    kind, _, rest = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return _same(rest.strip(), token)
    if kind.lower() == "basic":
        return _same(_password(rest), token)
    cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return any(key == name and _same(value, token) for key, _, value in cookies)


def _password(encoded: str) -> str:
    """That of a Basic authorization, whatever the user name; empty where it is none."""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _is_foreign(headers: dict[str, str]) -> bool:
    """Whether a page of another origin asks, one of another port of this machine included.

    Browsers count all ports as one site, and MLflow lets them read. Whoever follows a link to the pages may.
    """
    if headers.get("origin", own := f"http://{headers.get('host', '')}") != own:
        return True
    elsewhere = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
    return elsewhere and headers.get("sec-fetch-mode") != "navigate"


def _same(given: str, token: str) -> bool:
    """In a time that tells nothing of where they differ."""
    return hmac.compare_digest(given.encode(), token.encode())


async def _respond(send: Send, status: int, text: str, headers: Iterable[tuple[str, str]] = ()) -> None:
    body, chosen = text.encode(), {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store"}
    chosen |= {"content-length": str(len(body)), **dict(headers)}
    coded = [(name.encode(), value.encode()) for name, value in chosen.items()]
    await send({"type": "http.response.start", "status": status, "headers": coded})
    await send({"type": "http.response.body", "body": body})
