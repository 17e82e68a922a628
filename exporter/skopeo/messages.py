"""What skopeo's error texts mean: whose fault it is, and whether another try may help.

Spec: the texts are those of containers/image (docker/docker_image_dest.go, docker/errors.go,
copy/) as skopeo 1.9.3 prints them; tests/test_skopeo.py holds them.
"""

import re

from exporter.digest import Digest
from exporter.errors import (
    PermanentDestinationError,
    SkopeoDirError,
    SourceError,
    TemporaryDestinationError,
    UsageError,
)


class ChildrenFirst(SourceError):  # noqa: N818 - it says what to do about it
    """Skopeo cannot push this index in one go, but each child by its digest, then it alone."""


MAX_SENTENCE = 400
"""Longest error sentence in characters; the middle of a longer one is cut out."""


def explain(stderr: str, *, source: str) -> SkopeoDirError:
    """Return what a failed `skopeo copy` meant, as the error to raise. Pure.

    Args:
        stderr: What it printed.
        source: The image directory, as it was given to skopeo.
    """
    message = _fatal(stderr)
    sentence = _sentence(message)
    if re.search(rf"\b(?:open|l?stat|read) {re.escape(source)}[/:]", message):
        return SourceError(sentence, hint=_EXPORT_AGAIN)
    if status := _STATUS.search(message):
        code = int(status[1])
        if code >= 500 or code in _TEMPORARY_STATUSES:
            return TemporaryDestinationError(sentence)
        return PermanentDestinationError(sentence)
    for pattern, error, hint in _RULES:
        if pattern.search(message):
            return error(sentence, hint=hint)
    return TemporaryDestinationError(sentence)


def uploaded_digest(line: str) -> Digest | None:
    """Return the blob whose upload a line of the debug log ends; None for any other line.

    Spec: containers/image, docker/docker_image_dest.go, PutBlob: "Upload of layer %s complete";
    it says so of configs too, and not of a blob that was there already.
    """
    found = _UPLOADED.search(line)
    return Digest.parse(found[1]) if found is not None else None


def is_throttled(line: str) -> bool:
    """Tell if a line of the debug log says that skopeo waits because it asked too much (429).

    It does so by itself, up to five times with growing waits, and may succeed after all.

    Spec: containers/image, docker/docker_client.go, makeRequestToResolvedURL.
    """
    return "Too many requests to " in line and ": sleeping for " in line


def is_last_request(line: str, reference: str) -> bool:
    """Tell if a line of the debug log says that all is sent but the manifest, which is being put.

    Args:
        line: The line.
        reference: The tag or digest that the copy puts last; the children of an index go before.

    Spec: containers/image, docker/docker_client.go, makeRequestToResolvedURLOnce: the method and
    the URL, before the request is sent.
    """
    return f'/manifests/{reference}"' in line and 'msg="PUT ' in line


_UPLOADED = re.compile(r"Upload of layer (sha256:[0-9a-f]{64}) complete")
_EXPORT_AGAIN = "check the source and export the image again"
_TEMPORARY_STATUSES = frozenset({408, 425, 429})

# The four ways in which containers/image prints an HTTP status.
_STATUS = re.compile(
    r"(?:unexpected HTTP status: |\bStatusCode: |invalid status code from registry "
    r"|failed to read from destination repository \S+: )(\d{3})\b"
)

