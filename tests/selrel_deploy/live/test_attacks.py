"""What a stranger may try. Each request is sent to the server as it is served, by a socket; none gets through."""

import json
import os
import socket
import threading
import time

import pytest

pytest.importorskip("uvicorn", reason="needs the extra live")
import uvicorn

from selrel_deploy.live import server as live_server
from selrel_deploy.live.events import Events
from selrel_deploy.live.guard import COOKIE, LOOPBACK, TRIES, Guard, host_of
from selrel_deploy.live.packets import parse
from selrel_deploy.live.pipeline import Live
from selrel_deploy.live.server import Hub, make_app
from selrel_zennit.cli import main

from .stand_ins import HOSTILE, Brightness, Frames, moving
from .test_pipeline import event

TOKEN = "correct-horse-battery"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Served:
    """The page on a port of its own."""

    def __init__(self, token=None):
        self.live = Live(Frames(moving(), lives=False), [Brightness()], self._publish, events=Events(), log=print)
        self.live.events.add(event(1))
        self.hub = Hub()
        self.app = make_app(self.live, self.hub, LOOPBACK, token)
        self.server = None

    def _publish(self, kind, message):
        self.hub.publish(kind, message)

    def __enter__(self):
        made = {}

        class Server(uvicorn.Server):
            def __init__(self, config):
                super().__init__(config)
                made["server"] = self

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(live_server.uvicorn, "Server", Server)
            ready = threading.Event()
            ports = []
            self.thread = threading.Thread(
                target=live_server.serve,
                args=(self.app, "127.0.0.1", 0, lambda port: (ports.append(port), ready.set())),
            )
            self.thread.start()
            assert ready.wait(10)
            for _ in range(500):
                if made.get("server") is not None and made["server"].started:
                    break
                time.sleep(0.01)
        self.port, self.server = ports[0], made["server"]
        self.live.__enter__()
        return self

    def __exit__(self, *_):
        self.live.__exit__()
        self.server.should_exit = True
        self.thread.join(10)

    def send(self, data, seconds=5.0):
        """Send bytes as they are; return what is answered until the connection ends, or for ``seconds``."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            answer = b""
            try:
                connection.sendall(data.replace(b"@PORT@", str(self.port).encode()))
                while piece := connection.recv(65536):
                    answer += piece
            except (TimeoutError, ConnectionError):
                pass
        return answer

    def get(self, target="/", *headers, host="127.0.0.1:@PORT@", method="GET", body=b""):
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
        return self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


@pytest.fixture(scope="module")
def served():
    with Served() as found:
        yield found


@pytest.fixture(scope="module")
def guarded():
    with Served(TOKEN) as found:
        yield found


def status(answer):
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


UPGRADE = ("Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13")

TRAVERSALS = [
    "/../../etc/passwd",
    "/..%2f..%2fetc%2fpasswd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/events/../../etc/passwd",
    "/events/..%2f..%2f..%2fetc%2fpasswd.html",
    "/events/1.html/../../../etc/passwd",
    "/events/1%00.html",
    "/events/-1.html",
    "/events/1e0.html",
    "/events/99999999999999999999999999.html",
    "/events//etc/passwd",
    "/static/page.html",
    "/page.html",
    "//etc/passwd",
    "/\\..\\..\\windows\\win.ini",
    "/?file=../../etc/passwd%00",
]


@pytest.mark.parametrize("target", TRAVERSALS)
def test_no_path_reaches_the_file_system(served, target):
    answer = served.get(target)
    assert status(answer) in (400, 404) or (target.startswith("/?") and b"<title>selrel live</title>" in answer)
    assert b"root:" not in answer
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "evil.example:@PORT@",
        "127.0.0.1:x",
        "[::1",
    ],
)
def test_other_host_names_are_refused(served, host):
    assert status(served.get(host=host)) in (400, 421)


def test_two_host_names_or_none_are_refused(served):
    assert status(served.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")) in (400, 421)
    assert status(served.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")) in (400, 421)
    assert status(served.send(b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n")) in (400, 421)


@pytest.mark.parametrize(
    "header",
    ["Origin: http://evil.example", "Origin: null", "Origin: http://127.0.0.1:1", "Sec-Fetch-Site: cross-site"],
)
@pytest.mark.parametrize("target", ["/metrics", "/live"])
def test_other_origins_are_refused(served, header, target):
    upgrade = ("Connection: Upgrade", *UPGRADE) if target == "/live" else ()
    assert status(served.get(target, header, *upgrade)) == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT", "GETT"])
def test_nothing_but_reading_is_answered(served, method):
    assert status(served.get("/", method=method)) in (400, 404, 405)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /?" + b"a" * 4000 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 100,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n X-folded: a\r\n\x00: b\r\n\r\n",
    ],
)
def test_what_is_too_large_or_no_request_is_refused(served, data):
    assert status(served.send(data)) in (0, 400, 405, 413, 414, 421, 431)
    assert status(served.get("/healthz")) in (200, 503)


def test_slow_clients_are_let_go(served, monkeypatch):
    monkeypatch.setattr(live_server, "PATIENCE", 0.3)
    slow = [socket.create_connection(("127.0.0.1", served.port), timeout=5) for _ in range(20)]
    for number, connection in enumerate(slow):
        connection.sendall(b"GET / HT" if number % 2 else b"")
    assert [connection.recv(10) for connection in slow] == [b""] * 20
    for connection in slow:
        connection.close()
    assert status(served.get()) == 200


def connect(served, *headers):
    """Return an open socket, and what was answered to its handshake."""
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=5)
    lines = ["GET /live HTTP/1.1", f"Host: 127.0.0.1:{served.port}", "Connection: Upgrade", *UPGRADE, *headers]
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    return connection, connection.recv(12)


def frame(payload, opcode=1):
    mask = os.urandom(4)
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0xFE]) + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


def ended(connection):
    """Say whether the server closes the connection, by a frame that says so or at once."""
    heard = b""
    try:
        while piece := connection.recv(65536):
            heard = heard[-200:] + piece
            if any(b"\x88" + bytes([size]) + b"\x03" in heard for size in range(2, 126)):
                return True
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(
    "data",
    [frame(b"hello"), frame(b"x" * 5000), frame(b"\0", 2) * 500, b"\xff" * 64],
    ids=["word", "large", "flood", "noise"],
)
def test_a_socket_that_talks_is_closed(served, data):
    connection, answer = connect(served)
    assert answer.endswith(b" 101"), answer
    connection.sendall(data)
    closes = ended(connection)
    connection.close()
    assert closes


def test_a_flood_of_sockets_is_refused(served):
    time.sleep(0.3)
    opened = [connect(served) for _ in range(live_server.CLIENTS + 6)]
    accepted = sum(answer.endswith(b" 101") for _, answer in opened)
    for connection, _ in opened:
        connection.close()
    assert accepted <= live_server.CLIENTS
    time.sleep(0.3)
    connection, answer = connect(served)
    connection.close()
    assert answer.endswith(b" 101")


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("Authorization: Bearer wrong",),
        ("Authorization: Basic Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5",),
        (f"Cookie: {COOKIE}={TOKEN}",),
        (f"Cookie: {COOKIE}=",),
        ("X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: localhost"),
    ],
)
@pytest.mark.parametrize("target", ["/metrics", "/events/1.html", "/live"])
def test_without_the_token_nothing_is_shown(guarded, headers, target):
    guarded.app._wrong.clear()
    upgrade = ("Connection: Upgrade", *UPGRADE) if target == "/live" else ()
    assert status(guarded.get(target, *headers, *upgrade)) in (401, 403)
    page = guarded.get("/", *headers)
    assert status(page) == 401
    assert b"WebSocket" not in page


def test_the_token_opens_and_its_cookie_does_not_hold_it(guarded):
    guarded.app._wrong.clear()
    assert status(guarded.get("/", f"Authorization: Bearer {TOKEN}")) == 200
    body = f"token={TOKEN}".encode()
    answer = guarded.get("/login", f"Content-Length: {len(body)}", method="POST", body=body)
    assert status(answer) == 303
    assert TOKEN.encode() not in answer
    cookie = answer.partition(b"set-cookie: ")[2].partition(b"\r\n")[0].decode()
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert status(guarded.get("/metrics", f"Cookie: {cookie.partition(';')[0]}")) == 200
    assert status(guarded.get("/healthz")) in (200, 503)


def test_tokens_are_not_tried_for_long(guarded):
    guarded.app._wrong.clear()
    for _ in range(TRIES):
        assert status(guarded.get("/", "Authorization: Bearer wrong")) == 401
    assert status(guarded.get("/", f"Authorization: Bearer {TOKEN}")) == 401
    guarded.app._wrong.clear()
    assert status(guarded.get("/", f"Authorization: Bearer {TOKEN}")) == 200


@pytest.mark.parametrize("body", [b"token=" + b"x" * 5000, b"&".join([b"a=1"] * 300), b"token=%00%ff", b"\xff\xfe"])
def test_what_is_no_login_is_refused(guarded, body):
    guarded.app._wrong.clear()
    answer = guarded.get("/login", f"Content-Length: {len(body)}", method="POST", body=body)
    assert status(answer) in (401, 413)


def test_the_page_lets_only_its_own_script_run_and_asks_no_other_host(served):
    answer = served.get()
    head, _, page = answer.partition(b"\r\n\r\n")
    policy = head.partition(b"content-security-policy: ")[2].partition(b"\r\n")[0]
    assert b"unsafe" not in policy
    assert policy.startswith(b"default-src 'none'; script-src 'sha256-")
    assert b"innerHTML" not in page
    assert b"http://" not in page
    assert b"https://" not in page
    assert b"style=" not in page


def test_names_of_classes_reach_the_page_as_text_alone(served):
    """They are sent as JSON, which the page puts in as text; the report is an attachment that runs nothing."""
    for _ in range(200):
        if "explained" in served.hub._last:
            break
        time.sleep(0.05)
    header, _ = parse(served.hub._last["explained"])
    assert HOSTILE in json.dumps(header["top"])
    answer = served.get("/events/1.html", f"Cookie: {COOKIE}=x")
    assert status(answer) == 200
    assert b"content-security-policy: sandbox" in answer
    assert b'content-disposition: attachment; filename="report-1.html"' in answer
    assert HOSTILE.encode() not in answer


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--host", "0.0.0.0"], "--token"),
        (["--host", "0.0.0.0", "--token", "short"], "16"),
        (["--host", "evil host"], "IP address"),
        (["--record-limit", "much"], "500M"),
        (["file:///x"], "rtsp"),
        (["missing.mp4"], "missing.mp4"),
        (["--explain-when", "any"], "CLASS:PROB"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, word, capsys):
    assert main(["live", *arguments]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert said.count("\n") == 1
    assert "short" not in said


@pytest.mark.parametrize(
    ("header", "host"),
    [("localhost", "localhost"), ("LOCALHOST:80", "localhost"), ("[::1]:8765", "::1"), ("a@b", None), ("a:b", None)],
)
def test_hosts_are_read(header, host):
    assert host_of(header) == host


def test_refusals_are_counted(served):
    before = served.app.refused
    served.get(host="evil.example")
    assert served.app.refused == before + 1
    assert isinstance(served.app, Guard)
    figures = served.get("/metrics").decode()
    assert f"selrel_live_requests_refused_total {served.app.refused}" in figures
