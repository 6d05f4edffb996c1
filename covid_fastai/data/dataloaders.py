"""Data loaders: a fastai `DataBlock` that makes batches `(n, 1, h, w)` of a cohort's rows."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from fastai.data.block import CategoryBlock, DataBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor, ItemGetter, Normalize, Transform
from fastai.torch_core import num_distrib

from covid_fastai.data.augmentation import augmentation as named_augmentation
from covid_fastai.data.cohort import Cohort, CohortInfo, as_cohort
from covid_fastai.data.fastai_types import OpenRadiograph, ResizeRadiograph
from covid_fastai.data.hardware import fits_in_memory, resolve_device, resolve_workers
from covid_fastai.data.radiograph_loader import RadiographDL
from covid_fastai.errors import DataError, UsageError
from covid_fastai.options import (
    Augmentation,
    Balance,
    BatchSize,
    Device,
    ImageSize,
    Mean,
    NumWorkers,
    Option,
    Region,
    StandardDeviation,
    check_option,
    checked,
)
from covid_fastai.plotting import encode_png

__all__ = [
    "LoaderFacts",
    "RESIZE",
    "build_dataloaders",
    "empty_dataloaders",
    "loader_facts",
    "radiograph_block",
    "set_batch_size",
]

logger = logging.getLogger("covid_fastai")

RESIZE = "squash-bilinear-antialias"  # the method of `resize_image`; a model needs images resized the same way
OWN = "own"  # what the facts call an augmentation that is a list of transforms
OwnTransforms = Annotated[
    Sequence[Transform],
    Option("Write fastai's with brackets: [Flip(), Rotate(max_deg=7)].", allowed="a list of fastai transforms"),
]
MEAN, STD = 0.5, 0.25  # on the scale 0 to 1: round numbers close to those of chest radiographs


@dataclass(frozen=True, eq=False)
class LoaderFacts:
    """Properties of data loaders that fastai does not store, available as `dls.facts`.

    Attributes:
        cohort: A copy of all rows.
        classes: The vocabulary, in the order of the model's outputs.
        image_size: Side of the images, pixels.
        mean: Mean that the normalisation subtracts, on the scale 0 to 1.
        std: Standard deviation by which it divides.
        augmentation: The name of the augmentation.
        batch_size: Images in a batch.
        balance: Method against class imbalance: `"none"`, `"loss"` or `"sampler"`.
        class_weights: Float tensor `(classes,)` with `balance="loss"`, else None.
        resize: Name of the resizing method.
        region: What the model sees of each image: `"frame"` or `"lungs"`, as for `open_region`.
    """

    cohort: Cohort
    classes: list[str]
    image_size: int
    mean: float
    std: float
    augmentation: str
    batch_size: int
    balance: str
    class_weights: torch.Tensor | None
    resize: str = RESIZE
    region: Region = "frame"

    def to_dict(self) -> dict[str, Any]:
        """Return the options of the images and batches as plain values, without cohort and class weights."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("cohort", "class_weights")]
        return {name: getattr(self, name) for name in names}


@checked
def radiograph_block(
    *,
    classes: Sequence[str],
    image_size: ImageSize = 224,
    region: Region = "frame",
    augmentation: Augmentation | OwnTransforms = "standard",
    mean: Mean = MEAN,
    std: StandardDeviation = STD,
) -> DataBlock:
    """Return a fastai `DataBlock` for a cohort; its `summary`, `datasets` and `dataloaders` take the cohort.

    The block's `get_items` selects the rows whose `split` is train or valid. Therefore no loader, plot or summary of
    the block contains the test set or an excluded row. `dls.test_dl(rows)` does not use `get_items`: it accepts any
    rows and keeps their order.

    Args:
        classes: The vocabulary in this order; each class has a column `p_<class>` in the predictions.
        image_size: Side of the square that images are squashed to, pixels.
        region: `"lungs"` crops each image to the box around its lungs, with a margin; `"frame"` does not.
        augmentation: A name in `AUGMENTATIONS`, or a list of fastai batch transforms such as `Flip()`.
        mean: Mean pixel intensity for the normalisation, on the scale 0 to 1.
        std: Standard deviation for the normalisation, which fastai does not add for one-channel images.

    Returns:
        The block. Items are (`PILRadiograph`, category), batches (`(n, 1, image_size, image_size)` float, `(n,)` int).

    Raises:
        UsageError: A value is not allowed.
    """
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise UsageError(f"classes={list(classes)!r}.", hint="Give two or more different names.")
    return DataBlock(
        blocks=(_radiographs(image_size, region), CategoryBlock(vocab=list(classes), sort=False)),
        dl_type=RadiographDL,
        get_items=_training_rows,
        splitter=_split_rows,
        get_x=ItemGetter("path"),
        get_y=ItemGetter("label"),
        item_tfms=ResizeRadiograph(image_size),
        batch_tfms=[*_transforms(augmentation), _normalisation(mean, std)],
    )


