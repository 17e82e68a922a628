"""A bearer-token realm in front of a registry, as strict as the real ones.

It forwards what carries a token for exactly that repository and action, and challenges the rest.
`/token` hands out a token for the scopes that were asked, to the one account that it knows.

Spec: distribution, docs/spec/auth/token.md and scope.md; registry/handlers/app.go,
appendAccessRecords: which method needs which actions.
"""

import base64
import http.client
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from urllib.parse import parse_qs, urlsplit

import orjson

from tests.registry import Request

_ACTIONS = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}
_REPOSITORY = re.compile(r"/v2/(.+)/(?:blobs|manifests|tags)/")
# About one connection, not about the message: RFC 9110, section 7.6.1.
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "authorization"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRealm:
    """A running realm.

    Attributes:
        host: `127.0.0.1:PORT`; the registry as its clients see it.
        requests: Every request answered so far, `/token` included, in order.
    """

    host: str
    requests: list[Request] = field(default_factory=list)


@contextmanager
def token_realm(upstream: str, *, username: str, password: str) -> Iterator[TokenRealm]:
    """Guard the registry at `upstream` (`host:port`, plain HTTP) until the context ends."""
    account = "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
    tokens: dict[str, frozenset[str]] = {}  # token -> scopes, one action each

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/token":
                self.issue(parse_qs(url.query).get("scope", []))
                return
            needed = _needed_scopes(self.command, url.path, parse_qs(url.query))
            authorization = self.headers.get("Authorization", "")
            granted = tokens.get(authorization.removeprefix("Bearer "))
            if granted is None or not _single_actions(needed) <= granted:
                self.challenge(needed)
            else:
                self.forward()

        do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = answer  # noqa: N815 - inherited

        def issue(self, scopes: list[str]) -> None:
            if self.headers.get("Authorization") != account:
                self.reply(401, {"details": "incorrect username or password"})
                return
            token = secrets.token_urlsafe()
            tokens[token] = _single_actions(" ".join(scopes).split())
            self.reply(200, {"token": token, "expires_in": 300})

        def challenge(self, scopes: list[str]) -> None:
            value = f'Bearer realm="http://{realm.host}/token",service="rig"'
            if scopes:
                value += f',scope="{" ".join(scopes)}"'
            # Its body stays unread, so the connection cannot serve another request.
            self.close_connection = True
            errors = [{"code": "UNAUTHORIZED", "message": "authentication required"}]
            self.reply(401, {"errors": errors}, ("WWW-Authenticate", value))

        def reply(self, status: int, body: object, *headers: tuple[str, str]) -> None:
            content = orjson.dumps(body)
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def forward(self) -> None:
            headers = {  # skopeo sends one Accept line a media type
                name: ", ".join(self.headers.get_all(name, []))
                for name in self.headers
                if name.lower() not in _HOP_BY_HOP
            }
            chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
            body = _chunks(self.rfile) if chunked else self.plain_body()
            connection = http.client.HTTPConnection(upstream, timeout=60)
            try:
                # Host goes along as it came: the registry makes its Location headers of it.
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                self.send_response_only(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
                content = response.read()
                if response.getheader("Content-Length") is None:
                    self.send_header("Content-Length", str(len(content)))
                self.log_request(response.status)
                self.end_headers()
                self.wfile.write(content)
            finally:
                connection.close()

        def plain_body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            realm.requests.append(Request(self.command, self.path, int(code)))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        realm = TokenRealm(host=f"127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield realm
        finally:
            server.shutdown()
            thread.join()


def _needed_scopes(method: str, path: str, query: dict[str, list[str]]) -> list[str]:
    """Return the scopes that a request needs, as its challenge names them."""
    if path == "/v2/_catalog":
        return ["registry:catalog:*"]
    repository = _REPOSITORY.match(path)
    if repository is None:
        return []
    scopes = [f"repository:{repository[1]}:{_ACTIONS.get(method, 'pull,push')}"]
    if "mount" in query:
        scopes += [f"repository:{source}:pull" for source in query.get("from", [])]
    return scopes


def _single_actions(scopes: list[str]) -> frozenset[str]:
    """Split `repository:a:pull,push` into `repository:a:pull` and `repository:a:push`."""
    parts = [scope.rpartition(":") for scope in scopes]
    return frozenset(f"{name}:{action}" for name, _, all_ in parts for action in all_.split(","))


def _chunks(stream: BufferedIOBase) -> Iterator[bytes]:
    """Yield the chunks of a chunked body. Spec: RFC 9112, section 7.1."""
    while size := int(stream.readline().partition(b";")[0], 16):
        yield stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass  # trailer fields
