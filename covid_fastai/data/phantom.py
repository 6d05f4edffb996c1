"""Generate synthetic chest radiographs in CoronaHack's layout: the default data set, with known ground truth.

The images are schematic drawings, made with numpy from a seed; they contain no image of a person. Only opacities
distinguish the classes: intensity, contrast, noise, hospital, position and anatomy are sampled independently of the
class, unless a shortcut is planted. Pixels are computed in 32-bit floats, which takes half the time of 64 bits. Scalars
are Python floats, because a numpy float64 scalar would convert the arrays to 64 bits.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Collection, Mapping
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
from covid_fastai.pseudonyms import NUMBERED, SYNTHETIC

__all__ = [
    "Anatomy",
    "FINDINGS",
    "Phantom",
    "SETTINGS",
    "SHORTCUTS",
    "are_synthetic",
    "draw_anatomy",
    "draw_phantom",
    "is_synthetic",
    "write_phantom",
]

logger = logging.getLogger("covid_fastai")

FINDINGS = {  # finding -> Label, Label_2_Virus_category, Label_1_Virus_category, as CoronaHack spells them
    "COVID-19": ("Pnemonia", "COVID-19", "Virus"),
    "Normal": ("Normal", "", ""),
    "bacteria": ("Pnemonia", "", "bacteria"),
    "virus": ("Pnemonia", "", "Virus"),
}
PATIENT_FRACTIONS = {"COVID-19": 0.4, "Normal": 0.4, "bacteria": 0.1, "virus": 0.1}  # if `patients` is one number
SHORTCUTS = ("corner", "border", "jpeg_quality", "aspect", "gain")
IMAGES_PER_PATIENT = ((1, 2, 3), (0.6, 0.3, 0.1))  # numbers of images and their probabilities
TEST_FRACTION = 0.15  # of the patients of each finding except COVID-19, which is not in the official TEST
HOSPITALS = {  # contrast (factor), noise (grey levels), blur (fraction of the side); equal for all classes
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
SETTINGS = "phantom.json"  # written last; marks the folder as complete
FINE_SIDE = 160  # pixels; in larger images the search for copies would take similar ribs for those of one patient
BEND = 0.05  # by how much ribs and vertebrae are out of line in these; the image extends from -1 to 1
FORMAT = 3  # increased when the same arguments give other bytes


@dataclass(frozen=True)
class Anatomy:
    """The anatomy of one patient; lengths in units where the image extends from -1 to 1, x to the image's right."""

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
        opacity: `(image_size, image_size)` float32, the density added to the lungs, 0 elsewhere.
    """

    image: np.ndarray
    lungs: np.ndarray
    opacity: np.ndarray


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Sample the anatomy of a patient.

    Args:
        rng: The random generator.

    Returns:
        The anatomy.
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

    The mean density of the opacities is subtracted from the lungs, so that neither the mean intensity nor the area
    outside the lungs depends on the finding.

    Args:
        rng: The random generator for position, exposure, noise and opacities.
        finding: `"Normal"` (no opacity), `"COVID-19"` (patches in both lungs, low and near the chest wall),
            `"bacteria"` (one dense consolidation) or `"virus"` (streaks in both lungs).
        anatomy: The patient's anatomy; None to sample one.
        hospital: A name in `HOSPITALS`: contrast, noise and blur.
        image_size: Side, pixels.
        severity: Factor of the opacities' density; 1 is clearly visible.

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
    """Return the patient's coordinates at each pixel, with a random shift, rotation and scale."""
    line = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size * 2 - 1
    angle, scale = math.radians(rng.normal(0, 4)), rng.uniform(0.86, 1.10)
    x, y = line[None, :] - rng.normal(0, 0.05), line[:, None] - rng.normal(0, 0.05)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    return cos * x + sin * y, cos * y - sin * x


def _soft(distance: np.ndarray, width: float = 0.02) -> np.ndarray:
    """Convert a signed distance (positive inside) to a value from 0 to 1 with a soft edge."""
    return 0.5 + 0.5 * np.tanh(distance * (0.5 / width))  # the logistic function; scipy's takes ten times as long


