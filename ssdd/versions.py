"""The versions of the installed libraries."""

import importlib.metadata


def version(library: str) -> str | None:
    """The version of an installed library; None if no library of this name is installed.

    It is None for this package in a submitted Ray job, which runs the package from a folder.
    """
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