def _transforms(augmentation: Augmentation | OwnTransforms) -> list[Transform]:
    """Return the transforms of an augmentation by its name, or check a list of the user's."""
    if isinstance(augmentation, str):
        return list(named_augmentation(check_option("augmentation", augmentation, Augmentation)))
    if any(isinstance(transform, Normalize) for transform in augmentation):
        raise UsageError("augmentation has a Normalize, and the images are normalised already.", hint="Leave it out.")
    return list(augmentation)


def _name_augmentation(augmentation: Augmentation | OwnTransforms) -> str:
    return augmentation if isinstance(augmentation, str) else OWN


def _radiographs(image_size: int, region: Region) -> TransformBlock:
    """Return a block like fastai's `ImageBlock` that opens images at the model's input size."""
    return TransformBlock(type_tfms=OpenRadiograph(image_size, region), batch_tfms=IntToFloatTensor)


def _training_rows(cohort: pd.DataFrame) -> pd.DataFrame:
    """Return path, label and split of the training and validation rows; not the patient, since learners are pickled."""
    rows = cohort.loc[cohort["split"].isin(["train", "valid"]), ["path", "label", "split"]]
    return pd.DataFrame(rows).reset_index(drop=True)  # a plain table: the facts of a cohort contain file names


def _split_rows(items: pd.DataFrame) -> tuple[list[int], list[int]]:
    """Return the positions of the training rows and of the validation rows."""
    split = items["split"].to_numpy()
    return np.flatnonzero(split == "train").tolist(), np.flatnonzero(split == "valid").tolist()


def _normalisation(mean: float, std: float) -> Normalize:
    # cuda=False: fastai would put both values on the default GPU even if the loaders use the CPU
    return Normalize.from_stats((mean,), (std,), cuda=False)


@checked
def build_dataloaders(
    cohort: pd.DataFrame,
    *,
    image_size: ImageSize = 224,
    region: Region = "frame",
    batch_size: BatchSize = 32,
    augmentation: Augmentation | OwnTransforms = "standard",
    mean: Mean | None = None,
    std: StandardDeviation | None = None,
    balance: Balance = "none",
    num_workers: NumWorkers = "auto",
    device: Device | torch.device = "auto",
    path: str | Path = ".",
) -> DataLoaders:
    """Return the training and validation loaders of a cohort.

    Every training image is used once per epoch. fastai drops the last, incomplete batch, which in a data set of 100
    images omits up to a third of them in each epoch; this function keeps it. If the last batch were less than a quarter
    full, too small for the statistics of BatchNorm, all batches are made slightly smaller.

    If all images take less than a third of the free memory of the device, each is opened once and kept there as uint8.

    Set the seed (`fastai.torch_core.no_random(seed)`) before building the loaders: their generator is derived from the
    global one at that moment. The same seed gives the same batches with any number of workers.

    Args:
        cohort: Rows with `path`, `label` and `split`. The vocabulary is the cohort's classes; for a plain table,
            the sorted labels of the rows that are not excluded.
        image_size: Side of the square that images are squashed to, pixels, 32 to 1024.
        region: `"lungs"` crops each image to the box around its lungs, with a margin of 6%; where the lungs are not
            found, the whole image is used, and `measure_crops` tells on which. `"frame"` does not crop.
        batch_size: Images in a batch, 2 or more; reduced if there are fewer training images.
        augmentation: A name in `AUGMENTATIONS`, or a list of fastai batch transforms for images `(n, 1, h, w)` in 0 to
            1; in the facts, such a list is called `"own"`.
        mean: Mean pixel intensity for the normalisation, on the scale 0 to 1; None for 0.5. `build_learner` replaces
            mean and standard deviation by those of its pretrained weights.
        std: Standard deviation for the normalisation; None for 0.25.
        balance: `"sampler"` samples each class equally often, with replacement; `"loss"` weights the loss by
            `dls.facts.class_weights`; `"none"` changes nothing.
        num_workers: Processes that open images; `"auto"` is 0 on the CPU, on Windows and macOS, and for images that
            are kept in memory; up to 4 elsewhere.
        device: `"auto"` (CUDA, else Apple's MPS, else the CPU), `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"` or a device.
        path: Folder for what a `Learner` writes; not the data folder, which may be read-only.

    Returns:
        fastai `DataLoaders` with batches (`(n, 1, image_size, image_size)`, `(n,)`); `dls.facts` is a `LoaderFacts`.
        `dls.test_dl(rows, with_labels=True)` opens any rows in their order.

    Raises:
        DataError: There are no training or no validation rows, or a class is missing in one of the two splits.
        ImageError: The first image cannot be read.
        UsageError: An option has a value that is not allowed.
        UnavailableError: The device is not available.

    Examples:
        >>> dls = build_dataloaders(cohort, image_size=64, batch_size=8, device="cpu", num_workers=0)
        >>> x, y = dls.one_batch()
        >>> tuple(x.shape), tuple(y.shape), list(dls.vocab)
        ((8, 1, 64, 64), (8,), ['Normal', 'COVID-19'])
    """
    mean, std = MEAN if mean is None else mean, STD if std is None else std
    device = resolve_device(device)
    cohort = _check_columns(cohort)
    classes = list(cohort.facts.classes)
    counts = _check_split(cohort, classes)
    training_counts = counts.T["train"]  # images by class
    batch_size, drop_last = _fitting_batch_size(int(training_counts.sum()), batch_size)
    block = radiograph_block(
        classes=classes, image_size=image_size, region=region, augmentation=augmentation, mean=mean, std=std
    )
    items = _training_rows(cohort)
    weights = None
    if balance == "sampler":
        weights = (1 / items["label"][items["split"] == "train"].map(training_counts)).tolist()
    fits = fits_in_memory(len(items) * image_size**2, device)
    if num_workers == "auto" and fits:
        num_workers = 0  # a process cannot add to the images that another one keeps
    num_workers = resolve_workers(
        num_workers, items["path"].tolist(), batch_bytes=batch_size * image_size**2, device=device
    )
    keep_on = device if fits and num_workers == 0 else None
    dls = block.dataloaders(
        cohort,
        bs=batch_size,
        drop_last=drop_last,
        num_workers=num_workers,
        pin_memory=keep_on is None and device.type == "cuda",
        device=device,
        path=path,
        dl_kwargs=[{"weights": weights, "keep_on": keep_on}, {"keep_on": keep_on}],
    )
    return _describe(
        dls,
        cohort.copy(),
        class_weights=_class_weights(training_counts) if balance == "loss" else None,
        classes=classes,
        image_size=image_size,
        region=region,
        mean=mean,
        std=std,
        augmentation=_name_augmentation(augmentation),
        batch_size=batch_size,
        balance=balance,
    )


