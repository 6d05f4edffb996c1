"""The DataBlock and its loaders: rows, order, transforms, batches and errors."""

from __future__ import annotations

import os
import pickle
import signal
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.torch_core import no_random
from fastai.vision.core import PILImageBW
from PIL import Image

from covid_fastai.data import dataloaders
from covid_fastai.data.cohort import Cohort, CohortInfo
from covid_fastai.data.dataloaders import build_dataloaders, empty_dataloaders, radiograph_block
from covid_fastai.data.fastai_types import PILRadiograph, TensorRadiograph
from covid_fastai.data.images import open_image, resize_image
from covid_fastai.errors import DataError, ImageError, ResourceError, UsageError

matplotlib.use("Agg")
CLASSES = ["Normal", "COVID-19"]  # not in alphabetical order: fastai would sort them
SIZE = 32


def write_cohort(folder: Path, splits: dict[str, dict[str, int]]) -> pd.DataFrame:
    """A cohort of small images with different intensities, so that each can be identified after all transforms."""
    rows, rng = [], np.random.default_rng(0)
    for split, labels in splits.items():
        for label, n in labels.items():
            for i in range(n):
                path = folder / f"{split}-{label}-{i}.png"
                pixels = rng.integers(40, 200, (1, 1)) + rng.integers(-40, 40, (40, 50))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                rows.append({"path": str(path), "label": label, "patient": path.stem, "split": split, "age": i})
    rows = pd.DataFrame(rows).sample(frac=1, random_state=0).reset_index(drop=True)
    return Cohort(rows, facts=CohortInfo(classes=CLASSES, positive="COVID-19", task="covid"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    counts = {"train": (18, 6), "valid": (5, 3), "test": (4, 2), "excluded": (3, 3)}
    splits = {split: dict(zip(CLASSES, n, strict=True)) for split, n in counts.items()}
    return write_cohort(tmp_path_factory.mktemp("cohort"), splits)


def build(cohort, **options):
    return build_dataloaders(cohort, **{"image_size": SIZE, "batch_size": 8, "device": "cpu", **options})


def epoch(dl):
    batches = list(dl)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


# rows


def test_the_block_contains_training_and_validation_rows_only(cohort):
    dsets = radiograph_block(classes=CLASSES, image_size=SIZE).datasets(cohort)
    assert set(dsets.items["split"]) == {"train", "valid"} and "patient" not in dsets.items
    expected = cohort[cohort["split"] == "train"]
    assert dsets.train.items["path"].tolist() == expected["path"].tolist()
    assert [CLASSES[y] for _, y in dsets.train] == expected["label"].tolist()
    assert dsets.valid.items["path"].tolist() == cohort.loc[cohort["split"] == "valid", "path"].tolist()


def test_summary_works(cohort, capsys):
    radiograph_block(classes=CLASSES, image_size=SIZE).summary(cohort, show_batch=True)
    text = capsys.readouterr().out
    assert "2 datasets of sizes 24,8" in text and "TensorRadiograph of size 4x1x32x32" in text and "Normalize" in text


def test_vocabulary_keeps_its_order(cohort):
    dls = build(cohort)
    assert list(dls.vocab) == CLASSES and dls.c == 2
    rows = cohort[cohort["split"] == "valid"]
    _, y = epoch(dls.valid)
    assert [CLASSES[i] for i in y] == rows["label"].tolist()


def test_the_vocabulary_of_a_plain_table_is_sorted(cohort):
    dls = build(pd.DataFrame(cohort))
    assert list(dls.vocab) == sorted(CLASSES) and dls.facts.cohort.facts.positive is None


def test_a_cohort_without_classes_is_refused(cohort):
    other = cohort.with_facts(classes=[*CLASSES, "Viral"])
    with pytest.raises(DataError, match="The classes of this cohort are not known"):
        build(pd.concat([cohort, other], ignore_index=True))


def test_loaders_have_the_facts_they_were_made_with(cohort, tmp_path):
    dls = build(cohort, augmentation="article", path=tmp_path)
    pd.testing.assert_frame_equal(dls.facts.cohort, cohort)
    assert dls.facts.cohort is not cohort and dls.facts.cohort.facts == cohort.facts
    assert dls.path == tmp_path and dls.facts.class_weights is None
    assert dls.facts.to_dict() == {
        "classes": CLASSES,
        "image_size": SIZE,
        "mean": 0.5,
        "std": 0.25,
        "augmentation": "article",
        "batch_size": 8,
        "balance": "none",
        "resize": "squash-bilinear-antialias",
        "region": "frame",
    }


# transforms


def normalised(path, mean=0.5, std=0.25):
    pixels = np.asarray(resize_image(open_image(path), SIZE), dtype=np.float32)
    return torch.tensor((pixels / 255 - mean) / std)[None]


def test_validation_pixels_equal_the_formula(cohort):
    x, _ = epoch(build(cohort, mean=0.4, std=0.3).valid)
    paths = cohort.loc[cohort["split"] == "valid", "path"]
    torch.testing.assert_close(x.as_subclass(torch.Tensor), torch.stack([normalised(path, 0.4, 0.3) for path in paths]))
    assert type(x) is TensorRadiograph


def test_augmentation_changes_training_images_only(cohort):
    def key(images):
        return {image.numpy().tobytes() for image in images}

    plain = key(normalised(path) for path in cohort.loc[cohort["split"] == "train", "path"])
    assert len(plain & key(epoch(build(cohort, augmentation="none").train)[0])) == 24
    assert len(plain & key(epoch(build(cohort).train)[0])) < 8


@pytest.mark.parametrize("make", [str, Path, lambda path: Path(path).read_bytes(), Image.open, open_image, None])
def test_test_dl_takes_paths_bytes_and_images(cohort, make):
    path = cohort["path"].iloc[0]
    item = np.asarray(Image.open(path)) if make is None else make(path)
    (x,) = next(iter(build(cohort).test_dl([item])))
    torch.testing.assert_close(x[0].as_subclass(torch.Tensor), normalised(path))


def test_images_in_memory_are_opened_like_files():
    slope = Image.linear_gradient("L")
    assert PILRadiograph.create(Image.merge("RGB", [slope, slope, slope])).mode == "L"
    sixteen = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
    eight = np.asarray(PILRadiograph.create(sixteen), dtype=float)
    assert np.corrcoef(eight.ravel(), sixteen.ravel())[0, 1] > 0.99 and eight.std() > 30
    grey = np.full((40, 40), 77, np.uint8)
    grey[:20] = 10
    assert np.array_equal(PILRadiograph.create(TensorRadiograph(torch.tensor(grey)[None])), grey)
    with pytest.raises(ImageError, match="in memory"):
        PILRadiograph.create(np.zeros((40, 40), complex))


@pytest.mark.parametrize("with_labels", [True, False])
def test_test_dl_keeps_the_rows_order(cohort, with_labels):
    rows = cohort[cohort["split"].isin(["test", "excluded"])].sort_values("path", ascending=False)
    batches = list(build(cohort, batch_size=5).test_dl(rows, with_labels=with_labels))
    x = torch.cat([batch[0] for batch in batches])
    torch.testing.assert_close(x.as_subclass(torch.Tensor), torch.stack([normalised(path) for path in rows["path"]]))
    assert len(batches[0]) == 1 + with_labels
    if with_labels:
        assert [CLASSES[y] for batch in batches for y in batch[1]] == rows["label"].tolist()


def test_show_batch_shows_classes_and_a_grey_colormap(cohort):
    figure = matplotlib.pyplot.figure()
    axes = list(figure.subplots(1, 4))
    build(cohort, augmentation="none").show_batch(max_n=4, ctxs=axes)
    assert all(axis.get_title() in CLASSES for axis in axes)
    shown = axes[0].images[0]
    assert shown.get_cmap().name == "gray" and shown.get_clim() == (0, 255)  # air black, bone white
    assert shown.get_array().max() > 30
    matplotlib.pyplot.close("all")


# batches


def test_every_training_image_is_used_once_an_epoch(cohort):
    dls = build(cohort, batch_size=16, augmentation="none")
    sizes = [len(y) for _, y in dls.train]
    assert sizes == [16, 8] and len(dls.train) == 2
    assert len({image.numpy().tobytes() for image in epoch(dls.train)[0]}) == 24


def test_last_batches_are_large_enough_for_batchnorm():
    for n, asked in product([*range(2, 70), 99, 100, 101, 641, 3201, 5000], [2, 3, 4, 5, 8, 16, 32, 64, 128]):
        size, drop_last = dataloaders._fitting_batch_size(n, asked)
        last = (n - 1) % size + 1
        assert 2 <= size <= asked and size >= min(n, asked) / 2, (n, asked)
        if drop_last:
            assert last == 1 and asked <= 5 and n > size, (n, asked)  # no batch size this small may fit
        else:
            assert last >= max(2, size / 4), (n, asked)


def test_fewer_images_than_the_batch_size(cohort, caplog):
    caplog.set_level("INFO", "covid_fastai")
    dls = build(cohort, batch_size=64)
    assert len(dls.train) == 1 and dls.facts.batch_size == 24
    assert "24 rather than 64" in caplog.text


def thinned(cohort, **limits):
    """The cohort with a maximum number of images per split and class, as in `valid_1=0`."""
    drop = []
    for name, n in limits.items():
        split, number = name.split("_")
        drop += cohort[(cohort["split"] == split) & (cohort["label"] == CLASSES[int(number)])].index[n:].tolist()
    return cohort.drop(index=drop).reset_index(drop=True)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"valid_1": 0}, "valid has no 'COVID-19'"),
        ({"train_0": 0}, "train has no 'Normal'"),
        ({"valid_0": 0, "valid_1": 0}, "valid has no image"),
        ({"train_0": 0, "train_1": 0}, "train has no image"),
    ],
)
def test_a_split_that_cannot_be_trained_on_is_refused(cohort, limits, words):
    with pytest.raises(DataError, match=words) as caught:
        build(thinned(cohort, **limits))
    assert "train: Normal " in str(caught.value) and caught.value.details[0]["kind"] == "split"


