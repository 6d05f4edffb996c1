"""Synthetic chest radiographs in CoronaHack's layout: the embedded default, and data whose truth is known.

They are schematic drawings, made with numpy from a seed; no person's image is in them. Opacities are all that tells
the classes apart: grey level, contrast, noise, hospital, position and anatomy are drawn without regard to the class,
unless a shortcut is planted on purpose. All pixels are computed in 32-bit floats, which takes half the time of 64 bits:
a scalar of numpy's 64-bit type would turn them all into 64 bits, so scalars are Python's own.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from covid_fastai.errors import DataError, UsageError
from covid_fastai.files import make_folder, write_csv, write_json
from covid_fastai.options import Finding, Hospital, PhantomSize, Probability, Seed, Severity, Shortcut, Switch, checked

__all__ = ["Anatomy", "FINDINGS", "Phantom", "SHORTCUTS", "draw_anatomy", "draw_phantom", "write_phantom"]

logger = logging.getLogger("covid_fastai")

FINDINGS = {  # finding -> Label, Label_2_Virus_category, Label_1_Virus_category, as CoronaHack spells them
    "COVID-19": ("Pnemonia", "COVID-19", "Virus"),
    "Normal": ("Normal", "", ""),
    "bacteria": ("Pnemonia", "", "bacteria"),
    "virus": ("Pnemonia", "", "Virus"),
}
SHARES = {"COVID-19": 0.4, "Normal": 0.4, "bacteria": 0.1, "virus": 0.1}  # of `patients`, where it is one number
SHORTCUTS = ("corner", "border", "jpeg_quality", "aspect", "gain")
IMAGES_A_PATIENT = ((1, 2, 3), (0.6, 0.3, 0.1))  # how many, how often
TEST_SHARE = 0.15  # of the patients of each finding but COVID-19, which the official TEST has none of
HOSPITALS = {  # contrast (factor), noise (grey levels), blur (share of the side): the same for all classes
    "hospital-A": (1.00, 3.0, 0.004),
    "hospital-B": (1.15, 5.0, 0.003),
    "hospital-C": (0.85, 4.0, 0.006),
    "hospital-D": (1.00, 6.0, 0.005),
}
JPEG_QUALITY, SHORTCUT_JPEG_QUALITY = 90, 35
SHORTCUT_GAIN = 30  # grey levels
CSV_NAME = "Chest_xray_Corona_Metadata.csv"
SUMMARY_NAME = "Chest_xray_Corona_dataset_Summary.csv"
IMAGES = Path("Coronahack-Chest-XRay-Dataset") / "Coronahack-Chest-XRay-Dataset"
SETTINGS = "phantom.json"  # written last: with it the folder is complete
FORMAT = 2  # to be raised when the same arguments give other bytes


@dataclass(frozen=True)
class Anatomy:
    """The build of one patient; lengths on a scale where the image reaches from -1 to 1, x to the image's right."""

    torso: float
    lung_width: float
    lung_height: float
    apex: float
    diaphragm: float
    heart: float
    spine: float
    ribs: float
    rib_slope: float
    breast: float


