"""Which versions of libraries run here."""

import importlib.metadata


def version(library: str) -> str | None:
    """Of an installed library; None where it is not installed under this name.

    That is so for this package in a submitted Ray job, which runs from a folder.
    """
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