def test_unknown_label_and_one_class_are_refused(cohort):
    odd = cohort.copy()
    odd.loc[odd["split"] == "valid", "label"] = ["SARS", *odd.loc[odd["split"] == "valid", "label"][1:]]
    with pytest.raises(DataError, match="'SARS' is not a class of the task"):
        build(odd)
    odd.loc[odd["split"] == "valid", "label"] = [None, *odd.loc[odd["split"] == "valid", "label"][1:]]
    with pytest.raises(DataError, match="is not a class of the task, 1 times"):
        build(odd)
    with pytest.raises(DataError, match="train has no image, valid has no image"):
        build(cohort[cohort["split"] == "test"])
    alone = cohort[cohort["label"] == "Normal"].with_facts(classes=["Normal"], positive=None)
    with pytest.raises(DataError, match="only one class"):
        build(alone)
    with pytest.raises(DataError, match="no column split; it has path, label"):
        build(cohort.drop(columns="split"))


@pytest.mark.parametrize(
    "option",
    [
        {"image_size": 16},
        {"image_size": 224.0},
        {"batch_size": 1},
        {"balance": "weights"},
        {"std": 0.0},
        {"mean": 124.0},
        {"mean": float("nan")},
        {"num_workers": -1},
        {"num_workers": True},
        {"device": "gpu"},
        {"augmentation": "flip"},
    ],
)
def test_bad_options_are_usage_errors(cohort, option):
    with pytest.raises(UsageError, match=str(next(iter(option.values()))).split(".")[0]):
        build(cohort, **option)


