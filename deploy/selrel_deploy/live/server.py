"""The page's server: one page, one socket, reports, health and metrics. Needs starlette and uvicorn."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from selrel_zennit.errors import InputError

from .guard import LOOPBACK, Guard
from .pipeline import Live

CLIENTS = 8
"""Pages at once."""
CONNECTIONS = 64
PATIENCE = 10.0
"""Seconds a client may take to say what it wants, and to take a message."""

_SAFE = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Hub:
    """Hands messages to the pages: of each kind the newest, so that a slow page skips and delays nobody."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last: dict[str, bytes] = {}
        self.clients: set[Client] = set()
        self.sent = self.dropped = 0

    def start(self) -> None:
        """Note the running loop; messages before that are kept, the newest of each kind."""
        self._loop = asyncio.get_running_loop()

    def publish(self, kind: str, message: bytes) -> None:
        """Take a message from any thread."""
        loop = self._loop
        if loop is None or loop.is_closed():
            self._last[kind] = message
            return
        with contextlib.suppress(RuntimeError):  # closed since
            loop.call_soon_threadsafe(self._deliver, kind, message)

    def _deliver(self, kind: str, message: bytes) -> None:
        self._last[kind] = message
        for client in self.clients:
            self.dropped += kind in client.waiting
            client.waiting[kind] = message
            client.changed.set()

    async def serve(self, socket: WebSocket) -> None:
        """Serve one page until it goes; refuse it where there are ``CLIENTS``."""
        if len(self.clients) >= CLIENTS:
            await socket.close(1013, "too many pages are open")
            return
        await socket.accept()
        client = Client(dict(self._last))
        self.clients.add(client)
        sending = asyncio.create_task(self._send(client, socket))
        try:
            # The page says nothing; who talks is none.
            with contextlib.suppress(WebSocketDisconnect):
                if (await socket.receive())["type"] == "websocket.receive":
                    await socket.close(1008, "this socket takes no messages")
        finally:
            self.clients.discard(client)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await sending

    async def _send(self, client: Client, socket: WebSocket) -> None:
        while True:
            await client.changed.wait()
            client.changed.clear()
            waiting, client.waiting = client.waiting, {}
            for message in waiting.values():
                try:
                    await asyncio.wait_for(socket.send_bytes(message), PATIENCE)
                except (TimeoutError, asyncio.TimeoutError, WebSocketDisconnect, RuntimeError):
                    with contextlib.suppress(Exception):
                        await asyncio.wait_for(socket.close(1013), 1)
                    return
                self.sent += 1


class Client:
    """A page: the messages that wait for it, one of each kind."""

    def __init__(self, waiting: dict[str, bytes]) -> None:
        self.waiting, self.changed = waiting, asyncio.Event()
        if waiting:
            self.changed.set()


