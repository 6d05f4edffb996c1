"""What a file is that is no image of an allowed format, by how its content starts."""

from __future__ import annotations

from covid_fastai.data.file_structure import jpeg_segments

__all__ = ["OTHER_KIND", "name_kind"]

SNIFFED = 512  # bytes at the start that identify the real type of a file
OTHER_FORMATS = {  # by where and how a file of it starts
    (4, b"jP  "): "JPEG 2000",
    (0, b"\xff\x4f\xff\x51"): "JPEG 2000",
    (0, b"\xff\xd8\xff\xf7"): "JPEG-LS",
    (0, b"\xff\x0a"): "JPEG XL",
    (4, b"JXL "): "JPEG XL",
    (4, b"ftypavif"): "AVIF",
    (4, b"ftyphei"): "HEIC",
    (4, b"ftypmif1"): "HEIC",
    (0, b"\x93NUMPY"): "an array of NumPy (give open_image the array, or save it as PNG)",
    (0, b"P5"): "PGM",
    (344, b"n+1\0"): "NIfTI",
    (0, b"\x89HDF"): "HDF5",
    (0, b"PK\3\4"): "a zip archive",
    (0, b"\x1f\x8b"): "a file that is compressed with gzip",
    (0, b"8BPS"): "Photoshop",
}
OTHER_KIND = (  # the hint for a file of another kind
    "Put the real image in its place (JPEG, PNG, TIFF, BMP, WebP or DICOM), convert it to PNG, or leave it out."
)


def name_kind(content: bytes) -> str:
    """Return a description of a file that is not an image of an allowed format."""
    start = content[:SNIFFED]
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not content:  # guard: sniff_empty
        return "empty, 0 bytes"
    if start.startswith(b"version https://git-lfs"):  # guard: sniff_lfs
        return "a Git LFS pointer, not the image itself"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):  # guard: sniff_html
        return "an HTML page, not an image"
    if start.startswith((b"GIF8", b"%PDF", b"%!PS", b"\xc5\xd0\xd3\xc6")) or text.startswith((b"<svg", b"<?xml")):
        return "of a format that is not supported (GIF, PDF, EPS, SVG)"  # guard: sniff_other
    if (kind := next((kind for sign, kind in OTHER_FORMATS.items() if start[sign[0] :].startswith(sign[1])), "")) != "":
        return f"{kind}, a format that is not supported"  # guard: sniff_named
    if start.startswith(b"\xff\xd8") and (bits := _jpeg_bits(content)) > 8:
        return f"a JPEG of {bits} bits, which is not supported"
    if start.startswith((b"\xff\xd8", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"RIFF")):
        return f"damaged: it starts like an image and ends after {len(content)} bytes"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start):
        return "a text file, not an image"  # guard: sniff_text
    return "not an image of a known format"  # guard: sniff_unknown


def _jpeg_bits(content: bytes) -> int:
    """Return the bits per sample in the frame header of a JPEG (ITU-T T.81 B.2.2); 0 if it has none."""
    for marker, position in jpeg_segments(content):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return content[position + 2] if position + 2 < len(content) else 0
    return 0
