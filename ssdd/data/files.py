"""Find the files of a folder by name, in any Unicode form and with any case of the suffix."""

from collections import defaultdict
from collections.abc import Sequence

from ssdd.data.class_names import normal_form
from ssdd.data.problems import fault, permitted
from ssdd.storage.paths import AnyPath, FilesIn, Stat


class FilesByName:
    """The files in a folder that have certain suffixes, by name without suffix; the folder is listed once.

    The files may have suffixes in any case and names in any Unicode form; the methods take names in the form NFC. A
    folder that does not exist has no files.

    Args:
        folder: on a disk or in an object store.
        suffixes: in lower case, with the dot.
        what: the word for the files in messages: `image`, `mask`, `labels` or `list`.

    Raises:
        problems.DataError: the folder may not be read.
    """

    def __init__(self, folder: AnyPath, suffixes: Sequence[str], what: str):
        self.folder, self.suffixes, self.what = folder, tuple(suffixes), what
        with permitted(folder):
            self._files = FilesIn(folder)
            names = self._files.names()
        spellings: dict[str, list[str]] = defaultdict(list)
        for name in names:
            stem, dot, suffix = name.rpartition(".")
            if dot + suffix.lower() in self.suffixes and not name.startswith("."):
                spellings[normal_form(stem)].append(name)
        self._spellings = dict(spellings)

    def __contains__(self, name: str) -> bool:
        return name in self._spellings

    def names(self) -> list[str]:
        """The names without suffix, in the Unicode form NFC, sorted."""
        return sorted(self._spellings)

    def find(self, name: str) -> AnyPath | None:
        """The file with this name, or None. Raises DataError if several files have this name."""
        spelled = self._spellings.get(name, [])
        if len(spelled) > 1:
            first, *others = spelled
            kind = f"ambiguous {self.what}"
            raise fault(kind, f"{self.folder / first}: there is also {', '.join(others)}")
        return self.folder / spelled[0] if spelled else None

    def stats(self, name: str) -> list[tuple[str, Stat]]:
        """The full name and `Stat` of each file with this name. Raises DataError if the disk denies access."""
        with permitted(self.folder):
            return [(spelled, self._files.stat(spelled)) for spelled in self._spellings.get(name, [])]
