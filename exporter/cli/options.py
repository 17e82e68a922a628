"""Arguments and options that several commands share, declared once."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="The registry's storage: docker/registry/v2, any directory above it, or a tarball; "
        "- reads one from stdin.",
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

Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="GLOB",
        help="Only images whose REPOSITORY:TAG matches; * stops at /, ** crosses it. Repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="GLOB",
        help="No images whose REPOSITORY:TAG matches. Repeatable.",
    ),
]
FromFile = Annotated[
    str | None,
    typer.Option(
        "--from-file",
        metavar="FILE",
        help="Only the images listed in FILE, one REPOSITORY:TAG a line; - reads stdin.",
    ),
]

Untagged = Annotated[
    bool,
    typer.Option(
        "--untagged",
        help="Also the manifests that no tag reaches, as REPOSITORY@DIGEST.",
    ),
]
Jobs = Annotated[
    int,
    typer.Option("--jobs", "-j", metavar="N", min=1, max=64, help="How many images at a time."),
]
JobsPerProject = Annotated[
    int | None,
    typer.Option(
        "--jobs-per-project",
        metavar="N",
        min=1,
        help="How many images at a time into one project: Harbor's quota is counted there.",
    ),
]
FailFast = Annotated[
    bool,
    typer.Option(
        "--fail-fast/--keep-going", help="Start nothing more once an image has failed, or go on."
    ),
]
DigestFile = Annotated[
    str | None,
    typer.Option(
        "--digestfile",
        metavar="FILE",
        help="Write a line for each image at the destination: digest docker://REFERENCE.",
    ),
]
Via = Annotated[
    Literal["copy", "sync"],
    typer.Option(
        "--via",
        help="Push by `skopeo copy` of each image, or by `skopeo sync` of each repository.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Change nothing; say what would be pushed and sent."),
]
PrintCommands = Annotated[
    bool,
    typer.Option(
        "--print-commands",
        help="Change nothing; print the skopeo command of every image that is to be pushed.",
    ),
]
OldSchema = Annotated[
    Literal["convert", "skip", "fail"],
    typer.Option(
        "--schema1",
        help="What becomes of Docker schema 1 images, which cannot keep their digest.",
    ),
]
Authfile = Annotated[
    str | None,
    typer.Option(
        "--authfile",
        "--dest-authfile",
        metavar="FILE",
        help="Credentials as `skopeo login` writes them; skopeo's default files otherwise.",
    ),
]
Username = Annotated[
    str | None,
    typer.Option(
        "--username",
        metavar="NAME",
        help="User or robot account; needs --password-stdin or --password-file.",
    ),
]
PasswordStdin = Annotated[
    bool,
    typer.Option("--password-stdin", help="Read the password from stdin."),
]
PasswordFile = Annotated[
    str | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="Read the password from FILE.",
    ),
]
TlsVerify = Annotated[
    str | None,
    typer.Option(
        "--dest-tls-verify",
        metavar="BOOL",
        help="=false allows plain HTTP and unknown certificates.",
    ),
]
CertDir = Annotated[
    str | None,
    typer.Option(
        "--dest-cert-dir",
        metavar="DIR",
        help="Certificates (*.crt, *.cert, *.key) for the destination.",
    ),
]

Executable = Annotated[
    str,
    typer.Option("--skopeo", metavar="PATH", help="Which skopeo to start."),
]
RetryTimes = Annotated[
    int,
    typer.Option(
        "--retry-times",
        metavar="N",
        min=0,
        help="Skopeo's own retries, besides ours, which know what is worth one.",
    ),
]
CommandTimeout = Annotated[
    str | None,
    typer.Option(
        "--command-timeout",
        metavar="DURATION",
        help="End a copy that takes longer, for example 90s or 2h.",
    ),
]
Policy = Annotated[
    str | None,
    typer.Option("--policy", metavar="FILE", help="Trust policy file for skopeo."),
]
InsecurePolicy = Annotated[
    bool,
    typer.Option("--insecure-policy", help="Run skopeo without a trust policy."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selecting:
    """Which images are meant."""

    include: Include = None
    exclude: Exclude = None
    from_file: FromFile = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushing:
    """What a push does, and how hard it works."""

    dry_run: DryRun = False
    print_commands: PrintCommands = False
    jobs: Jobs = 8
    jobs_per_project: JobsPerProject = None
    fail_fast: FailFast = False
    via: Via = "copy"
    digestfile: DigestFile = None
    schema1: OldSchema = "convert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How the destination is spoken to."""

    authfile: Authfile = None
    username: Username = None
    password_stdin: PasswordStdin = False
    password_file: PasswordFile = None
    dest_tls_verify: TlsVerify = None
    dest_cert_dir: CertDir = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Which skopeo is started, and with which of its own options."""

    skopeo: Executable = "skopeo"
    retry_times: RetryTimes = 0
    command_timeout: CommandTimeout = None
    policy: Policy = None
    insecure_policy: InsecurePolicy = False
