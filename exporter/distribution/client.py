"""The requests that we need of a registry.

Spec: OCI distribution-spec 1.1: "Pulling manifests" (HEAD), "Mounting a blob from another
repository"; distribution/distribution, docs/spec/api.md.
"""

from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

from exporter.credentials import Credentials
from exporter.digest import Digest
from exporter.distribution import tls
from exporter.distribution.answers import Answer, answered
from exporter.distribution.tokens import Authenticator, Scopes
from exporter.distribution.transport import Transport
from exporter.errors import DestinationError, PermanentDestinationError

_ACCEPT = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.v1+prettyjws, "
    "application/vnd.docker.distribution.manifest.v1+json"
)


class Client:
    """Speaks to one registry. Thread-safe. What fails is not tried again; the callers know how.

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
        context = tls.context(host, verify=tls_verify, cert_dir=cert_dir)
        self._transport = Transport(context, timeout_seconds=timeout_seconds)
        self._authenticator = Authenticator(credentials, self._transport)

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
        self._transport.close()

    def ping(self) -> None:
        """Find out how the registry is spoken to, and that it lets us in; the first call of all.

        HTTPS first; plain HTTP only if that fails and certificates need not be known, as
        containers/image does (docker_client.go, detectPropertiesHelper).

        Raises:
            DestinationError: It is not to be reached, is no registry, or refuses us.
            UsageError: The proxy that the environment names cannot be used.
        """
        what = f"cannot use {self.host}"
        try:
            self._transport.send("GET", f"{self._base}/v2/", {}, what=what)
        except DestinationError:
            if self._tls_verify or not self._speaks_plain_http():
                raise
            self._base = f"http://{self.host}"
        answer = self.request("GET", "/v2/", what=what)
        if answer.status == 404:
            raise PermanentDestinationError(f"{what}: it is no registry (no /v2/)")
        if answer.status != 200:
            raise answered(what, answer)

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
        answer = self.request("HEAD", path, scopes=scopes, accept=_ACCEPT, what=what)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise answered(what, answer)
        stated = answer.headers.get("Docker-Content-Digest")
        if stated is None:
            answer = self.request("GET", path, scopes=scopes, accept=_ACCEPT, what=what)
            if answer.status != 200:
                raise answered(what, answer)
            if not answer.whole:
                raise PermanentDestinationError(f"{what}: it is too long for a manifest")
            algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
            return Digest.of(answer.body, algorithm=algorithm)
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
        answer = self.request("POST", path, scopes=scopes, what=what)
        if answer.status == 201:
            return True
        if answer.status == 202:
            self._cancel(path, repository, answer.headers.get("Location", ""))
            return False
        if answer.status in {400, 404, 405}:
            return False
        raise answered(what, answer)

    def request(
        self, method: str, path: str, *, scopes: Scopes = (), accept: str | None = None, what: str
    ) -> Answer:
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
        headers = {} if accept is None else {"Accept": accept}
        url = f"{self._base}{path}"
        return self._authenticator.send(method, url, headers, scopes=scopes, what=what)

    def _speaks_plain_http(self) -> bool:
        try:
            answer = self._transport.send("GET", f"http://{self.host}/v2/", {}, what="")
        except DestinationError:
            return False
        return answer.status != 400  # which is how a TLS server answers plain HTTP

    def _cancel(self, path: str, repository: str, location: str) -> None:
        """Cancel the upload that a registry opened instead of mounting; it may stay if it must.

        Whatever host the location names, ours is asked: nobody else may see the credentials.
        Spec: distribution, registry/handlers/app.go, appendAccessRecords: DELETE needs `delete`.
        """
        with suppress(DestinationError, ValueError):
            url = urlsplit(urljoin(f"{self._base}{path}", location))
            if location and url.netloc == self.host:
                target = f"{url.path}?{url.query}" if url.query else url.path
                scopes = (f"repository:{repository}:delete",)
                self.request("DELETE", target, scopes=scopes, what="cannot cancel an upload")