def test_the_cpu_can_be_chosen_on_a_machine_with_a_gpu(cohort, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    x, y = epoch(build(cohort, device="cpu").valid)  # fails if anything asks for fastai's default device
    assert x.device == y.device == torch.device("cpu")


# balance


def test_the_sampler_balances_classes_reproducibly(cohort):
    def sampled():
        with no_random(7):
            dls = build(cohort, balance="sampler")
            positive = (dls.train_ds.items["label"] == "COVID-19").to_numpy()
            epochs = []
            for _ in range(200):
                dls.train.randomize()
                epochs.append(dls.train.get_idxs())
        return np.array(epochs), positive[np.array(epochs)]

    positions, positive = sampled()
    assert positions.shape == (200, 24) and 0.47 < positive.mean() < 0.53  # 0.25 without the sampler
    assert np.array_equal(positions, sampled()[0]) and len(np.unique(positions, axis=0)) == 200
    dls = build(cohort, balance="sampler")
    assert len(epoch(dls.train)[1]) == 24
    assert torch.equal(epoch(dls.valid)[1], epoch(build(cohort).valid)[1])
    shown = epoch(dls.valid.new(shuffle=True))[0]
    assert len({image.numpy().tobytes() for image in shown}) == 8 and dls.facts.class_weights is None


def test_loss_weights_equal_sklearns_balanced_weights(cohort):
    from sklearn.utils.class_weight import compute_class_weight

    labels = cohort.loc[cohort["split"] == "train", "label"].to_numpy()
    expected = compute_class_weight("balanced", classes=np.array(CLASSES), y=labels)
    weights = build(cohort, balance="loss").facts.class_weights
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights.dtype == torch.float32


# reproducibility, with any number of processes


def two_epochs(cohort, num_workers, seed=3):
    with no_random(seed):
        dls = build(cohort, num_workers=num_workers)
        return torch.cat([epoch(dls.train)[0] for _ in range(2)] + [epoch(dls.valid)[0]])


def test_same_seed_same_batches(cohort):
    first = two_epochs(cohort, 0)
    assert torch.equal(first, two_epochs(cohort, 0))
    assert not torch.equal(first, two_epochs(cohort, 0, seed=4))
    assert not torch.equal(first[:24], first[24:48])


def test_same_seed_same_batches_with_two_workers(cohort):
    assert torch.equal(two_epochs(cohort, 2), two_epochs(cohort, 0))


def test_loaders_can_be_pickled(cohort):
    dls = build(cohort)
    x, y = epoch(pickle.loads(pickle.dumps(dls.valid)))
    assert torch.equal(x, epoch(dls.valid)[0]) and len(y) == 8


@pytest.mark.parametrize(("num_workers", "position"), [(0, 0), (0, 5), (1, 0), (1, 5)])
def test_an_unreadable_image_raises_with_its_name(cohort, tmp_path, num_workers, position):
    broken = cohort.copy()
    rows = broken.index[broken["split"] == "train"]
    bad = tmp_path / "bad \u00e9 _ImageErrorInWorker: .png"
    bad.write_bytes(Path(broken.loc[rows[position], "path"]).read_bytes()[:80])
    broken.loc[rows[position], "path"] = str(bad)
    with pytest.raises(ImageError) as caught:
        list(build(broken, num_workers=num_workers).train)
    assert "bad \u00e9" in caught.value.message and "Traceback" not in str(caught.value) and caught.value.hint
    if num_workers and position:  # fastai opens the first image in this process
        assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_killed_worker_is_explained(cohort, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    dls = build(cohort, num_workers=1)
    monkeypatch.setattr("covid_fastai.data.fastai_types.resize_image", die)
    with pytest.raises(ResourceError, match="num_workers=0"):
        list(dls.valid)


# without images


def test_empty_loaders_open_new_rows_like_full_ones(cohort):
    full = build(cohort, mean=0.4, std=0.2)
    empty = empty_dataloaders(
        classes=CLASSES, image_size=SIZE, mean=0.4, std=0.2, device="cpu", task="covid", positive="COVID-19"
    )
    rows = cohort[cohort["split"] == "test"]
    (x, y), (x2, y2) = (epoch(dls.test_dl(rows, with_labels=True)) for dls in (full, empty))
    assert torch.equal(x, x2) and torch.equal(y, y2)
    assert list(empty.vocab) == CLASSES and empty.c == 2 and empty.device == torch.device("cpu")
    assert len(empty.facts.cohort) == 0 and empty.facts.cohort.facts == cohort.facts
    assert {**empty.facts.to_dict(), "batch_size": 8} == full.facts.to_dict()


def test_empty_loaders_refuse_to_train(cohort):
    empty = empty_dataloaders(classes=CLASSES, image_size=SIZE, device="cpu")
    for dl in (empty.train, empty.valid, build(cohort).new_empty().train):
        with pytest.raises(DataError, match="no images"):
            list(dl)


def test_radiographs_work_with_fastai_transforms(cohort):
    """PILRadiograph is a PILImageBW, so fastai's transforms support it."""
    from fastai.vision.augment import FlipItem, Resize

    assert issubclass(PILRadiograph, PILImageBW)
    image = PILRadiograph.create(cohort["path"].iloc[0])
    assert Resize(20)(image).size == (20, 20)
    assert type(FlipItem(p=1.0)(image)).__name__ == "PILRadiograph"


@pytest.mark.realdata
@pytest.mark.slow
def test_real_radiographs(real_data):
    below = "Coronahack-Chest-XRay-Dataset/Coronahack-Chest-XRay-Dataset/train"
    files = [
        file for size in ("full", "224") for file in sorted((real_data / f"coronahack-{size}" / below).iterdir())[:6]
    ]
    split = ["train"] * 8 + ["valid"] * 4
    rows = {"path": [str(file) for file in files], "label": CLASSES * 6, "split": split}
    cohort = Cohort(rows, facts=CohortInfo(classes=CLASSES))
    x, _ = epoch(build(cohort, image_size=224).valid)
    assert x.shape == (4, 1, 224, 224) and 0.1 < x.std() < 3 and abs(x.mean()) < 1.5
