"""What an image consists of, and which images are meant. Pure: content comes through a function."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from exporter.digest import Digest
from exporter.errors import UsageError
from exporter.manifest import Descriptor, Manifest
from exporter.storage import TaggedImage, UnreadableTag
from exporter.verdict import Problem, ProblemError

T = TypeVar("T")

ReadManifest = Callable[[Digest], Manifest]
"""Returns a manifest by digest. Raises: ProblemError."""


@dataclass(slots=True)
class Closure:
    """Everything that one manifest needs to be whole.

    Attributes:
        root: The digest that the tag names.
        manifests: The root and every manifest below it, each once, parents before children.
        blobs: Configs and layers, each once, in the order met; layers with urls left out.
        problems: What is missing or unusable among the manifests.
    """

    root: Digest
    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def children(self) -> Iterator[Digest]:
        """Yield every manifest but the root."""
        return (digest for digest in self.manifests if digest != self.root)

    def children_first(self) -> list[Digest]:
        """Return every manifest, each after all that it lists; the root is the last."""
        ordered: dict[Digest, None] = {}
        pending = [(self.root, False)]
        while pending:
            digest, listed = pending.pop()
            if listed:
                ordered[digest] = None
            elif digest not in ordered:
                pending.append((digest, True))
                pending += [(child.digest, False) for child in self.manifests[digest].children]
        return list(ordered)


def resolve(root: Digest, read: ReadManifest) -> Closure:
    """Return the closure of `root`. Every manifest is read once, however often it is listed.

    A problem does not stop it: what is whole besides is in the result too.
    """
    closure = Closure(root)
    seen, pending = {root}, [root]
    while pending:
        digest = pending.pop()
        try:
            manifest = read(digest)
        except ProblemError as error:
            closure.problems.append(error.problem)
            continue
        closure.manifests[digest] = manifest
        for blob in manifest.blobs():
            closure.blobs.setdefault(blob.digest, blob)
        for child in reversed(manifest.children):
            if child.digest not in seen:
                seen.add(child.digest)
                pending.append(child.digest)
    return closure


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
        picked = [item for text, item in named if self._means(text)]
        if not picked:
            raise UsageError("no image matches the selection")
        return picked

    def _means(self, text: str) -> bool:
        return (
            (self._names is None or text in self._names)
            and (self._include is None or self._include.fullmatch(text) is not None)
            and (self._exclude is None or self._exclude.fullmatch(text) is None)
        )


def select(
    tags: Iterable[TaggedImage | UnreadableTag], selection: Selection
) -> tuple[list[TaggedImage], list[UnreadableTag]]:
    """Return the selected images of a registry, and the selected tags that cannot be read.

    Raises:
        UsageError: Nothing matches, or a name that was asked for is not there.
    """
    picked = selection.pick(tags, lambda tag: tag.name)
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
