"""Find the rows of a data set that are in the pretraining data of the package's weights, from a manifest next to them.

A model is better on images that its weights were pretrained on, and on other images of the same patients. Such images
may be used for training and never for evaluation. A manifest identifies the images without showing them: it holds a
perceptual hash of each image, the places and codes of its keypoints, and hashes of its file name and of its patient.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_safetensors

from covid_fastai.data.fingerprints import HASH_BYTES, MAX_DISTANCE, fingerprint_images
from covid_fastai.data.keypoint_search import KeypointIndex, match_images
from covid_fastai.data.keypoints import COUNT, KEYPOINT, STORED_BYTES, from_stored, to_stored, unpack_keypoints
from covid_fastai.data.patients import patient_key
from covid_fastai.data.projections import is_unstated
from covid_fastai.errors import DataError, ModelFormatError, ResourceError
from covid_fastai.files import atomic_write

__all__ = [
    "Manifest",
    "mark_pretraining_overlap",
    "package_manifests",
    "patients_not_compared",
    "read_manifest",
    "read_package_manifests",
    "write_manifest",
]

MANIFEST_FOLDER = Path(__file__).parents[1] / "model"  # next to the weights; the model layer itself needs torch
SUFFIX = ".manifest.safetensors"
FORMAT = 1
KEY = "manifest"  # one entry: safetensors does not fix the order of several, and the sha256 would change
NAME_BYTES = 8  # of a sha256: 10,000 names and 10,000 other names have a false match in one of 10^11 cases
TENSORS = {"phash": HASH_BYTES, "name": NAME_BYTES, "patient": NAME_BYTES}  # bytes per image
KEYPOINTS = "keypoints"  # a further tensor, which older manifests do not have
VIEW_BYTES = COUNT * KEYPOINT.itemsize  # of the keypoints of one view of an image
# Without the pixels of both images, keypoints decide alone: many must match, and well (`Matches.evidence`).
MIN_MATCHED, MIN_EVIDENCE = 10, 100.0
BARE_NUMBER = r"[\d.]*"
BLOCK = 32  # rows compared at once: the hashes and their distances then stay in a core's cache


@dataclass(frozen=True, eq=False)
class Manifest:
    """The images that one set of weights was pretrained on.

    Attributes:
        path: The file of the manifest.
        hashes: `(n, 32)` uint8, the 256-bit perceptual hash of each image.
        names: `(n,)` uint64, hash of each file name.
        patients: `(n,)` uint64, hash of each patient; 0 where the patient is not known.
        sources: Number of images by collection.
        keypoints: `(n, 32)` of the type `KEYPOINT`, with the code of the plain scale only; None in a manifest that was
            written without them.
    """

    path: Path
    hashes: np.ndarray = field(repr=False)
    names: np.ndarray = field(repr=False)
    patients: np.ndarray = field(repr=False)
    sources: Mapping[str, int]
    keypoints: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.hashes)

    @cached_property
    def keypoint_index(self) -> KeypointIndex | None:
        """The index of the keypoints; None without keypoints."""
        return None if self.keypoints is None else KeypointIndex(self.keypoints)


def write_manifest(
    images: pd.DataFrame,
    file: str | Path,
    *,
    fingerprints: pd.DataFrame | None = None,
    workers: int | None = None,
) -> Path:
    """Write the manifest of the images that a set of weights was pretrained on.

    `read_cohort` excludes these images, and other images of their patients, from evaluation.

    Args:
        images: One row per image: `path`; `patient`; optionally `patient_known`, False for rows whose patient is not
            known; and `bank` (else `source`), the collection.
        file: The manifest, `<name of the weights>.manifest.safetensors`.
        fingerprints: The result of `fingerprint_images` for these rows, in the same order; None to open the images.
        workers: Threads that open images; None for a number that fits the machine.

    Returns:
        The file.

    Raises:
        DataError: The file name has another suffix, a column is missing, there is no row, or an image cannot be read.
        ResourceError: The file cannot be written.
    """
    file = Path(file)
    if not file.name.endswith(SUFFIX):
        raise DataError(
            f"The manifest's name {file} does not end in {SUFFIX}.", hint=f"Use <name of the weights>{SUFFIX}."
        )
    missing = [name for name in ("path", "patient") if name not in images]
    if missing or images.empty:
        reason = f"no column {', '.join(missing)}" if missing else "no row"
        raise DataError(f"The table of pretraining images has {reason}.", hint="Make it with read_cohort.")
    if fingerprints is None:
        fingerprints = fingerprint_images(images["path"].tolist(), workers=workers)
    unread = [path for path, phash in zip(images["path"], fingerprints["phash"], strict=True) if not phash]
    if unread:
        raise DataError(
            f"{len(unread)} pretraining images cannot be read, such as {unread[0]}.", hint="Replace the files."
        )
    columns = {
        "phash": np.frombuffer(b"".join(fingerprints["phash"]), dtype=np.uint8).reshape(-1, HASH_BYTES),
        "name": _numbers(_names(images)).view(np.uint8).reshape(-1, NAME_BYTES),
        "patient": _numbers(_patients(images)).view(np.uint8).reshape(-1, NAME_BYTES),
    }
    views = [value[:VIEW_BYTES] for value in fingerprints["keypoints"]]  # of the whole image
    columns[KEYPOINTS] = to_stored(unpack_keypoints(views))
    source = next((images[name] for name in ("bank", "source") if name in images), pd.Series("unknown", images.index))
    sources = {str(name): int(n) for name, n in source.value_counts().sort_index().items()}
    facts = {"format": FORMAT, "images": len(images), "sources": sources}
    with atomic_write(file, mode="wb") as opened:
        opened.write(save_safetensors(columns, metadata={KEY: json.dumps(facts, sort_keys=True)}))
    return file


def read_manifest(file: str | Path) -> Manifest:
    """Read a manifest.

    Args:
        file: A file that `write_manifest` wrote.

    Returns:
        The manifest.

    Raises:
        ModelFormatError: The file is damaged, or not a manifest of this format.
        ResourceError: It cannot be opened.
    """
    file = Path(file)
    try:
        with safe_open(file, framework="numpy") as opened:
            facts = json.loads((opened.metadata() or {}).get(KEY, "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except OSError as error:
        raise ResourceError(f"{file} cannot be read: {error.strerror or error}.", hint="Reinstall.") from error
    except (SafetensorError, ValueError) as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("sources"), dict):
        raise _damaged(file, f"it is not a manifest of format {FORMAT}")
    for name, width in TENSORS.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != np.uint8 or tensor.shape != (facts.get("images"), width):
            raise _damaged(file, f"{name} is not {width} bytes for each of {facts.get('images')} images")
    stored = tensors.get(KEYPOINTS)
    if stored is not None and (stored.dtype != np.uint8 or stored.shape != (facts["images"], STORED_BYTES)):
        raise _damaged(file, f"{KEYPOINTS} is not {STORED_BYTES} bytes for each of {facts['images']} images")
    keypoints = None if stored is None else from_stored(stored)
    names, patients = (np.ascontiguousarray(tensors[name]).view("<u8").ravel() for name in ("name", "patient"))
    return Manifest(file, np.ascontiguousarray(tensors["phash"]), names, patients, facts["sources"], keypoints)


def package_manifests() -> list[Path]:
    """Return the manifests of the package's own weights, sorted; an empty list if it has no weights."""
    return sorted(MANIFEST_FOLDER.glob(f"*{SUFFIX}"))