@dataclass(frozen=True)
class Phantom:
    """One drawn radiograph.

    Attributes:
        image: `(image_size, image_size)` uint8, air black.
        lungs: `(image_size, image_size)` bool, the true lung mask.
        opacity: `(image_size, image_size)` float32, what was added to the lungs, 0 where nothing.
    """

    image: np.ndarray
    lungs: np.ndarray
    opacity: np.ndarray


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient's build.

    Args:
        rng: The source of chance.

    Returns:
        The build.
    """
    return Anatomy(
        torso=rng.uniform(0.78, 0.98),
        lung_width=rng.uniform(0.25, 0.35),
        lung_height=rng.uniform(0.55, 0.78),
        apex=rng.uniform(-0.15, 0.0),
        diaphragm=rng.uniform(0.35, 0.65),
        heart=rng.uniform(0.22, 0.38),
        spine=rng.uniform(0.06, 0.11),
        ribs=rng.uniform(3.4, 5.2),
        rib_slope=rng.uniform(0.25, 0.75),
        breast=rng.uniform(0.0, 0.09),
    )


@checked
def draw_phantom(
    rng: np.random.Generator,
    *,
    finding: Finding = "Normal",
    anatomy: Anatomy | None = None,
    hospital: Hospital = "hospital-A",
    image_size: PhantomSize = 128,
    severity: Severity = 1.0,
) -> Phantom:
    """Draw one frontal radiograph.

    The opacities are evened out by as much less density in the rest of the lungs, so that the mean grey level and all
    that lies outside of the lungs say nothing of them.

    Args:
        rng: The source of chance: position, exposure, noise and opacities.
        finding: `"Normal"` (no opacity), `"COVID-19"` (patches in both lungs, low and near the chest wall),
            `"bacteria"` (one dense consolidation) or `"virus"` (streaks in both lungs).
        anatomy: The patient's build; None to draw one.
        hospital: A name in `HOSPITALS`: contrast, noise and blur.
        image_size: Side, pixels.
        severity: How dense the opacities are; 1 is well seen.

    Returns:
        The radiograph with its masks.

    Raises:
        UsageError: An argument has a value that is not allowed.
    """
    anatomy = draw_anatomy(rng) if anatomy is None else anatomy
    x, y = _position(rng, int(image_size))
    lungs = _lungs(x, y, anatomy)
    density = _chest(x, y, lungs, anatomy, rng)
    inside = lungs > 0.5
    opacity = _opacity(rng, finding, x, y, np.clip(2 * lungs - 1, 0, None), anatomy) * float(severity)
    density = density + opacity - lungs * (opacity.sum() / lungs.sum())
    return Phantom(_expose(rng, density, hospital), inside, opacity)


def _position(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the patient's coordinates at each pixel: shifted, turned and scaled as patients stand."""
    line = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size * 2 - 1
    angle, scale = math.radians(rng.normal(0, 4)), rng.uniform(0.86, 1.10)
    x, y = line[None, :] - rng.normal(0, 0.05), line[:, None] - rng.normal(0, 0.05)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    return cos * x + sin * y, cos * y - sin * x


def _soft(distance: np.ndarray, width: float = 0.02) -> np.ndarray:
    """Turn a signed distance (inside above 0) into 0 to 1 with a soft edge."""
    return 0.5 + 0.5 * np.tanh(distance * (0.5 / width))  # the logistic function; scipy's takes ten times as long


def _lungs(x: np.ndarray, y: np.ndarray, a: Anatomy) -> np.ndarray:
    """Return the share of lung at each pixel, 0 to 1."""
    lungs = np.zeros_like(x)
    top = a.apex - a.lung_height
    widening = a.lung_width * (0.55 + 0.45 * np.clip((y - top) / a.lung_height, 0, 1))
    above = np.clip((a.apex - y) / a.lung_height, 0, None) ** 2.2
    for side in (-1, 1):
        across = x - side * (a.lung_width + 0.12)
        outline = 1 - np.abs(across / widening) ** 2.4 - above
        dome = a.diaphragm - 0.05 * (side < 0) + 0.55 * across**2 * 2 - y  # the right dome stands higher
        lungs = np.maximum(lungs, _soft(outline, 0.05) * _soft(dome, 0.02))
    heart = _heart(x, y, a)
    return lungs * (1 - _soft(heart, 0.06)) * _soft(np.abs(x) - 0.11, 0.02)


def _heart(x: np.ndarray, y: np.ndarray, a: Anatomy) -> np.ndarray:
    """Return the signed distance to the heart's edge; it lies on the image's right, the patient's left."""
    u, v = x - 0.13, y - (a.diaphragm - 0.12)
    return 1 - ((u * 0.82 + v * 0.57) / (1.25 * a.heart)) ** 2 - ((v * 0.82 - u * 0.57) / (0.88 * a.heart)) ** 2


