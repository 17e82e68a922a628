"""Archives, block by block, and the command line run under a limit of time and memory.

Spec: POSIX.1-2017, pax, "ustar Interchange Format". Nothing here imports the reader under test.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
END = bytes(2 * BLOCK)


class Run(NamedTuple):
    """How a command ended, its peak of resident bytes, and the seconds that it kept a CPU busy."""

    code: int
    stdout: str
    stderr: str
    memory: int
    cpu_seconds: float


# The command, which at its end writes its peak in KiB to the file whose number comes first. Not
# what wait4 says: that counts the process that we fork from, so it grows with the test session.
_COMMAND = """
import os, sys
peak = int(sys.argv.pop(1))
end = os._exit
def report(code):
    with open("/proc/self/status") as status:
        os.write(peak, status.read().split("VmHWM:")[1].split()[0].encode())
    end(code)
os._exit = report
from exporter.cli.app import main
main()
"""


def skopeo_dir(*arguments: str | Path, stdin: Path | None = None, seconds: float = 60) -> Run:
    """Run our command; it is killed, and its code is negative, when it takes longer."""
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.TemporaryFile() as peak,
        open(stdin or os.devnull, "rb") as given,
    ):
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, str(peak.fileno()), *map(str, arguments)],
            stdin=given,
            stdout=out,
            stderr=err,
            pass_fds=[peak.fileno()],
        )
        limit = threading.Timer(seconds, process.kill)
        limit.start()
        _, status, usage = os.wait4(process.pid, 0)
        limit.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        peak.seek(0)
        return Run(
            process.returncode,
            out.read().decode(errors="replace"),
            err.read().decode(errors="replace"),
            int(peak.read() or sys.maxsize // 1024) * 1024,
            usage.ru_utime + usage.ru_stime,
        )


def header(
    name: str | bytes,
    size: int = 0,
    *,
    kind: bytes = b"0",
    target: str | bytes = "",
    size_field: bytes | None = None,
    magic: bytes = b"ustar\x0000",
    tail: bytes = b"",
) -> bytes:
    """Return a header block with a right checksum; `tail` is what stands from byte 345 on."""
    raw_name = name.encode() if isinstance(name, str) else name
    prefix = b""
    if len(raw_name) > 100 and not tail:
        cut = max(i for i in range(156) if raw_name[i : i + 1] == b"/")
        prefix, raw_name = raw_name[:cut], raw_name[cut + 1 :]
    raw_target = target.encode() if isinstance(target, str) else target
    fields = [
        raw_name.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        size_field or b"%011o\0" % size,
        b"%011o\0" % 0,
        b" " * 8,
        kind,
        raw_target.ljust(100, b"\0"),
        magic.ljust(8, b"\0"),
        bytes(80),
        (tail or prefix).ljust(167, b"\0"),
    ]
    block = b"".join(fields)
    assert len(block) == BLOCK, (len(block), name)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def member(
    name: str | bytes, content: bytes = b"", *, kind: bytes = b"0", target: str | bytes = ""
) -> bytes:
    """Return a member with its content, padded."""
    return header(name, len(content), kind=kind, target=target) + padded(content)


def pax(records: Mapping[str, str]) -> bytes:
    """Return an extended header for the member that follows."""
    content = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        content += str(length).encode() + rest
    return member("PaxHeaders/0", content, kind=b"x")


def padded(content: bytes) -> bytes:
    """Return the content and zeros up to a whole block."""
    return content + bytes(-len(content) % BLOCK)


def files(root: Path) -> dict[str, bytes]:
    """Return every file below `root`, sorted by its path relative to it."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def archive(contents: Mapping[str, bytes]) -> bytes:
    """Return the members of an archive in ustar format, without its end."""
    return b"".join(member(name, content) for name, content in contents.items())
