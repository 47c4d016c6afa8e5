"""Image-level labels: labels.csv, or an XML file for each image."""

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from xml.etree import ElementTree

from ssdd.data.class_names import is_background, normal_form, without_number
from ssdd.data.files import FilesByName
from ssdd.data.problems import DataError, fault, permitted, read_text
from ssdd.data.voc import VOCFolder
from ssdd.storage.paths import ABSENT, AnyPath

_Rows = dict[str, list[tuple[int, list[str]]]]  # by image id: its lines' numbers and cells
_HEADER = re.compile(r"""["']?\s*image[ _]?id\s*["']?\s*([,;\t|])""", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Where the labels of a folder's images stand; either `rows` or `xmls` is there."""

    classes: tuple[str, ...]
    """Names, background first."""
    csv: AnyPath
    rows: _Rows | None = None
    """Of labels.csv."""
    xmls: FilesByName | None = None

    @classmethod
    def open(cls, folder: VOCFolder) -> "Labels":
        """Of a folder's labels.csv if there is one, else of its Annotations/. DataError for an unusable labels.csv."""
        if folder.stat_of_csv() != ABSENT:
            return cls.read(folder.csv, folder.classes)
        return cls(classes=folder.classes, csv=folder.csv, xmls=folder.xmls())

    @classmethod
    def read(cls, path: AnyPath, classes: tuple[str, ...]) -> "Labels":
        """Of a file like labels.csv. DataError where it is not there or cannot be used."""
        return cls(classes=classes, csv=path, rows=_read_rows(path))

    def of(self, image_id: str) -> tuple[str, list[int]] | None:
        """Where the labels of an image stand, and its foreground classes, sorted; None without an XML file.

        Raises:
            problems.DataError: no line for it in labels.csv, a malformed line or file, or an unknown class.
        """
        if self.rows is not None:
            where, names = self._names_in_csv(self.rows.get(image_id, []), image_id)
        else:
            assert self.xmls is not None
            path = self.xmls.find(image_id)
            if path is None:
                return None
            where, names = f"{path}, object/name", names_in(read_xml(path))
        wanted = {normal_form(name.strip()) for name in names}
        indices = {name: self._index(name) for name in wanted if name and not is_background(name)}
        unknown = sorted(name for name, index in indices.items() if index is None)
        if unknown:
            raise fault("unknown class", f"{where}: {', '.join(map(repr, unknown))}")
        return where, sorted({index for index in indices.values() if index is not None})

    def _index(self, name: str) -> int | None:
        """The class of a name; it may begin with the class's number, as in classes.txt."""
        number, rest = without_number(name)
        if name not in self.classes and rest in self.classes and self.classes.index(rest) == number:
            return number
        return self.classes.index(name) if name in self.classes else None

    @cached_property
    def _other_lines(self) -> dict[str, tuple[int, str]]:
        """The lines that begin with an id and another separator than the file's: their numbers and separators."""
        lines: dict[str, tuple[int, str]] = {}
        for name, rows in (self.rows or {}).items():
            for separator in ";\t|, ":
                start, found, _ = name.partition(separator)
                if found:
                    lines.setdefault(start.strip(), (rows[0][0], separator))
        return lines

    def _names_in_csv(self, rows: list[tuple[int, list[str]]], image_id: str) -> tuple[str, list[str]]:
        where = f"{self.csv}, line {', '.join(str(number) for number, _ in rows)} ({image_id})"
        if not rows and image_id in self._other_lines:
            number, separator = self._other_lines[image_id]
            raise fault(
                "malformed labels", f"{self.csv}, line {number} ({image_id}): its fields are separated by {separator!r}"
            )
        if not rows:
            raise fault("missing labels", f"{self.csv}: no line for image_id {image_id!r}")
        if len(rows) > 1:
            raise fault("malformed labels", f"{where}: the image_id is repeated")
        cells = rows[0][1]
        if len(cells) != 2:
            raise fault("malformed labels", f"{where}: number of fields is {len(cells)}, not 2")
        return f"{where}, classes", cells[1].split(";")


def _read_rows(path: AnyPath) -> _Rows:
    """The lines of labels.csv by image id, each with its number and the cells: the id, and `class;class`.

    A header says how the fields are separated: `image_id,classes`, or with a semicolon, a tab or a bar. Where it is no
    comma, classes may be separated by it, too, or by commas.
    """
    lines = read_text(path).splitlines()
    header = next((match for line in lines if line.strip() and (match := _HEADER.match(line.strip()))), None)
    separator = header[1] if header else ","
    rows: _Rows = defaultdict(list)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t")
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells) or re.fullmatch("image[ _]?id", cells[0], re.IGNORECASE):
                continue
            if separator != "," and len(cells) > 1:
                cells = [cells[0], ";".join(cells[1:]).replace(",", ";")]
            rows[normal_form(cells[0])].append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; write `image_id,class;class`") from error
    for other, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if rows and other != separator and all(other in image_id for image_id in rows):
            raise DataError(
                f"{path}: its fields are separated by {name}; write `image_id,class;class`, or begin the file with the "
                f"header `image_id{other}classes`"
            )
    return dict(rows)


def read_xml(path: AnyPath) -> ElementTree.Element:
    """The root of one of VOC's XML files. DataError where it cannot be read."""
    try:
        with permitted(path):
            data = path.read_bytes()
        return ElementTree.fromstring(data)
    except DataError:
        raise
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: its encoding
        raise fault("malformed labels", f"{path}: not readable XML ({error})") from error


def names_in(root: ElementTree.Element) -> list[str]:
    """The names of its objects."""
    return [entry.findtext("name", "") for entry in root.findall("object")]