@checked
def empty_dataloaders(
    *,
    classes: Sequence[str],
    image_size: ImageSize = 224,
    region: Region = "frame",
    mean: Mean = MEAN,
    std: StandardDeviation = STD,
    augmentation: Augmentation = "standard",
    batch_size: BatchSize = 32,
    device: Device | torch.device = "auto",
    path: str | Path = ".",
    task: str = "",
    positive: str | None = None,
) -> DataLoaders:
    """Return loaders without images, with which a saved model opens new images through `dls.test_dl(rows)`.

    Args:
        classes: The vocabulary in its order.
        image_size: Side of the square that images are squashed to, pixels.
        region: As in `build_dataloaders`.
        mean: Mean pixel intensity for the normalisation, on the scale 0 to 1.
        std: Standard deviation for the normalisation.
        augmentation: A name in `AUGMENTATIONS`, for test-time augmentation.
        batch_size: Images in a batch of `dls.test_dl`.
        device: Device of the batches, as in `build_dataloaders`.
        path: Folder for what a `Learner` writes.
        task: Name of the task, for the facts of the empty `dls.facts.cohort`.
        positive: The positive class, for the same facts.

    Returns:
        fastai `DataLoaders` with the `facts` of `build_dataloaders`. Iterating over the training or validation loader
        raises an error, since they contain no images.
    """
    block = radiograph_block(
        classes=classes, image_size=image_size, region=region, augmentation=augmentation, mean=mean, std=std
    )
    # fastai infers the types of items from an item, so the loaders are made with a temporary image
    image = encode_png(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))
    row = {"path": image, "label": classes[0]}
    rows = pd.DataFrame([{**row, "split": "train"}, {**row, "split": "valid"}])
    dls = block.dataloaders(rows, bs=batch_size, num_workers=0, device=resolve_device(device), path=path).new_empty()
    rows = {name: pd.Series(dtype=str) for name in ("path", "label", "patient", "split")}
    return _describe(
        dls,
        Cohort(rows, facts=CohortInfo(classes=tuple(classes), positive=positive, task=task)),
        class_weights=None,
        classes=list(classes),
        image_size=image_size,
        region=region,
        mean=mean,
        std=std,
        augmentation=augmentation,
        batch_size=batch_size,
        balance="none",
    )


