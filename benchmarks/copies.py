"""Which copies are found: `python -m benchmarks.copies` alters 50 images in each of many ways, and searches them.

The limits of the search were set on copies of other images: `--half tuning` alters those. `OTHER_KINDS` had no part in
it on either half.

The images are drawings; with `--data`, or COVID_FASTAI_DATA, they are radiographs of CoronaHack at full resolution, and
all others of CoronaHack at 224 pixels are searched with them. The table has the fraction of the copies whose original
is found, and the fraction that a manifest of the originals recognises, as before pretraining. Pairs of different images
are counted as false, for images of one patient and of different patients. The counts are added to `copies.csv`, and
`copies.md` is written from it. Each takes about three minutes of a core; fingerprints are kept in the cache.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from covid_fastai.data.fingerprints import duplicate_pairs, fingerprint_images
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.phantom import FINDINGS, draw_anatomy, draw_phantom
from covid_fastai.data.pretraining_overlap import mark_pretraining_overlap, read_manifest, write_manifest
from covid_fastai.evaluation.intervals import wilson
from covid_fastai.files import write_csv

HERE = Path(__file__).parent
IMAGES = 50  # of each kind
SIDE = 384  # pixels; the longer side of an image before it is altered, as in collections that were made smaller
PATIENTS = 100  # drawn patients of two images each, which are searched with the copies
AIM = 0.95
HALVES = ("tuning", "reported")
Alter = Callable[[Image.Image, np.random.Generator], Image.Image]


def crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Cut fractions of the sides off."""
    width, height = image.size
    box = round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height)
    return image.crop(box)


def turn(image: Image.Image, degrees: float, rng: np.random.Generator, *, expand: bool = False) -> Image.Image:
    """Turn to either side; the corners become black."""
    return image.rotate(degrees * rng.choice([-1, 1]), resample=Image.Resampling.BICUBIC, expand=expand)


def encode(image: Image.Image, quality: int) -> Image.Image:
    """Store as JPEG and read again."""
    content = BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("L")


def change_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Make the middle tones brighter or darker."""
    return image.point([round(255 * (grey / 255) ** gamma) for grey in range(256)])


def frame(image: Image.Image, grey: int, rng: np.random.Generator) -> Image.Image:
    """Put a frame of 3 to 20% of a side around the image."""
    width = rng.uniform(0.03, 0.2)
    return ImageOps.expand(image, border=(round(width * image.width), round(width * image.height)), fill=grey)


def letterbox(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put black bars of 10 to 40% of a side above and below, or left and right."""
    width = rng.uniform(0.1, 0.4)
    border = (round(width * image.width), 0) if rng.random() < 0.5 else (0, round(width * image.height))
    return ImageOps.expand(image, border=border, fill=0)


