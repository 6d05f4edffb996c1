"""The stored values of a DICOM radiograph as the 8-bit intensities that a viewer shows, by PS3.3 C.11 and PS3.4 N.2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from covid_fastai.data.intensity import is_colour, scale_deep

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["NO_WINDOW_FITS", "from_colour", "from_grey"]

SCALED = 8  # bits; with more and no window, intensities are scaled by percentiles as in other formats
NO_WINDOW_FITS = "no window of the header fits its pixels"  # a note

# A window or LUT that does not fit the pixels. Measured on 40 of CoronaHack's radiographs as 12 bits, with 27 windows:
# those as wide as half of the used range or wider lose at most half of the central pixels, and span 150 levels or more.
MAX_LOST = 0.6  # of the pixels in the central half of each side: beyond the window, although their values differ
MIN_SPREAD = 0.05  # of the range that the pixels use; pixels beyond the window that differ by less lose nothing
MIN_SPAN = 64  # grey levels between the 0.5th and the 99.5th percentile
MIN_LEVELS = 16  # different grey levels
SAMPLE = 1 << 18  # pixels that are compared, in regular distances: sorting ten million takes a second


def from_grey(raw: np.ndarray, ds: Dataset) -> tuple[Image.Image, list[str]]:
    """Return the image in 8-bit MONOCHROME2 and the applied steps.

    Args:
        raw: The stored values of one channel, `(rows, columns)`, with all allocated bits.
        ds: The header.

    Returns:
        The image of mode `"L"`, and the notes.
    """
    padding = _padding(raw, ds)
    inside = np.ones(raw.shape, dtype=bool) if padding is None else ~padding
    stored = _without_unused_bits(raw, ds)
    values = _modality_values(stored, ds)  # guard: rescale
    notes = []
    for name, grey in _voi_images(values, ds):
        fault = _misfit(grey, values, inside)
        notes.append(f"{name} {fault}" if fault else name)
        if not fault:  # guard: blank_window
            break
    else:
        notes += [NO_WINDOW_FITS] if notes else []
        grey = _by_range(stored, values, ds, padding)
        notes += [f"{int(ds.BitsStored)} bits scaled to 8"] if int(ds.BitsStored) > SCALED else []
    if ds.PhotometricInterpretation == "MONOCHROME1":  # guard: monochrome1
        grey = 255 - grey
        notes.append("MONOCHROME1 inverted")
    if padding is not None:
        grey = np.where(padding, 0, grey)
        notes.append("padding blackened")
    return Image.fromarray(np.clip(grey, 0, 255).round().astype(np.uint8)), notes


def from_colour(stored: np.ndarray, ds: Dataset) -> tuple[Image.Image, list[str]]:
    """Return the image in 8-bit greyscale and a note if it has colours.

    Args:
        stored: The stored values in RGB, `(rows, columns, 3)`.
        ds: The header.

    Returns:
        The image of mode `"L"`, and the notes.
    """
    colours = Image.fromarray(np.right_shift(stored, max(0, int(ds.BitsStored) - 8)).astype(np.uint8))
    return colours.convert("L"), ["colour"] if is_colour(colours) else []


def _padding(raw: np.ndarray, ds: Dataset) -> np.ndarray | None:
    """Return the mask of padding pixels; None if there are none, or nothing else."""
    first = ds.get("PixelPaddingValue")  # guard: padding
    if first is None:
        return None
    last = ds.get("PixelPaddingRangeLimit")
    # Headers write -2000 for unsigned pixels and 63536 for signed ones: the same bits.
    limits = [int(first), int(first if last is None else last)]
    low, high = sorted(_as_stored(value, raw.dtype) for value in limits)  # guard: padding_sign
    mask = (raw >= low) & (raw <= high)
    return mask if mask.any() and not mask.all() else None


def _as_stored(value: int, dtype: np.dtype) -> int:
    """Return the number of an integer type that has the same bits as `value`, modulo 2 to the power of its bits."""
    bits = 8 * dtype.itemsize
    value %= 1 << bits
    return value - (1 << bits) if dtype.kind == "i" and value >> (bits - 1) else value


def _without_unused_bits(raw: np.ndarray, ds: Dataset) -> np.ndarray:
    """Return the values of the stored bits; old devices wrote overlays above them."""
    shift = 8 * raw.dtype.itemsize - int(ds.BitsStored)
    return (raw << shift) >> shift if shift > 0 else raw  # the right shift keeps the sign


def _modality_values(stored: np.ndarray, ds: Dataset) -> np.ndarray:
    """Return the values after the modality LUT, or the rescale slope and intercept."""
    if items := _luts(ds, "ModalityLUTSequence"):
        entries, positions = _look_up(stored, items[0], ds)
        return entries[positions]
    slope, intercept = _first(ds.get("RescaleSlope")), _first(ds.get("RescaleIntercept"))
    if slope is None and intercept is None:
        return stored
    return stored * (1.0 if slope is None else slope) + (0.0 if intercept is None else intercept)


def _voi_images(values: np.ndarray, ds: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and result (intensities 0 to 255) of each VOI transform in the file, in order of preference."""
    for number, item in enumerate(_luts(ds, "VOILUTSequence"), start=1):
        yield _numbered("VOI LUT", number), _by_lut(values, item, ds)
    for number, window in enumerate(_windows(ds), start=1):
        yield _numbered("window", number), _by_window(values, *window)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name} {number}"


