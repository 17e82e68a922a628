"""Certificates for a host, from the directories where container tools keep them.

Spec: containers/image, docs/containers-certs.d.5.md; pkg/tlsclientconfig.
"""

import os
import ssl

from exporter.errors import UsageError

_DIRECTORIES = ("/etc/containers/certs.d", "/etc/docker/certs.d")


def context(host: str, *, verify: bool, cert_dir: str | None) -> ssl.SSLContext:
    """Return how to speak TLS to a host.

    Args:
        host: `host[:port]`, the name of its directory below the usual ones.
        verify: Whether its certificate must be signed by a known authority.
        cert_dir: The only directory to look into: `*.crt` are authorities, `NAME.cert` with
            `NAME.key` our own certificate.

    Raises:
        UsageError: A file is damaged or cannot be read.
    """
    made = ssl.create_default_context()
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    directories = [cert_dir] if cert_dir is not None else [f"{d}/{host}" for d in _DIRECTORIES]
    for directory in directories:
        if not os.path.isdir(directory):
            if directory == cert_dir:
                raise UsageError(f"no such directory of certificates: {cert_dir}")
            continue
        for name in sorted(os.listdir(directory)):
            path, (stem, extension) = f"{directory}/{name}", os.path.splitext(name)
            try:
                if extension == ".crt":
                    made.load_verify_locations(path)
                elif extension == ".cert":
                    made.load_cert_chain(path, f"{directory}/{stem}.key")
            except (OSError, ssl.SSLError) as error:
                raise UsageError(f"{path} cannot be used: {error}") from None
    return made