def screenshot(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Show the image in a window of a viewer, with a bar of letters above and another below."""
    margins = rng.uniform(0.05, 0.3, 4)
    width, height = (round(side * (1 + a + b)) for side, (a, b) in zip(image.size, margins.reshape(2, 2), strict=True))
    shot = Image.new("L", (width, height), int(rng.choice([0, 32, 60, 128, 240])))
    shot.paste(image, (round(margins[0] * image.width), round(margins[2] * image.height)))
    pen, bar = ImageDraw.Draw(shot), max(6, height // 25)
    pen.rectangle((0, 0, width, bar), fill=200)
    pen.text((4, 1), "Viewer   File   Edit   View   Help", fill=20, font_size=max(6, bar * 0.6))
    pen.rectangle((0, height - bar // 2, width, height), fill=180)
    return encode(shot, 90)


def write_text(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Write three lines over the image, one of them over the lungs."""
    image = image.copy()
    pen, (width, height) = ImageDraw.Draw(image), image.size
    for left, top, text in ((0.03, 0.02, "L  PORTABLE AP"), (0.45, 0.9, "2020-03-12 14:05"), (0.3, 0.0, "SEMI ERECT")):
        place = (left * width, (top or rng.uniform(0.3, 0.6)) * height)
        pen.text(place, text, fill=255, font_size=max(8, height // 14))
    return image


def equalise_locally(image: Image.Image, limit: float, *, tiles: int = 8) -> Image.Image:
    """Equalise the histogram of each tile with a limited contrast (CLAHE, Zuiderveld 1994)."""
    pixels = np.asarray(image)
    rows, columns = (np.linspace(0, side, tiles + 1).astype(int) for side in pixels.shape)
    tables = np.zeros((tiles, tiles, 256))
    for row in range(tiles):
        for column in range(tiles):
            tile = pixels[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
            counts = np.bincount(tile.ravel(), minlength=256).astype(float)
            most = limit * tile.size / 256
            counts = np.minimum(counts, most) + np.maximum(counts - most, 0).sum() / 256
            tables[row, column] = np.cumsum(counts) / tile.size * 255
    (down, next_down, y), (across, next_across, x) = (
        _between((edges[1:] + edges[:-1]) / 2, side) for edges, side in zip((rows, columns), pixels.shape, strict=True)
    )
    down, next_down, y = (values[:, None] for values in (down, next_down, y))
    top = (1 - x) * tables[down, across, pixels] + x * tables[down, next_across, pixels]
    bottom = (1 - x) * tables[next_down, across, pixels] + x * tables[next_down, next_across, pixels]
    return Image.fromarray(np.clip((1 - y) * top + y * bottom, 0, 255).astype(np.uint8))


def watermark(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Write large letters across the image, half transparent."""
    text = Image.new("L", image.size, 0)
    pen = ImageDraw.Draw(text)
    size = image.height // 9
    for line in range(3):
        pen.text(
            (0.05 * image.width, (0.2 + 0.25 * line) * image.height), "SAMPLE  COPY  SAMPLE", fill=110, font_size=size
        )
    return ImageChops.add(image, text.rotate(rng.uniform(10, 30)))


def photograph(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Photograph the image from a screen: in perspective, brighter on one side, with noise, as JPEG."""
    width, height = image.size
    x, y = rng.uniform(-0.03, 0.03, (2, 4)) * np.array([[width], [height]])
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)]) + np.stack([x, y], axis=1)
    tilted = image.transform(image.size, Image.Transform.QUAD, corners.ravel().tolist(), Image.Resampling.BICUBIC)
    light = np.linspace(0.8, 1.1, width) * rng.normal(1, 0.02, (height, width))
    return encode(Image.fromarray(np.clip(np.asarray(tilted) * light + 10, 0, 255).astype(np.uint8)), 70)


def change_window(image: Image.Image) -> Image.Image:
    """Show a narrower window: the darkest and the brightest 5% are clipped."""
    low, high = np.quantile(np.asarray(image), [0.05, 0.95])
    return image.point([round(np.clip(255 * (grey - low) / max(high - low, 1), 0, 255)) for grey in range(256)])


def deepen(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Store with 16 bits, from 0 to the brightest value of 12 bits."""
    return Image.fromarray(
        np.asarray(image).astype(np.uint16) * 16 + rng.integers(0, 16, np.asarray(image).shape, np.uint16)
    )


def pad_square(image: Image.Image) -> Image.Image:
    """Put black bars at two sides, so that the image becomes a square."""
    return ImageOps.pad(image, (max(image.size),) * 2, color=0)


def _between(centres: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each pixel the tiles before and behind it, and where it is between them, 0 to 1."""
    place = np.interp(np.arange(side), centres, np.arange(len(centres)))
    before = place.astype(int)
    return before, np.minimum(before + 1, len(centres) - 1), place - before


FLIP = Image.Transpose
KINDS: dict[str, Alter] = {
    "JPEG of quality 40": lambda image, rng: encode(image, 40),
    "half size": lambda image, rng: image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR),
    "stretched by 40%": lambda image, rng: image.resize((round(1.2 * image.width), round(0.85 * image.height))),
    "gamma 0.6 or 1.5": lambda image, rng: change_gamma(image, rng.choice([0.6, 1.5])),
    "CLAHE, limit 2": lambda image, rng: equalise_locally(image, 2),
    "CLAHE, limit 4": lambda image, rng: equalise_locally(image, 4),
    "inverted": lambda image, rng: ImageOps.invert(image),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "text burnt in": write_text,
    "black frame": lambda image, rng: frame(image, 0, rng),
    "white frame": lambda image, rng: frame(image, 255, rng),
    "letterbox": letterbox,
    "screenshot": screenshot,
    "right angle": lambda image, rng: image.transpose(
        [FLIP.ROTATE_90, FLIP.ROTATE_180, FLIP.ROTATE_270][rng.integers(3)]
    ),
    **{f"turned by {angle}°": lambda image, rng, angle=angle: turn(image, angle, rng) for angle in (2, 5, 10)},
    "turned by 10°, enlarged": lambda image, rng: turn(image, 10, rng, expand=True),
    **{
        f"cropped by {percent}% a side": lambda image, rng, part=percent / 100: crop(image, part, part, part, part)
        for percent in (3, 5, 8, 10)
    },
    "cropped by 0 to 10% a side": lambda image, rng: crop(image, *rng.uniform(0, 0.1, 4)),
    "cropped by 20% on one side": lambda image, rng: crop(image, *np.roll([0.2, 0, 0, 0], rng.integers(4))),
    "cropped by 20% on two sides": lambda image, rng: crop(
        image, *[(0.2, 0, 0.2, 0), (0, 0.2, 0, 0.2), (0.2, 0.2, 0, 0), (0, 0, 0.2, 0.2)][rng.integers(4)]
    ),
    "cropped by 5% a side, turned by 5°, CLAHE": lambda image, rng: equalise_locally(
        turn(crop(image, 0.05, 0.05, 0.05, 0.05), 5, rng), 2
    ),
    "cropped by 8% a side, inverted, mirrored": lambda image, rng: ImageOps.mirror(
        ImageOps.invert(crop(image, 0.08, 0.08, 0.08, 0.08))
    ),
}

OTHER_KINDS: dict[str, Alter] = {
    "JPEG of quality 20, cropped by 4% a side": lambda image, rng: encode(crop(image, 0.04, 0.04, 0.04, 0.04), 20),
    "mirrored, cropped by 6% a side": lambda image, rng: ImageOps.mirror(crop(image, 0.06, 0.06, 0.06, 0.06)),
    "right angle, cropped by 8% a side": lambda image, rng: crop(
        image.transpose(FLIP.ROTATE_90), 0.08, 0.08, 0.08, 0.08
    ),
    "gamma 0.6 or 1.5, white frame": lambda image, rng: frame(change_gamma(image, rng.choice([0.6, 1.5])), 255, rng),
    "gamma 0.6 or 1.5, cropped by 5% a side": lambda image, rng: change_gamma(
        crop(image, 0.05, 0.05, 0.05, 0.05), rng.choice([0.6, 1.5])
    ),
    "half size, inverted": lambda image, rng: ImageOps.invert(image.resize((image.width // 2, image.height // 2))),
    "quarter size, JPEG of quality 30": lambda image, rng: encode(
        image.resize((image.width // 4, image.height // 4), Image.Resampling.BILINEAR), 30
    ),
    "watermark across": watermark,
    "photograph of a screen": photograph,
    "padded to a square": lambda image, rng: pad_square(image),
    "16 bits": deepen,
    "narrower window": lambda image, rng: change_window(image),
    "narrower window, cropped by 5% a side": lambda image, rng: change_window(crop(image, 0.05, 0.05, 0.05, 0.05)),
    "blurred by 1.5 pixels": lambda image, rng: image.filter(ImageFilter.GaussianBlur(1.5)),
    "sharpened": lambda image, rng: image.filter(ImageFilter.UnsharpMask(3, 150, 0)),
    "left or right half": lambda image, rng: crop(image, *((0.5, 0, 0, 0) if rng.random() < 0.5 else (0, 0, 0.5, 0))),
}


def draw_images(folder: Path, half: str) -> pd.DataFrame:
    """Draw the images that are altered, and two of each of other patients; columns `path`, `patient`, `altered`."""
    rows = []
    for patient in range(IMAGES + PATIENTS):
        rng = np.random.default_rng([7 + HALVES.index(half), patient])
        altered = patient < IMAGES
        anatomy = draw_anatomy(rng)
        for number in range(1 if altered else 2):
            finding: Any = list(FINDINGS)[patient % 4]
            size = SIDE if altered else 224
            image = draw_phantom(rng, finding=finding, anatomy=anatomy, image_size=size).image
            path = folder / f"{patient:03d}-{number}.png"
            Image.fromarray(image).save(path)
            rows.append({"path": str(path), "patient": f"p{patient}", "altered": altered})
    return pd.DataFrame(rows)


def real_images(data: Path, half: str) -> pd.DataFrame:
    """List 50 of CoronaHack's images at full resolution, which are altered, and others at 224 pixels.

    The halves share no patient among the images that are altered.
    """
    full, small = (
        pd.DataFrame(read_cohort(data / name, check_images=False, exclude_pretraining_overlap=False))
        for name in ("coronahack-full", "coronahack-224")
    )
    chosen = full.sample(IMAGES, random_state=0)
    if half == "reported":
        chosen = full[~full["patient"].isin(chosen["patient"])].sample(IMAGES, random_state=1)
    names = small["path"].map(os.path.basename)
    small = small[~names.isin(chosen["path"].map(os.path.basename))]  # the same images, at another size
    rows = pd.concat([chosen.assign(altered=True), small.assign(altered=False)], ignore_index=True)
    return rows[["path", "patient", "altered"]]


def measure(images: pd.DataFrame, folder: Path, *, kinds: dict[str, Alter]) -> pd.DataFrame:
    """Alter the images in each way, and count the copies that are found, and the false pairs.

    Args:
        images: `path`, `patient`, and `altered`, whether copies of an image are made.
        folder: Where the copies are written.
        kinds: How copies are made, by name.

    Returns:
        `kind`, `copies`, `found`, `recognised` by a manifest, and `pairs`, which is True in two further rows: the pairs
        of different images, and those that are called copies.
    """
    originals = images[images["altered"]].reset_index(drop=True)
    made = []
    for number, path in enumerate(originals["path"]):
        image = Image.open(path).convert("L")
        image.thumbnail((SIDE, SIDE))
        for place, (kind, alter) in enumerate(kinds.items()):
            altered = alter(image, np.random.default_rng([number, place]))
            copy = folder / f"copy-{number:03d}-{place:02d}.{'png' if altered.mode == 'I;16' else 'bmp'}"
            altered.save(copy, compress_level=1)
            made.append({"path": str(copy), "kind": kind, "original": number, "patient": originals["patient"][number]})
    copies, others = pd.DataFrame(made), images[~images["altered"]]
    table = pd.concat([originals, copies, others], ignore_index=True)
    prints = fingerprint_images(table["path"])
    started = time.process_time()
    # copies of one image are not compared with each other; what is left is as many images as a data set has
    apart = pd.Series([*range(len(table))], index=prints.index)
    apart[len(originals) : len(originals) + len(copies)] = -1 - copies["original"].to_numpy()
    pairs = duplicate_pairs(prints, apart=apart)
    print(f"Search of {len(prints):,} images: {time.process_time() - started:.1f} s of CPU", flush=True)
    ends = set(map(frozenset, pairs[["first", "second"]].to_numpy().tolist()))
    first = len(originals)
    # of two rows with equal pixels, only the first one is in further pairs
    same = prints.index.to_series().groupby(prints["sha256"]).transform("min").tolist()
    copies["found"] = [
        same[row] == same[first + n] or frozenset((same[row], same[first + n])) in ends
        for n, row in enumerate(copies["original"])
    ]
    manifest = folder / "originals.manifest.safetensors"
    write_manifest(originals, manifest, fingerprints=prints[:first])
    nameless = pd.DataFrame({"path": "", "patient": ""}, index=prints.index)
    marked = mark_pretraining_overlap(
        nameless, prints["hashes"], [read_manifest(manifest)], keypoints=prints["keypoints"]
    )
    copies["recognised"] = marked[first : first + len(copies)].to_numpy()
    counts = copies.groupby("kind", sort=False).agg(
        copies=("found", "size"), found=("found", "sum"), recognised=("recognised", "sum")
    )
    tables = counts.reset_index().assign(pairs=False), _count_false(table, pairs, marked).assign(pairs=True)
    return pd.concat(tables, ignore_index=True)


def _count_false(table: pd.DataFrame, pairs: pd.DataFrame, marked: pd.Series) -> pd.DataFrame:
    """Count pairs of images that are not altered, and those that a manifest of the altered ones recognises."""
    others = table["altered"].eq(False)
    patient = table.loc[others, "patient"]
    sizes = patient.value_counts()
    same = int((sizes * (sizes - 1) // 2).sum())
    inside = pairs[
        pairs["first"].isin(patient.index) & pairs["second"].isin(patient.index) & (pairs["kind"] != "exact")
    ]
    of_one = patient[inside["first"]].to_numpy() == patient[inside["second"]].to_numpy()
    everything = len(patient) * (len(patient) - 1) // 2
    known = set(table.loc[table["altered"].eq(True), "patient"])
    strangers = others & ~table["patient"].isin(known)
    return pd.DataFrame(
        [
            ("different images of one patient", same, int(of_one.sum()), None),
            ("images of different patients", everything - same, int((~of_one).sum()), int(marked[strangers].sum())),
        ],
        columns=["kind", "copies", "found", "recognised"],
    )


def as_markdown(counts: pd.DataFrame) -> str:
    """Return the page: a table of the kinds, and one of the false pairs, for each set of images."""
    copies, pairs = (counts[counts["pairs"].eq(is_pair)] for is_pair in (False, True))
    sets = list(dict.fromkeys(counts["images"]))
    titles = [f"{name}, {what}" for name in sets for what in ("found", "recognised")]
    lines = [
        "# Copies that are found",
        "",
        "Written by `python -m benchmarks.copies`. Each of 50 images is altered in each way. Found: `duplicate_pairs`,",
        "which `read_cohort`, `find_leaks` and `validate` use, pairs the copy with its original. Recognised: the copy",
        "agrees with the hashes or keypoints in a manifest of the originals, without names of files or patients, as in",
        "`validate` where the files of the training are gone. The limits were set on copies of other images.",
        f"Intervals are 95% (Wilson). The aim is {AIM:.0%} of each kind; what is below is bold.",
    ]
    others = copies["kind"].isin(OTHER_KINDS)
    for text, part in (("", copies[~others]), ("Kinds that no limit was set on.", copies[others])):
        if part.empty:
            continue
        lines += ["", *([text, ""] if text else []), f"| copies | {' | '.join(titles)} |"]
        lines.append(f"| --- |{' --- |' * len(titles)}")
        for kind in dict.fromkeys(part["kind"]):
            rows = part[part["kind"] == kind].set_index("images")
            cells = [_cell(rows, name, what) for name in sets for what in ("found", "recognised")]
            lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Different images",
        "",
        "Pairs of different images, and how many of them are called copies. Recognised: images of patients that are",
        "not in the manifest, and are taken for copies of an image in it.",
        "",
        "| images | pairs of | number | called copies | per million | recognised |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in pairs.to_dict("records"):
        rate = f"{1e6 * row['found'] / row['copies']:.2f}" if row["copies"] else ""
        recognised = "" if pd.isna(row["recognised"]) else f"{row['recognised']:.0f}"
        found = f"{row['found']:.0f}"
        lines.append(f"| {row['images']} | {row['kind']} | {row['copies']:,} | {found} | {rate} | {recognised} |")
    return "\n".join(lines) + "\n"


def _cell(rows: pd.DataFrame, name: str, what: str) -> str:
    if name not in rows.index:
        return ""
    numbers = rows.loc[name, [what, "copies"]].to_numpy(dtype=float)
    fraction = numbers[0] / numbers[1]
    text = f"{fraction:.0%}" if fraction >= AIM else f"**{fraction:.0%}**"
    low, high = wilson(fraction, int(numbers[1]))
    return f"{text} ({low:.0%} to {high:.0%})"


def main() -> None:
    """Measure one set of images, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copies", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of real radiographs; default: COVID_FASTAI_DATA")
    parser.add_argument("--half", choices=HALVES, default="reported", help="which images are altered")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of copies.csv and copies.md")
    arguments = parser.parse_args()
    data = arguments.data or (Path(os.environ["COVID_FASTAI_DATA"]) if os.environ.get("COVID_FASTAI_DATA") else None)
    with tempfile.TemporaryDirectory(prefix="covid_fastai-copies-") as folder:
        images = draw_images(Path(folder), arguments.half) if data is None else real_images(data, arguments.half)
        counts = measure(images, Path(folder), kinds=KINDS | OTHER_KINDS)
    counts.insert(0, "images", "drawings" if data is None else "radiographs")
    write_counts(counts, arguments.out)
    print(counts.to_string(index=False))


def write_counts(counts: pd.DataFrame, out: Path) -> None:
    """Replace the counts of the same images in `copies.csv`, and write `copies.md` from all of them."""
    file = out / "copies.csv"
    if file.exists():
        earlier = pd.read_csv(file)
        counts = pd.concat([earlier[~earlier["images"].isin(counts["images"])], counts], ignore_index=True)
    counts = counts.sort_values("images", kind="stable", ignore_index=True)
    write_csv(file, counts)
    (out / "copies.md").write_text(as_markdown(counts), encoding="utf-8")


if __name__ == "__main__":
    main()
