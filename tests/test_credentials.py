"""Which credentials are found, in which file, and where they are written to."""

import base64
import os
import stat
from pathlib import Path

import orjson
import pytest

from exporter.credentials import Credentials, find, write_authfile
from exporter.errors import UsageError
from tests.registry import serve, skopeo

HOST = "registry.example:5000"


def entry(username: str, password: str = "secret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def write(path: Path, config: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(config))
    return str(path)


@pytest.fixture
def usual_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The places where skopeo looks, in its order, all of them below `tmp_path`."""
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return [
        tmp_path / "run/containers/auth.json",
        tmp_path / "config/containers/auth.json",
        tmp_path / "home/.docker/config.json",
    ]


def test_a_password_is_not_shown() -> None:
    shown = repr(Credentials("ann", "secret", "refresh"))
    assert ("secret" in shown, "refresh" in shown, "ann" in shown) == (False, False, True)


def test_without_any_file_there_are_no_credentials(usual_files: list[Path]) -> None:
    assert find(HOST, None) is None


def test_the_usual_files_are_searched_in_their_order(usual_files: list[Path]) -> None:
    for number, path in enumerate(usual_files):
        write(path, {"auths": {HOST: entry(f"user{number}")}})
    found = []
    for path in usual_files:
        found.append(find(HOST, None))
        path.unlink()
    assert found == [Credentials(f"user{number}", "secret") for number in range(3)]


def test_a_file_without_the_host_does_not_end_the_search(usual_files: list[Path]) -> None:
    write(usual_files[0], {"auths": {"elsewhere.example": entry("bob")}})
    write(usual_files[2], {"auths": {HOST: entry("ann")}})
    assert find(HOST, None) == Credentials("ann", "secret")


def test_the_file_that_the_environment_names_is_the_only_one(
    usual_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(usual_files[0], {"auths": {HOST: entry("ann")}})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", write(tmp_path / "named", {"auths": {}}))
    assert find(HOST, None) is None


def test_the_file_that_is_given_is_the_only_one(usual_files: list[Path], tmp_path: Path) -> None:
    write(usual_files[0], {"auths": {HOST: entry("ann")}})
    given = write(tmp_path / "given", {"auths": {}})
    assert find(HOST, given) is None


@pytest.mark.parametrize(
    ("prefix", "username"),
    [
        ("", "host"),
        ("other", "host"),
        ("team", "team"),
        ("team/sub", "sub"),
        ("team/sub/app", "sub"),
        ("team/subway", "team"),
    ],
)
def test_the_most_specific_entry_wins(tmp_path: Path, prefix: str, username: str) -> None:
    auths = {
        HOST: entry("host"),
        f"{HOST}/team": entry("team"),
        f"{HOST}/team/sub": entry("sub"),
    }
    authfile = write(tmp_path / "auth.json", {"auths": auths})
    assert find(HOST, authfile, prefix=prefix) == Credentials(username, "secret")


@pytest.mark.parametrize("key", [f"https://{HOST}", f"https://{HOST}/v1/", f"http://{HOST}/v2/"])
def test_dockers_old_spelling_of_a_host_is_known(tmp_path: Path, key: str) -> None:
    authfile = write(tmp_path / "auth.json", {"auths": {key: entry("ann")}})
    assert find(HOST, authfile) == Credentials("ann", "secret")


def test_an_entry_for_another_port_is_for_another_registry(tmp_path: Path) -> None:
    authfile = write(tmp_path / "auth.json", {"auths": {"registry.example:5001": entry("ann")}})
    assert find(HOST, authfile) is None


def test_a_password_may_hold_colons_and_any_letter(tmp_path: Path) -> None:
    authfile = write(tmp_path / "auth.json", {"auths": {HOST: entry("robot$ci", "a:b:ü")}})
    assert find(HOST, authfile) == Credentials("robot$ci", "a:b:ü")


def test_an_identity_token_needs_no_password(tmp_path: Path) -> None:
    config = {"auths": {HOST: {"auth": entry("<token>", "")["auth"], "identitytoken": "refresh"}}}
    authfile = write(tmp_path / "auth.json", config)
    assert find(HOST, authfile) == Credentials("<token>", "", "refresh")


@pytest.mark.parametrize(
    "config",
    [
        {"credHelpers": {HOST: "pass"}},
        {"auths": {HOST: {}}, "credHelpers": {HOST: "pass"}},
        {"auths": {HOST: {}}, "credsStore": "pass"},
    ],
)
def test_a_credential_helper_is_named_and_not_run(tmp_path: Path, config: object) -> None:
    authfile = write(tmp_path / "auth.json", config)
    with pytest.raises(UsageError) as caught:
        find(HOST, authfile)
    assert caught.value.message == (
        f"{authfile} keeps the password of {HOST} in the credential helper pass"
    )
    assert "--password-stdin" in caught.value.hint


def test_a_helper_for_another_host_is_none_of_our_business(tmp_path: Path) -> None:
    config = {"auths": {}, "credHelpers": {"other.example": "pass"}, "credsStore": "pass"}
    assert find(HOST, write(tmp_path / "auth.json", config)) is None


def test_an_authfile_that_is_given_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find(HOST, f"{tmp_path}/absent")
    assert caught.value.message == f"the authfile {tmp_path}/absent does not exist"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the authfile {} is not JSON"),
        (b"{", "the authfile {} is not JSON"),
        (b"\xff", "the authfile {} is not JSON"),
        (b"[]", "the authfile {} is not a JSON object"),
        (b'{"auths": 1}', "auths in {} is not a JSON object"),
        (b'{"auths": {"h": "text"}}', "the entry for h in {} is not a JSON object"),
        (b'{"auths": {"h": {"auth": 1}}}', "the entry for h in {} is damaged"),
        (b'{"auths": {"h": {"auth": "no base64!"}}}', "the entry for h in {} is damaged"),
        (b'{"auths": {"h": {"auth": "/zr/"}}}', "the entry for h in {} is damaged"),
        (b'{"auths": {"h": {"auth": "YW5u"}}}', "the entry for h in {} has no password"),
        (b'{"credHelpers": [1]}', "credHelpers in {} is not a JSON object"),
    ],
)
def test_a_damaged_authfile_is_a_usage_error(tmp_path: Path, content: bytes, message: str) -> None:
    authfile = tmp_path / "auth.json"
    authfile.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        find("h", str(authfile))
    assert caught.value.message == message.format(authfile)


@pytest.mark.parametrize("key", ["http://[", "://", "", "h/", "https:///v1/"])
def test_an_entry_for_no_host_is_passed_over(tmp_path: Path, key: str) -> None:
    assert find("h", write(tmp_path / "auth.json", {"auths": {key: {}}})) is None


def test_an_authfile_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        find(HOST, str(tmp_path))


def test_a_written_authfile_is_found_again_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = f"{tmp_path}/auth.json"
    credentials = Credentials("robot$ci", "a:b:ü")
    before = os.umask(0)
    try:
        write_authfile(path, HOST, credentials)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert find(HOST, path) == credentials


def test_an_authfile_is_never_written_over_another_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "auth.json").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_authfile(f"{tmp_path}/auth.json", HOST, Credentials("ann", "secret"))
    assert not victim.exists()


def test_skopeo_gets_in_with_the_authfile_that_was_written(tmp_path: Path) -> None:
    authfile = f"{tmp_path}/auth.json"
    with serve(tmp_path / "root", htpasswd=("robot$ci", "a:b:ü")) as registry:
        write_authfile(authfile, registry.host, Credentials("robot$ci", "a:b:ü"))
        with pytest.raises(RuntimeError, match=r"(?i)name.unknown|not found|repository name not"):
            skopeo(
                "list-tags", "--authfile", authfile, "--tls-verify=false",
                f"docker://{registry.host}/absent",
            )  # fmt: skip


def test_what_skopeo_login_writes_is_found(tmp_path: Path) -> None:
    authfile = f"{tmp_path}/auth.json"
    with serve(tmp_path / "root", htpasswd=("ann", "secret")) as registry:
        skopeo(
            "login", "--authfile", authfile, "--tls-verify=false",
            "--username=ann", "--password=secret", registry.host,
        )  # fmt: skip
        assert find(registry.host, authfile) == Credentials("ann", "secret")