def _chest(x: np.ndarray, y: np.ndarray, lungs: np.ndarray, a: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Return the density without opacities."""
    out = np.abs(x)  # distance from the midline
    body = _body(out, y, a)
    neck = _soft(0.24 - out, 0.03) * _soft(-y - 0.5, 0.05)
    density = 0.62 * np.maximum(body, neck)
    density += a.breast * _soft(1 - ((out - 0.42) / 0.36) ** 2 - ((y - 0.32) / 0.34) ** 2, 0.2)
    density -= 0.40 * lungs
    density += 0.07 * _soft(_heart(x, y, a), 0.20) * body
    density += 0.08 * _soft(y - a.diaphragm - 0.02, 0.06) * body
    density += _bones(x, y, a, body)
    return density + lungs * (_vessels(rng, x, y) + _shadows(rng, x, y))


def _body(out: np.ndarray, y: np.ndarray, a: Anatomy) -> np.ndarray:
    """Return the share of body at each pixel, 0 to 1."""
    shoulders = np.clip((-y - 0.45) * 1.2, 0, 0.5)
    return _soft(a.torso + shoulders - out, 0.02) * _soft(y + 1.02 - 1.1 * np.clip(out - 0.35, 0, None), 0.04)


def _bones(x: np.ndarray, y: np.ndarray, a: Anatomy, body: np.ndarray) -> np.ndarray:
    """Return the density of the spine, the mediastinum before it, the ribs and the clavicles."""
    out = np.abs(x)
    vertebrae = 0.75 + 0.25 * np.cos(2 * math.pi * 6 * y)
    density = 0.14 * np.exp(-((x / a.spine) ** 2)) * vertebrae * body
    density += 0.12 * np.exp(-(((x / 0.15) ** 2) ** 2)) * _soft(0.4 - y, 0.1) * body
    beside = out > 0.08
    above = np.clip((a.apex - y) / (a.lung_height + 0.12), 0, None) ** 2.5
    thorax = _soft(1 - _cube(out / 0.76) - above, 0.05) * _soft(a.diaphragm + 0.25 - y, 0.05) * beside
    back = np.cos(2 * math.pi * a.ribs * (y - a.rib_slope * out + 0.55 * x**2))
    front = np.cos(2 * math.pi * a.ribs * (y + 0.9 * a.rib_slope * out) + 1.0)
    density += thorax * (0.10 * np.clip(back, 0, None) ** 2 + 0.05 * _cube(np.clip(front, 0, None)))
    clavicle = np.abs(y + 0.62 + 0.22 * (out - 0.35)) - 0.025
    return density + 0.10 * _soft(-clavicle, 0.012) * _soft(0.62 - out, 0.02) * beside


def _cube(values: np.ndarray) -> np.ndarray:
    return values * values * values  # `** 3` takes ten times as long


def _shadows(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return soft, broad differences of density that every lung has: what a thumbnail takes for an opacity."""
    shadows = np.zeros_like(x)
    for half in (-1, 1):
        for _ in range(3):
            centre = (half * rng.uniform(0.2, 0.7), rng.uniform(-0.7, 0.55))
            width, height = rng.uniform(0.12, 0.28), rng.uniform(0.12, 0.28)
            blob = np.exp(-(((x - centre[0]) / width) ** 2) - ((y - centre[1]) / height) ** 2)
            shadows += rng.uniform(-0.10, 0.14) * blob
    return shadows


def _vessels(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the vessels' fine, branching density, stronger at the hilum."""
    noise = _noise(rng, x, 0.012)
    noise = np.clip(noise / noise.std(), 0, None)
    return 0.035 * noise * np.exp(-(((np.abs(x) - 0.2) / 0.3) ** 2) - ((y - 0.05) / 0.5) ** 2)


def _noise(rng: np.random.Generator, like: np.ndarray, reach: float) -> np.ndarray:
    """Return noise that is smooth over `reach`, a share of the image's side."""
    return gaussian_filter(rng.standard_normal(like.shape, dtype=np.float32), like.shape[0] * reach)


def _opacity(rng, finding: str, x: np.ndarray, y: np.ndarray, lungs: np.ndarray, a: Anatomy) -> np.ndarray:
    """Return the opacities' density; `lungs` says where they may be, 0 to 1."""
    if finding == "Normal":
        return np.zeros_like(x)
    side = x.shape[0]
    if finding == "virus":
        waves = _noise(rng, x, 0.018)
        return 0.15 * lungs * np.exp(-((waves / waves.std() / 0.35) ** 2))  # the lines where waves cross 0: a net
    if finding == "bacteria":
        half = int(rng.choice([-1, 1]))
        centre = (half * rng.uniform(0.30, 0.50), rng.uniform(-0.45, a.diaphragm - 0.1))
        blob = np.exp(-((((x - centre[0]) / 0.20) ** 2 + ((y - centre[1]) / 0.20) ** 2) ** 1.5))
        return 0.34 * lungs * blob
    texture = 1 + 0.35 * _noise(rng, x, 0.012) * side * 0.03
    patches = np.zeros_like(x)
    for half in (-1, 1):
        for _ in range(rng.integers(2, 5)):
            reach = a.lung_width * rng.uniform(0.05, 0.8)
            centre = (half * (a.lung_width + 0.12 + reach), rng.uniform(a.apex - 0.25, a.diaphragm - 0.02))
            width, height = rng.uniform(0.08, 0.15), rng.uniform(0.08, 0.15)
            patch = np.exp(-((((x - centre[0]) / width) ** 2 + ((y - centre[1]) / height) ** 2) ** 1.3))
            patches = np.maximum(patches, rng.uniform(0.7, 1.0) * patch)
    return 0.24 * lungs * patches * np.clip(texture, 0.3, 1.7)


def _expose(rng: np.random.Generator, density: np.ndarray, hospital: str) -> np.ndarray:
    """Turn density into 8-bit grey: exposure and contrast vary widely, and with no regard to the finding."""
    contrast, noise, blur = HOSPITALS[hospital]
    density = gaussian_filter(density, blur * density.shape[0])
    density = np.clip(density, 0, None) ** rng.uniform(0.85, 1.2)
    grey = rng.uniform(105, 150) + 190 * contrast * rng.uniform(0.8, 1.2) * (density - 0.5)
    grey += noise * rng.standard_normal(density.shape, dtype=np.float32)
    return np.clip(grey, 0, 255).round().astype(np.uint8)


@checked
def write_phantom(
    root: str | Path,
    *,
    patients: int | Mapping[str, int] = 400,
    seed: Seed = 0,
    image_size: PhantomSize = 128,
    severity: Severity = 1.0,
    masks: Switch = False,
    shortcut: Shortcut | None = None,
    strength: Probability = 1.0,
    signal: Switch = True,
) -> Path:
    """Write a synthetic data set in CoronaHack's layout.

    A patient has one to three images, of one hospital. The metadata CSV has CoronaHack's columns and besides `patient`,
    `source` (the hospital), `view`, `sex` and `age`. Fifteen in a hundred patients of each finding but COVID-19 make up
    the official TEST, which has no COVID-19 in CoronaHack either. The same arguments give the same bytes.

    Args:
        root: The folder to make; one that holds the same data set already is left as it is.
        patients: How many; a number is dealt out (40% COVID-19, 40% Normal, 10% bacteria, 10% virus), a mapping from
            finding to number is taken as it is.
        seed: Of the drawing.
        image_size: Side, pixels, 32 or more.
        severity: How dense the opacities are; 1 is well seen, 0 none.
        masks: Also write the true lungs as `lung-masks/<name>.png`.
        shortcut: Plant something in the COVID-19 images that tells the class without a lung: `"corner"` (a bright
            mark), `"border"` (a dark frame), `"jpeg_quality"` (compressed harder), `"aspect"` (stored wider than high)
            or `"gain"` (30 grey levels brighter). None plants nothing.
        strength: The share of COVID-19 images that carry the shortcut, 0 to 1.
        signal: False gives every patient opacities (or none) without regard to the class: nothing in the lungs tells
            the classes apart.

    Returns:
        `root`.

    Raises:
        UsageError: An argument has a value that is not allowed.
        DataError: The folder holds something else.

    Examples:
        >>> root = write_phantom("phantoms", patients=8, image_size=32, seed=0)
        >>> sorted(path.name for path in root.glob("*.csv"))
        ['Chest_xray_Corona_Metadata.csv', 'Chest_xray_Corona_dataset_Summary.csv']
    """
    counts = _counts(patients)
    root = Path(root)
    settings = {"patients": counts, "seed": int(seed), "image_size": int(image_size), "severity": float(severity)}
    settings |= {"masks": bool(masks), "shortcut": shortcut, "strength": float(strength), "signal": bool(signal)}
    settings["format"] = FORMAT
    if _is_complete(root, settings):
        return root
    for folder in (root / IMAGES / "train", root / IMAGES / "test", *([root / "lung-masks"] if masks else [])):
        make_folder(folder)
    rng = np.random.default_rng(seed)
    rows = []
    for number, (finding, test) in enumerate(_patients(rng, counts), start=1):
        own = np.random.default_rng([seed, number])
        rows += _write_patient(root, own, number, finding, test, settings)
    _write_tables(root, pd.DataFrame(rows))
    write_json(root / SETTINGS, settings)
    logger.info("Wrote %d synthetic radiographs of %d patients to %s.", len(rows), sum(counts.values()), root)
    return root


def _counts(patients: int | Mapping[str, int]) -> dict[str, int]:
    """Return how many patients of each finding, in the order of `FINDINGS`, on which the drawing depends."""
    counts = dict(patients) if isinstance(patients, Mapping) else {}
    numbers = [patients] if isinstance(patients, int | np.integer) else [*counts.values()]
    if set(counts) - set(FINDINGS) or not all(_is_whole(number) for number in numbers) or sum(numbers) < 1:
        raise UsageError(
            f"patients={patients!r}.", hint=f"Give a number, or numbers by finding: {', '.join(FINDINGS)}."
        )
    if not isinstance(patients, Mapping):
        shares = np.cumsum([SHARES[finding] for finding in FINDINGS])
        counts = dict(zip(FINDINGS, np.diff((shares * patients).round(), prepend=0), strict=True))  # adds up
    return {finding: int(counts[finding]) for finding in FINDINGS if counts.get(finding)}


def _is_whole(number: object) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool) and bool(number >= 0)


def _is_complete(root: Path, settings: dict) -> bool:
    """Say whether the folder holds this data set already; a folder that holds anything else is refused."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise DataError(f"{root} is a file.", hint="Name a folder.")
    if not any(root.iterdir()):
        return False
    try:
        found = json.loads((root / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == settings:
        return True
    what = "synthetic data of other settings" if found else "something else, or a set that was not finished"
    raise DataError(f"{root} holds {what}.", hint="Name another folder, or remove this one.")


def _patients(rng: np.random.Generator, counts: Mapping[str, int]) -> list[tuple[str, bool]]:
    """Return each patient's finding and whether they belong to the official TEST, in random order."""
    people = []
    for finding, count in counts.items():
        tests = 0 if finding == "COVID-19" else round(TEST_SHARE * count)
        people += [(finding, position < tests) for position in range(count)]
    return [people[position] for position in rng.permutation(len(people))]


def _write_patient(root: Path, rng, number: int, finding: str, test: bool, settings: Mapping) -> list[dict]:
    """Draw one patient's images, write them, and return their rows of the CSV."""
    anatomy, hospital = draw_anatomy(rng), cast(Hospital, str(rng.choice(list(HOSPITALS))))
    shown = cast(Finding, finding if settings["signal"] else str(rng.choice(["Normal", "COVID-19"])))
    sex, age = str(rng.choice(["F", "M"])), int(rng.integers(18, 90))
    severity = settings["severity"] * rng.uniform(0.85, 1.15)
    label, second, first = FINDINGS[finding]
    rows = []
    for count in range(1, int(rng.choice(IMAGES_A_PATIENT[0], p=IMAGES_A_PATIENT[1])) + 1):
        name = f"phantom-p{number:04d}-{count}"
        drawn = draw_phantom(
            rng, finding=shown, anatomy=anatomy, hospital=hospital, image_size=settings["image_size"], severity=severity
        )
        carries = finding == "COVID-19" and rng.random() < settings["strength"]
        image, quality = _plant(drawn.image, settings["shortcut"] if carries else None)
        image.save(root / IMAGES / ("test" if test else "train") / f"{name}.jpeg", quality=quality)
        if settings["masks"]:
            Image.fromarray(drawn.lungs).save(root / "lung-masks" / f"{name}.png")
        rows.append(
            {
                "X_ray_image_name": f"{name}.jpeg",
                "Label": label,
                "Dataset_type": "TEST" if test else "TRAIN",
                "Label_2_Virus_category": second,
                "Label_1_Virus_category": first,
                "patient": f"phantom-{number:04d}",
                "source": hospital,
                "view": str(rng.choice(["PA", "AP"], p=[0.8, 0.2])),
                "sex": sex,
                "age": age,
            }
        )
    return rows


def _plant(image: np.ndarray, shortcut: str | None) -> tuple[Image.Image, int]:
    """Return the image with the shortcut in it, and the JPEG quality to store it with."""
    side = image.shape[0]
    edge = max(2, side // 16)
    if shortcut == "corner":
        image = image.copy()
        image[edge : 3 * edge, edge : 3 * edge] = 240
    elif shortcut == "border":
        image = image.copy()
        image[:edge], image[-edge:], image[:, :edge], image[:, -edge:] = 0, 0, 0, 0
    elif shortcut == "gain":
        image = np.clip(image.astype(int) + SHORTCUT_GAIN, 0, 255).astype(np.uint8)
    picture = Image.fromarray(image)
    if shortcut == "aspect":
        picture = picture.resize((round(1.3 * side), side), Image.Resampling.BILINEAR)
    return picture, SHORTCUT_JPEG_QUALITY if shortcut == "jpeg_quality" else JPEG_QUALITY


def _write_tables(root: Path, table: pd.DataFrame) -> None:
    """Write the metadata CSV, with CoronaHack's unnamed first column, and the summary CSV."""
    numbered = table.reset_index(names="")
    write_csv(root / CSV_NAME, numbered)
    columns = ["Label", "Label_1_Virus_category", "Label_2_Virus_category"]
    summary = table.groupby(columns, sort=True).size().rename("Image_Count").reset_index()
    write_csv(root / SUMMARY_NAME, summary.reset_index(names=""))
