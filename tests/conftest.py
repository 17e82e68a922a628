"""What every test may use."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.builders import StorageBuilder

# How long an example takes says more about the neighbours on this machine than about the code.
settings.register_profile("skopeo-dir", deadline=None)
settings.load_profile("skopeo-dir")


@pytest.fixture
def registry(tmp_path: Path) -> StorageBuilder:
    """A registry's storage without a repository, to be filled."""
    return StorageBuilder(tmp_path / "registry")
