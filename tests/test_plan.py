"""Which images are meant, and what they consist of."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.digest import Digest
from exporter.errors import SourceError, UsageError
from exporter.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from exporter.plan import Selection, candidates, resolve, select
from exporter.reference import ImageName
from exporter.storage import Storage, TaggedImage, UnreadableTag
from exporter.verdict import Problem, ProblemError, Verdict
from tests.builders import StorageBuilder


def digest(name: str) -> Digest:
    return Digest.of(name.encode())


def image(*layers: str) -> Manifest:
    return Manifest(
        OCI_MANIFEST,
        1,
        config=Descriptor(digest("config"), 1),
        layers=tuple(Descriptor(digest(layer), 1) for layer in layers),
    )


def index(*children: str) -> Manifest:
    return Manifest(
        OCI_INDEX, 1, children=tuple(Descriptor(digest(child), 1) for child in children)
    )


class Reader:
    """Manifests by the digests of their names; counts what is read."""

    def __init__(self, **manifests: Manifest) -> None:
        self.manifests = {digest(name): manifest for name, manifest in manifests.items()}
        self.reads: list[Digest] = []

    def __call__(self, wanted: Digest) -> Manifest:
        self.reads.append(wanted)
        if wanted not in self.manifests:
            raise ProblemError(Verdict.MISSING_MANIFEST, "path", f"{wanted} is missing")
        return self.manifests[wanted]


# --- closures


def test_the_closure_of_an_image_is_its_config_and_layers_each_once() -> None:
    closure = resolve(digest("a"), Reader(a=image("one", "two", "one")))
    assert list(closure.manifests) == [digest("a")]
    assert list(closure.blobs) == [digest("config"), digest("one"), digest("two")]


def test_the_closure_of_an_index_has_parents_before_children_in_order() -> None:
    reader = Reader(top=index("b", "inner", "a"), inner=index("c"), a=image(), b=image(), c=image())
    closure = resolve(digest("top"), reader)
    expected = [digest(name) for name in ("top", "b", "inner", "c", "a")]
    assert list(closure.manifests) == expected
    assert list(closure.children()) == expected[1:]


def test_an_index_dag_that_doubles_at_each_of_18_levels_is_read_once_a_manifest() -> None:
    levels = {f"level{n}": index(f"level{n + 1}", f"level{n + 1}") for n in range(18)}
    reader = Reader(**levels, level18=image("layer"))
    resolve(digest("level0"), reader)
    assert len(reader.reads) == 19


def test_a_cycle_ends() -> None:
    reader = Reader(a=index("b"), b=index("a", "b"))
    assert list(resolve(digest("a"), reader).manifests) == [digest("a"), digest("b")]


def test_a_thousand_levels_are_no_recursion() -> None:
    levels = {f"level{n}": index(f"level{n + 1}") for n in range(5_000)}
    closure = resolve(digest("level0"), Reader(**levels, level5000=image()))
    assert len(closure.manifests) == 5_001


def test_every_problem_is_kept_and_what_is_whole_is_too() -> None:
    reader = Reader(top=index("gone", "a", "lost"), a=image("layer"))
    closure = resolve(digest("top"), reader)
    assert [problem.message for problem in closure.problems] == [
        f"{digest(name)} is missing; it is the index's child without a platform"
        for name in ("gone", "lost")
    ]
    assert digest("layer") in closure.blobs


# --- globs

CASES = [
    ("app", "app:v1", True),
    ("app", "application:v1", False),
    ("app", "team/app:v1", False),
    ("app:v1", "app:v1", True),
    ("app:v1", "app:v10", False),
    ("*", "app:v1", True),
    ("*", "team/app:v1", False),
    ("*/*", "team/app:v1", True),
    ("*/*", "team/sub/app:v1", False),
    ("**", "team/sub/app:v1", True),
    ("**/app", "team/sub/app:v1", True),
    ("**/app", "app:v1", False),
    ("**:latest", "team/app:latest", True),
    ("**:latest", "team/app:v1", False),
    ("team/**", "team/sub/app:v1", True),
    ("team/**", "team2/app:v1", False),
    ("app:v?", "app:v1", True),
    ("app:v?", "app:v10", False),
    ("team?app", "team/app:v1", False),
    ("app:v[12]", "app:v2", True),
    ("app:v[12]", "app:v3", False),
    ("app:v[1-3]", "app:v2", True),
    ("app:v[!1-3]", "app:v2", False),
    ("app:v[^1-3]", "app:v4", True),
    ("app:v[+--]", "app:v-", True),
    ("app:v[+--]", "app:v,", False),
    ("app:[a-]", "app:-", True),
    ("team[!a]app", "team/app:v1", False),
    ("app:1.0", "app:1.0", True),
    ("app:1.0", "app:1x0", False),
    ("app:v(1|2)", "app:v1", False),
    ("app:[v", "app:v", False),
    ("app:[]v", "app:v", False),
    ("app:[]^v]", "app:v", False),
    ("APP", "app:v1", False),
]


@pytest.mark.parametrize(("glob", "name", "expected"), CASES)
def test_a_glob_means(glob: str, name: str, *, expected: bool) -> None:
    items = [name, "other:tag"]
    picked = Selection(include=[glob, "other:tag"]).pick(items, str)
    assert (name in picked) == expected


@pytest.mark.parametrize("glob", ["app:[z-a]", "[9-0]"])
def test_a_glob_that_cannot_be_is_refused(glob: str) -> None:
    with pytest.raises(UsageError, match="a glob cannot be used"):
        Selection(include=[glob])


@given(st.text("ab*?[]!^-\\:/.\n+(", max_size=8))
def test_any_text_is_a_glob_or_refused(glob: str) -> None:
    with contextlib.suppress(UsageError):
        Selection(include=[glob])


def pick(**asked: list[str]) -> list[str]:
    names = ["a:v1", "a:v2", "b/c:v1", "b/d:v2"]
    return Selection(**asked).pick(names, str)


def test_nothing_asked_means_all_in_their_order() -> None:
    assert pick() == ["a:v1", "a:v2", "b/c:v1", "b/d:v2"]


def test_one_include_is_enough_and_one_exclude_is_too_many() -> None:
    assert pick(include=["a", "b/**"], exclude=["**:v1", "**/d"]) == ["a:v2"]


def test_names_and_globs_are_both_obeyed() -> None:
    assert pick(names=["a:v1", "b/c:v1"], include=["b/*"]) == ["b/c:v1"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a:v1", "z:v1"], "there is no image z:v1"),
        (["z:v1", "a:v9", "a:v1"], "there is no image a:v9 and 1 more"),
    ],
)
def test_a_name_that_is_not_there_is_refused(names: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        pick(names=names)
    assert caught.value.message == expected


def test_to_mean_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no image matches the selection"):
        pick(include=["nothing"])


def test_unreadable_tags_are_selected_as_any_other() -> None:
    good = TaggedImage(ImageName.parse("a:v1"), digest("a"))
    problem = Problem(Verdict.EMPTY_LINK, "path", "empty")
    bad, other = UnreadableTag("a:v2", problem), UnreadableTag("b:v1", problem)
    assert select([good, bad, other], Selection(include=["a"])) == ([good], [bad])


# --- what there is


def found(registry: StorageBuilder, *, untagged: bool = False) -> list[str]:
    storage = Storage(str(registry.v2))
    return [str(image.name) for image in candidates(storage, untagged=untagged)]


def test_a_registry_without_repositories_is_empty(tmp_path: Path) -> None:
    registry = StorageBuilder(tmp_path)
    registry.blob(b"layer")
    with pytest.raises(SourceError, match="is empty"):
        found(registry)


def test_a_registry_without_tags_says_how_to_take_it_all_the_same(tmp_path: Path) -> None:
    registry = StorageBuilder(tmp_path)
    registry.image("app", None, [b"layer"])
    with pytest.raises(SourceError, match="has 1 repositories and no tags") as caught:
        found(registry)
    assert "--untagged" in caught.value.hint


def test_gitlabs_metadata_database_is_recognised(tmp_path: Path) -> None:
    registry = StorageBuilder(tmp_path)
    registry.image("app", None, [b"layer"])
    lock = tmp_path / "docker/registry/lockfiles/database-in-use"
    lock.parent.mkdir()
    lock.touch()
    with pytest.raises(SourceError, match="GitLab's metadata database"):
        found(registry)


def test_untagged_is_what_neither_a_tag_nor_an_untagged_index_reaches(tmp_path: Path) -> None:
    registry = StorageBuilder(tmp_path)
    children = [registry.image("app", None, [bytes([n])]) for n in range(4)]
    registry.index("app", "v1", children[:2])
    index = registry.index("app", None, children[2:])
    tagged = registry.image("app", "v2", [b"layer"])
    lost = registry.image("app", None, [b"lost"])
    registry.image("other", None, [b"layer"])
    expected = ["app:v1", "app:v2", *(f"app@{each}" for each in sorted([index, lost]))]
    assert found(registry, untagged=True) == [*expected, f"other@{tagged}"]


def test_what_is_left_of_a_deleted_manifest_is_not_untagged(tmp_path: Path) -> None:
    registry = StorageBuilder(tmp_path)
    registry.image("app", "v1", [b"layer"])
    (registry.v2 / f"repositories/app/_manifests/revisions/sha256/{'0' * 64}").mkdir()
    assert found(registry, untagged=True) == ["app:v1"]