def read_package_manifests() -> list[Manifest]:
    """Read the manifests of the package's own weights; a file that has not changed is read once in a process."""
    facts = [(path, path.stat()) for path in package_manifests()]
    return [_read_unchanged(path, stat.st_mtime_ns, stat.st_size) for path, stat in facts]


@lru_cache(maxsize=4)
def _read_unchanged(path: Path, modified: int, size: int) -> Manifest:
    return read_manifest(path)


def mark_pretraining_overlap(
    table: pd.DataFrame,
    hashes: pd.Series | None,
    manifests: Iterable[Manifest],
    *,
    keypoints: pd.Series | None = None,
) -> pd.Series:
    """Return for each row whether its image, or another image of its patient, is in the pretraining data.

    A row overlaps if a hash of its image is at most `MAX_DISTANCE` of 256 bits from one in a manifest; if many of its
    keypoints match those of an image in a manifest that has them; if its file name is in a manifest and is one that
    `patient_key` knows (any data set can have a `1.png`); or if its patient, from the table or the file name, is in a
    manifest. By hashes, a copy under another name is recognised if it was inverted, mirrored or turned by right angles,
    and mostly if it was framed or cropped by 3% a side. Keypoints recognise many of those that were cropped or turned
    by more. `duplicate_pairs` finds more of them, since it has the pixels of both images, which a manifest does not
    hold. `python -m benchmarks.copies` measures the fractions.

    Args:
        table: One row per image: `path`, `patient` and optionally `patient_known`.
        hashes: `hashes` or `phash` from `fingerprint_images`, with the table's index; empty for an image that was not
            opened. None to compare names and patients only.
        manifests: The manifests of the pretraining data.
        keypoints: `keypoints` from `fingerprint_images`, likewise; None to compare none.

    Returns:
        One bool per row, with the table's index.
    """
    overlap = np.zeros(len(table), dtype=bool)
    manifests = list(manifests)
    if manifests and len(table):
        patients = np.unique(np.concatenate([manifest.patients for manifest in manifests]))
        patients = patients[patients != 0]
        by_name = _keys(table).fillna("")
        for texts in (_patients(table), by_name):
            overlap |= np.isin(_numbers(texts), patients)
        names = np.concatenate([manifest.names for manifest in manifests])
        overlap |= np.isin(_numbers(_names(table).where(by_name != "", "")), names[names != 0])
        if hashes is not None:
            rows, values = _present(hashes, table.index, ~overlap)
            near = _near_any(values, np.concatenate([manifest.hashes for manifest in manifests]))
            overlap[np.repeat(rows, [len(value) // HASH_BYTES for value in values])[near]] = True
        if keypoints is not None:
            overlap |= _share_keypoints(keypoints, table.index, overlap, manifests)
    return pd.Series(overlap, index=table.index, name="in_pretraining")


def _share_keypoints(
    keypoints: pd.Series, index: pd.Index, known: np.ndarray, manifests: Iterable[Manifest]
) -> np.ndarray:
    """Return for each row, those known to overlap left out, whether many keypoints match those of a manifest."""
    found = np.zeros(len(index), dtype=bool)
    for manifest in manifests:
        rows, values = _present(keypoints, index, ~(known | found))
        if len(rows) and manifest.keypoint_index is not None:
            owners = np.repeat(rows, [len(value) // VIEW_BYTES for value in values])
            limits = {"min_count": MIN_MATCHED, "min_evidence": MIN_EVIDENCE}
            matches = match_images(unpack_keypoints(values), manifest.keypoint_index, **limits)
            found[owners[matches.first]] = True
    return found


def _present(prints: pd.Series, index: pd.Index, wanted: np.ndarray) -> tuple[np.ndarray, list[bytes]]:
    """Return the positions of the wanted rows whose images were opened, and their prints."""
    own = prints.reindex(index)
    rows = np.flatnonzero(wanted & own.map(lambda value: isinstance(value, bytes) and value != b""))
    return rows, own.iloc[rows].tolist()


def _names(table: pd.DataFrame) -> pd.Series:
    return table["path"].map(lambda path: os.path.basename(str(path).replace("\\", "/")).lower())


def _keys(table: pd.DataFrame) -> pd.Series:
    return _names(table).map(patient_key)


def _patients(table: pd.DataFrame) -> pd.Series:
    """Return the identifier of each patient; `""` where it is not known.

    A bare number, which every hospital uses, is joined with its source; without a stated source it is not known.
    """
    patient = _known_patients(table)
    source = table["source"].fillna("").astype(str) if "source" in table else pd.Series("", index=table.index)
    with_source = (source + "/" + patient).where(~source.map(_is_no_source), "")
    return patient.where(~patient.str.fullmatch(BARE_NUMBER), with_source)


def patients_not_compared(table: pd.DataFrame) -> pd.Series:
    """Return for each row whether its patient cannot be compared, being a bare number without a stated source.

    Args:
        table: `patient`, and optionally `patient_known` and `source`.
    """
    return _known_patients(table).ne("") & _patients(table).eq("")


def _known_patients(table: pd.DataFrame) -> pd.Series:
    patient = table["patient"].fillna("").astype(str).str.strip()
    return patient.where(table["patient_known"], "") if "patient_known" in table else patient


@cache
def _is_no_source(source: str) -> bool:
    return is_unstated(source)


def _numbers(texts: pd.Series) -> np.ndarray:
    """Return the first 8 bytes of each text's sha256 as a number; 0 for an empty text."""
    numbers = {"": 0}
    for text in set(texts) - {""}:
        digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()  # file names may hold any bytes
        numbers[text] = int.from_bytes(digest[:NAME_BYTES], "little")
    return np.array([numbers[text] for text in texts], dtype="<u8")


def _near_any(hashes: Sequence[bytes], others: np.ndarray) -> np.ndarray:
    """Return for each hash, 32 bytes, whether the Hamming distance to any of `others` is at most `MAX_DISTANCE`."""
    hash_words = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(-1, HASH_BYTES // 8)
    words = np.ascontiguousarray(others.view(np.uint64).T)
    near = np.zeros(len(hash_words), dtype=bool)
    for start in range(0, len(hash_words), BLOCK):
        block = hash_words[start : start + BLOCK]
        distance = np.zeros((len(block), words.shape[1]), dtype=np.uint16)
        for word, row in enumerate(words):
            distance += np.bitwise_count(block[:, word, None] ^ row)
        near[start : start + BLOCK] = (distance <= MAX_DISTANCE).any(axis=1)
    return near


def _damaged(file: Path, reason: str) -> ModelFormatError:
    return ModelFormatError(f"{file} cannot be used: {reason}.", hint="Reinstall the package.")
