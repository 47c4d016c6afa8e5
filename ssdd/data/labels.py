"""Image-level labels: labels.csv, or an XML file for each image."""

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from xml.etree import ElementTree

from ssdd.data.class_names import is_background, normal_form, without_number
from ssdd.data.files import FilesByName
from ssdd.data.problems import DataError, fault, read_bytes, read_text
from ssdd.data.voc import VOCFolder
from ssdd.storage.paths import ABSENT, AnyPath

_Rows = dict[str, list[tuple[int, list[str]]]]  # by image id: the number and the cells of each of its lines
_HEADER = re.compile(r"""["']?\s*image[ _]?id\s*["']?\s*([,;\t|])""", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of a folder's images, from labels.csv (`rows`) or from XML files (`xmls`)."""

    classes: tuple[str, ...]
    """Class names, background first."""
    csv: AnyPath
    rows: _Rows | None = None
    """The lines of labels.csv."""
    xmls: FilesByName | None = None

    @classmethod
    def open(cls, folder: VOCFolder) -> "Labels":
        """The labels in a folder's labels.csv if it exists, else in Annotations/. DataError for a bad labels.csv."""
        if folder.stat_of_csv() != ABSENT:
            return cls.read(folder.csv, folder.classes)
        return cls(classes=folder.classes, csv=folder.csv, xmls=folder.xmls())

    @classmethod
    def read(cls, path: AnyPath, classes: tuple[str, ...]) -> "Labels":
        """The labels in a file like labels.csv. Raises DataError if the file is missing or unusable."""
        return cls(classes=classes, csv=path, rows=_read_rows(path))

    def of(self, image_id: str) -> tuple[str, list[int]] | None:
        """Where an image's labels stand, for messages, and its sorted foreground classes; None without its XML file.

        Raises:
            problems.DataError: labels.csv has no line for the image, the line or file is malformed, or a class is
                unknown.
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
        """The class index of a name, or None. The name may begin with the index, as in classes.txt."""
        number, rest = without_number(name)
        if name not in self.classes and rest in self.classes and self.classes.index(rest) == number:
            return number
        return self.classes.index(name) if name in self.classes else None

    @cached_property
    def _other_lines(self) -> dict[str, tuple[int, str]]:
        """Lines that seem to use another separator than the file: by image id, the line's number and that separator."""
        lines: dict[str, tuple[int, str]] = {}
        for name, rows in (self.rows or {}).items():
            for separator in ";\t|, ":
                start, separated, _ = name.partition(separator)
                if separated:
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

    The header (`image_id,classes`) shows the separator of the fields: a comma, semicolon, tab or bar. Without a header,
    it is a comma. Semicolons separate classes. If the fields' separator is not a comma, that separator and commas
    separate classes, too.
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
    """The root element of an XML file of VOC. Raises DataError if the file cannot be read."""
    data = read_bytes(path, "malformed labels")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: a wrong encoding
        raise fault("malformed labels", f"{path}: not readable XML ({error})") from error


def names_in(root: ElementTree.Element) -> list[str]:
    """The class names of the objects in an XML file."""
    return [entry.findtext("name", "") for entry in root.findall("object")]
