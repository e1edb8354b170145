"""AWS on this machine: moto's STS, and an STS over HTTP that does what a test tells it."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest
from moto.server import ThreadedMotoServer

ROLE_SESSION = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>made-up-secret</SecretAccessKey>
<SessionToken>made-up-token</SessionToken><Expiration>{expiration}</Expiration></Credentials>
</AssumeRoleResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></AssumeRoleResponse>"""
REFUSAL = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>{code}</Code><Message>{message}</Message></Error><RequestId>r</RequestId></ErrorResponse>"""

Form = dict[str, str]
Answer = tuple[int, str]


@contextmanager
def moto_sts() -> Iterator[str]:
    """The URL of moto's server, on a free port."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def use_keys(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """The SDK's standard environment: keys of the node, and where STS is."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIANODE",
        "AWS_SECRET_ACCESS_KEY": "made-up-node-secret",
        "AWS_ENDPOINT_URL_STS": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def granted(form: Form) -> Answer:
    """What STS answers when it allows the role."""
    end = datetime.now(UTC) + timedelta(seconds=int(form.get("DurationSeconds", "3600")))
    key = f"ASIA{abs(hash(form['RoleArn'])):020}"[:20]
    return 200, ROLE_SESSION.format(key=key, expiration=end.strftime("%Y-%m-%dT%H:%M:%SZ"))


def refusal(code: str, status: int = 400, message: str = "") -> Answer:
    return status, REFUSAL.format(code=code, message=message)


@dataclass
class HttpSts:
    """Answers each call by `script(form)` after `delay(form)` seconds. An empty answer closes the connection."""

    script: Callable[[Form], Answer | None] = granted
    delay: Callable[[Form], float] = lambda _form: 0.0
    trickles: Callable[[Form], bool] = lambda _form: False
    """Whether the answer comes a space at a time and never ends."""
    closes: bool = False
    """Whether answers say `Connection: close`."""
    trickling: int = 0
    """Answers that trickle at present: those on which nobody hung up."""
    forms: list[Form] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def answer(self, form: Form) -> Answer | None:
        time.sleep(self.delay(form))
        return self.script(form)


@contextmanager
def http_sts(tls: ssl.SSLContext | None = None) -> Iterator[HttpSts]:
    """An HttpSts that listens on a free port of 127.0.0.1."""
    sts = HttpSts()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            sts.forms.append(form)
            sts.headers.append({name.lower(): value for name, value in self.headers.items()})
            answer = sts.answer(form)
            if sts.trickles(form):
                self.trickle()
                return
            if answer is None:
                self.close_connection = True
                return
            status, text = answer
            self.send_response(status)
            self.send_header("Content-Type", "text/xml")
            if sts.closes:
                self.send_header("Connection", "close")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def trickle(self) -> None:
            sts.trickling += 1
            self.close_connection = True
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n")
                self.wfile.write(b"Connection: close\r\n\r\n" if sts.closes else b"\r\n")
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.02)
            sts.trickling -= 1

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that hang up are what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    sts.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    try:
        yield sts
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
