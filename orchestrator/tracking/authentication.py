"""MLflow's server behind a token: the app `orchestrate` of the entry point group `mlflow.app`.

MLflow's own app answers every user of the machine, who can reach its port, and its assistant even runs shell
commands for them. This one requires a token, new at each start, and refuses requests to the assistant.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

APP_NAME = "orchestrate"  # as in pyproject.toml
TOKEN_VARIABLE = "ORCHESTRATE_UI_TOKEN"  # unlike a command line, other users cannot read it
ASSISTANT = "/ajax-api/3.0/mlflow/assistant"
MISSING_TOKEN = (
    "These pages ask for a token. Open an address that `orchestrate ui` or `watch` printed: it holds one. "
    "Programs send it as MLFLOW_TRACKING_TOKEN.\n"
)
FOREIGN_PAGE = "A page from elsewhere asked for this: refused.\n"
NO_ASSISTANT = '{"detail": "The assistant is switched off: it could run commands on this machine."}'

Message = MutableMapping[str, Any]  # the types of ASGI
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def create_app() -> App:
    """Return the app for uvicorn; take its token out of the environment variable TOKEN_VARIABLE."""
    from mlflow.server.fastapi_app import app

    return with_token(app, os.environ.pop(TOKEN_VARIABLE, ""))


def with_token(app: App, token: str) -> App:
    """Return an app that requires the token: in a cookie, as Bearer, or as the password of Basic.

    `/?token=TOKEN` sets the cookie and redirects the browser to `/`, which keeps what follows a #. ValueError
    if the token is empty.
    """
    if not token:
        raise ValueError(f"the pages need a token: set {TOKEN_VARIABLE}")

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        if scope["type"] != "http":  # MLflow's pages use no web sockets
            return await send({"type": "websocket.close", "code": 1008})
        if (refused := refusal(scope, token)) is not None:
            return await _respond(send, refused.status, refused.text, refused.headers)
        if ASSISTANT in scope["path"]:
            return await _respond(send, 403, NO_ASSISTANT, [("content-type", "application/json")])
        return await app(scope, receive, send)

    return answer


@dataclass(frozen=True)
class Refusal:
    """An answer to a request that may not pass, or that logs in."""

    status: int
    text: str
    headers: Sequence[tuple[str, str]] = ()


def refusal(scope: Message, token: str) -> Refusal | None:
    """Return the answer to a request that logs in or that lacks the token; None for one that may pass.

    Of the scope of ASGI it reads method, path, query_string, headers and server; a query that may hold a
    token is removed from it.
    """
    headers = _headers(scope)
    if _is_login(scope, token):
        scope["query_string"] = b""  # which holds a token, and which servers log
        return Refusal(303, "", _login_headers(scope, token))
    if not _has_token(headers, token, cookie_name(scope["server"][1])):
        scope["query_string"] = b""
        return Refusal(401, MISSING_TOKEN, [("www-authenticate", "Bearer")])
    return Refusal(403, FOREIGN_PAGE) if _is_foreign(headers) else None


def cookie_name(port: int) -> str:
    """Return the name of a port's cookie: browsers send the cookies of a host to all of its ports."""
    return f"orchestrate-{port}"


def _headers(scope: Message) -> dict[str, str]:
    """Return name in lower case -> value; of two headers of one name the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _is_login(scope: Message, token: str) -> bool:
    tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
    is_start_page = scope["path"] == "/" and scope["method"] == "GET"
    return is_start_page and len(tokens) == 1 and _is_equal(tokens[0], token)


def _login_headers(scope: Message, token: str) -> list[tuple[str, str]]:
    # Lax: a link in a report, a mail or a notebook opens the pages; other sites' requests lack the cookie.
    cookie = f"{cookie_name(scope['server'][1])}={token}; Path=/; HttpOnly; SameSite=Lax"
    return [("location", "/"), ("set-cookie", cookie), ("referrer-policy", "no-referrer")]


def _has_token(headers: dict[str, str], token: str, name: str) -> bool:
    kind, _, credentials = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return _is_equal(credentials.strip(), token)
    if kind.lower() == "basic":
        return _is_equal(_password(credentials), token)
    cookies = (cookie.strip().partition("=") for cookie in headers.get("cookie", "").split(";"))
    return any(key == name and _is_equal(value, token) for key, _, value in cookies)


def _password(encoded: str) -> str:
    """Return the password of a Basic authorization, for any user name; empty for an invalid one."""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _is_foreign(headers: dict[str, str]) -> bool:
    """Whether a page of another origin sent the request, such as one of another port of this machine.

    Browsers count all ports of a host as one site, and MLflow allows such reads. Following a link is allowed.
    """
    own_origin = f"http://{headers.get('host', '')}"
    if headers.get("origin", own_origin) != own_origin:
        return True
    is_cross_origin = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
    return is_cross_origin and headers.get("sec-fetch-mode") != "navigate"


def _is_equal(text: str, token: str) -> bool:
    """Compare in a time that does not depend on where the texts differ."""
    return hmac.compare_digest(text.encode(), token.encode())


async def _respond(send: Send, status: int, text: str, headers: Iterable[tuple[str, str]] = ()) -> None:
    body = text.encode()
    all_headers = {
        "content-type": "text/plain; charset=utf-8",
        "cache-control": "no-store",
        "content-length": str(len(body)),
        **dict(headers),
    }
    encoded = [(name.encode(), value.encode()) for name, value in all_headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