def _misfit(grey: np.ndarray, values: np.ndarray, inside: np.ndarray) -> str:
    """Return why a VOI transform does not fit the image, as a part of a note; "" if it fits."""
    step = max(1, round((grey.size / SAMPLE) ** 0.5))
    grey, values, inside = (array[::step, ::step] for array in (grey, values, inside))
    if not inside.any():
        return ""
    levels = grey[inside].round()
    if np.ptp(levels) <= 1:
        return "leaves it blank"
    low, high = np.percentile(levels, [0.5, 99.5])
    if high - low < MIN_SPAN or np.unique(levels).size < MIN_LEVELS:  # guard: few_levels
        return "leaves few grey levels"
    rows, columns = grey.shape
    centre = np.zeros_like(inside)
    centre[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4] = True
    centre &= inside
    lost = (_beyond(grey <= 0.5, values, inside) | _beyond(grey >= 254.5, values, inside)) & centre
    if lost.sum() > MAX_LOST * max(1, centre.sum()):  # guard: stale_window
        return "saturates it"
    return ""


def _beyond(saturated: np.ndarray, values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the saturated pixels; none if their values are nearly equal, as in a background."""
    beyond = values[saturated & inside]
    if beyond.size:
        low, high = np.percentile(beyond, [5, 95])
        used_low, used_high = np.percentile(values[inside], [0.5, 99.5])
        if high - low > MIN_SPREAD * (used_high - used_low):
            return saturated
    return np.zeros_like(saturated)


def _by_range(stored: np.ndarray, values: np.ndarray, ds: Dataset, padding: np.ndarray | None) -> np.ndarray:
    """Return intensities 0 to 255 without a VOI transform: 8 bits unchanged, more bits scaled by percentiles."""
    bits = int(ds.BitsStored)
    if bits <= SCALED and stored.dtype.kind == "u" and not _luts(ds, "ModalityLUTSequence"):
        grey = stored * (255 / (2**bits - 1))
        return 255 - grey if (_first(ds.get("RescaleSlope")) or 1) < 0 else grey
    values = values.astype(np.float64)
    return np.asarray(scale_deep(values if padding is None else np.where(padding, np.nan, values)), dtype=np.float64)


def _windows(ds: Dataset) -> list[tuple[float, float, str]]:
    """Return centre, width and function of each valid window."""
    function = str(ds.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return []
    pairs = zip(_numbers(ds.get("WindowCenter")), _numbers(ds.get("WindowWidth")), strict=False)
    valid = [(centre, width) for centre, width in pairs if np.isfinite([centre, width]).all()]
    least = 1 if function == "LINEAR" else np.nextafter(0, 1)
    return [(centre, width, function) for centre, width in valid if width >= least]


def _numbers(value: Any) -> list[float]:
    """Return a header value, or each of several, as numbers; an empty one is NaN."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    values = [value] if isinstance(value, (str, float, int)) else value
    return [float(text) if str(text).strip() else np.nan for text in values]


def _first(value: Any) -> float | None:
    """Return a header value, or the first of several, as a number; None if it is empty."""
    return next((number for number in _numbers(value) if np.isfinite(number)), None)


def _by_window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Return intensities 0 to 255 after windowing, by PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return 255 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))
    if function == "LINEAR":  # guard: window
        centre, width = centre - 0.5, width - 1
    if width == 0:  # a window of width 1 is a threshold at its centre
        return np.where(values > centre, 255.0, 0.0)
    return 255 * np.clip((values - centre) / width + 0.5, 0, 1)


def _luts(ds: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence of LUTs that have a descriptor and data."""
    items = ds.get(keyword) or []
    return [item for item in items if len(_list(item.get("LUTDescriptor"))) == 3 and len(_list(item.get("LUTData")))]


def _list(value: Any) -> Any:
    return [] if value is None else value if isinstance(value, bytes) or hasattr(value, "__len__") else [value]


def _by_lut(values: np.ndarray, item: Dataset, ds: Dataset) -> np.ndarray:
    """Return intensities 0 to 255 from a VOI LUT: its lowest entry is black, its highest white.

    The bits in its descriptor are ignored: many LUTs of 12 bits are described as 16 bits, and the image would be dark.
    """
    entries, positions = _look_up(values, item, ds)
    low, high = entries.min(), entries.max()
    return (entries[positions] - low) * (255 / (high - low) if high > low else 0)


def _look_up(values: np.ndarray, item: Dataset, ds: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries of a LUT, and the position of each value in them."""
    count, first = int(item.LUTDescriptor[0]) or 1 << 16, int(item.LUTDescriptor[1])
    if first >> 15 and values.min() < 0:  # a negative number, read as unsigned
        first -= 1 << 16
    entries = item.LUTData
    if isinstance(entries, bytes):
        dtype = "<u2" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">u2"
        entries = np.frombuffer(entries, dtype=dtype if len(entries) >= 2 * count else "u1")
    entries = np.asarray(entries, dtype=np.float64)[:count]
    return entries, np.clip(np.round(values.astype(np.float64)) - first, 0, len(entries) - 1).astype(np.int64)
