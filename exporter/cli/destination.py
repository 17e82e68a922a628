"""From the destination's options to a client and a skopeo that are ready to be used."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from exporter import credentials
from exporter.cli.options import Access, Engine
from exporter.distribution import Client
from exporter.errors import UsageError
from exporter.reference import Destination
from exporter.skopeo import Options, Processes, Skopeo


def parse_destination(text: str) -> Destination:
    """Return the destination that was typed.

    Raises:
        UsageError: It is none.
    """
    try:
        return Destination.parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


@contextmanager
def connected(destination: Destination, access: Access) -> Iterator[tuple[Client, Access]]:
    """Give a client, and the access with an authfile that skopeo can be given.

    A password is written to a private file that only lives as long as this: no command line
    ever holds it, where every local user could read it.

    Raises:
        UsageError: The options contradict each other or a file cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="skopeo-dir-") as private:
        password = _password(access)
        if access.username is not None and password is not None:
            found = credentials.Credentials(access.username, password)
            authfile = f"{private}/auth.json"
            credentials.write_authfile(authfile, destination.host, found)
            access = replace(access, authfile=authfile)
        with Client(
            destination.host,
            credentials=credentials.find(
                destination.host, access.authfile, prefix=destination.prefix
            ),
            tls_verify=tls_verify(access) is not False,
            cert_dir=access.dest_cert_dir,
        ) as client:
            yield client, access


def find_skopeo(engine: Engine, access: Access, processes: Processes) -> Skopeo:
    """Return a skopeo that can do what is needed.

    Raises:
        UsageError: It is missing, too old, or would refuse every image.
    """
    options = Options(
        authfile=access.authfile,
        dest_tls_verify=tls_verify(access),
        dest_cert_dir=access.dest_cert_dir,
        retry_times=engine.retry_times,
        policy=engine.policy,
        insecure_policy=engine.insecure_policy,
        command_timeout=engine.command_timeout,
    )
    return Skopeo.probe(engine.skopeo, options=options, run=processes.run)


def tls_verify(access: Access) -> bool | None:
    """Return what `--dest-tls-verify` says; None if it was not given.

    Raises:
        UsageError: It is neither true nor false.
    """
    if access.dest_tls_verify is None:
        return None
    values = {"true": True, "1": True, "false": False, "0": False}
    try:
        return values[access.dest_tls_verify.lower()]
    except KeyError:
        raise UsageError("--dest-tls-verify takes true or false") from None


def _password(access: Access) -> str | None:
    given = access.password_stdin or access.password_file is not None
    if access.username is None and not given:
        return None
    if access.username is None or not given or (access.password_stdin and access.password_file):
        raise UsageError("--username goes with either --password-stdin or --password-file")
    if access.authfile is not None:
        raise UsageError("--authfile and --username contradict each other")
    if access.password_file is None:
        return sys.stdin.readline().rstrip("\r\n")
    try:
        with open(access.password_file, encoding="utf-8") as file:
            return file.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{access.password_file} cannot be read: {error}") from None
