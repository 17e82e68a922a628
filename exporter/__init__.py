"""Turn the storage of a Docker Distribution registry into skopeo `dir:` images, and push them.

The architecture, and who may import whom, is in `docs/ARCHITECTURE.md`.
"""

__version__ = "0.1.0"
