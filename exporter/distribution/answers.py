"""What came of a request: an answer, or none; whose fault that is, and whether to try again.

Spec: OCI distribution-spec, "Error Codes"; RFC 9110, section 10.2.3 (Retry-After).
"""

import email.utils
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC

import orjson
from urllib3.exceptions import HTTPError, ProxyError

from exporter.errors import (
    DestinationError,
    PermanentDestinationError,
    TemporaryDestinationError,
)

_TEMPORARY = frozenset({408, 425, 429})
_LONGEST = 300
_MOST_SECONDS = 300.0  # who waits longer looks hung; a temporary failure may be tried again anyhow
_CREDENTIALS = (
    "check the credentials (--authfile, or --username with --password-stdin) "
    "and what they may do there"
)
_PLAIN_HTTP = "if it has no TLS, pass --dest-tls-verify=false"
_UNKNOWN_CA = "pass --dest-cert-dir with the directory that holds its CA certificate (*.crt)"
_OTHER_NAME = "call the destination by a name that its certificate has"
# What OpenSSL makes of an answer that is no TLS; the word depends on its version.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
# Spec: openssl, x509_vfy.h: no chain to a known authority; host name and IP address mismatch.
_CERTIFICATE_HINTS = {
    **dict.fromkeys((2, 18, 19, 20, 21, 27), _UNKNOWN_CA),
    **dict.fromkeys((62, 64), _OTHER_NAME),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server answered.

    Attributes:
        status: 100 to 999.
        reason: The words behind the status, if any.
        headers: By name in any case; those sent twice are joined by a comma.
        body: At most a few MiB of it, as they came.
        whole: Whether that is all of it.
        elsewhere: Whether a redirect led to another origin, which gave this answer.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    whole: bool
    elsewhere: bool = False


def answered(what: str, answer: Answer) -> DestinationError:
    """Return what an answer that is no success means.

    Args:
        what: What was asked, as a sentence's beginning.
        answer: The answer.
    """
    status = answer.status
    sentence = f"{what}: {status} {_said(answer)}".rstrip()
    if status >= 500 or status in _TEMPORARY:
        seconds = _seconds(answer.headers.get("Retry-After"))
        return TemporaryDestinationError(sentence, retry_after_seconds=seconds)
    hint = _CREDENTIALS if status in {401, 403} else ""
    return PermanentDestinationError(sentence, hint=hint)


def broken(what: str, error: HTTPError | OSError) -> DestinationError:
    """Return what it means that no complete answer came.

    A certificate or protocol mismatch stays what it is; everything else may pass.
    """
    causes = list(_causes(error))
    if any(isinstance(cause, ProxyError) for cause in causes):
        what = f"{what}: through the proxy of the environment"
    for cause in reversed(causes):  # the innermost knows best
        found = _of_tls(what, cause) or _of_network(what, cause)
        if found is not None:
            return found
    return TemporaryDestinationError(f"{what}: the connection broke: {clean(str(causes[-1]))}")


def clean(text: str) -> str:
    """Return text of a stranger as one short line without control characters."""
    text = text[: 4 * _LONGEST]
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _of_tls(what: str, cause: BaseException) -> DestinationError | None:
    match cause:
        case ssl.SSLCertVerificationError():
            return PermanentDestinationError(
                f"{what}: its certificate is not trusted: {clean(cause.verify_message)}",
                hint=_CERTIFICATE_HINTS.get(cause.verify_code, ""),
            )
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return TemporaryDestinationError(f"{what}: the connection was closed")
        case ssl.SSLError(reason=reason) if reason in _NOT_TLS:
            return PermanentDestinationError(f"{what}: it does not speak TLS", hint=_PLAIN_HTTP)
        case ssl.SSLError():
            said = (cause.reason or str(cause)).replace("_", " ").lower()
            return PermanentDestinationError(f"{what}: TLS failed: {clean(said)}")
        case _:
            return None


def _of_network(what: str, cause: BaseException) -> DestinationError | None:
    match cause:
        case socket.gaierror():
            return TemporaryDestinationError(f"{what}: its name cannot be resolved")
        case TimeoutError():
            return TemporaryDestinationError(f"{what}: no answer in time")
        case OSError(strerror=str(words)):
            return TemporaryDestinationError(f"{what}: {clean(words).lower()}")
        case _:
            return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those it was made of, outermost first.

    Not `__context__`: that may be an earlier failure which has nothing to do with this one.
    """
    yield error
    inner = {id(part): part for part in (error.__cause__, *error.args)}
    for part in inner.values():
        if isinstance(part, BaseException):
            yield from _causes(part)


def _said(answer: Answer) -> str:
    """Return the registry's own code and message, if it sent any."""
    try:
        first = orjson.loads(answer.body)["errors"][0]
        said = clean(f"{first.get('code') or ''} {first.get('message') or ''}")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        said = ""
    return said or clean(answer.reason)


def _seconds(value: str | None) -> float | None:
    """Return what Retry-After asks for, in seconds from now; None if it says nothing usable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(float(value), _MOST_SECONDS)
    try:
        when = email.utils.parsedate_to_datetime(value)
        # A date without a zone is GMT; `timestamp` would take it for local time.
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), _MOST_SECONDS)
