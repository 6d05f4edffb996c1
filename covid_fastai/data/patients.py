"""Read patients from the file names of CoronaHack's two collections."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files

import pandas as pd

__all__ = ["cohen_facts", "image_facts", "patient_key", "source_of_patient"]

# person447_virus_921_1.jpeg has a second counter. The number alone does not identify a child: 808 numbers are in
# both etiologies for different children, and 170 in both TRAIN and TEST.
_PNEUMONIA = re.compile(r"person(?P<number>\d+)_(?P<etiology>bacteria|virus)_\d+(?:_\d+)?", re.IGNORECASE)
# IM-0128-0001, NORMAL2-IM-1019-0001-0002: two series; 328 numbers are in both, for different children.
_NORMAL = re.compile(r"(?P<series>NORMAL2-)?IM-(?P<number>\d+)(?:-\d+)+", re.IGNORECASE)
_SAME_CHILD = {"NORMAL2-0096": "NORMAL2-0095"}  # both numbers have the same image, pixel for pixel


def patient_key(name: str) -> str | None:
    """Return the patient of a CoronaHack image, from its file name.

    Args:
        name: File name or path; the suffix is ignored.

    Returns:
        `bacteria-12`, `virus-447`, `IM-0128`, `NORMAL2-0095` (Kermany et al. 2018) or `cohen-51` (Cohen et al. 2020);
        None for a name of neither collection.
    """
    stem = _stem(name)
    if match := _PNEUMONIA.fullmatch(stem):
        return f"{match['etiology'].lower()}-{int(match['number'])}"
    if match := _NORMAL.fullmatch(stem):
        key = f"{'NORMAL2' if match['series'] else 'IM'}-{int(match['number']):04d}"
        return _SAME_CHILD.get(key, key)
    return _cohen_patients().get(stem.casefold())


def source_of_patient(key: str) -> str:
    """Return the collection of a `patient_key`: `kermany`, `cohen`, or `unknown` for an empty key."""
    if not key:
        return "unknown"
    return "cohen" if key.startswith("cohen-") else "kermany"


def cohen_facts() -> pd.DataFrame:
    """Return the published facts of the 70 CoronaHack images from Cohen's collection.

    Returns:
        A table whose index `filename` is the image's file name, with `patient` (as `patient_key`), `view` (PA, AP,
        AP Supine, L), `sex` (M, F or ""), `age` (years, NaN unknown), `day` (since onset or admission, NaN unknown),
        `finding`, `location` and `url`. Source and licence: `cohen-metadata.LICENSE.md` next to the file.
    """
    return _read_facts().copy()


def image_facts(names: pd.Series) -> pd.DataFrame:
    """Return the row of `cohen_facts` for each name; suffixes are ignored, because copies often have another.

    Args:
        names: File names.

    Returns:
        The columns of `cohen_facts` with the index of `names`; "" and NaN for unknown names.
    """
    facts = _read_facts()
    rows = facts.set_index(facts.index.map(_fold)).reindex(names.map(_fold)).set_index(names.index)
    texts = facts.select_dtypes(exclude="number").columns
    return rows.assign(**{name: rows[name].fillna("") for name in texts})


@lru_cache(maxsize=1)
def _read_facts() -> pd.DataFrame:
    with (files("covid_fastai.data") / "cohen-metadata.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file, dtype=str, keep_default_na=False).set_index("filename")
    return pd.DataFrame(
        {
            "patient": "cohen-" + table["Patientid"],
            "view": table["view"],
            "sex": table["sex"],
            "age": pd.to_numeric(table["age"]),
            "day": pd.to_numeric(table["offset"]),
            "finding": table["finding"],
            "location": table["location"],
            "url": table["url"],
        }
    )


@lru_cache(maxsize=1)
def _cohen_patients() -> dict[str, str]:
    return {_fold(str(name)): patient for name, patient in _read_facts()["patient"].items()}


def _fold(name: str) -> str:
    return _stem(name).casefold()


_SUFFIX = re.compile(r"\.(jpe?g|png|bmp|tiff?|webp)$", flags=re.IGNORECASE)


def _stem(name: str) -> str:
    """Return the file name without folder and suffix; only known suffixes, because Cohen's names contain dots."""
    base = str(name).replace("\\", "/").rstrip("/").rpartition("/")[2].strip()
    return _SUFFIX.sub("", base)
