"""Who is on the picture: patients from the file names of CoronaHack's two collections."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files

import pandas as pd

__all__ = ["cohen_facts", "image_facts", "patient_key", "source_of_patient"]

# person447_virus_921_1.jpeg has a second counter. The number alone is not a key: 808 numbers stand in both etiologies
# for different children, and 170 in both TRAIN and TEST.
_PNEUMONIA = re.compile(r"person(?P<number>\d+)_(?P<etiology>bacteria|virus)_\d+(?:_\d+)?", re.IGNORECASE)
# IM-0128-0001, NORMAL2-IM-1019-0001-0002: two series, of which 328 numbers are the same and the children are not
_NORMAL = re.compile(r"(?P<series>NORMAL2-)?IM-(?P<number>\d+)(?:-\d+)+", re.IGNORECASE)
_SAME_CHILD = {"NORMAL2-0096": "NORMAL2-0095"}  # the same picture, pixel for pixel, under both numbers


def patient_key(name: str) -> str | None:
    """Return the patient on a CoronaHack image, from the image's file name.

    Args:
        name: File name or path; the ending does not matter.

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
    """Return the collection of a patient of `patient_key`: `kermany`, `cohen`, or `unknown` for no patient."""
    if not key:
        return "unknown"
    return "cohen" if key.startswith("cohen-") else "kermany"


def cohen_facts() -> pd.DataFrame:
    """Return what is published of the 70 CoronaHack images that come from Cohen's collection.

    Returns:
        A table whose index `filename` is the image's file name, with `patient` (as `patient_key`), `view` (PA, AP,
        AP Supine, L), `sex` (M, F or ""), `age` (years, NaN unknown), `day` (since onset or admission, NaN unknown),
        `finding`, `location` and `url`. Source and licence: `cohen-metadata.LICENSE.md` beside the file.
    """
    return _read_facts().copy()


def image_facts(names: pd.Series) -> pd.DataFrame:
    """Return what `cohen_facts` says of each name; the ending does not matter, since copies often have another.

    Args:
        names: File names.

    Returns:
        The columns of `cohen_facts` with the index of `names`; where nothing is known, "" and NaN.
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


_ENDING = re.compile(r"\.(jpe?g|png|bmp|tiff?|webp)$", flags=re.IGNORECASE)


def _stem(name: str) -> str:
    """Return the file name without folder and ending; only known endings, since Cohen's names contain dots."""
    base = str(name).replace("\\", "/").rstrip("/").rpartition("/")[2].strip()
    return _ENDING.sub("", base)
