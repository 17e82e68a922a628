"""The requests that we need of a registry.

Spec: OCI distribution-spec 1.1: "Pulling manifests" (HEAD), "Mounting a blob from another
repository"; distribution/distribution, docs/spec/api.md.
"""

import ipaddress
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from exporter import __version__
from exporter.credentials import Credentials
from exporter.digest import Digest
from exporter.distribution import tls
from exporter.distribution.problems import answered, broken
from exporter.distribution.tokens import Authenticator, Challenge
from exporter.errors import DestinationError, PermanentDestinationError

_ACCEPT = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.v1+prettyjws, "
    "application/vnd.docker.distribution.manifest.v1+json"
)
_USER_AGENT = f"skopeo-dir/{__version__}"
_CONNECTIONS = 64
_REDIRECTS = 5


class Client:
    """Speaks to one registry. Thread-safe; tries nothing twice but an expired token.

    No cookie is ever kept: a session cookie would make Harbor ask for a CSRF token.

    Args:
        host: `host[:port]`.
        credentials: Whose; anonymous if None.
        tls_verify: False allows unknown certificates, and plain HTTP where HTTPS does not answer.
        cert_dir: Directory of certificates; None looks into the usual ones.
        timeout_seconds: Longest wait for a connection or for the next bytes of an answer.

    Raises:
        UsageError: A certificate cannot be used.
    """

    def __init__(
        self,
        host: str,
        *,
        credentials: Credentials | None = None,
        tls_verify: bool = True,
        cert_dir: str | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        self.host = host
        self._tls_verify = tls_verify
        self._base = f"https://{host}"
        self._pool = _pool(
            host,
            ssl_context=tls.context(host, verify=tls_verify, cert_dir=cert_dir),
            maxsize=_CONNECTIONS,
            block=False,
            retries=False,
            timeout=timeout_seconds,
        )
        self._authenticator = Authenticator(credentials, self._send)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def ping(self) -> None:
        """Find out how the registry is spoken to, and that it lets us in; the first call of all.

        HTTPS first; plain HTTP only if that fails and certificates need not be known, as
        containers/image does (docker_client.go, detectPropertiesHelper).

        Raises:
            DestinationError: It is not to be reached, is no registry, or refuses us.
        """
        what = f"cannot use {self.host}"
        try:
            response = self._send("GET", f"https://{self.host}/v2/", {}, None, what=what)
        except DestinationError:
            if self._tls_verify:
                raise
            response = self._send("GET", f"http://{self.host}/v2/", {}, None, what=what)
            self._base = f"http://{self.host}"
        if response.status == 401:
            self._authenticator.challenge = Challenge.parse(
                response.headers.get("WWW-Authenticate", "")
            )
            header = self._authenticator.header(())
            response = self._send("GET", f"{self._base}/v2/", header, None, what=what)
        if response.status == 404:
            raise PermanentDestinationError(f"{what}: there is no registry (no /v2/)")
        if response.status != 200:
            raise answered(what, response)

    def manifest_digest(self, repository: str, reference: str) -> Digest | None:
        """Return the digest of a manifest; None if the registry does not have it.

        Args:
            repository: Name of the repository at the registry.
            reference: A tag or digest.

        Raises:
            DestinationError: It did not answer, or refuses. Harbor answers 401 where the project
                does not exist, so that is not told apart from wrong credentials.
        """
        path = f"/v2/{repository}/manifests/{reference}"
        scopes = (f"repository:{repository}:pull",)
        what = f"cannot look up {repository} {reference}"
        response = self.request("HEAD", path, scopes=scopes, accept=_ACCEPT, what=what)
        if response.status == 404:
            return None
        if response.status != 200:
            raise answered(what, response)
        stated = response.headers.get("Docker-Content-Digest")
        if stated is None:
            response = self.request("GET", path, scopes=scopes, accept=_ACCEPT, what=what)
            if response.status != 200:
                raise answered(what, response)
            return Digest.of(response.data)
        try:
            return Digest.parse(stated)
        except ValueError:
            raise PermanentDestinationError(f"{what}: it answers with no digest") from None

    def mount(self, repository: str, digest: Digest, source_repository: str) -> bool:
        """Take a blob over from another repository of the same registry, without sending it.

        Returns:
            Whether it is there now. A registry may refuse; then it must be uploaded.

        Raises:
            DestinationError: It did not answer, or refuses for more than this blob.
        """
        path = f"/v2/{repository}/blobs/uploads/?mount={digest}&from={source_repository}"
        scopes = (f"repository:{repository}:pull,push", f"repository:{source_repository}:pull")
        what = f"cannot mount {digest} into {repository}"
        response = self.request("POST", path, scopes=scopes, what=what)
        if response.status == 201:
            return True
        if response.status == 202:
            # Not mounted: it opened an upload instead, which would stay behind as a directory.
            location = response.headers.get("Location")
            if location:
                url = urljoin(f"{self._base}{path}", location)
                if urlsplit(url).netloc == self.host:
                    self._send("DELETE", url, self._authenticator.header(scopes), None, what=what)
            return False
        if response.status in {400, 404, 405}:
            return False
        raise answered(what, response)

    def request(
        self,
        method: str,
        path: str,
        *,
        scopes: tuple[str, ...] = (),
        accept: str | None = None,
        what: str,
    ) -> urllib3.BaseHTTPResponse:
        """Send an authenticated request and return the answer, whatever its status.

        Args:
            method: GET, HEAD, POST, ...
            path: Path with query, from the root of the host.
            scopes: What a bearer token must allow.
            accept: Value of the Accept header.
            what: Beginning of the sentence if it fails.

        Raises:
            DestinationError: No complete answer came, or no token.
        """
        plain = {} if accept is None else {"Accept": accept}
        url = f"{self._base}{path}"
        headers = plain | self._authenticator.header(scopes)
        response = self._send(method, url, headers, None, what=what)
        if response.status == 401 and self._authenticator.forget(scopes):
            headers = plain | self._authenticator.header(scopes)
            response = self._send(method, url, headers, None, what=what)
        return response

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        what: str = "cannot get a token",
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and read the whole answer; redirects to another host lose the secret."""
        own = dict(headers)
        for _ in range(_REDIRECTS):
            try:
                response = self._pool.request(
                    method,
                    url,
                    headers={"User-Agent": _USER_AGENT, **own},
                    body=body,
                    redirect=False,
                )
            except (HTTPError, OSError) as error:
                raise broken(what, error) from None
            location = response.headers.get("Location")
            if response.status not in {301, 302, 303, 307, 308} or not location:
                return response
            following = urljoin(url, location)
            if urlsplit(following)[:2] != urlsplit(url)[:2]:
                own.pop("Authorization", None)
            url = following
        raise PermanentDestinationError(f"{what}: it redirects in circles")


def _pool(host: str, **options: object) -> urllib3.PoolManager:
    """Return a pool that goes through the proxy of the environment, as skopeo does."""
    proxy = urllib.request.getproxies().get("https")
    if proxy is None or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return urllib3.PoolManager(**options)  # type: ignore[arg-type]
    return urllib3.ProxyManager(proxy, **options)  # type: ignore[arg-type]


def _is_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
