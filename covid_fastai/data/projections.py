"""Read the projection and the modality of an image from the words that data sets use."""

from __future__ import annotations

import re

import pandas as pd

from covid_fastai.data.tasks import fold_text

__all__ = [
    "is_unstated",
    "join_projections",
    "not_frontal",
    "not_radiograph",
    "read_projection",
    "read_views",
    "view_of_name",
]

# Columns that state a projection, compared by `fold_text`: CheXpert has two of them, and MIMIC-CXR.
VIEW_COLUMNS = {"view", "views", "projection", "viewposition", "viewpositiondicom", "viewcodesequencecodemeaning"}
VIEW_COLUMNS |= {"frontal/lateral", "frontallateral", "ap/pa", "appa", "pa/ap"}

# Words for an unknown value in data sets, compared in lower case without surrounding punctuation.
UNSTATED = {"", "unknown", "unk", "nan", "na", "n/a", "none", "null", "nil", "missing", "unspecified", "undefined"}
UNSTATED |= {"not available", "not known", "not stated", "not specified", "anonymous", "anonymized", "anonymised", "?"}

FRONTAL = {  # each spelling of a frontal projection
    **dict.fromkeys(("pa", "posteroanterior", "postero anterior", "posterior anterior", "posterioranterior"), "PA"),
    **dict.fromkeys(("ap", "anteroposterior", "antero posterior", "anterior posterior", "anteriorposterior"), "AP"),
    **dict.fromkeys(("frontal", "front", "f"), "frontal"),
    **dict.fromkeys(("272479007", "r 10214"), "PA"),  # DICOM CID 4010, SNOMED CT and SNOMED RT
    **dict.fromkeys(("399348003", "r 10206"), "AP"),
    "399033003": "frontal",
}
LATERAL = {"l", "ll", "rl", "lat", "lateral", "left lateral", "right lateral", "lateral left", "lateral right"}
LATERAL |= {"lat l", "lat r", "l lat", "r lat", "lt lat", "rt lat", "llat", "rlat", "399067008", "r 10236"}
# The position of the patient or the machine, which does not change the projection.
POSITION = {
    "supine",
    "erect",
    "upright",
    "standing",
    "sitting",
    "seated",
    "semi",
    "semierect",
    "semiupright",
    "portable",
}
POSITION |= {"bedside", "mobile", "inspiration", "expiration", "prone", "horizontal", "recumbent", "vertical"}
NEUTRAL = {"view", "projection", "chest", "cxr", "thorax", "x", "ray", "xray", "radiograph", "image", "position"}
RADIOGRAPHS = {
    "x ray",
    "xray",
    "x rays",
    "xr",
    "cr",
    "dx",
    "dr",
    "rg",
    "cxr",
    "radiograph",
    "radiography",
    "chest x ray",
}
RADIOGRAPHS |= {"chest xray", "plain film", "plain radiograph", "computed radiography", "digital radiography"}
RADIOGRAPHS |= {"digital x ray", "conventional radiography", "projection radiography", "chest radiograph"}

_VIEW_IN_NAME = re.compile(r"(?:^|[/\\])view\d+_(frontal|lateral)(?=\.|$)|_vp-([a-z]+)(?=_|\.|$)", re.IGNORECASE)


def is_unstated(text: object) -> bool:
    """Return whether a value means unknown, such as `""`, `nan`, `-` or `unknown`."""
    folded = " ".join(str(text).casefold().split())
    return folded in UNSTATED or folded.strip("-_.()[]<>#*/\\ ") in UNSTATED


def fold_source(source: object) -> str:
    """Return the name of an image source without differences of case and spaces, to compare it with others."""
    return " ".join(str(source).casefold().split())


