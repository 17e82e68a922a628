"""What an image consists of, and which images are meant. Pure: content comes through a function."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from exporter.digest import Digest
from exporter.errors import UsageError
from exporter.manifest import DOCKER_SCHEMA1, Descriptor, Manifest
from exporter.reference import ImageName, RepositoryName, parse_repository_name
from exporter.storage import BlobFile, Storage, TaggedImage, UnreadableTag, layout, printable
from exporter.verdict import Problem, ProblemError, Verdict

T = TypeVar("T")

ReadManifest = Callable[[Digest], Manifest]
"""Returns a manifest by digest. Raises: ProblemError."""


@dataclass(slots=True)
class Closure:
    """Everything that one manifest needs to be whole.

    Attributes:
        root: The digest that the tag names.
        manifests: The root and every manifest below it, each once, parents before children.
        blobs: Configs and layers, each once, in the order met.
        foreign: Layers with urls, which storage need not have and no push sends.
        problems: What is to be said of the manifests; not all of it is an obstacle.
    """

    root: Digest
    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    foreign: dict[Digest, Descriptor] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def children(self) -> Iterator[Digest]:
        """Yield every manifest but the root."""
        return (digest for digest in self.manifests if digest != self.root)


def resolve(root: Digest, read: ReadManifest) -> Closure:
    """Return the closure of `root`. Every manifest is read once, however often it is listed.

    A problem does not stop it: what is whole besides is in the result too.
    """
    closure = Closure(root)
    platforms = {root: ""}
    pending = [root]
    while pending:
        digest = pending.pop()
        try:
            manifest = read(digest)
        except ProblemError as error:
            closure.problems.append(_of_child(error.problem, digest, platforms[digest], root))
            continue
        closure.manifests[digest] = manifest
        blobs = list(manifest.blobs())
        closure.problems += _remarks(digest, manifest, blobs, is_root=digest == root)
        for blob in blobs:
            closure.blobs.setdefault(blob.digest, blob)
        for layer in manifest.layers:
            if layer.urls:
                closure.foreign[layer.digest] = layer
        for child in reversed(manifest.children):
            if child.digest not in platforms:
                platforms[child.digest] = child.platform
                pending.append(child.digest)
    return closure


def _of_child(problem: Problem, digest: Digest, platform: str, root: Digest) -> Problem:
    """Say which platform of an index is missing with a manifest."""
    if digest == root or problem.verdict is not Verdict.MISSING_MANIFEST:
        return problem
    message = f"{problem.message}; it is the index's {platform or 'child without a platform'}"
    return Problem(Verdict.MISSING_CHILD, problem.path, message)


def _remarks(
    digest: Digest, manifest: Manifest, blobs: Iterable[Descriptor], *, is_root: bool
) -> Iterator[Problem]:
    path = layout.blob(digest)
    if manifest.media_type == DOCKER_SCHEMA1:
        message = f"{digest} is Docker schema 1, which has to be converted"
        yield Problem(Verdict.SCHEMA1, path, message)
    if manifest.is_index and not is_root:
        yield Problem(Verdict.NESTED_INDEX, path, f"{digest} is an index inside an index")
    for layer in manifest.layers:
        if layer.urls:
            message = f"the layer {layer.digest} is not moved, since it has urls to get it from"
            yield Problem(Verdict.FOREIGN_LAYER, path, message)
    for blob in blobs:
        if not blob.digest.startswith("sha256:"):
            message = f"skopeo cannot push {blob.digest[:32]}…"
            yield Problem(Verdict.UNSUPPORTED_DIGEST, path, message)


class Blobs(Protocol):
    """What must be known of blobs to say whether an image is whole; `Storage` is one."""

    def canonical(self, digest: Digest, repository: RepositoryName) -> Digest:
        """Return the digest under which a blob is stored."""

    def blob(self, digest: Digest) -> BlobFile:
        """Return the file of a blob. Raises: ProblemError."""

    def hash(self, digest: Digest) -> Digest:
        """Return the digest that a blob's content really has. Raises: ProblemError."""


def blob_files(
    closure: Closure, blobs: Blobs, repository: RepositoryName
) -> tuple[dict[Digest, BlobFile], list[Problem]]:
    """Return the files of an image's configs and layers, and what is wrong with them by their size.

    Only a blob whose size is not the one that its manifest states is read: it may be whole all
    the same, because no registry compares the two.
    """
    found: dict[Digest, BlobFile] = {}
    problems: list[Problem] = []
    for digest, expected in closure.blobs.items():
        stored = blobs.canonical(digest, repository)
        try:
            file = found[digest] = blobs.blob(stored)
            if expected.size is not None and expected.size != file.size:
                whole = blobs.hash(stored) == stored
                problems.append(_wrong_size(closure, digest, stored, file.size, whole=whole))
        except ProblemError as error:
            problems.append(error.problem)
    return found, problems


def blob_problems(closure: Closure, blobs: Blobs, repository: RepositoryName) -> list[Problem]:
    """Return what is wrong with the configs and layers of an image, as `blob_files` does."""
    return blob_files(closure, blobs, repository)[1]


def _wrong_size(
    closure: Closure, digest: Digest, stored: Digest, size: int, *, whole: bool
) -> Problem:
    """Return the verdict on a blob whose size is not what the manifest states.

    Spec: containers/image, docker/docker_image_dest.go: skopeo sends a layer without looking at
    its stated size, but a config with it as Content-Length.
    """
    path = layout.blob(stored)
    expected = closure.blobs[digest].size
    if not whole:
        message = f"the blob {stored} is damaged: it has {size} bytes instead of {expected}"
        return Problem(Verdict.WRONG_SIZE, path, message)
    message = f"the blob {stored} is whole, but has {size} bytes where its manifest says {expected}"
    configs = {m.config.digest for m in closure.manifests.values() if m.config is not None}
    return Problem(
        Verdict.WRONG_SIZE if digest in configs else Verdict.MISSTATED_SIZE, path, message
    )


