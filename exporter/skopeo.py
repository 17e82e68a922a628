"""Skopeo: its command line, its capabilities, its error texts, and its processes.

The only module that starts processes. It knows nothing of which image is pushed when.

Spec: containers/skopeo, docs/skopeo-copy.1.md and cmd/skopeo; the error texts are those of
containers/image (docker/docker_image_dest.go, docker/errors.go, copy/) as skopeo 1.9.3 prints
them; tests/test_skopeo.py holds them.
"""

import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import IO, Self

from exporter.digest import Digest
from exporter.errors import (
    Interrupted,
    PermanentDestinationError,
    SkopeoDirError,
    SourceError,
    TemporaryDestinationError,
    UsageError,
)

GRACE_SECONDS = 5.0
"""How long `Processes.stop` waits between SIGTERM and SIGKILL."""

MAX_OUTPUT = 256 * 1024
"""How much of the end of each output stream is read, in bytes; the fatal line is the last."""

MAX_SENTENCE = 400
"""Longest error sentence in characters; the middle of a longer one is cut out."""

_REQUIRED = frozenset({"--preserve-digests", "--multi-arch", "--digestfile"})
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


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that has ended: its return code (-n if signal n killed it) and its outputs."""

    returncode: int
    stdout: str
    stderr: str


class Processes:
    """Runs processes to their end, and ends them all when told to. Thread-safe.

    Each runs in its own process group, so ctrl-c in the terminal reaches us alone, with stdin
    closed and with our environment. Where util-linux's setpriv is at hand the kernel kills the
    process when we die, however we die. That signal follows the *thread* that forked
    (prctl(2), PR_SET_PDEATHSIG), so `run` waits in the thread that starts the process.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped_by: int | None = None

    def run(self, command: Sequence[str]) -> Finished:
        """Run `command` and return what became of it, whatever its return code is.

        Raises:
            Interrupted: `stop` was called before it had succeeded.
            UsageError: It cannot be started.
        """
        # Files, not pipes: no reader to starve, no limit to block on, and nothing is left behind.
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            process = self._start(command, stdout, stderr)
            # WNOWAIT: until it is reaped, under the lock, nobody else can have its process id,
            # so `stop` never signals a stranger.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            with self._changed:
                returncode = process.wait()
                self._running.discard(process)
                self._changed.notify_all()
                if returncode != 0 and self._stopped_by is not None:
                    raise Interrupted(self._stopped_by)
            return Finished(returncode, _tail(stdout), _tail(stderr))

    def stop(self, signal_number: int, *, grace_seconds: float = GRACE_SECONDS) -> None:
        """End every process, and let no other start; idempotent.

        SIGTERM first, SIGKILL after the grace. Returns when all have ended. It takes a lock and
        waits, so it is not for the inside of a signal handler.

        Args:
            signal_number: The signal that we were sent; `run` raises `Interrupted` with it.
            grace_seconds: What a process may take to end by itself.
        """
        with self._changed:
            self._stopped_by = signal_number
            self._signal(signal.SIGTERM)
            if not self._changed.wait_for(lambda: not self._running, grace_seconds):
                self._signal(signal.SIGKILL)
                self._changed.wait_for(lambda: not self._running, GRACE_SECONDS)

    def _start(
        self, command: Sequence[str], stdout: IO[bytes], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        with self._changed:
            if self._stopped_by is not None:
                raise Interrupted(self._stopped_by)
            try:
                process = subprocess.Popen(
                    [*_dying_with_us(), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    process_group=0,
                )
            except OSError as error:
                raise UsageError(f"cannot start {command[0]}: {error.strerror}") from error
            self._running.add(process)
            return process

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running:
            os.killpg(process.pid, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skopeo:
    """A skopeo that can do what we need. Thread-safe: it holds no state.

    Attributes:
        executable: Absolute path.
        version: As it says itself; for people, never for decisions.
        copy_flags: Every `--flag` that `skopeo copy --help` lists.
        sync_flags: The same of `skopeo sync`; empty if there is no such command.
        options: What the user passed through.
        run: Starts a process and waits for it; `Processes.run`, or a fake.
    """

    executable: str
    version: str
    copy_flags: frozenset[str]
    sync_flags: frozenset[str]
    options: Options
    run: Callable[[Sequence[str]], Finished] = field(repr=False)

    @classmethod
    def probe(
        cls,
        executable: str = "skopeo",
        *,
        options: Options,
        run: Callable[[Sequence[str]], Finished],
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

    def copy(self, source: str, destination: str, *, mode: Mode = Mode.ALL) -> Digest:
        """Push one image directory and return the digest that was pushed.

        Blocks until skopeo has ended. Another call for the same image is harmless. Success says
        that the destination took the manifest; that the digest is the right one is for the
        caller to compare, because skopeo cannot know it.

        Args:
            source: See `copy_command`.
            destination: See `copy_command`.
            mode: See `copy_command`.

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
        # --quiet leaves stdout to the digest. --debug because a refused index is otherwise
        # reported as "must be converted", see `_fatal`.
        command[copy : copy + 1] = ["--debug", "copy", "--quiet"]
        finished = self.run(command)
        if finished.returncode < 0:
            raise TemporaryDestinationError(f"skopeo was killed by signal {-finished.returncode}")
        if finished.returncode != 0:
            raise explain(finished.stderr, source=source)
        try:
            return Digest.parse(finished.stdout.strip())
        except ValueError as error:
            raise UsageError(f"skopeo did not say what it pushed: {error}") from None


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
            # What skopeo cannot copy as it is: nested indexes, sha512 blobs, raw schema 1, and
            # in 1.14 to 1.22 an OCI index with zstd children (containers/skopeo issue 2627).
            (
                r"unexpectedly received a manifest list|saved with digest"
                r"|embedded docker reference|would not match destination reference"
                r"|manifest list must be converted"
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
_ESCAPE = re.compile(r'\\(["\\ntr])')
_INDEX_REFUSED = re.compile(r"Upload of manifest list type \S+ failed: (.*)", re.DOTALL)


def _fatal(stderr: str) -> str:
    """Return the message of the last fatal line, or the last line if there is none."""
    lines = [(level, _unescape(quoted or bare)) for level, quoted, bare in _LINE.findall(stderr)]
    message = next((text for level, text in reversed(lines) if level == "fatal"), None)
    if message is None:
        return stderr.strip().rpartition("\n")[2]
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


def _flags(usage: str) -> frozenset[str]:
    return frozenset(re.findall(r"^\s*(?:-\w, )?(--[\w.-]+)", usage, re.MULTILINE))


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MAX_OUTPUT))
    return file.read().decode(errors="replace")


@functools.cache
def _dying_with_us() -> tuple[str, ...]:
    """Return what to put before a command so that it dies with us; nothing if that cannot be.

    Not by `preexec_fn`: that runs Python between fork and exec, which threads make unsafe.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    usage = subprocess.run([setpriv, "--help"], capture_output=True, text=True, check=False)
    return (setpriv, "--pdeathsig", "KILL", "--") if "--pdeathsig" in usage.stdout else ()
