"""Benchmarks: reading full-resolution radiographs, and loading batches of them."""

from __future__ import annotations

import statistics

import numpy as np
from PIL import Image

from benchmarks.measuring import Measurement, compare, data_folder, fresh_cache, note, timed
from benchmarks.stock import SIZE, stock_loaders


def measure(*, repeats: int, quick: bool) -> list[Measurement]:
    """Compare the image reader with Pillow, and the loaders with fastai's."""
    from covid_fastai.data.images import open_square
    from covid_fastai.data.metadata import read_cohort
    from covid_fastai.data.splits import split_by_patient

    cohort = split_by_patient(
        read_cohort(data_folder(), check_images=False, exclude_pretraining_overlap=False), valid_pct=0.2, seed=0
    )
    used = cohort[cohort["split"].isin(["train", "valid"])]
    files = [path for path in used["path"] if path.lower().endswith(("jpg", "jpeg"))][: 30 if quick else None]

    def pillow() -> None:
        for file in files:
            np.asarray(Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    def ours() -> None:
        for file in files:
            np.asarray(open_square(file, SIZE))

    measurements = [
        compare(
            f"open {len(files)} JPEG files at {SIZE} px", ours, pillow, peer="Pillow RGB + resize", target=3,
            repeats=repeats, remark=note(),
        )
    ]  # fmt: skip
    return [*measurements, *_measure_loaders(cohort, repeats=repeats)]


def _measure_loaders(cohort, *, repeats: int) -> list[Measurement]:
    """Compare the first and the later passes over the training images with fastai's."""
    from covid_fastai.data.dataloaders import build_dataloaders

    later: list[float] = []
    plain: list[float] = []
    images = int((cohort["split"] == "train").sum())

    def time_pass(dls) -> float:
        return timed(lambda: [batch for batch in dls.train])

    def ours_first() -> float:
        with fresh_cache():
            dls = build_dataloaders(cohort, image_size=SIZE, batch_size=32)
            first = time_pass(dls)
            later.append(min(time_pass(dls) for _ in range(2)))
            plain_dls = build_dataloaders(cohort, image_size=SIZE, batch_size=32, augmentation="none")
            plain.append(min(time_pass(plain_dls) for _ in range(2)))
        return first

    measurements = []
    for workers, peer in ((0, "fastai DataBlock, no workers as ours"), (2, "fastai DataBlock, 2 workers, its default")):
        stock = stock_loaders(cohort, batch_size=32, num_workers=workers)
        later.clear()
        plain.clear()
        pairs = {"peer": peer, "repeats": repeats, "remark": note()}
        theirs = lambda stock=stock: time_pass(stock)  # noqa: E731
        measurements.append(compare("loader, first pass", ours_first, theirs, target=3, **pairs))
        times = iter(later[1:])  # of the passes after each first pass, without the warm-up
        measurements.append(
            compare("loader, later passes", lambda times=times: next(times), theirs, target=15, warm=False, **pairs)
        )
        times = iter(plain[1:])
        measurements.append(
            compare("loader, later passes without augmentation", lambda times=times: next(times), repeats=repeats,
                    warm=False, remark=lambda: f"{images / statistics.median(plain):.0f} images/s {note()}".strip())
        )  # fmt: skip
    return measurements


def measure_warm(*, repeats: int, quick: bool) -> list[Measurement]:
    """Time passes over drawings that are kept in memory, 224 pixels, as a training in this process takes them."""
    import tempfile

    from covid_fastai.data.dataloaders import build_dataloaders
    from covid_fastai.data.metadata import read_cohort
    from covid_fastai.data.phantom import write_phantom
    from covid_fastai.data.splits import split_by_patient
    from covid_fastai.model.freed_memory import keep_freed_memory

    measurements = []
    with fresh_cache(), keep_freed_memory(), tempfile.TemporaryDirectory(prefix="covid_fastai-warm-") as folder:
        root = write_phantom(folder, patients=40 if quick else 1000, image_size=224, seed=0)
        cohort = split_by_patient(read_cohort(root, check_images=False), valid_pct=0.1, seed=0)
        for augmentation in ("none", "standard"):
            dls = build_dataloaders(cohort, image_size=224, batch_size=64, augmentation=augmentation, device="cpu")
            images = len(dls.train) * dls.train.bs  # the last batch is left out if it is smaller

            def one_pass(dls=dls) -> float:
                return timed(lambda: sum(len(batch[0]) for batch in dls.train))

            one_pass()  # opens the images
            seconds: list[float] = []
            measurement = compare(
                f"a warm loader, 224 px, augmentation {augmentation}",
                lambda one_pass=one_pass, seconds=seconds: seconds.append(one_pass()) or seconds[-1],
                repeats=repeats,
                remark=lambda seconds=seconds, images=images: (
                    f"{images / statistics.median(seconds[1:]):,.0f} images/s, no model {note()}".strip()
                ),
            )
            measurements.append(measurement)
    return measurements
