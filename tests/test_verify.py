"""Verify, before a destination that does not always answer. Its proofs are in test_migration.py."""

from pathlib import Path

import pytest

from exporter import dirlayout
from exporter.distribution import Client
from exporter.events import Event, Failed, Verified
from exporter.export import export
from exporter.reference import Destination
from exporter.retry import Retry
from exporter.storage import Storage
from exporter.verify import verify
from tests.builders import StorageBuilder
from tests.fault_proxy import Fault, Refuse, fault_proxy
from tests.registry import serve

HASTY = Retry(tries=3, first_seconds=0.01)


@pytest.mark.parametrize(("status", "failing", "tries"), [(502, 2, 3), (502, 9, 3), (403, 9, 1)])
def test_what_failed_for_a_passing_reason_is_asked_for_again_at_the_end(
    tmp_path: Path, status: int, failing: int, tries: int
) -> None:
    builder = StorageBuilder(tmp_path / "source")
    for tag in ("v1", "v2", "v3"):
        builder.image("a/b", tag, [tag.encode()])
    dirlayout.prepare(str(tmp_path / "out"))
    export(Storage.open(str(tmp_path / "source")), str(tmp_path / "out"))
    events: list[Event] = []

    def refuse(method: str, path: str, count: int) -> Fault | None:
        return Refuse(status) if path.endswith("/manifests/v2") and count <= failing else None

    with (
        serve(tmp_path / "source") as registry,
        fault_proxy(registry.host, rule=refuse) as proxy,
        Client(proxy.host, tls_verify=False) as client,
    ):
        summary = verify(
            str(tmp_path / "out"),
            Destination.parse(proxy.host),
            client=client,
            retry=HASTY,
            observe=events.append,
        )
        asked = [request for request in proxy.requests if request.path.endswith("/manifests/v2")]
    arrives = failing < HASTY.tries
    assert (summary.images, summary.failed) == ((3, 0) if arrives else (2, 1))
    assert len(asked) == tries
    ends = [event for event in events if isinstance(event, Verified | Failed)]
    assert [end.name for end in ends] == (
        ["a/b:v1", "a/b:v3", "a/b:v2"] if tries > 1 else ["a/b:v1", "a/b:v2", "a/b:v3"]
    )
