"""The versions of the installed libraries."""

import importlib.metadata


def version(library: str) -> str | None:
    """The version of an installed library; None if no library of this name is installed.

    For this package it is None if a Ray job runs the package from a folder on a cluster where it is not installed.
    """
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