class ImpatientProtocol(H11Protocol):
    """Closes a connection that does not say within ``PATIENCE`` seconds what it wants: uvicorn would wait for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(PATIENCE, self._expire)

    def data_received(self, data: bytes) -> None:
        """Stop it where a request has come whole, and start it again for the next one."""
        super().data_received(data)
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.transport.get_protocol() is not self:
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(PATIENCE, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if self.transport.get_protocol() is self and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()


def page() -> tuple[str, str]:
    """Return the page, and the Content-Security-Policy that lets its own script and style run and nothing else."""
    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert found is not None
        hashes[tag] = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def make_app(live: Live, hub: Hub, hosts: tuple[str, ...] = LOOPBACK, token: str | None = None) -> Guard:
    """Return the ASGI application: / (page), /live (socket), /events/N.html, /events/N.jpg, /healthz, /metrics."""
    text, policy = page()

    async def show(_: Request) -> Response:
        return HTMLResponse(text, headers=_SAFE | {"content-security-policy": policy})

    async def report(request: Request) -> Response:
        try:
            made = await run_in_threadpool(live.events.report, int(request.path_params["number"]))
        except InputError as error:
            return PlainTextResponse(f"{error}\n", 409, headers=_SAFE)
        if made is None:
            return PlainTextResponse("no such event is kept\n", 404, headers=_SAFE)
        number = request.path_params["number"]
        held = {
            "content-disposition": f'attachment; filename="report-{number}.html"',
            "content-security-policy": "sandbox",
        }
        return HTMLResponse(made, headers=_SAFE | held)

    async def picture(request: Request) -> Response:
        event = live.events.get(int(request.path_params["number"]))
        if event is None:
            return PlainTextResponse("no such event is kept\n", 404, headers=_SAFE)
        return Response(event.picture(), media_type="image/jpeg", headers=_SAFE)

    async def nothing(_: Request) -> Response:
        return Response(status_code=204, headers=_SAFE)

    async def health(_: Request) -> Response:
        # No more than that: it is answered without the token.
        well = live.capture.fault is None and live.fault is None
        return JSONResponse({"status": "ok" if well else "fault"}, 200 if well else 503, headers=_SAFE)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(metrics_text(live, hub, guard), headers=_SAFE)

    async def socket(websocket: WebSocket) -> None:
        await hub.serve(websocket)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> Any:
        hub.start()
        yield

    guard = Guard(
        Starlette(
            routes=[
                Route("/", show),
                Route("/events/{number:int}.html", report),
                Route("/events/{number:int}.jpg", picture),
                Route("/favicon.ico", nothing),
                Route("/healthz", health),
                Route("/metrics", metrics),
                WebSocketRoute("/live", socket),
            ],
            lifespan=lifespan,
        ),
        hosts,
        token,
    )
    return guard


def metrics_text(live: Live, hub: Hub, guard: Guard) -> str:
    """Return the figures in Prometheus' text format, version 0.0.4."""
    state = live.state()
    rows: list[tuple[str, str, str, float | None]] = [
        ("frames_total", "counter", "Frames captured.", state["frames"]),
        ("explained_total", "counter", "Windows explained.", state["explained"]),
        ("windows_dropped_total", "counter", "Windows that a newer one replaced.", state["dropped"]),
        ("source_reopened_total", "counter", "Times the source was opened again.", state["reopened"]),
        ("events_total", "counter", "Events.", live.events.count),
        ("messages_sent_total", "counter", "Messages sent to pages.", hub.sent),
        ("messages_dropped_total", "counter", "Messages that a newer one replaced.", hub.dropped),
        ("requests_refused_total", "counter", "Requests refused.", guard.refused),
        ("pages", "gauge", "Pages that are open.", len(hub.clients)),
        ("rung", "gauge", "Rung of the deadline ladder, 0 is the best.", state["at"]),
        ("budget_seconds", "gauge", "The budget.", state["budget"]),
        ("explain_p95_seconds", "gauge", "p95 of an explanation in the rung in use.", state["p95"]),
        ("latency_p95_seconds", "gauge", "p95 from a window's last frame to its message.", state["seconds"]["whole"]),
        ("fault", "gauge", "1 where something is wrong.", int(bool(state["faults"]))),
    ]
    lines = []
    for name, kind, text, value in rows:
        shown = "NaN" if value is None else f"{value:g}"
        lines += [
            f"# HELP selrel_live_{name} {text}",
            f"# TYPE selrel_live_{name} {kind}",
            f"selrel_live_{name} {shown}",
        ]
    return "\n".join(lines) + "\n"


def serve(app: Guard, host: str, port: int, started: Callable[[int], None] = lambda _: None) -> None:
    """Serve until SIGINT or SIGTERM. Raises InputError where the port cannot be had."""
    config = uvicorn.Config(
        app,
        host,
        port,
        http=ImpatientProtocol,
        ws_max_size=1024,
        ws_max_queue=4,
        ws_ping_interval=5,
        ws_ping_timeout=PATIENCE,
        ws_per_message_deflate=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=16 * 1024,
        access_log=False,
        log_level="error",
        server_header=False,
        date_header=False,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    try:
        bound = config.bind_socket()
    except (OSError, SystemExit):
        raise InputError(f"port {port} of {host} cannot be had: give another --port") from None
    with bound:
        started(bound.getsockname()[1])
        server.run(sockets=[bound])
