"""Requests and answers over HTTP: connections, redirects, and limits on what strangers may send.

Spec: RFC 9110, section 15.4 (redirects).
"""

import ssl
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, InsecureRequestWarning, ProtocolError

from exporter import __version__
from exporter.distribution.answers import Answer, broken
from exporter.distribution.proxies import Proxies, pool_manager
from exporter.errors import PermanentDestinationError

_USER_AGENT = f"skopeo-dir/{__version__}"
_LIMIT = 4 << 20  # what registries allow a manifest to have
_CONNECTIONS = 64  # kept open to a host: as many as there can be jobs
_REDIRECTS = 5
_SAFE = frozenset({"GET", "HEAD"})


class Transport:
    """Sends requests over connections that stay open. Thread-safe.

    No cookie is ever kept: a session cookie would make Harbor ask for a CSRF token.

    Args:
        context: How to speak TLS.
        timeout_seconds: Longest wait for a connection or for the next bytes of an answer.
    """

    def __init__(self, context: ssl.SSLContext, *, timeout_seconds: float) -> None:
        if context.verify_mode is ssl.CERT_NONE:
            # Who allows it need not be told so at every host.
            urllib3.disable_warnings(InsecureRequestWarning)
        self._options: dict[str, object] = {
            "ssl_context": context,
            "timeout": timeout_seconds,
            "maxsize": _CONNECTIONS,
            "retries": False,
        }
        self._proxies = Proxies.of_environment()
        self._pools: dict[str, urllib3.PoolManager] = {}  # by the proxy's URL

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            pool.clear()

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        body: bytes | None = None,
        what: str,
    ) -> Answer:
        """Send a request and return the answer, whatever its status.

        GET and HEAD follow redirects, without `Authorization` once they lead to another origin,
        and are sent again, once, if the connection is gone before an answer: the server may close
        one that has been idle at any moment.

        Args:
            method: GET, HEAD, POST, ...
            url: Absolute.
            headers: Beside our own.
            body: None sends none.
            what: Beginning of the sentence if it fails.

        Raises:
            DestinationError: No complete answer came, or it leads nowhere.
            UsageError: The proxy that the environment names cannot be used.
        """
        own, elsewhere = {"User-Agent": _USER_AGENT, **headers}, False
        for _ in range(_REDIRECTS + 1):
            answer = self._exchange(method, url, own, body, what)
            location = answer.headers.get("Location")
            if method not in _SAFE or location is None or not 300 < answer.status < 400:
                return replace(answer, elsewhere=elsewhere)
            following = _follow(url, location, what)
            if urlsplit(following)[:2] != urlsplit(url)[:2]:
                own.pop("Authorization", None)
                elsewhere = True
            url = following
        raise PermanentDestinationError(f"{what}: it redirects in circles")

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, what: str
    ) -> Answer:
        pool = self._pool(url)

        def ask() -> urllib3.BaseHTTPResponse:
            return pool.request(
                method,
                url,
                headers=headers,
                body=body,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )

        try:
            try:
                response = ask()
            except ProtocolError:
                if method not in _SAFE:
                    raise
                response = ask()
            try:
                content = response.read(_LIMIT + 1)
                if len(content) <= _LIMIT:
                    response.read(1)  # raises if the body was cut, which the first read does not
            finally:
                if response.length_remaining == 0 or method == "HEAD":
                    response.release_conn()
                else:
                    response.close()
        except (HTTPError, OSError) as error:
            raise broken(what, error) from None
        return Answer(
            status=response.status,
            reason=response.reason or "",
            headers=response.headers,
            body=content[:_LIMIT],
            whole=len(content) <= _LIMIT,
        )

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = self._proxies.url(parts.scheme, parts.netloc)
        pool = self._pools.get(proxy)
        if pool is None:
            # Of two threads that both make one, the first wins.
            pool = self._pools.setdefault(proxy, pool_manager(proxy, **self._options))
        return pool


def _follow(url: str, location: str, what: str) -> str:
    """Return where a redirect leads to."""
    try:
        following = urljoin(url, location)
        parts = urlsplit(following)
        _ = parts.port  # raises if it is none
        if parts.scheme in {"http", "https"} and parts.hostname:
            return following
    except ValueError:
        pass
    raise PermanentDestinationError(f"{what}: it redirects to what is no URL")
