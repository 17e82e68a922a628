"""Credentials for a registry, from the files that `skopeo login` and `docker login` write.

Spec: containers/image, docs/containers-auth.json.5.md; pkg/docker/config/config.go.
"""

import base64
import binascii
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

    def basic(self) -> str:
        """Return the value of an `Authorization` header."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


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
        for key in _keys(host, prefix):
            found = _entry(config, key, path)
            if found is not None:
                return found
    return None


def write_authfile(path: str, host: str, credentials: Credentials) -> None:
    """Write an authfile for one host that only its owner can read.

    Raises:
        OSError: It exists already, or cannot be written.
    """
    pair = f"{credentials.username}:{credentials.password}".encode()
    content = orjson.dumps({"auths": {host: {"auth": base64.b64encode(pair).decode()}}})
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
            value = orjson.loads(file.read())
    except FileNotFoundError:
        if required:
            raise UsageError(f"the authfile {path} does not exist") from None
        return {}
    except OSError as error:
        raise UsageError(f"the authfile {path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError:
        raise UsageError(f"the authfile {path} is not JSON") from None
    if not isinstance(value, dict):
        raise UsageError(f"the authfile {path} is not a JSON object")
    return cast("dict[str, object]", value)


def _keys(host: str, prefix: str) -> list[str]:
    """Return the keys to look for, most specific first; the last two are docker's old spelling."""
    parts = prefix.split("/") if prefix else []
    paths = ["/".join([host, *parts[:length]]) for length in range(len(parts), 0, -1)]
    return [*paths, host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]


def _entry(config: dict[str, object], key: str, path: str) -> Credentials | None:
    auths, helpers = config.get("auths"), config.get("credHelpers")
    entry = auths.get(key) if isinstance(auths, dict) else None
    helper = helpers.get(key) if isinstance(helpers, dict) else None
    if isinstance(entry, dict) and entry.get("auth"):
        return _decode(entry, key, path)
    # With a store for all hosts docker leaves an empty entry for each host that it knows.
    if helper is not None or (entry is not None and config.get("credsStore")):
        raise UsageError(
            f"{path} keeps the password of {key} in the credential helper "
            f"{helper or config.get('credsStore')}",
            hint="use --username with --password-stdin, or skopeo login --authfile FILE",
        )
    return None


def _decode(entry: dict[str, object], key: str, path: str) -> Credentials:
    try:
        pair = base64.b64decode(str(entry["auth"]), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise UsageError(f"the entry for {key} in {path} is damaged") from None
    username, _, password = pair.partition(":")
    token = entry.get("identitytoken")
    return Credentials(username, password.rstrip("\0"), token if isinstance(token, str) else "")