def read_projection(text: object) -> str:
    """Return the usual name of a projection.

    Args:
        text: The text of a column or a DICOM header, such as `AP Supine`, `POSTERO_ANTERIOR` or `LL`.

    Returns:
        `PA`, `AP` or `frontal`, followed by the patient's position if it is stated (`AP supine`); `L` for a lateral
        projection; `""` if no projection is stated; any other text unchanged, without surrounding spaces.
    """
    if is_unstated(text):
        return ""
    words = [word for word in re.split(r"[^a-z0-9]+", str(text).casefold()) if word]
    position = [word for word in words if word in POSITION]
    other_words = [word for word in words if word not in POSITION and word not in NEUTRAL]
    if not other_words:  # "chest, portable" states no projection
        return ""
    if name := FRONTAL.get(" ".join(other_words)):
        return " ".join([name, *position])
    if all(word in FRONTAL for word in other_words):  # "posteroanterior (PA)", "AP/PA"
        names = {FRONTAL[word] for word in other_words}
        return " ".join([names.pop() if len(names) == 1 else "frontal", *position])
    if " ".join(other_words) in LATERAL and not position:
        return "L"
    return str(text).strip()


def join_projections(projections: tuple[str, ...]) -> str:
    """Return the projection that several statements about one image give.

    Args:
        projections: Results of `read_projection`.

    Returns:
        The only statement, or the more precise of two (`PA` of `frontal` and `PA`); `frontal` for `PA` and `AP`; both,
        joined by `and`, where they contradict each other, which `not_frontal` excludes.
    """
    stated = list(dict.fromkeys(text for text in projections if text))
    precise = (
        [text for text in stated if text != "frontal"] if all(not not_frontal(text) for text in stated) else stated
    )
    if len(precise) > 1 and not any(map(not_frontal, precise)):
        return "frontal"
    return " and ".join(precise or stated)


def read_views(given: pd.Series, extras: pd.DataFrame) -> pd.Series:
    """Return the projection of each image, from all columns that state one.

    Args:
        given: The text of the column that was found or named; `""` where there is none.
        extras: The other columns of the data, of which those named as in `VIEW_COLUMNS` count.

    Returns:
        As `read_projection`, or as `join_projections` where several columns state a projection.
    """
    columns = [extras[name].astype(str) for name in extras.columns if fold_text(name) in VIEW_COLUMNS]
    views = pd.concat([given.astype(str), *columns], axis=1, keys=range(len(columns) + 1))
    texts = {text: read_projection(text) for column in views for text in views[column].unique()}
    if not columns:
        return given.map(texts)
    read = views.apply(lambda column: column.map(texts))
    joined = {row: join_projections(row) for row in read.drop_duplicates().itertuples(index=False, name=None)}
    return pd.Series([joined[row] for row in read.itertuples(index=False, name=None)], index=given.index, dtype=object)


def view_of_name(name: str) -> str:
    """Return the projection that a file name states in the form of a public data set.

    The forms are `view1_lateral` (CheXpert) and `vp-pa` (BIDS, as in BIMCV-COVID19).

    Args:
        name: A file name or path.

    Returns:
        As `read_projection`; `""` if the name has neither form.
    """
    match = _VIEW_IN_NAME.search(name)
    return read_projection(match[1] or match[2]) if match else ""


def not_frontal(projection: str) -> str:
    """Return the reason to exclude an image for its projection.

    Args:
        projection: The result of `read_projection`.

    Returns:
        The reason; `""` for a frontal projection and if none is stated.
    """
    name, *position = projection.split(" ")
    if projection == "" or (name in ("PA", "AP", "frontal") and POSITION.issuperset(position)):
        return ""
    return "lateral view" if projection == "L" else f"view {projection!r} is not known to be frontal"


def not_radiograph(modality: object) -> str:
    """Return the reason to exclude an image for its modality.

    Args:
        modality: The text of a column, such as `X-ray`, `DX` or `CT`.

    Returns:
        The reason; `""` for a radiograph and if no modality is stated.
    """
    words = " ".join(word for word in re.split(r"[^a-z0-9]+", str(modality).casefold()) if word)
    if is_unstated(modality) or words in RADIOGRAPHS:
        return ""
    return f"modality {str(modality).strip()!r} is not a radiograph"
