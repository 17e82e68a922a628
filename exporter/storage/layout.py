"""Paths of the registry's storage, as functions of names and digests. Nothing here touches a disk.

```
<root>                                   …/docker/registry/v2
├── blobs/sha256/<2 hex>/<hex>/data      every manifest, config and layer, once
└── repositories/<name>/                 names nest: foo and foo/bar may both be repositories
    ├── _layers/sha256/<hex>/link        which blobs the repository may serve; read for sha512 only
    ├── _uploads/                        unfinished uploads; never read here
    └── _manifests/
        ├── revisions/sha256/<hex>/link  every manifest ever put, until deleted
        └── tags/<tag>/
            ├── current/link             the digest that the tag names now
            └── index/sha256/<hex>/link  the digests that it ever named
```
A link file holds `<algorithm>:<hex>` and no newline; its content decides, not its path.

Spec: distribution/distribution, registry/storage/paths.go.
"""

from exporter.digest import Digest

MANIFESTS = "_manifests"
LAYERS = "_layers"


def blob(digest: Digest) -> str:
    """Return where the content of `digest` lies, relative to the root."""
    return f"blobs/{digest[:6]}/{digest[7:9]}/{digest[7:]}/data"


def repository(name: str) -> str:
    """Return the directory of a repository, relative to the root."""
    return f"repositories/{name}"


def tags(name: str) -> str:
    """Return the directory that has one directory for each tag, relative to the root."""
    return f"repositories/{name}/{MANIFESTS}/tags"


def revisions(name: str) -> str:
    """Return the directory that has one directory for each manifest, relative to the root."""
    return f"repositories/{name}/{MANIFESTS}/revisions/sha256"


def revision_link(name: str, digest: Digest) -> str:
    """Return the link file that says that a repository has a manifest, relative to the root."""
    return f"{revisions(name)}/{digest.hex}/link"


def layer_link(name: str, digest: Digest) -> str:
    """Return the link file that says under which digest a repository's blob is stored."""
    algorithm, _, hexadecimal = digest.partition(":")
    return f"repositories/{name}/{LAYERS}/{algorithm}/{hexadecimal}/link"


def tag_link(name: str, tag: str) -> str:
    """Return the link file that says which digest a tag names, relative to the root."""
    return f"repositories/{name}/{MANIFESTS}/tags/{tag}/current/link"
