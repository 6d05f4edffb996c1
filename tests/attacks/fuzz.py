"""Fuzzing with files that are changed at random: `python -m tests.attacks.fuzz --minutes 10 --seed 1`.

Each file is opened as by a user. A result or a typed error is correct; a file with any other outcome is saved.
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
from covid_fastai.model.bundle_config import read_config
from covid_fastai.model.card import read_card, write_card
from covid_fastai.model.hub import add_license
from covid_fastai.model.predictor import Predictor
from covid_fastai.model.session import ModelSession, check_graph
from tests.small_model import write_small_model


def draw_image(rng: np.random.Generator) -> Image.Image:
    """Draw a smooth image of 60 x 50 pixels."""
    small = Image.fromarray(rng.integers(0, 255, (6, 5), dtype=np.uint8))
    return small.resize((60, 50), Image.Resampling.BICUBIC)


def image_files(rng: np.random.Generator) -> dict[str, bytes]:
    """Return a file of every format, and of every mode that is read differently."""
    grey, files = draw_image(rng), {}
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
    """Change, remove, repeat or insert a few bytes, mostly near the beginning, where headers are."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        span = max(1, int(rng.choice([40, 300, len(changed)])))
        start = int(rng.integers(0, max(1, min(span, len(changed)))))
        kind = int(rng.integers(0, 5))
        if kind <= 1 and changed:
            changed[start] = int(rng.integers(0, 256))
        elif kind == 2:
            del changed[start : start + int(rng.integers(1, 30))]
        elif kind == 3:
            changed[start:start] = changed[start : start + int(rng.integers(1, 30))]
        else:
            changed[start:start] = rng.bytes(int(rng.integers(1, 9)))
    return bytes(changed)


def targets(folder: Path, rng: np.random.Generator) -> list[tuple[str, dict[str, bytes], Callable[[bytes], object]]]:
    """Return each kind of file with examples of it and the function that a user calls with one."""
    images = image_files(rng)
    for name in ("a.png", "b.png", "c.png", "d.png"):
        draw_image(rng).save(folder / name)
    csv = b"image,label,patient\na.png,Normal,p1\nb.png,COVID-19,p2\nc.png,Normal,p3\nd.png,COVID-19,p4\n"
    table = b"path,patient,label,p_Normal,p_COVID-19\na.png,p1,Normal,0.7,0.3\nb.png,p2,COVID-19,0.2,0.8\n"
    model = write_small_model(folder / "model")
    predictor = Predictor(model)
    config = read_config(model / "config.json")
    write_card(model, config, title="small", verdict="Nothing is shown.", limits=["A drawing."], level="not shown")
    dicom = _dicom()

    def cohort(content: bytes) -> object:
        (folder / "rows.csv").write_bytes(content)
        return read_cohort(folder / "rows.csv", exclude_pretraining_overlap=False)

    def predictions(content: bytes) -> object:
        (folder / "predictions.csv").write_bytes(content)
        return read_predictions(folder / "predictions.csv")

    def bundle(name: str) -> Callable[[bytes], object]:
        original = (model / name).read_bytes()

        def load(content: bytes) -> object:
            try:
                (model / name).write_bytes(content)
                return Predictor(model)
            finally:
                (model / name).write_bytes(original)

        return load

    def graph(content: bytes) -> object:
        path = model / "model.onnx"
        return ModelSession(content, check_graph(content, config, path), config, path, threads=1)

    def card(content: bytes) -> object:
        (model / "README.md").write_bytes(content)
        return add_license(read_card(model / "README.md"), "mit")

    def square(content: bytes) -> object:
        (folder / "x.bin").write_bytes(content)
        return cached_square(folder / "x.bin", 32), open_square(content, 32)

    def row(content: bytes) -> object:
        prediction = predictor.predict(content).iloc[0]
        assert prediction["status"] in ("ok", "unreadable", "failed"), prediction["status"]
        return prediction

    kinds = [
        ("image", images, open_image),
        ("square", images, square),
        ("prediction", images, row),
        ("cohort", {"csv": csv}, cohort),
        ("predictions", {"csv": table}, predictions),
        ("config.json", {"json": (model / "config.json").read_bytes()}, bundle("config.json")),
        ("findings.json", {"json": (model / "findings.json").read_bytes()}, bundle("findings.json")),
        ("README.md", {"md": (model / "README.md").read_bytes()}, card),
        ("graph", {"onnx": (model / "model.onnx").read_bytes()}, graph),
    ]
    return kinds + ([("DICOM", dicom, lambda content: open_image(DICOM_START + content))] if dicom else [])


DICOM_START = bytes(128) + b"DICM"  # not mutated: a file without it is not DICOM
MR = ["", "_implicit", "_bigendian", "_padded", "_RLE", "_jp2klossless", "_jpeg_ls_lossless"]


def _dicom() -> dict[str, bytes]:
    """Return the content after `DICOM_START` of small DICOM files in several encodings, relabelled as radiographs."""
    try:
        from pydicom.data import get_testdata_file
    except ImportError:
        return {}
    files = {}
    for name in (f"MR_small{kind}.dcm" for kind in MR):
        content = Path(get_testdata_file(name, download=False)).read_bytes()
        for length in (b"\x02\0", b"\x02\0\0\0", b"\0\x02"):
            content = content.replace(length + b"MR", length + b"DX")
        open_image(content)  # must be readable, otherwise only the check of its modality would be tested
        files[name] = content[len(DICOM_START) :]
    return files


def fuzz(folder: Path, *, seconds: float, seed: int, keep: Path | None = None) -> dict[str, Counter]:
    """Mutate and open files for some seconds.

    Args:
        folder: A working folder.
        seconds: The duration.
        seed: Seed of the mutations.
        keep: The folder for files that raise any other error; None to raise at the first one.

    Returns:
        For each kind of file the number of files that were `answered`, `refused` and `unforeseen`.
    """
    rng = np.random.default_rng(seed)
    kinds, outcomes = targets(folder, rng), {}
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
    """Fuzz and print the counts; the exit status is 1 if there was an unforeseen error."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzzed"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = fuzz(Path(folder), seconds=60 * arguments.minutes, seed=arguments.seed, keep=arguments.keep)
    print(json.dumps(outcomes))
    return int(any(counts["unforeseen"] for counts in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