def _lungs(x: np.ndarray, y: np.ndarray, a: Anatomy) -> np.ndarray:
    """Return the fraction of lung at each pixel, 0 to 1."""
    lungs = np.zeros_like(x)
    top = a.apex - a.lung_height
    widening = a.lung_width * (0.55 + 0.45 * np.clip((y - top) / a.lung_height, 0, 1))
    above = np.clip((a.apex - y) / a.lung_height, 0, None) ** 2.2
    for side in (-1, 1):
        across = x - side * (a.lung_width + 0.12)
        outline = 1 - np.abs(across / widening) ** 2.4 - above
        dome = a.diaphragm - 0.05 * (side < 0) + 0.55 * across**2 * 2 - y  # the right dome is higher
        lungs = np.maximum(lungs, _soft(outline, 0.05) * _soft(dome, 0.02))
    heart = _heart(x, y, a)
    return lungs * (1 - _soft(heart, 0.06)) * _soft(np.abs(x) - 0.11, 0.02)


def _heart(x: np.ndarray, y: np.ndarray, a: Anatomy) -> np.ndarray:
    """Return the signed distance to the heart's edge; it is on the image's right, the patient's left."""
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
    """Return the fraction of body at each pixel, 0 to 1."""
    shoulders = np.clip((-y - 0.45) * 1.2, 0, 0.5)
    return _soft(a.torso + shoulders - out, 0.02) * _soft(y + 1.02 - 1.1 * np.clip(out - 0.35, 0, None), 0.04)


def _bones(x: np.ndarray, y: np.ndarray, a: Anatomy, body: np.ndarray) -> np.ndarray:
    """Return the density of the spine, the mediastinum, the ribs and the clavicles."""
    out = np.abs(x)
    if x.shape[0] >= FINE_SIDE:
        y = y + BEND * _bends(x, y, a)
    vertebrae = 0.75 + 0.25 * np.cos(2 * math.pi * 6 * y)
    density = 0.14 * np.exp(-((x / a.spine) ** 2)) * vertebrae * body
    density += 0.12 * np.exp(-(((x / 0.15) ** 2) ** 2)) * _soft(0.4 - y, 0.1) * body
    lateral = out > 0.08
    above = np.clip((a.apex - y) / (a.lung_height + 0.12), 0, None) ** 2.5
    thorax = _soft(1 - _cube(out / 0.76) - above, 0.05) * _soft(a.diaphragm + 0.25 - y, 0.05) * lateral
    back = np.cos(2 * math.pi * a.ribs * (y - a.rib_slope * out + 0.55 * x**2))
    front = np.cos(2 * math.pi * a.ribs * (y + 0.9 * a.rib_slope * out) + 1.0)
    density += thorax * (0.10 * np.clip(back, 0, None) ** 2 + 0.05 * _cube(np.clip(front, 0, None)))
    clavicle = np.abs(y + 0.62 + 0.22 * (out - 0.35)) - 0.025
    return density + 0.10 * _soft(-clavicle, 0.012) * _soft(0.62 - out, 0.02) * lateral


def _bends(x: np.ndarray, y: np.ndarray, a: Anatomy) -> np.ndarray:
    """Return how the patient's bones are out of line at each pixel; the same in each image of the patient."""
    rng = np.random.default_rng(int(a.ribs * 2**40))  # of the anatomy, since further draws would change smaller images
    bends = np.zeros_like(x)
    for across, down in ((1.0, 2.0), (2.0, 3.0), (3.0, 1.0), (1.5, 4.0)):
        phase, weight = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.0)
        bends += weight * np.sin(math.pi * (across * x + rng.choice([-1.0, 1.0]) * down * y) + phase)
    return bends / 2


def _cube(values: np.ndarray) -> np.ndarray:
    return values * values * values  # `** 3` takes ten times as long


