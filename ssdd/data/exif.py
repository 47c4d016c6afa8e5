"""Taking the metadata out of the bytes of a JPEG or PNG, while its pixels stay as they are encoded.

Pillow can write an image without metadata only by encoding it again, which changes the pixels of a JPEG.
"""

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_APP1, _START_OF_SCAN, _END, _FILL = 0xE1, 0xDA, 0xD9, 0xFF
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


def without_metadata(data: bytes) -> bytes:
    """The file without what can hold an EXIF orientation: APP1 segments of a JPEG, EXIF and text chunks of a PNG.

    Damaged bytes are returned as they are from where they cannot be followed.
    """
    if data.startswith(_JPEG):
        return _jpeg(data)
    return _png(data) if data.startswith(_PNG) else data


def _jpeg(data: bytes) -> bytes:
    """A segment is 0xFF, its kind, two bytes of length (these two included) and its content."""
    kept, at = [_JPEG], len(_JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (_START_OF_SCAN, _END):
        if data[at + 1] == _FILL:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] != _APP1:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _png(data: bytes) -> bytes:
    """A chunk is four bytes of length, four of its kind, the content and four of a checksum."""
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _PNG_METADATA:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])
