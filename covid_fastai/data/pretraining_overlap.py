"""What the package's weights have seen: the manifest beside them, and the rows of a data set that are in it.

Weights that were pretrained on an image know more of it, and of its patient, than of a stranger. Such an image may be
trained on and must never be evaluated on. A manifest names the images without showing them: a perceptual hash of each
picture, and a hash of its name and of its patient.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_safetensors

from covid_fastai.data.fingerprints import HASH_SIDE, MAX_DISTANCE, fingerprint_images
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
    "write_manifest",
]

MANIFEST_FOLDER = Path(__file__).parents[1] / "model"  # beside the weights; the model layer itself needs torch
SUFFIX = ".manifest.safetensors"
FORMAT = 1
KEY = "manifest"  # one entry: of several, safetensors writes the order anew each time, and so another sha256
HASH_BYTES = HASH_SIDE**2 // 8
NAME_BYTES = 8  # of a sha256: among 10,000 names and 10,000 others one false match in 10^11 cases
TENSORS = {"phash": HASH_BYTES, "name": NAME_BYTES, "patient": NAME_BYTES}  # bytes an image
BARE_NUMBER = r"[\d.]*"
BLOCK = 32  # rows compared at once: what they are compared with, and the distances, stay in a core's cache


@dataclass(frozen=True, eq=False)
class Manifest:
    """The images that one set of weights has seen.

    Attributes:
        path: The file that it was read from.
        hashes: `(n, 32)` uint8, the 256-bit perceptual hash of each picture.
        names: `(n,)` uint64, of each file name; the same number for the same name.
        patients: `(n,)` uint64, of each patient; 0 where the patient is not known.
        sources: Images by collection.
    """

    path: Path
    hashes: np.ndarray = field(repr=False)
    names: np.ndarray = field(repr=False)
    patients: np.ndarray = field(repr=False)
    sources: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.hashes)


def write_manifest(
    images: pd.DataFrame,
    file: str | Path,
    *,
    fingerprints: pd.DataFrame | None = None,
    workers: int | None = None,
) -> Path:
    """Write down which images a set of weights has seen, so that no model which begins from it is evaluated on them.

    Args:
        images: A row an image: `path`; `patient` and, where it is there, `patient_known`, which is False for rows whose
            `patient` is none; `bank` (else `source`), the collection, which is counted.
        file: The manifest, `<name of the weights>.manifest.safetensors`.
        fingerprints: What `fingerprint_images` returned for these rows, in their order; None to open the images.
        workers: Threads that open images; None for a number that fits the machine.

    Returns:
        The file.

    Raises:
        DataError: A column is missing, an image cannot be read, or there is none.
        ResourceError: The file cannot be written.
    """
    file = Path(file)
    if not file.name.endswith(SUFFIX):
        raise DataError(f"{file} is no name of a manifest.", hint=f"It must end in {SUFFIX}, or it is never found.")
    missing = [name for name in ("path", "patient") if name not in images]
    if missing or images.empty:
        reason = f"no column {', '.join(missing)}" if missing else "no row"
        raise DataError(f"The table of seen images has {reason}.", hint="Make it with read_cohort.")
    if fingerprints is None:
        fingerprints = fingerprint_images(images["path"].tolist(), workers=workers)
    unread = [path for path, phash in zip(images["path"], fingerprints["phash"], strict=True) if not phash]
    if unread:
        raise DataError(f"{len(unread)} seen images cannot be read, such as {unread[0]}.", hint="Replace the files.")
    columns = {
        "phash": np.frombuffer(b"".join(fingerprints["phash"]), dtype=np.uint8).reshape(-1, HASH_BYTES),
        "name": _numbers(_names(images)).view(np.uint8).reshape(-1, NAME_BYTES),
        "patient": _numbers(_patients(images)).view(np.uint8).reshape(-1, NAME_BYTES),
    }
    source = next((images[name] for name in ("bank", "source") if name in images), pd.Series("unknown", images.index))
    sources = {str(name): int(n) for name, n in source.value_counts().sort_index().items()}
    facts = {"format": FORMAT, "images": len(images), "sources": sources}
    with atomic_write(file, mode="wb") as opened:
        opened.write(save_safetensors(columns, metadata={KEY: json.dumps(facts, sort_keys=True)}))
    return file


def read_manifest(file: str | Path) -> Manifest:
    """Read a manifest back.

    Args:
        file: What `write_manifest` wrote.

    Returns:
        The manifest.

    Raises:
        ModelFormatError: The file is damaged, or no manifest that this version can read.
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
        raise _damaged(file, f"it is no manifest of format {FORMAT}")
    for name, width in TENSORS.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != np.uint8 or tensor.shape != (facts.get("images"), width):
            raise _damaged(file, f"{name} is not {width} bytes for each of {facts.get('images')} images")
    names, patients = (np.ascontiguousarray(tensors[name]).view("<u8").ravel() for name in ("name", "patient"))
    return Manifest(file, np.ascontiguousarray(tensors["phash"]), names, patients, facts["sources"])


