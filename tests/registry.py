"""The oracle: a real docker-registry on loopback, and the real skopeo.

Debian's binaries, never doubles. Where one is missing every function here raises
`FileNotFoundError`, so the tests fail; they are never skipped.

```python
with serve(tmp_path / "destination") as registry:
    skopeo("copy", "--dest-tls-verify=false", f"dir:{image}", f"docker://{registry.host}/a:b")
    uploads = [path for method, path, status in registry.requests() if method == "PATCH"]
```
"""

import os
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

READY_SECONDS = 20.0
"""A registry that does not answer by then is a failure; it takes about 0.05 s."""

_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")
_ACCESS = re.compile(r'^\S+ \S+ \S+ \[[^]]+\] "([A-Z]+) (\S+) HTTP/[\d.]+" (\d{3}) ', re.MULTILINE)
_BCRYPT_SALT = "$2b$04$skopeodirtestrigsalt0u"


class Request(NamedTuple):
    """One line of the access log; `path` has its query."""

    method: str
    path: str
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A running docker-registry.

    Attributes:
        host: `127.0.0.1:PORT`, as it is written behind `docker://`.
        root: Its root directory, the one that holds `docker/registry/v2`.
        log: What it prints; gone when it has ended.
        ca_dir: For `--dest-cert-dir` and the like: holds `ca.crt` alone; empty without TLS.
    """

    host: str
    root: Path
    log: Path
    ca_dir: Path

    def requests(self) -> list[Request]:
        """Return what was asked so far, in the order in which the answers were finished.

        A request whose answer fits the server's buffer (all but blob downloads) is logged before
        its client has the answer, so none of those is ever missing here.
        """
        found = _ACCESS.findall(self.log.read_text())
        return [Request(method, path, int(status)) for method, path, status in found]


@contextmanager
def serve(
    root: Path,
    *,
    htpasswd: tuple[str, str] | None = None,
    tls: bool = False,
    delete: bool = True,
    urls: bool = False,
) -> Iterator[Registry]:
    """Serve the storage below `root` until the context ends.

    No blob descriptor cache: what a test does to the tree, the registry sees at once. Serving
    writes nothing below `root`. The process is ended by its id.

    Args:
        root: Holds, or will hold, `docker/registry/v2`; made if absent.
        htpasswd: User and password of the only account; anyone may do anything if None.
        tls: Serve HTTPS with a certificate made for this run, otherwise plain HTTP.
        delete: Whether DELETE is allowed.
        urls: Whether manifests may have foreign layers, as in Harbor; refused by default (500).

    Raises:
        RuntimeError: It did not start; the message has its log.
        FileNotFoundError: docker-registry is not installed.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="registry-") as name:
        state = Path(name)
        log, ca_dir = state / "log", state / "ca"
        ca_dir.mkdir()
        http: dict[str, object] = {"addr": "127.0.0.1:0", "secret": "not one"}
        if tls:
            http["tls"] = _certify(state, ca_dir)
        config: dict[str, object] = {
            "version": "0.1",
            "storage": {
                "filesystem": {"rootdirectory": str(root)},
                "delete": {"enabled": delete},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http,
            "compatibility": {"schema1": {"enabled": True}},
        }
        if urls:
            config["validation"] = {"manifests": {"urls": {"allow": ["^https://"]}}}
        if htpasswd is not None:
            accounts = state / "htpasswd"
            accounts.write_text(f"{htpasswd[0]}:{_bcrypt(htpasswd[1])}\n")
            config["auth"] = {"htpasswd": {"realm": "rig", "path": str(accounts)}}
        (state / "config.yml").write_bytes(orjson.dumps(config))  # YAML, too
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["docker-registry", "serve", state / "config.yml"], stdout=output, stderr=output
            )
        try:
            host = _wait_until_ready(process, log, tls=tls)
            yield Registry(host=host, root=root, log=log, ca_dir=ca_dir)
        finally:
            process.terminate()
            try:
                process.wait(READY_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def collect_garbage(root: Path) -> None:
    """Run the registry's own garbage collection with `--delete-untagged` over a storage."""
    with tempfile.TemporaryDirectory(prefix="registry-") as state:
        config = Path(state) / "config.yml"
        storage = {"filesystem": {"rootdirectory": str(root)}, "delete": {"enabled": True}}
        config.write_bytes(orjson.dumps({"version": "0.1", "storage": storage}))
        subprocess.run(
            ["docker-registry", "garbage-collect", "--delete-untagged", config],
            check=True,
            capture_output=True,
        )


def skopeo(*arguments: str | Path, data_home: Path | None = None) -> str:
    """Run skopeo to its end and return its stdout.

    Args:
        arguments: Sub-command, flags and operands; `--insecure-policy` is put before them.
        data_home: Where the blob-info cache lives; a fresh one for this call if None.

    Raises:
        RuntimeError: It failed; the message has the command line and its stderr.
        FileNotFoundError: skopeo is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="skopeo-") as fresh:
        result = subprocess.run(
            ["skopeo", "--insecure-policy", *arguments],
            env=skopeo_environment(data_home or Path(fresh)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0:
        command = " ".join(str(argument) for argument in arguments)
        raise RuntimeError(f"skopeo {command}: exit {result.returncode}\n{result.stderr}")
    return result.stdout


def skopeo_environment(data_home: Path) -> dict[str, str]:
    """Return this process's environment with skopeo's blob-info cache moved below `data_home`.

    Spec: containers/image, pkg/blobinfocache/default.go: root's cache has a fixed place, and
    internal/rootless, GetRootlessEUID: unless this variable says that we are not root.
    """
    return {**os.environ, "XDG_DATA_HOME": str(data_home), "_CONTAINERS_ROOTLESS_UID": "1"}


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, *, tls: bool) -> str:
    """Return the host once /v2/ answers.

    The registry chooses the port itself (`:0`) and logs it: nobody can take it in between.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        listening = _LISTENING.search(log.read_text())
        if listening is not None and _answers(listening[1], tls=tls):
            return listening[1]
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue
        break
    raise RuntimeError(f"docker-registry did not start:\n{log.read_text()}")


def _answers(host: str, *, tls: bool) -> bool:
    try:
        # Over TLS the plain request gets 400: the server is there, and that is the question.
        with urllib.request.urlopen(f"http://{host}/v2/", timeout=READY_SECONDS) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        with error:
            return error.code == (400 if tls else 401)
    except OSError:
        return False


def _certify(state: Path, ca_dir: Path) -> dict[str, str]:
    """Make a self-signed certificate for 127.0.0.1 and return the registry's `tls` section."""
    certificate, key = ca_dir / "ca.crt", state / "server.key"
    options = {
        "-newkey": "ec",
        "-pkeyopt": "ec_paramgen_curve:P-256",
        "-days": "2",
        "-subj": "/CN=127.0.0.1",
        "-addext": "subjectAltName=IP:127.0.0.1,DNS:localhost",
        "-keyout": str(key),
        "-out": str(certificate),
    }
    arguments = (word for option in options.items() for word in option)
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", *arguments], check=True, capture_output=True
    )
    return {"certificate": str(certificate), "key": str(key)}


def _bcrypt(password: str) -> str:
    """Hash for an htpasswd file: the registry takes bcrypt only.

    perl (in every Debian) reaches libxcrypt's; Python's own door to it, `crypt`, is deprecated.
    """
    result = subprocess.run(
        ["perl", "-e", "print crypt(join('', <STDIN>), $ARGV[0])", _BCRYPT_SALT],
        input=password,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout
