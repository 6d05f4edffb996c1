"""Files that are changed at random: `python -m tests.attacks.fuzz --minutes 10 --seed 1`.

Each is opened as a user would open it; an answer or a typed error is right, anything else is kept as a file to look at.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from covid_fastai.data.cache import cached_square
from covid_fastai.data.images import open_image, open_square
from covid_fastai.data.metadata import read_cohort
from covid_fastai.errors import CovidFastaiError
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.model.predictor import Predictor
from tests.small_model import write_small_model


def picture(rng: np.random.Generator) -> Image.Image:
    """Draw something smooth of 60 x 50 pixels."""
    small = Image.fromarray(rng.integers(0, 255, (6, 5), dtype=np.uint8))
    return small.resize((60, 50), Image.Resampling.BICUBIC)


def image_files(rng: np.random.Generator) -> dict[str, bytes]:
    """Return a file of every format and of the modes that are opened otherwise."""
    grey, files = picture(rng), {}
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
    kinds = {"JPEG": [grey, grey.convert("RGB"), grey.convert("CMYK")], "PNG": [grey, grey.convert("P"), deep]}
    kinds |= {"TIFF": [grey, grey.convert("RGB"), deep, Image.fromarray(np.asarray(grey, dtype=np.float32))]}
    kinds |= {"BMP": [grey], "WEBP": [grey.convert("RGBA")]}
    for format, images in kinds.items():
        for number, image in enumerate(images):
            file = io.BytesIO()
            image.save(file, format=format)
            files[f"{format}-{number}"] = file.getvalue()
    return files


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Change, remove, repeat or insert a few bytes, most often near the beginning, where headers are."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        reach = max(1, int(rng.choice([40, 300, len(changed)])))
        place = int(rng.integers(0, max(1, min(reach, len(changed)))))
        kind = int(rng.integers(0, 5))
        if kind <= 1 and changed:
            changed[place] = int(rng.integers(0, 256))
        elif kind == 2:
            del changed[place : place + int(rng.integers(1, 30))]
        elif kind == 3:
            changed[place:place] = changed[place : place + int(rng.integers(1, 30))]
        else:
            changed[place:place] = rng.bytes(int(rng.integers(1, 9)))
    return bytes(changed)


def tries(folder: Path, rng: np.random.Generator) -> list[tuple[str, dict[str, bytes], Callable[[bytes], object]]]:
    """Return each kind of file, examples of it, and what a user does with one."""
    images = image_files(rng)
    for name in ("a.png", "b.png", "c.png", "d.png"):
        picture(rng).save(folder / name)
    csv = b"image,label,patient\na.png,Normal,p1\nb.png,COVID-19,p2\nc.png,Normal,p3\nd.png,COVID-19,p4\n"
    table = b"path,patient,label,p_Normal,p_COVID-19\na.png,p1,Normal,0.7,0.3\nb.png,p2,COVID-19,0.2,0.8\n"
    model = write_small_model(folder / "model")
    predictor = Predictor(model)
    dicom = _dicom()

    def cohort(content: bytes) -> object:
        (folder / "rows.csv").write_bytes(content)
        return read_cohort(folder / "rows.csv", exclude_pretraining_overlap=False)

    def predictions(content: bytes) -> object:
        (folder / "predictions.csv").write_bytes(content)
        return read_predictions(folder / "predictions.csv")

    def bundle(name: str) -> Callable[[bytes], object]:
        whole = (model / name).read_bytes()

        def load(content: bytes) -> object:
            try:
                (model / name).write_bytes(content)
                return Predictor(model)
            finally:
                (model / name).write_bytes(whole)

        return load

    def square(content: bytes) -> object:
        (folder / "x.bin").write_bytes(content)
        return cached_square(folder / "x.bin", 32), open_square(content, 32)

    def row(content: bytes) -> object:
        found = predictor.predict(content).iloc[0]
        assert found["status"] in ("ok", "unreadable", "failed"), found["status"]
        return found

    found = [
        ("image", images, open_image),
        ("square", images, square),
        ("prediction", images, row),
        ("cohort", {"csv": csv}, cohort),
        ("predictions", {"csv": table}, predictions),
        ("config.json", {"json": (model / "config.json").read_bytes()}, bundle("config.json")),
        ("model.onnx", {"onnx": (model / "model.onnx").read_bytes()}, bundle("model.onnx")),
    ]
    return found + ([("DICOM", dicom, lambda content: open_image(DICOM_START + content))] if dicom else [])


DICOM_START = bytes(128) + b"DICM"  # is left as it is: without it a file is none of DICOM
MR = ["", "_implicit", "_bigendian", "_padded", "_RLE", "_jp2klossless", "_jpeg_ls_lossless"]


def _dicom() -> dict[str, bytes]:
    """Return what follows the start of pydicom's own small files in several encodings, called radiographs."""
    try:
        from pydicom.data import get_testdata_file
    except ImportError:
        return {}
    found = {}
    for name in (f"MR_small{kind}.dcm" for kind in MR):
        content = Path(get_testdata_file(name, download=False)).read_bytes()
        for length in (b"\x02\0", b"\x02\0\0\0", b"\0\x02"):
            content = content.replace(length + b"MR", length + b"DX")
        open_image(content)  # else nothing but its kind would be tried
        found[name] = content[len(DICOM_START) :]
    return found


def fuzz(folder: Path, *, seconds: float, seed: int, keep: Path | None = None) -> dict[str, Counter]:
    """Mutate and open for some seconds.

    Args:
        folder: To work in.
        seconds: How long.
        seed: Of the mutations.
        keep: Where a file goes that is answered with something else; None to raise at once.

    Returns:
        For each kind of file how often it was `answered`, `refused`, and `unforeseen`.
    """
    rng = np.random.default_rng(seed)
    kinds, outcomes = tries(folder, rng), {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for kind, examples, use in kinds:
            name = str(rng.choice(list(examples)))
            content = mutate(examples[name], rng)
            counts = outcomes.setdefault(kind, Counter())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    use(content)
                    counts["answered"] += 1
                except CovidFastaiError as error:
                    assert error.message and error.hint is not None
                    counts["refused"] += 1
                except Exception as error:
                    if keep is None:
                        raise AssertionError(f"{kind} {name}: {error!r} for {content[:2000]!r}") from error
                    counts["unforeseen"] += 1
                    keep.mkdir(exist_ok=True)
                    (keep / f"{kind}-{counts['unforeseen']}-{type(error).__name__}").write_bytes(content)
    return outcomes


def main() -> int:
    """Fuzz, print the counts, and end with 1 if something was unforeseen."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzzed"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(Path(folder), seconds=60 * given.minutes, seed=given.seed, keep=given.keep)
    print(json.dumps(found))
    return int(any(counts["unforeseen"] for counts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