class Selection:
    """Which images are meant, by their names; all if nothing was asked for.

    Args:
        include: Globs; an image must match one of them, if there are any.
        exclude: Globs; an image must match none of them.
        names: Exact names; an image must be one of them, if not None.

    A glob is matched against the whole of `repository:tag`: `*` and `?` stop at `/`, `**` crosses
    it, `[…]` is a set and `[!…]` what is not in it, `/` apart. A glob without `:` means every tag
    of the repositories that it matches.

    Raises:
        UsageError: A glob has a set that cannot be, like `[z-a]`.
    """

    def __init__(
        self,
        *,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        names: Iterable[str] | None = None,
    ) -> None:
        self._include = _any_of(include)
        self._exclude = _any_of(exclude)
        self._names = None if names is None else frozenset(names)

    @property
    def is_everything(self) -> bool:
        """True if nothing was asked for."""
        return self._include is None and self._exclude is None and self._names is None

    def pick(self, items: Iterable[T], name: Callable[[T], object]) -> list[T]:
        """Return the items that are meant, in their order.

        Args:
            items: What there is.
            name: Gives the `repository:tag` of an item.

        Raises:
            UsageError: None is meant, or one of the exact names is not there.
        """
        named = [(str(name(item)), item) for item in items]
        if self._names is not None:
            missing = sorted(self._names - {text for text, _ in named})
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise UsageError(f"there is no image {missing[0]}{more}")
        picked = [item for text, item in named if self.means(text)]
        if not picked:
            raise UsageError("no image matches the selection")
        return picked

    def means(self, text: str) -> bool:
        """Tell if the image called `text` is meant."""
        return (
            (self._names is None or text in self._names)
            and (self._include is None or self._include.fullmatch(text) is not None)
            and (self._exclude is None or self._exclude.fullmatch(text) is None)
        )


def candidates(
    storage: Storage, *, untagged: bool = False
) -> Iterator[TaggedImage | UnreadableTag]:
    """Yield every tag of a registry, then the manifests that no tag reaches, if they are wanted.

    Raises:
        SourceError: There is nothing at all; the error says why that may be.
    """
    found = False
    tagged: dict[RepositoryName, set[Digest]] = {}
    for tag in storage.tags():
        found = True
        if untagged and isinstance(tag, TaggedImage):
            tagged.setdefault(tag.name.repository, set()).add(tag.digest)
        yield tag
    if untagged:
        for image in _untagged(storage, tagged):
            found = True
            yield image
    if not found:
        raise storage.without_tags()


def _untagged(
    storage: Storage, tagged: dict[RepositoryName, set[Digest]]
) -> Iterator[TaggedImage | UnreadableTag]:
    """Yield manifests that neither a tag nor another manifest of their repository reaches."""
    for text in storage.repositories():
        if isinstance(text, UnreadableTag):
            continue  # `tags` has said so already
        try:
            repository = parse_repository_name(text)
        except ValueError as error:
            path = printable(layout.revisions(text))
            problem = Problem(Verdict.INVALID_NAME, path, f"its manifests have no name: {error}")
            yield UnreadableTag(printable(text), problem)
            continue
        revisions: list[Digest] = []
        for revision in storage.revisions(repository):
            if isinstance(revision, UnreadableTag):
                yield revision
            else:
                revisions.append(revision)
        roots = tagged.get(repository, set())
        reached = roots | _listed(storage, {*roots, *revisions})
        for digest in revisions:
            if digest not in reached:
                yield TaggedImage(ImageName(repository, digest), digest)


def _listed(storage: Storage, roots: set[Digest]) -> set[Digest]:
    """Return every manifest below any of `roots`; each is read once, however often it is listed."""
    found: set[Digest] = set()
    read: set[Digest] = set()
    pending = [*roots]
    while pending:
        digest = pending.pop()
        if digest not in read:
            read.add(digest)
            with suppress(ProblemError):  # whoever takes it will say what is wrong
                children = {child.digest for child in storage.manifest(digest).children}
                found |= children
                pending += children
    return found


def select(
    found: Iterable[TaggedImage | UnreadableTag], selection: Selection
) -> tuple[list[TaggedImage], list[UnreadableTag]]:
    """Return the selected images of a registry, and the selected tags that cannot be read.

    Raises:
        UsageError: Nothing matches, or a name that was asked for is not there.
    """
    picked = selection.pick(found, lambda tag: tag.name)
    images = [tag for tag in picked if isinstance(tag, TaggedImage)]
    return images, [tag for tag in picked if isinstance(tag, UnreadableTag)]


def _any_of(globs: Iterable[str]) -> re.Pattern[str] | None:
    patterns = [_translate(glob if ":" in glob else f"{glob}:*") for glob in globs]
    try:
        return re.compile("|".join(patterns)) if patterns else None
    except re.error as error:
        raise UsageError(f"a glob cannot be used: {error.msg}") from None


_TOKENS = re.compile(r"(\*\*|\*|\?|\[[^\]]+\])")


def _translate(glob: str) -> str:
    wildcards = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts: list[str] = []
    for token in _TOKENS.split(glob):
        if token in wildcards:
            parts.append(wildcards[token])
        elif token.startswith("[") and token.endswith("]") and len(token) > 2:
            negated = token[1] in "!^"
            members = re.escape(token[2 if negated else 1 : -1])
            members = re.sub(r"(?<=\w)\\-(?=\w)", "-", members)  # a range; any other - is itself
            parts.append(f"[{'^/' if negated else ''}{members}]")
        else:
            parts.append(re.escape(token))
    return "".join(parts)
