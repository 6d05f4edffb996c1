"""What a DICOM header states about the image, in a few words of our own: no value of the file is passed on."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

from covid_fastai.data.projections import is_unstated, not_frontal, read_projection

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "BURNED_IN",
    "INVERSE",
    "LATERAL",
    "OTHER_PART",
    "OTHER_VIEW",
    "STATED",
    "header_notes",
    "is_chest",
    "read_part",
    "read_view",
]

# Elements that devices fill with any text; their values are compared, never shown.
STATED = ("ViewPosition", "BodyPartExamined", "BurnedInAnnotation", "PresentationLUTShape")

OTHER = "other"  # a view or part of the body that is stated and none of ours
CHEST = "chest"
# For the chest, the lungs and the heart, anywhere in the text, and at the start of a word: English, French, German,
# Spanish, Portuguese, Italian, Dutch, the Nordic languages, Finnish, Polish, Czech, Hungarian, Turkish, Indonesian,
# Russian, Greek, Chinese, Japanese, Korean.
CHEST_PARTS = ("chest", "chst", "thora", "torax", "torac", "toraks", "cxr", "lung", "pulm", "胸", "肺", "흉부", "폐")
CHEST_STARTS = ("pecho", "peito", "petto", "poitrine", "poumon", "brust", "polmon", "borst", "brost", "bryst", "rinta")
CHEST_STARTS += ("keuhko", "klatk", "piersiow", "pluc", "płuc", "hrud", "plic", "mellkas", "tudo", "gogus", "akciger")
CHEST_STARTS += ("dada", "paru", "heart", "herz", "cardi", "kardi", "coeur", "corazon", "mediast", "grudn", "грудн")
CHEST_STARTS += ("груд", "легк", "огк", "θωρακ", "πνευμ")
SPINE = ("spine", "spinal", "lumb", "vertebr", "wirbel", "column", "colonne", "coluna", "colonna", "rachis", "dorsal")
UNSTATED = {"default", "other", "general", "body part", "all", "x ray", "xray", "radiograph"}
CHEST_CODES = {
    "51185008",
    "T-D3000",
    "39607008",
    "T-28000",
    "43799004",
    "T-D3300",
}  # thorax, lung, chest: SNOMED CT and RT

# Notes, which are also the reasons of `read_cohort`
LATERAL, OTHER_VIEW = not_frontal("L"), not_frontal(OTHER)
OTHER_PART = "another part of the body"
BURNED_IN = "text burned into the picture"
INVERSE = "presentation LUT shape INVERSE with MONOCHROME2"


def read_view(stated: dict[str, str], ds: Dataset) -> str:
    """Return the projection that a header states.

    Args:
        stated: The text of the elements `STATED`.
        ds: The header, with the ViewCodeSequence.

    Returns:
        The result of `read_projection` for a frontal or lateral projection, `"other"` for any other, `""` for none.
    """
    texts = [stated["ViewPosition"], *_code_texts(ds, "ViewCodeSequence")]
    views = [view for view in map(read_projection, texts) if view]
    known = [view for view in views if view == "L" or not not_frontal(view)]
    return known[0] if known else OTHER if views else ""


def read_part(stated: dict[str, str], ds: Dataset) -> str:
    """Return `"chest"`, `"other"`, or `""` if the header states no part of the body; arguments as for `read_view`."""
    text = stated["BodyPartExamined"]
    if not is_unstated(text) and _words(text) not in UNSTATED:
        return CHEST if is_chest(text) else OTHER
    codes = _code_texts(ds, "AnatomicRegionSequence")
    if not codes:
        return ""
    return CHEST if any(code in CHEST_CODES or is_chest(code) for code in codes) else OTHER


def is_chest(text: str) -> bool:
    """Return whether a text is about the chest or the lungs, in any of several languages, and not about the spine."""
    words = _words(text)
    if any(spine in words for spine in SPINE):
        return False
    joined = words.replace(" ", "")
    return any(part in joined for part in CHEST_PARTS) or any(word.startswith(CHEST_STARTS) for word in words.split())


def header_notes(stated: dict[str, str], *, view: str, body_part: str, kind: str) -> list[str]:
    """Return notes on what a header states against a frontal chest radiograph as it is read here.

    Args:
        stated: The text of the elements `STATED`.
        view: The result of `read_view`.
        body_part: The result of `read_part`.
        kind: The photometric interpretation.
    """
    notes = [not_frontal(view)] if not_frontal(view) else []
    notes += [OTHER_PART] if body_part == OTHER else []
    notes += [BURNED_IN] if _words(stated["BurnedInAnnotation"]) == "yes" else []
    if _words(stated["PresentationLUTShape"]) == "inverse" and kind == "MONOCHROME2":  # guard: inverse_shape
        notes.append(INVERSE)
    return notes


def _code_texts(ds: Dataset, keyword: str) -> list[str]:
    """Return code value and meaning of the first item of a sequence of codes."""
    items: Any = ds.get(keyword) or []
    names = ("CodeValue", "LongCodeValue", "CodeMeaning")
    return [str(items[0].get(name)) for name in names if items[0].get(name)] if len(items) else []


def _words(text: str) -> str:
    """Return a text in lower case without accents, its words separated by spaces."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    plain = unicodedata.normalize("NFC", plain)  # the syllables of Korean
    return " ".join(re.split(r"[\W_]+", plain)).strip()
