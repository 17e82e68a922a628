"""Find the storage root from whatever directory the user has at hand.

The layouts met in the field: `/var/lib/registry`, `/data/registry` (Harbor), `…/shared/registry`
(GitLab), `/registry` (OpenShift), a volume's `_data`, an unpacked dump with any prefix.
"""

import os

from exporter.errors import SourceError

STDIN = "-"
"""What the user calls an archive that comes on stdin."""

_DEPTH = 6  # var/lib/docker/volumes/NAME/_data/ is the deepest usual prefix
_MOST_DIRECTORIES = 20_000


def storage_root(source: str) -> str:
    """Return the absolute path of the one storage root at, above or below `source`.

    Raises:
        SourceError: `source` does not exist, is no registry, or has several below it.
    """
    start = os.path.realpath(source)
    if not os.path.lexists(source) or not os.path.exists(start):
        raise SourceError(f"{source} does not exist")
    if not os.path.isdir(start):
        raise SourceError(f"{source} is not a directory")
    above = start
    while above != "/":
        if _is_root(above):
            return above
        above = os.path.dirname(above)
    found = _below(start)
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(
            f"{source} holds {len(found)} registries: {', '.join(found)}", hint="give one of them"
        )
    if os.path.isfile(os.path.join(start, "oci-layout")):
        raise SourceError(
            f"{source} is an OCI image layout, not a registry's storage",
            hint="skopeo reads it as it is: skopeo copy oci:DIR docker://…",
        )
    raise SourceError(
        f"{source} is not a registry's storage: no docker/registry/v2 in it",
        hint="give the directory that the registry's rootdirectory setting names",
    )


def _is_root(path: str) -> bool:
    """Tell if `path` is a storage root. A dump of an object store may lack an empty `blobs`."""
    has_repositories = os.path.isdir(f"{path}/repositories")
    has_blobs = os.path.isdir(f"{path}/blobs")
    by_name = path.endswith("/docker/registry/v2")
    return (has_repositories and has_blobs) or (by_name and (has_repositories or has_blobs))


def _below(start: str) -> list[str]:
    """Return the roots below `start`, nearest first, in a bounded breadth-first search."""
    found: list[str] = []
    level, seen = [start], 0
    for _ in range(1 + _DEPTH + len(("docker", "registry", "v2"))):
        following: list[str] = []
        for directory in level:
            seen += 1
            if seen > _MOST_DIRECTORIES:
                return found
            if _is_root(directory):
                found.append(directory)
                continue
            try:
                with os.scandir(directory) as entries:
                    following += [e.path for e in entries if e.is_dir(follow_symlinks=False)]
            except OSError:
                continue  # what cannot be read cannot be the registry that we were given
        level = sorted(following)
    return found