def _describe(dls: DataLoaders, cohort: Cohort, **facts: Any) -> DataLoaders:
    """Set `dls.facts`, and return the loaders."""
    facts |= {key: int(facts[key]) for key in ("image_size", "batch_size")}  # JSON cannot encode numpy numbers
    facts |= {key: float(facts[key]) for key in ("mean", "std")}
    dls.facts = LoaderFacts(cohort, **facts)
    return dls


def loader_facts(dls: DataLoaders) -> LoaderFacts | None:
    """Return the facts of data loaders; None if this package did not make them."""
    facts = getattr(dls, "facts", None)
    return facts if isinstance(facts, LoaderFacts) else None


def set_batch_size(dls: DataLoaders, batch_size: int) -> None:
    """Change the batch size of loaders in place; as in `build_dataloaders`, it is adjusted to the training images.

    Args:
        dls: Loaders of training and validation images.
        batch_size: Images in a batch, 2 or more.
    """
    batch_size, drop_last = _fitting_batch_size(dls.train.n, batch_size)
    for loader in dls.loaders:
        loader.bs = batch_size
    dls.train.drop_last = drop_last
    if facts := loader_facts(dls):
        dls.facts = dataclasses.replace(facts, batch_size=batch_size)


def _check_columns(cohort: pd.DataFrame) -> Cohort:
    """Return the table as a cohort, or raise if a required column is missing."""
    missing = [name for name in ("path", "label", "split") if name not in cohort]
    if missing:
        raise DataError(
            f"The cohort has no column {', '.join(missing)}; it has {', '.join(map(str, cohort.columns))}.",
            hint="Make it with read_cohort, and split it with split_by_patient.",
        )
    return as_cohort(cohort)


def _check_split(cohort: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return the images by split (rows train, valid) and class (columns), or raise if they cannot be trained on."""
    rows = _training_rows(cohort)
    unknown = rows.loc[~rows["label"].isin(classes), "label"].map(str).value_counts()
    counts = pd.crosstab(rows["split"], rows["label"])
    counts = counts.reindex(index=["train", "valid"], columns=list(classes), fill_value=0)
    listed = "; ".join(
        f"{split}: " + ", ".join(f"{label} {n}" for label, n in row.items()) for split, row in counts.iterrows()
    )
    faults = [f"{label!r} is not a class of the task, {n} times" for label, n in unknown.items()]
    faults += [f"{split} has no image" for split, n in counts.sum(axis=1).items() if n == 0]
    if not faults:
        faults += [
            f"{split} has no {label!r}" for split, row in counts.iterrows() for label, n in row.items() if n == 0
        ]
        faults += ["there is only one class"] if len(classes) < 2 else []  # guard: one_class
    if not faults and int(counts.T["train"].sum()) < 2:
        faults = ["train has only one image"]
    if faults:  # guard: empty_side
        hint = "Each class needs images of at least two patients, in train and in valid: add data, or change valid_pct."
        details = [
            {"row": None, "path": "", "kind": "split", "severity": "error", "reason": fault, "remedy": hint}
            for fault in faults
        ]
        raise DataError(f"The split cannot be trained on: {', '.join(faults)} ({listed}).", hint=hint, details=details)
    logger.info("Images by split and class: %s.", listed)
    return counts


def _class_weights(counts: pd.Series) -> torch.Tensor:
    """Return class weights n / (classes * n_class), scikit-learn's "balanced": their mean over the images is 1."""
    images = torch.tensor(counts.tolist(), dtype=torch.float32)
    return images.sum() / (len(images) * images)


def _fitting_batch_size(n: int, batch_size: int) -> tuple[int, bool]:
    """Return the batch size for `n` training images, and whether the last batch must be dropped (it has one image).

    In a distributed training each process has its share of the images, and a batch size of its own.
    """
    processes, images = max(1, num_distrib()), n
    n = math.ceil(images / processes)  # guard: fitting_share
    if n < 2 and processes > 1:  # guard: share_of_one
        raise DataError(
            f"{images} training images are too few for {processes} processes: BatchNorm needs two images in each.",
            hint="Start fewer processes, or use more images.",
        )
    if n <= batch_size:  # guard: fitting_batch
        if n < batch_size:
            logger.info("batch_size is %d rather than %d: there are no more training images.", n, batch_size)
        return n, False
    even = math.ceil(n / math.ceil(n / batch_size))  # the same number of batches, of equal size
    for size in (batch_size, *range(even, 1, -1)):
        last = (n - 1) % size + 1
        if last >= max(2, size / 4):  # guard: last_batch
            if size < batch_size:
                logger.info("batch_size is %d rather than %d, for a last batch of %d.", size, batch_size, last)
            return size, False
    return batch_size, True