def package_manifests() -> list[Path]:
    """Return the manifests of the weights that the package has of its own, sorted; none where it has no weights."""
    return sorted(MANIFEST_FOLDER.glob(f"*{SUFFIX}"))


def mark_pretraining_overlap(table: pd.DataFrame, hashes: pd.Series | None, manifests: Iterable[Manifest]) -> pd.Series:
    """Say of each row whether weights have seen its image, or another one of its patient.

    A row is seen where its picture is at most `MAX_DISTANCE` of 256 bits from a seen one; where its file has a seen
    name, and the name is one that `patient_key` knows (any data set has a `1.png`); or where its patient is a seen one,
    as the table or the name has it. A mirrored or cropped copy under another name is not recognised.

    Args:
        table: `path`, `patient` and, where it is there, `patient_known`, a row an image.
        hashes: The pictures' perceptual hashes, 32 bytes each, under the table's index, as `fingerprint_images` gives
            them; empty where there is none, and None where no image was opened: then names and patients alone are
            compared.
        manifests: What the weights have seen.

    Returns:
        A bool a row, under the table's index.
    """
    seen = np.zeros(len(table), dtype=bool)
    manifests = list(manifests)
    if manifests and len(table):
        patients = np.unique(np.concatenate([manifest.patients for manifest in manifests]))
        patients = patients[patients != 0]
        by_name = _keys(table).fillna("")
        for texts in (_patients(table), by_name):
            seen |= np.isin(_numbers(texts), patients)
        names = np.concatenate([manifest.names for manifest in manifests])
        seen |= np.isin(_numbers(_names(table).where(by_name != "", "")), names[names != 0])
        if hashes is not None:
            phash = hashes.reindex(table.index)
            rows = np.flatnonzero(~seen & phash.map(lambda value: isinstance(value, bytes) and value != b""))
            seen[rows] = _near_any(phash.iloc[rows].tolist(), np.concatenate([m.hashes for m in manifests]))
    return pd.Series(seen, index=table.index, name="in_pretraining")


def _names(table: pd.DataFrame) -> pd.Series:
    return table["path"].map(lambda path: os.path.basename(str(path).replace("\\", "/")).lower())


def _keys(table: pd.DataFrame) -> pd.Series:
    return _names(table).map(patient_key)


def _patients(table: pd.DataFrame) -> pd.Series:
    """Return what identifies each patient: a bare number, which every hospital has, with its source; `""` where nothing
    does, because the patient is not known or a bare number has no stated source."""
    patient = _known_patients(table)
    source = table["source"].fillna("").astype(str) if "source" in table else pd.Series("", index=table.index)
    named = (source + "/" + patient).where(~source.map(_is_no_source), "")
    return patient.where(~patient.str.fullmatch(BARE_NUMBER), named)


def patients_not_compared(table: pd.DataFrame) -> pd.Series:
    """Return for each row whether its patient cannot be compared: a bare number, and no source is stated.

    Args:
        table: `patient`, and where they are there `patient_known` and `source`.
    """
    return _known_patients(table).ne("") & _patients(table).eq("")


def _known_patients(table: pd.DataFrame) -> pd.Series:
    patient = table["patient"].fillna("").astype(str).str.strip()
    return patient.where(table["patient_known"], "") if "patient_known" in table else patient


@cache
def _is_no_source(source: str) -> bool:
    return is_unstated(source)


def _numbers(texts: pd.Series) -> np.ndarray:
    """Return the first 8 bytes of each text's sha256 as a number; 0 for no text."""
    numbers = {"": 0}
    for text in set(texts) - {""}:
        digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()  # file names may hold any bytes
        numbers[text] = int.from_bytes(digest[:NAME_BYTES], "little")
    return np.array([numbers[text] for text in texts], dtype="<u8")


def _near_any(hashes: Sequence[bytes], others: np.ndarray) -> np.ndarray:
    """Say of each hash whether one of the others is near."""
    own = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(-1, HASH_BYTES // 8)
    words = np.ascontiguousarray(others.view(np.uint64).T)
    near = np.zeros(len(own), dtype=bool)
    for start in range(0, len(own), BLOCK):
        block = own[start : start + BLOCK]
        distance = np.zeros((len(block), words.shape[1]), dtype=np.uint16)
        for word, row in enumerate(words):
            distance += np.bitwise_count(block[:, word, None] ^ row)
        near[start : start + BLOCK] = (distance <= MAX_DISTANCE).any(axis=1)
    return near


def _damaged(file: Path, reason: str) -> ModelFormatError:
    return ModelFormatError(f"{file} cannot be used: {reason}.", hint="Reinstall the package.")
