"""A reverse proxy that is slow, or fails where it is told to, before a real docker-registry.

```python
def once(method: str, path: str, count: int) -> Fault | None:
    return Refuse(503, retry_after="1") if method == "PUT" and count == 1 else None

with serve(tmp_path / "root") as registry, fault_proxy(registry.host, rule=once) as proxy:
    skopeo("copy", "--dest-tls-verify=false", f"dir:{image}", f"docker://{proxy.host}/a:b")
    puts = [request for request in proxy.requests if request.method == "PUT"]
```

Bytes pass as they are: every header line in its order, and the chunks of a body as they come.
One thread and one connection upstream for each connection of a client, kept alive like it; less
than 1 ms of CPU a request, connections and bodies included, where a skopeo process costs 100.
"""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import orjson

from tests.registry import Request

_PIECE = 1 << 16
_TLS_HANDSHAKE = b"\x16"  # RFC 8446, section 5.1
_BODILESS = frozenset({204, 304})
# Close by a reset instead of a farewell. Spec: socket(7), SO_LINGER.
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer this instead of the registry, which is not asked.

    Attributes:
        status: HTTP status.
        retry_after: Value of Retry-After; none if empty.
        code: Of the registry's JSON error.
        message: Of the registry's JSON error.
    """

    status: int
    retry_after: str = ""
    code: str = "UNAVAILABLE"
    message: str = "told to fail"


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection.

    Attributes:
        forward: Let the registry do what was asked before: then only its answer is lost.
    """

    forward: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer; the connection stays open until the client gives up or the proxy ends."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Close the connection within the registry's answer.

    Attributes:
        after: How many bytes of the body to let through.
    """

    after: int = 0


Fault = Refuse | Reset | Hang | Cut

Rule = Callable[[str, str, int], Fault | None]
"""Decides by method, path with query, and how often just that was asked, 1 the first time.

Called by many threads, one at a time.
"""


@dataclass(slots=True, kw_only=True)
class FaultProxy:
    """A running proxy.

    Attributes:
        host: `127.0.0.1:PORT`; the registry as its clients see it.
        requests: Every request in the order of the answers; status 0 where there was none.
    """

    host: str
    requests: list[Request] = field(default_factory=list)


@contextmanager
def fault_proxy(
    upstream: str, *, delay_seconds: float = 0.0, rule: Rule | None = None
) -> Iterator[FaultProxy]:
    """Stand before the registry at `upstream` (`host:port`, plain HTTP) until the context ends.

    Args:
        upstream: The registry.
        delay_seconds: How long each request waits, faults too: a round-trip time.
        rule: What fails, and how; nothing if None.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    proxy = FaultProxy(host=f"127.0.0.1:{listener.getsockname()[1]}")
    relay = _Relay(upstream, delay_seconds, rule or (lambda *_: None), proxy.requests)
    thread = threading.Thread(target=relay.accept, args=(listener,))
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which closing alone does not
        listener.close()
        thread.join()
        relay.end()


class _Head(NamedTuple):
    """The head of a message: all its bytes, its first line's words, and how its body is framed."""

    raw: bytes
    first: list[str]
    length: int
    chunked: bool


class _Line(NamedTuple):
    """A client's connection and ours upstream, each to write to and to read from."""

    client: socket.socket
    asked: BinaryIO
    server: socket.socket
    answered: BinaryIO


class _Relay:
    def __init__(
        self, upstream: str, delay_seconds: float, rule: Rule, requests: list[Request]
    ) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = host, int(port)
        self._delay_seconds = delay_seconds
        self._rule = rule
        self._requests = requests
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            with self._lock:
                self._open[client] = thread
            thread.start()

    def end(self) -> None:
        with self._lock:
            running = list(self._open.items())
        for client, _ in running:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for _, thread in running:
            thread.join()

    def _serve(self, client: socket.socket) -> None:
        try:
            with (
                client,
                socket.create_connection(self._upstream) as server,
                client.makefile("rb") as asked,
                server.makefile("rb") as answered,
            ):
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                line = _Line(client, asked, server, answered)
                if asked.peek(1)[:1] == _TLS_HANDSHAKE:
                    return  # who gets no answer waits for it; a real server refuses at once
                while (head := _read_head(asked)) is not None:
                    self._relay(head, line)
        except OSError:
            pass  # either side has gone; closing the other tells it
        finally:
            with self._lock:
                del self._open[client]

    def _relay(self, head: _Head, line: _Line) -> None:
        """Pass on one request and its answer.

        Raises:
            OSError: The connection cannot go on.
        """
        method, path = head.first[:2]
        with self._lock:
            self._counts[method, path] += 1
            fault = self._rule(method, path, self._counts[method, path])
        time.sleep(self._delay_seconds)

        def record(status: int) -> None:
            self._requests.append(Request(method, path, status))

        if isinstance(fault, Refuse):
            _copy_body(head, line.asked, None)
            record(fault.status)
            line.client.sendall(_refusal(fault, method))
            return
        if isinstance(fault, Hang):
            record(0)
            while line.client.recv(_PIECE):
                pass
            raise ConnectionError("the client gave up")
        answer = None
        if fault != Reset(forward=False):
            line.server.sendall(head.raw)
            _copy_body(head, line.asked, line.server)
            answer = _read_head(line.answered)
        if answer is None or isinstance(fault, Reset):
            record(0)
            line.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            raise ConnectionError("reset")
        status = int(answer.first[1])
        record(status)
        line.client.sendall(answer.raw)
        if isinstance(fault, Cut):
            line.client.sendall(line.answered.read(min(fault.after, answer.length)))
            raise ConnectionError("cut")
        if method != "HEAD" and status not in _BODILESS:
            _copy_body(answer, line.answered, line.client)


def _read_head(stream: BinaryIO) -> _Head | None:
    """Read up to the empty line; None if the other side has closed the connection."""
    lines, length, chunked = [], 0, False
    while (line := stream.readline()) not in {b"\r\n", b""}:
        lines.append(line)
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        elif name.lower() == b"transfer-encoding":
            chunked = b"chunked" in value.lower()
    if not line or not lines:
        return None
    return _Head(b"".join((*lines, line)), lines[0].decode("latin-1").split(), length, chunked)


def _copy_body(head: _Head, stream: BinaryIO, sink: socket.socket | None) -> None:
    """Copy a body as it comes, chunk by chunk if it is chunked; nowhere if there is no sink.

    Spec: RFC 9112, section 7.1.
    """
    if not head.chunked:
        _copy(head.length, stream, sink)
        return
    size = 1
    while size:
        line = stream.readline()
        size = int(line.partition(b";")[0], 16)
        _copy(size + 2 if size else 0, stream, sink, first=line)
    while (line := stream.readline()) not in {b"\r\n", b""}:
        if sink is not None:
            sink.sendall(line)  # trailer fields
    if sink is not None:
        sink.sendall(b"\r\n")


def _copy(size: int, stream: BinaryIO, sink: socket.socket | None, *, first: bytes = b"") -> None:
    while size > 0 or first:
        piece = stream.read(min(size, _PIECE))
        if len(piece) < min(size, _PIECE):
            raise ConnectionError("closed within a body")
        size -= len(piece)
        if sink is not None:
            sink.sendall(first + piece)
        first = b""


def _refusal(fault: Refuse, method: str) -> bytes:
    body = orjson.dumps({"errors": [{"code": fault.code, "message": fault.message}]})
    retry = f"Retry-After: {fault.retry_after}\r\n" if fault.retry_after else ""
    head = (
        f"HTTP/1.1 {fault.status} Refused\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{retry}\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)
