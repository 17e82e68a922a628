"""Credentials for a registry, from the files that `skopeo login` and `docker login` write.

Spec: containers/image, docs/containers-auth.json.5.md; pkg/docker/config/config.go.
"""

import base64
import os
from dataclasses import dataclass, field
from typing import cast

import orjson

from exporter.errors import UsageError


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password; the password is left out of `repr`.

    Attributes:
        username: User or robot account.
        password: Its password; empty if there is an identity token.
        identity_token: OAuth2 refresh token that a registry gave instead of a password.
    """

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def pair(self) -> str:
        """User and password as authfiles and headers have them: base64 of `user:password`."""
        # Bytes of a password that are no UTF-8 come as surrogates, and go as they came.
        return base64.b64encode(
            f"{self.username}:{self.password}".encode(errors="surrogateescape")
        ).decode()

    def basic(self) -> str:
        """Return the value of an `Authorization` header."""
        return f"Basic {self.pair}"


def find(host: str, authfile: str | None, *, prefix: str = "") -> Credentials | None:
    """Return the credentials for a host; None if no file has any.

    Args:
        host: `host[:port]`.
        authfile: The only file to look into; None looks into the usual ones, in their order.
        prefix: Path of a repository or namespace there; an entry for it beats one for the host.

    Raises:
        UsageError: A file is malformed, or keeps this host's password in a credential helper.
    """
    paths = [authfile] if authfile is not None else _usual_files()
    for path in paths:
        config = _load(path, required=authfile is not None)
        found = _search(config, host, prefix, path)
        if found is not None:
            return found
    return None


def write_authfile(path: str, host: str, credentials: Credentials) -> None:
    """Write an authfile for one host that only its owner can read.

    Raises:
        OSError: It exists already, or cannot be written.
    """
    content = orjson.dumps({"auths": {host: {"auth": credentials.pair}}})
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)


def _usual_files() -> list[str]:
    environment = os.environ
    if chosen := environment.get("REGISTRY_AUTH_FILE"):
        return [chosen]
    home = os.path.expanduser("~")
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}"
    config = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
    return [
        f"{runtime}/containers/auth.json",
        f"{config}/containers/auth.json",
        f"{environment.get('DOCKER_CONFIG') or f'{home}/.docker'}/config.json",
    ]


def _load(path: str, *, required: bool) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            value: object = orjson.loads(file.read())
    except FileNotFoundError:
        if required:
            raise UsageError(f"the authfile {path} does not exist") from None
        return {}
    except OSError as error:
        raise UsageError(f"the authfile {path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError:
        raise UsageError(f"the authfile {path} is not JSON") from None
    return _object(value, f"the authfile {path}")


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise UsageError(f"{what} is not a JSON object")
    return cast("dict[str, object]", value)


def _search(config: dict[str, object], host: str, prefix: str, path: str) -> Credentials | None:
    """Return what an authfile has for a host, or for the most specific part of a prefix there."""
    auths = _object(config.get("auths") or {}, f"auths in {path}")
    helpers = _object(config.get("credHelpers") or {}, f"credHelpers in {path}")
    parts = prefix.split("/") if prefix else []
    keys = ["/".join((host, *parts[:length])) for length in range(len(parts), -1, -1)]
    # Docker's old spelling: https://HOST/v1/.
    keys += [key for key in auths if "://" in key and key.split("/")[2] == host]
    for key in keys:
        helper = helpers.get(key)
        if key in auths:
            entry = _object(auths[key] or {}, f"the entry for {key} in {path}")
            if entry.get("auth") or entry.get("identitytoken"):
                return _decode(entry, key, path)
            # With a store for all hosts docker leaves an empty entry for each host it knows.
            helper = helper or config.get("credsStore")
        if helper:
            raise UsageError(
                f"{path} keeps the password of {key} in the credential helper {helper}",
                hint="use --username with --password-stdin, or skopeo login --authfile FILE",
            )
    return None


def _decode(entry: dict[str, object], key: str, path: str) -> Credentials:
    auth, token = entry.get("auth") or "", entry.get("identitytoken") or ""
    damaged = f"the entry for {key} in {path} is damaged"
    if not isinstance(auth, str) or not isinstance(token, str):
        raise UsageError(damaged)
    try:
        pair = base64.b64decode(auth, validate=True).decode()
    except ValueError:
        raise UsageError(damaged) from None
    username, colon, password = pair.partition(":")
    if not colon and not token:
        raise UsageError(f"the entry for {key} in {path} has no password")
    return Credentials(username, password.strip("\0"), token)
