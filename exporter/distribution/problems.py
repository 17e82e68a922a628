"""What an answer or a broken connection means: whose fault it is, and whether to try again.

Spec: OCI distribution-spec, "Error Codes"; RFC 9110, section 10.2.3 (Retry-After).
"""

import email.utils
import time
from datetime import UTC

import orjson
import urllib3
from urllib3.exceptions import HTTPError

from exporter.errors import (
    DestinationError,
    PermanentDestinationError,
    TemporaryDestinationError,
)

_TEMPORARY = frozenset({408, 425, 429})
_LONGEST = 300
_PLAIN_HTTP = "the destination speaks plain HTTP: pass --dest-tls-verify=false"
_UNKNOWN_CA = "pass --dest-cert-dir with the directory that holds its CA certificate"
_CREDENTIALS = "check the credentials and what they may do there"


def answered(what: str, response: urllib3.BaseHTTPResponse) -> DestinationError:
    """Return what an answer that is no success means.

    Args:
        what: What was asked, as a sentence's beginning.
        response: The answer; its body may have been read or not.
    """
    status = response.status
    said = _said(response)
    sentence = f"{what}: {status} {said}".rstrip()
    if status >= 500 or status in _TEMPORARY:
        return TemporaryDestinationError(
            sentence, retry_after_seconds=_seconds(response.headers.get("Retry-After"))
        )
    hint = _CREDENTIALS if status in {401, 403} else ""
    return PermanentDestinationError(sentence, hint=hint)


def broken(what: str, error: HTTPError | OSError) -> DestinationError:
    """Return what it means that no complete answer came.

    A certificate or protocol mismatch stays what it is; everything else may pass.
    """
    text = " ".join(str(error).split())
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return PermanentDestinationError(
            f"{what}: its certificate is signed by an unknown authority or is not for this name",
            hint=_UNKNOWN_CA,
        )
    if "WRONG_VERSION_NUMBER" in text or "wrong version number" in text:
        return PermanentDestinationError(
            f"{what}: it answers plain HTTP where HTTPS is expected", hint=_PLAIN_HTTP
        )
    if "SSLError" in type(error).__name__ or "SSL:" in text:
        return PermanentDestinationError(f"{what}: TLS failed: {clean(text)}")
    for words, reason in (
        ("Connection refused", "connection refused"),
        ("Name or service not known", "no such host"),
        ("Temporary failure in name resolution", "its name cannot be resolved"),
        ("No address associated", "no such host"),
        ("timed out", "no answer in time"),
        ("No route to host", "no route to it"),
        ("Network is unreachable", "the network is unreachable"),
        ("reset by peer", "the connection was reset"),
    ):
        if words in text:
            return TemporaryDestinationError(f"{what}: {reason}")
    return TemporaryDestinationError(f"{what}: the connection broke: {clean(text)}")


def clean(text: str) -> str:
    """Return text of a stranger as one short line without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _said(response: urllib3.BaseHTTPResponse) -> str:
    """Return the registry's own code and message, if it sent any."""
    try:
        errors = orjson.loads(response.data)["errors"]
        first = errors[0]
        return clean(f"{first.get('code', '')} {first.get('message', '')}")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, HTTPError):
        return clean(response.reason or "")


def _seconds(value: str | None) -> float | None:
    """Return what Retry-After asks for, in seconds from now; None if it says nothing usable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - time.time())
