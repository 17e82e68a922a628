"""Skopeo's command line and capabilities.

Spec: containers/skopeo, docs/skopeo-copy.1.md and cmd/skopeo.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

from exporter.digest import Digest
from exporter.errors import TemporaryDestinationError, UsageError
from exporter.skopeo.messages import explain, is_last_request, is_throttled, uploaded_digest
from exporter.skopeo.processes import Run
from exporter.skopeo.turn import Turn

_REQUIRED = frozenset({"--preserve-digests", "--multi-arch", "--digestfile"})
_ROOTS_AUTHFILE = "/run/containers/0/auth.json"
_INSTALL = "install it with the system's package manager, for example: apt-get install skopeo"


class Mode(Enum):
    """What a copy takes along, as arguments of `skopeo copy`.

    Never both `--format` and `--preserve-digests`: skopeo then ignores the former silently.
    """

    ALL = ("--all", "--preserve-digests")
    """The image, or the index with all its children; every digest stays what it is."""

    INDEX_ONLY = ("--multi-arch", "index-only", "--preserve-digests")
    """`manifest.json` alone; the destination already has all that it lists."""

    CONVERT = ("--format", "v2s2")
    """Docker schema 1 becomes schema 2, under another digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Flags of skopeo that users pass through, under skopeo's own names.

    Attributes:
        authfile: Passed as `--dest-authfile`.
        dest_tls_verify: None leaves the choice to skopeo, which also asks registries.conf.
        dest_cert_dir: Directory of `*.crt`, `*.cert` and `*.key`.
        retry_times: Skopeo's own retries; zero because it cannot tell what is worth one.
        policy: Path of a trust policy.
        insecure_policy: Run without any trust policy.
        command_timeout: As Go writes durations: `90s`, `10m`.
    """

    authfile: str | None = None
    dest_tls_verify: bool | None = None
    dest_cert_dir: str | None = None
    retry_times: int = 0
    policy: str | None = None
    insecure_policy: bool = False
    command_timeout: str | None = None

    def global_flags(self) -> list[str]:
        """Return the flags that stand before the sub-command."""
        flags = ["--insecure-policy"] if self.insecure_policy else []
        if self.policy is not None:
            flags += ["--policy", self.policy]
        if self.command_timeout is not None:
            flags += ["--command-timeout", self.command_timeout]
        return flags

    def destination_flags(self) -> list[str]:
        """Return the flags that `copy` and `sync` share."""
        flags = ["--retry-times", str(self.retry_times)] if self.retry_times else []
        if self.authfile is not None:
            flags += ["--dest-authfile", self.authfile]
        if self.dest_cert_dir is not None:
            flags += ["--dest-cert-dir", self.dest_cert_dir]
        if self.dest_tls_verify is not None:
            flags.append(f"--dest-tls-verify={str(self.dest_tls_verify).lower()}")
        return flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Skopeo:
    """A skopeo that can do what we need. Thread-safe: it holds no state.

    Attributes:
        executable: Absolute path.
        version: As it says itself; for people, never for decisions.
        copy_flags: Every `--flag` that `skopeo copy --help` lists.
        sync_flags: The same of `skopeo sync`; empty if there is no such command.
        options: What the user passed through.
        run: Starts a process and waits for it.
    """

    executable: str
    version: str
    copy_flags: frozenset[str]
    sync_flags: frozenset[str]
    options: Options
    run: Run = field(repr=False)

    @classmethod
    def probe(
        cls,
        executable: str = "skopeo",
        *,
        options: Options,
        run: Run,
    ) -> Self:
        """Find skopeo and ask it what it can do; its version is not trusted to tell.

        Raises:
            UsageError: It is missing or older than 1.6, or it would fail with these options for
                every image: no trust policy, no authfile, no directory of certificates.
        """
        path = shutil.which(executable)
        if path is None:
            raise UsageError(f"{executable} not found", hint=_INSTALL)
        version = run([path, "--version"]).stdout.strip().rpartition(" ")[2] or "unknown"
        copy_flags = _flags(run([path, "copy", "--help"]).stdout)
        if missing := _REQUIRED - copy_flags:
            raise UsageError(
                f"skopeo 1.6 or later is needed, found {version} without {min(missing)}",
                hint=_INSTALL,
            )
        # Skopeo takes both of these absent for empty and goes on, anonymously.
        if options.authfile is not None and not os.access(options.authfile, os.R_OK):
            raise UsageError(f"cannot read the authfile {options.authfile}")
        if options.dest_cert_dir is not None and not os.path.isdir(options.dest_cert_dir):
            raise UsageError(f"no such directory of certificates: {options.dest_cert_dir}")
        # The policy is loaded before any name is looked at, so a copy of nothing loads it alone.
        nothing = "dir:/dev/null/nothing"
        trial = run([path, *options.global_flags(), "copy", nothing, nothing])
        if isinstance(error := explain(trial.stderr, source="/dev/null"), UsageError):
            raise error
        sync_flags = _flags(run([path, "sync", "--help"]).stdout)
        return cls(
            executable=path,
            version=version,
            copy_flags=copy_flags,
            sync_flags=sync_flags,
            options=options,
            run=run,
        )

    def copy_command(
        self, source: str, destination: str, *, mode: Mode = Mode.ALL, digestfile: str | None = None
    ) -> list[str]:
        """Return the command that pushes one image directory. Pure; it holds no secret.

        Args:
            source: Absolute path of a `dir:` image; it may hold colons.
            destination: `host[:port]/repository`, then `:tag` or `@digest`.
            mode: What is copied.
            digestfile: Where skopeo writes the digest that it pushed; nowhere if None.
        """
        return [
            self.executable,
            *self.options.global_flags(),
            "copy",
            *mode.value,
            *self.options.destination_flags(),
            *(["--digestfile", digestfile] if digestfile is not None else []),
            f"dir:{source}",
            f"docker://{destination}",
        ]

    def sync_command(self, source: str, destination: str) -> list[str]:
        """Return the command that pushes every image below a directory. Pure; it holds no secret.

        Args:
            source: Absolute path of a directory of `dir:` images, in its shortest form.
            destination: `host[:port][/prefix]`.
        """
        return [
            self.executable,
            *self.options.global_flags(),
            "sync",
            *Mode.ALL.value,
            "--scoped",
            "--keep-going",
            *self.options.destination_flags(),
            *("--src", "dir", "--dest", "docker"),
            source,
            destination,
        ]

    def sync(self, source: str, destination: str) -> None:
        """Push every image below a directory, one after another.

        Args:
            source: See `sync_command`.
            destination: See `sync_command`.

        Raises:
            SkopeoDirError: As for `copy`; of several failures the last speaks.
        """
        finished = self.run(self.sync_command(source, destination))
        if finished.returncode != 0:
            raise explain(finished.stderr, source=source)

    def copy(
        self,
        source: str,
        destination: str,
        *,
        mode: Mode = Mode.ALL,
        uploaded: Callable[[Digest], None] | None = None,
        throttled: Callable[[], None] | None = None,
        turn: Turn | None = None,
    ) -> Digest:
        """Push one image directory and return the digest that was pushed.

        Blocks until skopeo has ended. Another call for the same image is harmless. Success says
        that the destination took the manifest; that the digest is the right one is for the
        caller to compare, because skopeo cannot know it.

        Args:
            source: See `copy_command`.
            destination: See `copy_command`.
            mode: See `copy_command`.
            uploaded: Is given every blob as soon as it is sent whole, also by a copy that fails
                later; by this thread.
            throttled: Is called when the destination has asked skopeo to slow down; by this thread.
            turn: Is waited for before the destination is asked for anything, while skopeo starts,
                and ends when nothing is left to be sent but the manifest.

        Raises:
            TemporaryDestinationError: Another try may help. An error that we do not know counts
                as this: a needless retry costs seconds, a needless failure costs the image.
            PermanentDestinationError: Another try will not help.
            SourceError: The directory is incomplete or damaged, or skopeo cannot copy its kind.
            UsageError: Skopeo itself refused, and would for every image.
            Interrupted: `Processes.stop` was called.
        """
        command = self.copy_command(source, destination, mode=mode, digestfile="/dev/stdout")
        copy = command.index("copy")
        # --quiet leaves stdout to the digest. --debug tells when a blob has been sent, and why an
        # index was refused, which is otherwise reported as "must be converted" (see `_fatal`). It
        # has a line before every request, so skopeo waits for its turn where we want it to.
        command[copy : copy + 1] = ["--debug", "copy", "--quiet"]

        reference = re.split("[@:]", destination.rpartition("/")[2], maxsplit=1)[1]

        def listen(line: str) -> None:
            if uploaded is not None and (digest := uploaded_digest(line)) is not None:
                uploaded(digest)
            if turn is not None and is_last_request(line, reference):
                turn.end()
            if throttled is not None and is_throttled(line):
                throttled()

        environment = without_cache(os.environ, authfile=self.options.authfile)
        finished = self.run(command, listen=listen, environment=environment, turn=turn)
        if finished.returncode < 0:
            raise TemporaryDestinationError(f"skopeo was killed by signal {-finished.returncode}")
        if finished.returncode != 0:
            raise explain(finished.stderr, source=source)
        try:
            return Digest.parse(finished.stdout.strip())
        except ValueError as error:
            raise UsageError(f"skopeo did not say what it pushed: {error}") from None


def without_cache(environment: Mapping[str, str], *, authfile: str | None) -> dict[str, str]:
    """Return an environment in which skopeo keeps its blob-info cache in memory.

    On disk it is one database, locked and synced at every blob by each of the processes. All that
    it could tell them we know already, see `push`. If a future skopeo takes no notice, nothing is
    lost but time.

    Args:
        environment: What skopeo would get otherwise.
        authfile: What it gets as `--dest-authfile`.

    Spec: containers/image, pkg/blobinfocache/default.go: where the cache's directory cannot be
    made, it is in memory; root's has a fixed place unless internal/rootless, GetRootlessEUID, is
    told of another user. That also decides where a default authfile is (pkg/docker/config).
    """
    changed = {**environment, "XDG_DATA_HOME": os.devnull}
    if os.geteuid() == 0:
        needs_default = authfile is None and "XDG_RUNTIME_DIR" not in environment
        if needs_default and os.path.exists(_ROOTS_AUTHFILE):
            return dict(environment)
        changed["_CONTAINERS_ROOTLESS_UID"] = "1"
    return changed


def _flags(usage: str) -> frozenset[str]:
    return frozenset(re.findall(r"^\s*(?:-\w, )?(--[\w.-]+)", usage, re.MULTILINE))
