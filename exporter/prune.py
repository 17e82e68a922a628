"""What is removed from OUT: what interrupted runs left, and what the source no longer has."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress

from exporter import dirlayout
from exporter.events import Deleted, Failed
from exporter.reference import ImageName


def clear_building(out: str) -> None:
    """Remove what is half built, or half removed.

    Raises:
        OSError: Something cannot be removed.
    """
    with os.scandir(f"{dirlayout.work_directory(out)}/{dirlayout.BUILDING}") as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def delete(out: str, names: list[ImageName]) -> Iterator[Deleted | Failed]:
    """Remove images, and the directories above them that this leaves empty.

    An image goes by one rename: it is whole until then. One that holds what no export puts there
    stays.

    Args:
        out: The directory that has them.
        names: Images of its record; some may be gone already.

    Raises:
        OSError: One cannot be removed.
    """
    for name in names:
        directory = dirlayout.image_directory(out, name)
        try:
            foreign = dirlayout.foreign_files(directory)
        except FileNotFoundError:
            yield Deleted(name=str(name))
            continue
        except NotADirectoryError:
            foreign = [directory]
        if foreign:
            message = f"not deleted, since we did not make {foreign[0]}"
            yield Failed(verb="export", name=str(name), error="foreign", message=message)
            continue
        aside = f"{dirlayout.work_directory(out)}/{dirlayout.BUILDING}/deleted"
        os.rename(directory, aside)
        shutil.rmtree(aside)
        parent = os.path.dirname(directory)
        with suppress(OSError):  # not empty
            while parent != out:
                os.rmdir(parent)
                parent = os.path.dirname(parent)
        yield Deleted(name=str(name))
