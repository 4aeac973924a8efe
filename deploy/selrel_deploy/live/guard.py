"""Who may ask: hosts, origins, token, sizes. Pure ASGI, before anything else sees a request."""

from __future__ import annotations

import hmac
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
COOKIE = "selrel_live"
SHORTEST_TOKEN = 16
LONGEST_BODY = 1024
LONGEST_TARGET = 2048
"""Bytes of a path with its query."""
TRIES = 5
"""Wrong tokens in ``PERIOD`` seconds, after which none is looked at."""
PERIOD = 30.0

_LOGIN = b"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>selrel live</title><main><h1>selrel live</h1><form method="post" action="/login"><label>Token
<input name="token" type="password" autocomplete="current-password" required autofocus></label>
<button>Show</button></form></main></html>"""
_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]
_POLICY = (b"content-security-policy", b"default-src 'none'; form-action 'self'; frame-ancestors 'none'")


def host_of(header: str) -> str | None:
    """Return the host name of a Host header, without its port, in lower case; None where it is none."""
    if not header or any(sign in header for sign in "/\\@?#, \t"):
        return None
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname


class Guard:
    """Lets through what may be answered: an ASGI application around another.

    ``hosts`` are the names under which the page may be asked for, so that no foreign name can be pointed at it. With a
    ``token`` everything but /healthz needs it: as ``Authorization: Bearer …``, or as the cookie that /login gives for
    it, which does not hold it. A request of another origin is refused, and so is one that is too large.
    """

    def __init__(self, app: App, hosts: Iterable[str], token: str | None = None) -> None:
        self._app, self._token = app, token
        self._hosts = {host.lower().strip("[]") for host in hosts}
        self._session = secrets.token_urlsafe(32)
        self._wrong: deque[float] = deque(maxlen=TRIES)
        self.refused = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        status, why = self._verdict(scope)
        if status == 401 and self._is_login(scope):
            await self._login(scope, receive, send)
        elif status == 401 and scope["type"] == "http" and scope["path"] == "/" and scope["method"] == "GET":
            await _answer(send, 401, _LOGIN, [(b"content-type", b"text/html; charset=utf-8")])
        elif status:
            self.refused += 1
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": why})
            else:
                await _answer(send, status, f"{why}\n".encode())
        elif self._token is not None and self._is_login(scope):
            await self._login(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _verdict(self, scope: Scope) -> tuple[int, str]:
        """Return the status of a refusal and why, or (0, "")."""
        headers = scope["headers"]
        named = [value.decode("latin-1") for name, value in headers if name == b"host"]
        host = host_of(named[0]) if len(named) == 1 else None
        if host not in self._hosts:
            return 421, "this host name is not served: give it as --allow-host"
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        # A form that is sent from a page without a referrer has the origin "null".
        if origins and (len(origins) > 1 or origins[0] != f"{_scheme(scope)}://{named[0]}"):
            return 403, "requests of other origins are refused"
        if _site(headers) not in (b"", b"same-origin", b"none"):
            return 403, "requests of other sites are refused"
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > LONGEST_TARGET:
            return 414, "the address is too long"
        if scope["type"] == "http":
            if scope["method"] not in ("GET", "HEAD") and not self._is_login(scope):
                return 405, "only GET is answered"
            if any(name == b"content-length" and not _is_short(value) for name, value in headers):
                return 413, "the body is too long"
            if scope["path"] == "/healthz":
                return 0, ""
        if self._token is not None and not self._is_known(headers):
            return 401, "a token is needed: Authorization: Bearer TOKEN"
        return 0, ""

    def _is_login(self, scope: Scope) -> bool:
        return bool(
            self._token is not None
            and scope["type"] == "http"
            and scope["path"] == "/login"
            and scope["method"] == "POST"
        )

    def _is_known(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        for name, value in headers:
            if name == b"authorization":
                scheme, _, given = value.partition(b" ")
                if scheme.lower() == b"bearer" and self._is_token(given.strip()):
                    return True
            elif name == b"cookie":
                try:
                    held = SimpleCookie(value.decode("latin-1")).get(COOKIE)
                except CookieError:
                    continue
                if held is not None and hmac.compare_digest(held.value.encode(), self._session.encode()):
                    return True
        return False

    def _is_token(self, given: bytes) -> bool:
        """Compare in constant time; after several wrong ones none is looked at for a while."""
        assert self._token is not None
        now = time.monotonic()
        if len(self._wrong) == TRIES and now - self._wrong[0] < PERIOD:
            return False
        right = hmac.compare_digest(given, self._token.encode())
        if not right:
            self._wrong.append(now)
        return right

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > LONGEST_BODY:
                await _answer(send, 413, b"the body is too long\n")
                return
            if not message.get("more_body"):
                break
        given = parse_qs(body.decode("latin-1"), max_num_fields=4) if body.count(b"&") < 4 else {}
        if not self._is_token(given.get("token", [""])[0].encode()):
            self.refused += 1
            await _answer(send, 401, _LOGIN, [(b"content-type", b"text/html; charset=utf-8")])
            return
        cookie = f"{COOKIE}={self._session}; Path=/; HttpOnly; SameSite=Strict"
        cookie += "; Secure" if _scheme(scope) == "https" else ""
        await _answer(send, 303, b"", [(b"location", b"/"), (b"set-cookie", cookie.encode())])


def _scheme(scope: Scope) -> str:
    return {"ws": "http", "wss": "https"}.get(scope["scheme"], str(scope["scheme"]))


def _site(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return what a browser says of where a request comes from; a link that a person follows is "none" or fine."""
    found = dict(headers)
    if found.get(b"sec-fetch-mode") == b"navigate" and found.get(b"sec-fetch-dest") == b"document":
        return b""
    return bytes(found.get(b"sec-fetch-site", b""))


def _is_short(value: bytes) -> bool:
    return value.isdigit() and len(value) < 10 and int(value) <= LONGEST_BODY


async def _answer(send: Send, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    kind = [] if any(name == b"content-type" for name, _ in headers) else [(b"content-type", b"text/plain")]
    length = (b"content-length", str(len(body)).encode())
    await send(
        {"type": "http.response.start", "status": status, "headers": [*_HEADERS, _POLICY, length, *kind, *headers]}
    )
    await send({"type": "http.response.body", "body": body})
