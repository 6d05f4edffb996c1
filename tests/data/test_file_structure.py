"""Files whose structure makes a decoder work for minutes are refused before they are decoded; ordinary ones pass."""

from __future__ import annotations

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from covid_fastai.data.file_structure import MAX_SCANS, jpeg_segments
from covid_fastai.data.images import describe_image, open_image, read_image
from covid_fastai.errors import ImageError
from tests.data.test_images import encode

SIDE = 64
GREY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
WHOLE = 1 << 20  # bytes that each hostile tag makes a reader copy


def jpeg_of_scans(number: int, image: Image.Image = GREY) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are so many."""
    content = encode(image, "JPEG", progressive=True)
    starts = [position - 2 for marker, position in jpeg_segments(content) if marker == 0xDA]
    scan = content[starts[-1] : -2]
    return content[:-2] + scan * (number - len(starts)) + content[-2:]


def with_segments(*segments: bytes) -> bytes:
    """A JPEG with further bytes after its start."""
    content = encode(GREY, "JPEG")
    return content[:2] + b"".join(segments) + content[2:]


def exif_segment(payload: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 8) + b"Exif\0\0" + payload


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with further chunks before its end."""
    content = encode(GREY, "PNG")
    data = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return content[:-12] + b"".join(data) + content[-12:]


def directory(*entries: tuple[int, int, int, int], next: int = 0) -> bytes:
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + packed + struct.pack("<I", next)


def tiff_of_directories(number: int) -> bytes:
    """A TIFF whose directories are copies of its first one."""
    content = encode(GREY, "TIFF")
    start = struct.unpack("<I", content[4:8])[0]
    size = 2 + 12 * struct.unpack("<H", content[start : start + 2])[0]
    copies = []
    for n in range(number):
        after = len(content) + (n + 1) * (size + 4) if n < number - 1 else 0
        copies.append(content[start : start + size] + struct.pack("<I", after))
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + b"".join(copies)


def tags_of_whole_data(number: int) -> bytes:
    """TIFF data each of whose tags claims all of it."""
    entries = [(40_000 + n, 7, WHOLE, 0) for n in range(number)]
    return (b"II*\0" + struct.pack("<I", 8) + directory(*entries)).ljust(WHOLE, b"\0")


def big_tiff() -> bytes:
    """A BigTIFF with tags that each claim all of it."""
    entries = b"".join(struct.pack("<HHQQ", 40_000 + n, 7, WHOLE, 0) for n in range(100))
    return (b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 100) + entries).ljust(WHOLE, b"\0")


def strips() -> bytes:
    content = encode(GREY, "TIFF")
    start = struct.unpack("<I", content[4:8])[0]
    at = content.index(struct.pack("<HH", 273, 4), start)
    return content[:at] + struct.pack("<HHII", 273, 4, 4_000_000, 0) + content[at + 12 :] + bytes(16_000_000)


EXIF = tags_of_whole_data(100)
REFUSED = {
    "101 scans": (jpeg_of_scans(MAX_SCANS + 1), "more than 100 scans"),
    "2,000 scans": (jpeg_of_scans(2000), "more than 100 scans"),
    "segments": (with_segments(b"\xff\xe5\0\2" * 2000), "too many segments"),
    "fill bytes": (with_segments(b"\xff" * 3_000_000), "too many segments"),
    "bytes between segments": (with_segments(b"\xff\xe5\0\2", bytes(3_000_000)), "too many segments"),
    "starts of images": (with_segments(b"\xff\xd8" * 1_000_000), "too many segments"),
    "ends of images": (with_segments(b"\xff\xd9" * 1_000_000), "too many segments"),
    "no scan": (b"\xff\xd8\xff\xe5\0\2" + b"\xff\xd0" * 1_000_000, "too many segments"),
    "segments of EXIF": (with_segments(exif_segment(bytes(100)) * 65), "too many segments"),
    "tags of EXIF in a JPEG": (
        with_segments(*(exif_segment(EXIF[n : n + 65_000]) for n in range(0, WHOLE, 65_000))),
        "tags state more data",
    ),
    "tags of EXIF in a PNG": (png_with((b"eXIf", EXIF)), "tags state more data"),
    "tags of EXIF in a WebP": (encode(GREY, "WEBP", exif=EXIF), "tags state more data"),
    "tags of EXIF as text": (
        png_with((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n\n\n" + EXIF[:500_000].hex().encode()))),
        "tags state more data",
    ),
    "chunks": (png_with(*[(b"teST", b"")] * 100_000), "more than 100,000 chunks"),
    "directories": (tiff_of_directories(1500), "more than 1,000 directories"),
    "tags": (b"II*\0" + struct.pack("<I", 8) + directory(*[(40_000, 1, 1, 0)] * 20_000), "10,000 tags"),
    "tags of all data": (tags_of_whole_data(100), "tags state more data"),
    "tags of a BigTIFF": (big_tiff(), "tags state more data"),
    "strips": (strips(), "tags state more data"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_with_too_many_parts_is_refused_at_once(kind):
    content, message = REFUSED[kind]
    for read in (open_image, describe_image, read_image):
        start = time.thread_time()  # of the processor: a busy machine takes longer
        with pytest.raises(ImageError, match=message) as caught:
            read(content)
        assert time.thread_time() - start < 1
    assert "as PNG" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        jpeg_of_scans(MAX_SCANS),
        with_segments(b"\xff\xe5\0\2" * 900, exif_segment(bytes(60_000)) * 3),
        encode(GREY, "JPEG", restart_marker_blocks=1),
        encode(GREY, "JPEG", exif=b"Exif\0\0" + b"II*\0" + b"\xff" * 100),  # damaged, and read without it
        with_segments() + jpeg_of_scans(MAX_SCANS + 1),  # another image after the end
        tiff_of_directories(1),
        encode(GREY, "TIFF")[:-4] + struct.pack("<I", 8),  # a directory that leads to itself ends there
        encode(GREY, "TIFF", compression="tiff_lzw"),
        png_with(*[(b"teST", b"")] * 5000),
        encode(GREY, "WEBP", lossless=True),
        encode(GREY, "BMP"),
    ],
)
def test_unusual_but_harmless_files_are_read(content):
    assert open_image(content).size == (SIDE, SIDE)


def test_a_tiff_of_several_images_is_still_named_as_such():
    with pytest.raises(ImageError, match="holds 3 images"):
        open_image(tiff_of_directories(3))
