"""`skopeo-dir push`."""

import os
import sys
from typing import TYPE_CHECKING

from exporter.cli import options
from exporter.cli.console import listening, print_json
from exporter.errors import EXIT_OK, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from exporter.push import PushSummary


def push_images(
    out: options.Out,
    dest: options.Dest,
    *,
    include: options.Include = None,
    exclude: options.Exclude = None,
    from_file: options.FromFile = None,
    jobs: options.Jobs = 8,
    schema1: options.OldSchema = "convert",
    authfile: options.Authfile = None,
    username: options.Username = None,
    password_stdin: options.PasswordStdin = False,
    password_file: options.PasswordFile = None,
    dest_tls_verify: options.TlsVerify = None,
    dest_cert_dir: options.CertDir = None,
    skopeo: options.Executable = "skopeo",
    retry_times: options.RetryTimes = 0,
    command_timeout: options.CommandTimeout = None,
    policy: options.Policy = None,
    insecure_policy: options.InsecurePolicy = False,
    json: options.Json = False,
) -> int:
    """Push the images of OUT with skopeo.

    Several at a time, every layer once, and only what the destination lacks. Run it again to
    finish what failed or was interrupted.
    """
    from exporter import dirlayout, files
    from exporter.cli.destination import Access, Engine, connected, find_skopeo, parse_destination
    from exporter.cli.selection import selection
    from exporter.push import Schema1, push
    from exporter.skopeo import Processes

    destination = parse_destination(dest)
    access = Access(
        authfile=authfile,
        username=username,
        password_stdin=password_stdin,
        password_file=password_file,
        dest_tls_verify=dest_tls_verify,
        dest_cert_dir=dest_cert_dir,
    )
    engine = Engine(
        executable=skopeo,
        retry_times=retry_times,
        command_timeout=command_timeout,
        policy=policy,
        insecure_policy=insecure_policy,
    )
    wanted = selection(include, exclude, from_file)
    out = os.path.realpath(out)
    processes = Processes()
    dirlayout.images(out)
    with (
        connected(destination, access) as (client, access_with_authfile),
        files.locked(dirlayout.lock_file(out)),
        listening(json=json) as observe,
    ):
        summary = push(
            out,
            destination,
            client=client,
            skopeo=find_skopeo(engine, access_with_authfile, processes),
            stop=processes.stop,
            selection=wanted,
            jobs=jobs,
            schema1=Schema1(schema1),
            observe=observe,
        )
    if json:
        print_json("summary", summary)
    else:
        sys.stdout.write(f"{sentence(summary)}\n")
    return EXIT_SOME_FAILED if summary.failed else EXIT_OK


def sentence(summary: "PushSummary") -> str:
    """Return the summary for a person."""
    return (
        f"pushed {summary.images} images ({summary.present} were there before, "
        f"{summary.failed} failed): {summary.mounted} blobs mounted across repositories"
    )