def _shadows(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return soft, broad density differences that every lung has; at low resolution they resemble opacities."""
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
    """Return noise that is smooth over `reach`, a fraction of the image's side."""
    return gaussian_filter(rng.standard_normal(like.shape, dtype=np.float32), like.shape[0] * reach)


def _opacity(rng, finding: str, x: np.ndarray, y: np.ndarray, lungs: np.ndarray, a: Anatomy) -> np.ndarray:
    """Return the density of the opacities; `lungs` is the mask where they are allowed, 0 to 1."""
    if finding == "Normal":
        return np.zeros_like(x)
    side = x.shape[0]
    if finding == "virus":
        waves = _noise(rng, x, 0.018)
        return (
            0.15 * lungs * np.exp(-((waves / waves.std() / 0.35) ** 2))
        )  # zero crossings of the noise: a network of lines
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
    """Convert density to 8-bit intensities with random exposure and contrast, independent of the finding."""
    contrast, noise, blur = HOSPITALS[hospital]
    density = gaussian_filter(density, blur * density.shape[0])
    density = np.clip(density, 0, None) ** rng.uniform(0.85, 1.2)
    grey = rng.uniform(105, 150) + 190 * contrast * rng.uniform(0.8, 1.2) * (density - 0.5)
    grey += noise * rng.standard_normal(density.shape, dtype=np.float32)
    return np.clip(grey, 0, 255).round().astype(np.uint8)


def is_synthetic(path: str | Path) -> bool:
    """Return whether an image has the name of one that `write_phantom` generated, or the number of such a one.

    Args:
        path: The image's path; only its name is read.
    """
    name = os.path.basename(path)
    is_number = NUMBERED.fullmatch(name) is not None and SYNTHETIC in name
    return is_number or re.fullmatch(r"phantom-p\d{4,}-\d+\.\w+", name) is not None


def are_synthetic(paths: Collection[str | Path]) -> bool:
    """Return whether there are images, and all of them have the name of one that `write_phantom` generated.

    Args:
        paths: The images' paths.
    """
    return len(paths) > 0 and all(map(is_synthetic, paths))


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

    A patient has one to three images from one hospital. The metadata CSV has CoronaHack's columns and also `patient`,
    `source` (the hospital), `view`, `sex` and `age`. The official TEST has 15% of the patients of each finding except
    COVID-19; CoronaHack's TEST has no COVID-19 either. The same arguments give the same bytes.

    Args:
        root: The folder to create; a folder that already has the same data set is not changed.
        patients: Number of patients (40% COVID-19, 40% Normal, 10% bacteria, 10% virus), or a mapping from finding to
            number.
        seed: Seed of the random generator.
        image_size: Side, pixels, 32 or more.
        severity: Factor of the opacities' density; 1 is clearly visible, 0 shows none.
        masks: Whether to write the true lung masks as `lung-masks/<name>.png`.
        shortcut: A property of the COVID-19 images that identifies the class without the lungs: `"corner"` (a bright
            mark), `"border"` (a dark frame), `"jpeg_quality"` (lower quality), `"aspect"` (stored wider than high) or
            `"gain"` (30 grey levels brighter). None for no shortcut.
        strength: The fraction of COVID-19 images with the shortcut, 0 to 1.
        signal: False samples the opacities independently of the class; the lungs then do not distinguish the classes.

    Returns:
        `root`.

    Raises:
        UsageError: An argument has a value that is not allowed.
        DataError: The folder has other contents.

    Examples:
        >>> root = write_phantom("phantoms", patients=8, image_size=32, seed=0)
        >>> sorted(path.name for path in root.glob("*.csv"))
        ['Chest_xray_Corona_Metadata.csv', 'Chest_xray_Corona_dataset_Summary.csv']
    """
    counts = _patients_by_finding(patients)
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
    for number, (finding, test) in enumerate(_assign_patients(rng, counts), start=1):
        patient_rng = np.random.default_rng([seed, number])
        rows += _write_patient(root, patient_rng, number, finding, test, settings)
    _write_tables(root, pd.DataFrame(rows))
    write_json(root / SETTINGS, settings)
    logger.info("Wrote %d synthetic radiographs of %d patients to %s.", len(rows), sum(counts.values()), root)
    return root


def _patients_by_finding(patients: int | Mapping[str, int]) -> dict[str, int]:
    """Return the number of patients of each finding, in the order of `FINDINGS`, which the random numbers depend on."""
    counts = dict(patients) if isinstance(patients, Mapping) else {}
    numbers = [patients] if isinstance(patients, int | np.integer) else [*counts.values()]
    if set(counts) - set(FINDINGS) or not all(_is_whole(number) for number in numbers) or sum(numbers) < 1:
        raise UsageError(
            f"patients={patients!r} is neither a number above 0 nor numbers by finding.",
            hint=f"Give a number, or numbers by finding: {', '.join(FINDINGS)}.",
        )
    if not isinstance(patients, Mapping):
        fractions = np.cumsum([PATIENT_FRACTIONS[finding] for finding in FINDINGS])
        counts = dict(
            zip(FINDINGS, np.diff((fractions * patients).round(), prepend=0), strict=True)
        )  # their sum is exact
    return {finding: int(counts[finding]) for finding in FINDINGS if counts.get(finding)}


def _is_whole(number: object) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool) and bool(number >= 0)


def _is_complete(root: Path, settings: dict) -> bool:
    """Return whether the folder already has this data set; raise if it has other contents."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise DataError(f"{root} is a file.", hint="Give a folder.")
    if not any(root.iterdir()):
        return False
    try:
        written = json.loads((root / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        written = None
    if written == settings:
        return True
    contents = "synthetic data with other settings" if written else "other files, or an incomplete data set"
    raise DataError(f"{root} has {contents}.", hint="Give another folder, or remove this one.")


def _assign_patients(rng: np.random.Generator, counts: Mapping[str, int]) -> list[tuple[str, bool]]:
    """Return the finding of each patient, and whether the patient is in the official TEST, in random order."""
    patients = []
    for finding, count in counts.items():
        tests = 0 if finding == "COVID-19" else round(TEST_FRACTION * count)
        patients += [(finding, position < tests) for position in range(count)]
    return [patients[position] for position in rng.permutation(len(patients))]


def _write_patient(root: Path, rng, number: int, finding: str, test: bool, settings: Mapping) -> list[dict]:
    """Draw and write the images of one patient, and return their rows of the CSV."""
    anatomy, hospital = draw_anatomy(rng), cast(Hospital, str(rng.choice(list(HOSPITALS))))
    shown = cast(Finding, finding if settings["signal"] else str(rng.choice(["Normal", "COVID-19"])))
    sex, age = str(rng.choice(["F", "M"])), int(rng.integers(18, 90))
    severity = settings["severity"] * rng.uniform(0.85, 1.15)
    label, second, first = FINDINGS[finding]
    rows = []
    for count in range(1, int(rng.choice(IMAGES_PER_PATIENT[0], p=IMAGES_PER_PATIENT[1])) + 1):
        name = f"phantom-p{number:04d}-{count}"
        drawn = draw_phantom(
            rng, finding=shown, anatomy=anatomy, hospital=hospital, image_size=settings["image_size"], severity=severity
        )
        has_shortcut = finding == "COVID-19" and rng.random() < settings["strength"]
        image, quality = _plant(drawn.image, settings["shortcut"] if has_shortcut else None)
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
    stored = Image.fromarray(image)
    if shortcut == "aspect":
        stored = stored.resize((round(1.3 * side), side), Image.Resampling.BILINEAR)
    return stored, SHORTCUT_JPEG_QUALITY if shortcut == "jpeg_quality" else JPEG_QUALITY


def _write_tables(root: Path, table: pd.DataFrame) -> None:
    """Write the metadata CSV, with CoronaHack's unnamed first column, and the summary CSV."""
    numbered = table.reset_index(names="")
    write_csv(root / CSV_NAME, numbered)
    columns = ["Label", "Label_1_Virus_category", "Label_2_Virus_category"]
    summary = table.groupby(columns, sort=True).size().rename("Image_Count").reset_index()
    write_csv(root / SUMMARY_NAME, summary.reset_index(names=""))
