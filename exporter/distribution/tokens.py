"""Authentication: what a registry's challenge asks for, and bearer tokens kept until they expire.

Spec: distribution/distribution, docs/spec/auth/token.md, oauth.md and scope.md; RFC 9110,
section 11.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlencode, urlsplit

import orjson

from exporter.credentials import Credentials
from exporter.distribution.answers import Answer, answered, clean
from exporter.distribution.transport import Transport
from exporter.errors import PermanentDestinationError

Scopes = tuple[str, ...]
"""What a request needs, as `repository:NAME:ACTIONS` each."""

_WORD = r"[\w!#$%&'*+.^`|~-]+"
# A scheme stands alone, a parameter has a value; commas separate both, so they tell nothing.
_ITEM = re.compile(rf'({_WORD})(?:\s*(=)\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?', re.ASCII)
_TOKEN = re.compile(r"[\x21-\x7e]+")
_SHORTEST_SECONDS = 60.0  # token.md: no token lives shorter, and so long if it does not say
_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Challenge:
    """What `WWW-Authenticate` asks for: `basic`, or `bearer` with where to get a token.

    The scope that it names is left out: we know what we need.
    """

    scheme: str
    realm: str
    service: str

    @classmethod
    def parse(cls, header: str) -> Self | None:
        """Return the first challenge of a header that can be met; None if there is none.

        A header may hold several, in any order, as may several headers joined by commas.
        """
        for scheme, parameters in _challenges(header):
            realm = parameters.get("realm", "")
            if scheme == "basic" or (scheme == "bearer" and _is_url(realm)):
                return cls(scheme, realm, parameters.get("service", ""))
        return None


@dataclass(frozen=True, slots=True)
class _Token:
    authorization: str
    expires: float


class Authenticator:
    """Sends requests with the `Authorization` that they need. Thread-safe.

    What the registry asks for is learnt from its first 401, which some send for a push only.

    Args:
        credentials: Whose; anonymous if None.
        transport: Also speaks to the token realm, which may be another host.
        clock: Seconds since any moment.
    """

    def __init__(
        self,
        credentials: Credentials | None,
        transport: Transport,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._transport = transport
        self._clock = clock
        self._challenge: Challenge | None = None
        self._lock = threading.Lock()
        self._tokens: dict[Scopes, _Token] = {}

    def send(
        self, method: str, url: str, headers: Mapping[str, str], *, scopes: Scopes, what: str
    ) -> Answer:
        """Send a request and return the answer, whatever its status.

        After a 401 it is sent again, once, if there is something else to show: the registry had
        not said before what it wants, or the token was not a new one. A new one that is refused
        is not worth another: then it is the permission that is missing.

        Raises:
            DestinationError: No complete answer came, or no token.
        """
        challenge, kept = self._challenge, self._kept(scopes)
        shown = kept or self._authorization(challenge, scopes)
        answer = self._transport.send(method, url, {**headers, **shown}, what=what)
        if answer.status != 401 or answer.elsewhere:
            return answer  # only the registry itself may say who is to see the credentials
        asked = Challenge.parse(answer.headers.get("WWW-Authenticate", "")) or challenge
        self._challenge = asked
        self._drop(scopes, shown)
        if asked == challenge and not kept:
            return answer
        other = self._kept(scopes) or self._authorization(asked, scopes)
        if other == shown:
            return answer
        return self._transport.send(method, url, {**headers, **other}, what=what)

    def _kept(self, scopes: Scopes) -> dict[str, str]:
        with self._lock:
            token = self._tokens.get(scopes)
        if token is None or self._clock() >= token.expires:
            return {}
        return {"Authorization": token.authorization}

    def _drop(self, scopes: Scopes, shown: Mapping[str, str]) -> None:
        """Forget a token that was refused, unless another thread has put a new one there."""
        with self._lock:
            token = self._tokens.get(scopes)
            if token is not None and token.authorization == shown.get("Authorization"):
                del self._tokens[scopes]

    def _authorization(self, challenge: Challenge | None, scopes: Scopes) -> dict[str, str]:
        """Return what meets a challenge; nothing if nobody has asked or there is nothing to show.

        Two threads may both ask for one token: harmless, and no lock is held meanwhile.
        """
        if challenge is None:
            return {}
        if challenge.scheme == "bearer":
            token = self._new_token(challenge, scopes)
            with self._lock:
                self._tokens[scopes] = token
            return {"Authorization": token.authorization}
        return {} if self._credentials is None else {"Authorization": self._credentials.basic()}

    def _new_token(self, challenge: Challenge, scopes: Scopes) -> _Token:
        what = f"cannot get a token from {clean(urlsplit(challenge.realm).netloc)}"
        began = self._clock()
        answer = self._ask(challenge, scopes, what)
        if answer.status != 200:
            raise answered(what, answer)
        try:
            found = orjson.loads(answer.body)
            text = found.get("token") or found.get("access_token")
            seconds = found.get("expires_in")
        except (ValueError, AttributeError):
            text, seconds = None, None
        # One with a space or line break in it would end the header, or be quoted in an error.
        if not isinstance(text, str) or _TOKEN.fullmatch(text) is None:
            raise PermanentDestinationError(f"{what}: it answers with none")
        lives = seconds if isinstance(seconds, int | float) else 0.0
        expires = began + max(lives, _SHORTEST_SECONDS) - _MARGIN_SECONDS
        return _Token(f"Bearer {text}", expires)

    def _ask(self, challenge: Challenge, scopes: Scopes, what: str) -> Answer:
        service = [("service", challenge.service)] if challenge.service else []
        found = self._credentials
        if found is not None and found.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                ("client_id", "skopeo-dir"),
                ("refresh_token", found.identity_token),
                ("scope", " ".join(scopes)),
                *service,
            ]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            body = urlencode(form).encode()
            return self._transport.send("POST", challenge.realm, headers, body=body, what=what)
        query = urlencode([*service, *(("scope", scope) for scope in scopes)])
        separator = "&" if "?" in challenge.realm else "?"
        url = f"{challenge.realm}{separator}{query}"
        headers = {} if found is None else {"Authorization": found.basic()}
        return self._transport.send("GET", url, headers, what=what)


def _challenges(header: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the schemes and parameters of a header, their names in lower case."""
    scheme, parameters = "", dict[str, str]()
    for item in _ITEM.finditer(header):
        name, equals, quoted, bare = item.groups()
        if equals is None:
            yield scheme, parameters
            scheme, parameters = name.lower(), {}
        else:
            parameters[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if bare is None else bare
    yield scheme, parameters


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
