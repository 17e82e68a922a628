"""Authentication: what a registry's challenge asks for, and bearer tokens kept until they expire.

Spec: distribution/distribution, docs/spec/auth/token.md and scope.md; RFC 9110, section 11.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import orjson
import urllib3

from exporter.credentials import Credentials
from exporter.distribution.problems import answered
from exporter.errors import PermanentDestinationError

Send = Callable[[str, str, Mapping[str, str], bytes | None], urllib3.BaseHTTPResponse]
"""Sends a method, URL, headers and body. Raises: DestinationError."""

_PARAMETER = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_DEFAULT_SECONDS = 60.0  # token.md: without expires_in
_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Challenge:
    """What `WWW-Authenticate` asks for: a scheme in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]

    @classmethod
    def parse(cls, header: str) -> "Challenge":
        """Return the challenge of a header; its scheme is empty if there is no header."""
        scheme, _, rest = header.partition(" ")
        return cls(scheme.lower(), dict(_PARAMETER.findall(rest)))


class Authenticator:
    """Gives the `Authorization` header for a request. Thread-safe.

    Args:
        credentials: Whose; anonymous if None.
        send: Asks the token realm, which may be another host.
    """

    def __init__(self, credentials: Credentials | None, send: Send) -> None:
        self._credentials = credentials
        self._send = send
        self._lock = threading.Lock()
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}
        self.challenge = Challenge("", {})

    def header(self, scopes: tuple[str, ...]) -> dict[str, str]:
        """Return the header for a request that needs these scopes; none if nobody asked for any.

        Raises:
            DestinationError: The token realm refused or is not to be reached.
        """
        if self.challenge.scheme == "basic" and self._credentials is not None:
            return {"Authorization": self._credentials.basic()}
        if self.challenge.scheme != "bearer":
            return {}
        with self._lock:
            token, expires = self._tokens.get(scopes, ("", 0.0))
        if time.monotonic() >= expires:
            # Two threads may both ask: harmless, and the lock is not held while the realm thinks.
            token, seconds = self._ask(scopes)
            with self._lock:
                self._tokens[scopes] = token, time.monotonic() + seconds - _MARGIN_SECONDS
        return {"Authorization": f"Bearer {token}"}

    def forget(self, scopes: tuple[str, ...]) -> bool:
        """Drop a token that was refused; return whether there was one, so a new one may do."""
        with self._lock:
            return self._tokens.pop(scopes, None) is not None

    def _ask(self, scopes: tuple[str, ...]) -> tuple[str, float]:
        realm = self.challenge.parameters.get("realm", "")
        if not realm.startswith(("https://", "http://")):
            raise PermanentDestinationError("the destination's challenge names no token realm")
        service = self.challenge.parameters.get("service", "")
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        found = self._credentials
        if found is not None and found.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                ("client_id", "skopeo-dir"),
                ("refresh_token", found.identity_token),
                *([("service", service)] if service else []),
                *([("scope", " ".join(scopes))] if scopes else []),
            ]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._send("POST", realm, headers, urlencode(form).encode())
        else:
            headers = {} if found is None else {"Authorization": found.basic()}
            separator = "&" if "?" in realm else "?"
            response = self._send("GET", f"{realm}{separator}{urlencode(query)}", headers, None)
        if response.status != 200:
            raise answered("the token realm refused", response)
        try:
            answer = orjson.loads(response.data)
            token = answer.get("token") or answer["access_token"]
            seconds = answer.get("expires_in") or _DEFAULT_SECONDS
            return str(token), max(float(seconds), _DEFAULT_SECONDS)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PermanentDestinationError("the token realm gave no token") from None
