"""Remove the metadata from the bytes of a JPEG or PNG without encoding its pixels again.

Pillow can write an image without metadata only by encoding it again, which changes the pixels of a JPEG.
"""

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_APP1, _START_OF_SCAN, _END, _FILL = 0xE1, 0xDA, 0xD9, 0xFF
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


def without_metadata(data: bytes) -> bytes:
    """The file without the parts that can hold an EXIF orientation.

    These are the APP1 segments of a JPEG, and the EXIF and text chunks of a PNG. All bytes are kept from
    a JPEG's first scan on, from the place in a JPEG where no further segment begins, and from a segment or chunk whose
    stated length reaches beyond the file. A file of any other format is returned unchanged.
    """
    if data.startswith(_JPEG):
        return _jpeg(data)
    return _png(data) if data.startswith(_PNG) else data


def _jpeg(data: bytes) -> bytes:
    """Drop APP1 segments.

    A segment is 0xFF, its type (1 byte), its length (2) and its content. The length counts itself and the content.
    """
    kept, at = [_JPEG], len(_JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (_START_OF_SCAN, _END):
        if data[at + 1] == _FILL:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data):
            break
        if data[at + 1] != _APP1:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _png(data: bytes) -> bytes:
    """Drop metadata chunks. A chunk is its content's length (4 bytes), its type (4), the content and a checksum (4)."""
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        if data[at + 4 : at + 8] not in _PNG_METADATA:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])
