"""Arguments and options that several commands share, declared once."""

from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="The registry's storage directory: docker/registry/v2, or any directory above it.",
    ),
]
Out = Annotated[
    str,
    typer.Argument(metavar="OUT", help="Directory of skopeo dir: images, REPOSITORY:TAG each."),
]
Dest = Annotated[
    str,
    typer.Argument(metavar="DEST", help="The destination registry: host[:port][/prefix]."),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON Lines on stdout, each with a message_type."),
]

_SELECTION = "Selection"
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="GLOB",
        rich_help_panel=_SELECTION,
        help="Only images whose REPOSITORY:TAG matches; * stops at /, ** crosses it. Repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="GLOB",
        rich_help_panel=_SELECTION,
        help="No images whose REPOSITORY:TAG matches. Repeatable.",
    ),
]
FromFile = Annotated[
    str | None,
    typer.Option(
        "--from-file",
        metavar="FILE",
        rich_help_panel=_SELECTION,
        help="Only the images listed in FILE, one REPOSITORY:TAG a line; - reads stdin.",
    ),
]

_DESTINATION = "Destination"
Jobs = Annotated[
    int,
    typer.Option("--jobs", "-j", min=1, max=64, help="How many images at a time."),
]
Authfile = Annotated[
    str | None,
    typer.Option(
        "--authfile",
        "--dest-authfile",
        metavar="FILE",
        rich_help_panel=_DESTINATION,
        help="Credentials as `skopeo login` writes them; skopeo's default files otherwise.",
    ),
]
Username = Annotated[
    str | None,
    typer.Option(
        "--username",
        rich_help_panel=_DESTINATION,
        help="User or robot account; needs --password-stdin or --password-file.",
    ),
]
PasswordStdin = Annotated[
    bool,
    typer.Option(
        "--password-stdin", rich_help_panel=_DESTINATION, help="Read the password from stdin."
    ),
]
PasswordFile = Annotated[
    str | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        rich_help_panel=_DESTINATION,
        help="Read the password from FILE.",
    ),
]
TlsVerify = Annotated[
    str | None,
    typer.Option(
        "--dest-tls-verify",
        metavar="BOOL",
        rich_help_panel=_DESTINATION,
        help="=false allows plain HTTP and unknown certificates.",
    ),
]
CertDir = Annotated[
    str | None,
    typer.Option(
        "--dest-cert-dir",
        metavar="DIR",
        rich_help_panel=_DESTINATION,
        help="Certificates (*.crt, *.cert, *.key) for the destination.",
    ),
]

_SKOPEO = "Skopeo"
Executable = Annotated[
    str,
    typer.Option(
        "--skopeo", metavar="PATH", rich_help_panel=_SKOPEO, help="Which skopeo to start."
    ),
]
RetryTimes = Annotated[
    int,
    typer.Option(
        "--retry-times",
        min=0,
        rich_help_panel=_SKOPEO,
        help="Skopeo's own retries, besides ours, which know what is worth one.",
    ),
]
CommandTimeout = Annotated[
    str | None,
    typer.Option(
        "--command-timeout",
        metavar="DURATION",
        rich_help_panel=_SKOPEO,
        help="End a copy that takes longer, for example 90s or 2h.",
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="FILE", rich_help_panel=_SKOPEO, help="Trust policy file for skopeo."
    ),
]
InsecurePolicy = Annotated[
    bool,
    typer.Option(
        "--insecure-policy", rich_help_panel=_SKOPEO, help="Run skopeo without a trust policy."
    ),
]