# What a text without a status means; the first row that is found decides.
_RULES: tuple[tuple[re.Pattern[str], type[SkopeoDirError], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), error, hint)
    for pattern, error, hint in (
        (
            (
                r"digest did not match|does not match (?:expected|provided manifest digest)"
                r"|\b(?:for|from source|initializing source|invalid source name) dir:"
            ),
            SourceError,
            _EXPORT_AGAIN,
        ),
        (
            # An index in an index, and, in 1.14 to 1.22, an OCI index with zstd children
            # (containers/skopeo issue 2627).
            r"unexpectedly received a manifest list|manifest list must be converted",
            ChildrenFirst,
            "",
        ),
        (
            # What skopeo cannot copy as it is: sha512 blobs, raw schema 1.
            (
                r"saved with digest|embedded docker reference"
                r"|would not match destination reference"
            ),
            SourceError,
            "",
        ),
        (
            r"loading trust policy",
            UsageError,
            "pass --insecure-policy, or --policy with the path of a policy.json",
        ),
        (r"^unknown (?:shorthand )?(?:flag|command)|invalid argument", UsageError, ""),
        (r"reading JSON file|getting username and password", UsageError, "check the authfile"),
        (
            r"server gave HTTP response to HTTPS client|first record does not look like a TLS",
            PermanentDestinationError,
            "the destination speaks plain HTTP: pass --dest-tls-verify=false",
        ),
        (
            r"x509: ",
            PermanentDestinationError,
            "pass --dest-cert-dir with the directory that holds its CA certificate",
        ),
        (r"\btls: |unsupported protocol scheme", PermanentDestinationError, ""),
        # Skopeo has seen every blob and pushed every child before: distribution 2.x empties a link
        # file before it writes it, so who asks while another push writes the same finds nothing.
        (r"blob unknown to registry", TemporaryDestinationError, ""),
        (r"toomanyrequests|too many requests|\bunavailable: ", TemporaryDestinationError, ""),
        # A request that got no answer: Go names its method and URL.
        (r'\b(?:get|head|post|put|patch) "?https?://', TemporaryDestinationError, ""),
        (
            r"unauthorized|authentication required|invalid username/password",
            PermanentDestinationError,
            "check the credentials and their right to push there",
        ),
        # Of an answer with a registry's own JSON errors, always a 4xx, only these are printed.
        (
            r"denied|initiating layer upload|uploading (?:layer|manifest)|invalid destination name",
            PermanentDestinationError,
            "",
        ),
    )
)

_LINE = re.compile(r'^time="?[^" ]*"? level=(\w+) msg=(?:"((?:[^"\\]|\\.)*)"|(\S*))', re.MULTILINE)
_SYNC_ERROR = re.compile(
    r'level=error msg="Error copying ref (?:[^"\\]|\\.)*" error="((?:[^"\\]|\\.)*)"'
)
_ESCAPE = re.compile(r'\\(["\\ntr])')
_INDEX_REFUSED = re.compile(r"Upload of manifest list type \S+ failed: (.*)", re.DOTALL)


def _fatal(stderr: str) -> str:
    """Return the message of the last fatal line, or the last line if there is none."""
    lines = [(level, _unescape(quoted or bare)) for level, quoted, bare in _LINE.findall(stderr)]
    message = next((text for level, text in reversed(lines) if level == "fatal"), None)
    if message is None:
        return stderr.strip().rpartition("\n")[2]
    if message.startswith("Sync failed due to previous reported error"):
        errors: list[str] = _SYNC_ERROR.findall(stderr)
        message = _unescape(errors[-1]) if errors else message
    if "must be converted" in message:
        # When a registry refuses an index, skopeo tries the next format, may not convert, and
        # reports only that; the refusal is in the debug log (copy/copy.go, copyMultipleImages).
        refusals = [found[1] for _, text in lines if (found := _INDEX_REFUSED.match(text))]
        message = refusals[0] if refusals else message
    return message


def _unescape(text: str) -> str:
    """Undo logrus' quoting; line breaks become blanks, control characters stay escaped."""
    return _ESCAPE.sub(lambda match: match[1] if match[1] in '"\\' else " ", text)


def _sentence(message: str) -> str:
    """Return `message` short enough to read, without what must not be in a log."""
    # Upload URLs carry the registry's signed state, token URLs the account.
    text = re.sub(r"\?[\w.%-]+=[^\s\":]*", "", message)
    text = re.sub(r"://[^/\s\"@]*@", "://", text)
    text = re.sub(r'(StatusCode: \d{3}), (?:"?\s*<.*)?$', r"\1", text)  # a proxy's HTML page
    text = " ".join(text.split()).rstrip(".") or "skopeo failed and did not say why"
    if len(text) > MAX_SENTENCE:  # its beginning says where, its end says why
        head = MAX_SENTENCE // 3
        text = f"{text[:head]} … {text[head + 3 - MAX_SENTENCE :]}"
    return text
