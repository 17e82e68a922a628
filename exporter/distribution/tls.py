"""Certificates for a host, from the directories where container tools keep them.

Spec: containers/image, docs/containers-certs.d.5.md; docker/docker_client.go, dockerCertDir;
pkg/tlsclientconfig.
"""

import os
import ssl

from exporter.errors import UsageError

_DIRECTORIES = ("~/.config/containers/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d")


def context(host: str, *, verify: bool, cert_dir: str | None) -> ssl.SSLContext:
    """Return how to speak TLS to a host.

    Args:
        host: `host[:port]`, the name of its directory below the usual ones.
        verify: Whether its certificate must be signed by a known authority.
        cert_dir: The only directory to look into, the first of the usual ones that has a directory
            for the host if None. `*.crt` are authorities, `NAME.cert` with `NAME.key` our own
            certificate.

    Raises:
        UsageError: A directory or file is missing, damaged or cannot be read.
    """
    made = ssl.create_default_context()
    # Python 3.13 demands more of a private CA than skopeo does.
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    directory = cert_dir or _usual_directory(host)
    if directory is not None:
        try:
            names = sorted(os.listdir(directory))
        except OSError as error:
            raise UsageError(
                f"the directory of certificates {directory} cannot be read: {error.strerror}"
            ) from None
        for name in names:
            _load(made, directory, name)
    return made


def _usual_directory(host: str) -> str | None:
    candidates = (os.path.expanduser(f"{directory}/{host}") for directory in _DIRECTORIES)
    return next((path for path in candidates if os.path.isdir(path)), None)


def _load(made: ssl.SSLContext, directory: str, name: str) -> None:
    path, (stem, extension) = f"{directory}/{name}", os.path.splitext(name)
    try:
        if extension == ".crt":
            made.load_verify_locations(path)
        elif extension == ".cert":
            key = f"{directory}/{stem}.key"
            if not os.path.exists(key):
                raise UsageError(
                    f"{path} has no {stem}.key beside it",
                    hint="certificates of authorities end in .crt",
                )
            # Without a password OpenSSL would ask the terminal for one.
            made.load_cert_chain(path, key, password="")
    except OSError as error:  # of which SSLError is one
        raise UsageError(f"{path} cannot be used: {error.strerror or error}") from None
