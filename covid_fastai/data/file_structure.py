"""The structure of image files, counted before a decoder reads them.

A small file can make a decoder work for minutes without being large in pixels: each scan of a JPEG runs over the whole
image, and Pillow reads segments, chunks and tags one by one. Every reader of images passes here first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from covid_fastai.data.tiff import starts_like_tiff
from covid_fastai.errors import ImageError

__all__ = ["check_exif", "check_structure", "jpeg_segments"]

MAX_SCANS = 100  # libtiff's limit for JPEG data (LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER); encoders write up to 12
MAX_SEGMENTS = 1_000  # of a JPEG before its first scan; 255 hold the largest colour profile
MAX_EXIF = 64  # of these with EXIF, which Pillow joins
MAX_JUNK = 1 << 16  # bytes between them, which Pillow reads one by one
MAX_CHUNKS = 100_000  # of a PNG; 4 KiB each fill the largest file that is read
MAX_DIRECTORIES = 1_000  # of a TIFF, one per image
MAX_ENTRIES = 10_000  # of all its directories together
MAX_STRIPS = 100_000  # strips or tiles of an image: one per row is usual
MAX_COPIED = 1 << 24  # bytes that tags may make a reader copy, beyond the size of the file: overlaps do no harm

# Markers of segments: no stuffed or fill byte, no restart, none without a length; ITU-T T.81 B.1.1
MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd9])")
MARKER_OR_END = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")  # what can end a scan
EOI, SOS, APP1 = 0xD9, 0xDA, 0xE1
EXIF = b"Exif\0\0"
PNG = b"\x89PNG\r\n\x1a\n"
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
STRIP_OFFSETS, TILE_OFFSETS = 273, 324
HINT = "Save the image as PNG with another program, or leave it out."


def check_structure(content: bytes, name: str) -> None:
    """Refuse a JPEG, PNG or TIFF file with more parts than any radiograph has; other content passes.

    Args:
        content: The bytes of the file, or of a compressed frame of a DICOM file.
        name: Its name, for messages.

    Raises:
        ImageError: The file has too many scans, segments, chunks, directories or tags.
    """
    if content.startswith(b"\xff\xd8"):
        _check_jpeg(content, name)
    elif content.startswith(PNG):
        _check_png(content, name)
    elif starts_like_tiff(content):
        _check_directories(content, name)


def check_exif(exif: bytes, name: str) -> None:
    """Refuse EXIF data whose tags state more data than there are.

    Args:
        exif: The data, a TIFF directory with or without the prefix `Exif`.
        name: The name of the file, for messages.

    Raises:
        ImageError: The data have too many directories or tags.
    """
    exif = exif.removeprefix(EXIF)
    if starts_like_tiff(exif):
        _check_directories(exif, name, first_only=True)


def jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the marker of each segment of a JPEG up to the end of the image, and the position after the marker.

    A segment's length follows there in two bytes (ITU-T T.81 B.1.1.4). Entropy-coded data and bytes between segments
    are skipped.
    """
    position, marker_form = 2, MARKER
    while (match := marker_form.search(content, position)) is not None:
        marker, position = match[1][0], match.end()
        if marker == EOI:
            return
        yield marker, position
        if marker == SOS:
            marker_form = MARKER_OR_END
        position += max(2, int.from_bytes(content[position : position + 2], "big"))


def _check_jpeg(content: bytes, name: str) -> None:
    last, junk, exif = 2, 0, []
    for number, (marker, position) in enumerate(jpeg_segments(content)):
        junk += position - 2 - last
        last = position + max(2, int.from_bytes(content[position : position + 2], "big"))
        if marker == APP1 and content.startswith(EXIF, position + 2):
            exif.append(content[position + 2 + len(EXIF) : last])
        if number >= MAX_SEGMENTS or junk > MAX_JUNK or len(exif) > MAX_EXIF or marker == SOS:
            break
    else:
        number, junk = 0, len(content) - last  # no scan: Pillow would read all bytes one by one
    if number >= MAX_SEGMENTS or junk > MAX_JUNK or len(exif) > MAX_EXIF:  # guard: jpeg_segments
        raise ImageError(f"{name} is a JPEG with too many segments, or with other bytes between them.", hint=HINT)
    check_exif(b"".join(exif), name)
    if content.count(b"\xff\xda") > MAX_SCANS:  # at least as many as there are scans
        scans = 0
        for number, (marker, _) in enumerate(jpeg_segments(content)):
            scans += marker == SOS
            if scans > MAX_SCANS or number > MAX_SCANS * MAX_SEGMENTS:  # guard: jpeg_scans
                raise ImageError(f"{name} is a JPEG of more than {MAX_SCANS} scans.", hint=HINT)


def _check_png(content: bytes, name: str) -> None:
    position = len(PNG)
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(content):
            return
        position += 12 + int.from_bytes(content[position : position + 4], "big")
    raise ImageError(f"{name} is a PNG of more than {MAX_CHUNKS:,} chunks.", hint=HINT)  # guard: png_chunks


def _check_directories(content: bytes, name: str, *, first_only: bool = False) -> None:
    """Follow the directories of TIFF or BigTIFF data, and sum up what their tags make a reader copy (TIFF 6.0)."""
    order = "<" if content.startswith(b"II") else ">"
    is_big = 43 in content[2:4]
    number, entry, pointer = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")
    inline, start = (8, 8) if is_big else (4, 4)
    entry_size = struct.calcsize(order + entry)
    entries = copied = 0
    seen: set[int] = set()
    (offset,) = _unpack(order + pointer, content, start)
    while offset and offset not in seen:
        seen.add(offset)
        (count,) = _unpack(order + number, content, offset)
        offset += struct.calcsize(order + number)
        count = min(count, max(0, len(content) - offset) // entry_size)  # where a damaged directory ends
        entries += count
        if len(seen) > MAX_DIRECTORIES or entries > MAX_ENTRIES:  # guard: tiff_directories
            raise ImageError(
                f"{name} has more than {MAX_DIRECTORIES:,} directories or {MAX_ENTRIES:,} tags.", hint=HINT
            )
        for _ in range(count):
            tag, kind, values, data = _unpack(order + entry, content, offset)
            offset += entry_size
            size = values * TYPE_SIZES.get(kind, 0)
            if size > inline:
                (at,) = struct.unpack(order + pointer, data)
                copied += max(0, min(size, len(content) - at))
            is_split = tag in (STRIP_OFFSETS, TILE_OFFSETS) and values > MAX_STRIPS
            if copied > len(content) + MAX_COPIED or is_split:  # guard: tiff_tags
                raise ImageError(f"{name}: its tags state more data than the file holds.", hint=HINT)
        offset = 0 if first_only else _unpack(order + pointer, content, offset)[0]


def _unpack(form: str, content: bytes, offset: int) -> tuple:
    """Return the values at an offset; zeros beyond the end, where a directory ends."""
    size = struct.calcsize(form)
    return struct.unpack(form, content[offset : offset + size].ljust(size, b"\0"))
