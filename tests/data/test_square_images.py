"""Images gathered from memory: the same batches as fastai makes item by item."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from fastai.data.transforms import ItemTransform
from fastai.torch_core import no_random
from PIL import Image

from covid_fastai.data import hardware, radiograph_loader, square_images
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.data.hardware import fits_in_memory, free_memory, share_devices
from covid_fastai.data.square_images import SquareImages
from covid_fastai.errors import ImageError
from tests.simulated_device import DEVICE, SimulatedDevice

CPU = torch.device("cpu")
N = 22


@pytest.fixture
def cohort(tmp_path) -> pd.DataFrame:
    for number in range(N):
        pixels = np.random.default_rng(number).integers(0, 256, (50, 40 + number), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = {"path": [str(tmp_path / f"{number}.png") for number in range(N)], "label": ["no", "yes"] * (N // 2)}
    return pd.DataFrame(rows).assign(split=["train"] * 16 + ["valid"] * 6, patient=list(map(str, range(N))))


def loaders(cohort, **options):
    with no_random(0):
        return build_dataloaders(cohort, image_size=32, batch_size=5, device="cpu", **options)


def batches(loader, epochs: int = 2) -> list[tuple]:
    with no_random(1):
        return [batch for _ in range(epochs) for batch in loader]


def item_by_item(monkeypatch) -> None:
    monkeypatch.setattr(radiograph_loader, "square_images", lambda loader, device: None)


def assert_same(some: list[tuple], others: list[tuple]) -> None:
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert [type(part) for part in one] == [type(part) for part in other]
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("options", [{"augmentation": "none"}, {}, {"balance": "sampler"}], ids=str)
@pytest.mark.parametrize("memory", ["enough", "too little"])
def test_the_batches_of_training_and_validation_are_fastais(options, memory, cohort, monkeypatch):
    monkeypatch.setattr(hardware, "free_memory", lambda device: 10**9 if memory == "enough" else N * 32**2 * 3)
    ours = loaders(cohort, **options)
    assert (ours.train.keep_on is None) == (memory == "too little")
    gathered = [batches(loader) for loader in ours.loaders]
    item_by_item(monkeypatch)
    for some, loader in zip(gathered, loaders(cohort, **options).loaders, strict=True):
        assert_same(some, batches(loader))


@pytest.mark.parametrize("with_labels", [True, False])
def test_the_batches_of_other_rows_are_fastais(with_labels, cohort, monkeypatch):
    dls = loaders(cohort)
    some = batches(dls.test_dl(cohort[3:9], with_labels=with_labels))
    listed = batches(dls.test_dl(cohort["path"].tolist()[3:9]))
    item_by_item(monkeypatch)
    assert_same(some, batches(dls.test_dl(cohort[3:9], with_labels=with_labels)))
    assert_same(listed, batches(dls.test_dl(cohort["path"].tolist()[3:9])))


def test_each_image_is_opened_once(cohort, monkeypatch):
    opened = []
    open_pixels = square_images.region_pixels
    monkeypatch.setattr(square_images, "region_pixels", lambda *a: opened.append(a[0]) or open_pixels(*a))
    dls = loaders(cohort)
    first = batches(dls.train)
    again = batches(dls.train.new(shuffle=False, drop_last=False))
    assert sorted(opened) == sorted(cohort["path"][:16]) and len(first) == len(again) == 8
    batches(dls.valid)
    batches(dls.test_dl(cohort[16:]), epochs=1)
    assert len(opened) == N + 6, "other rows are not kept"


@pytest.mark.filterwarnings("ignore:for .*meta parameter in the current model")
def test_one_thread_uses_the_device(cohort, monkeypatch):
    """On MPS, torch may end the process where two threads compute at the same time."""
    users = set()
    kept = SquareImages._kept
    monkeypatch.setattr(SquareImages, "_kept", lambda self: users.add(threading.get_ident()) or kept(self))
    loader = loaders(cohort).train
    loader.keep_on = DEVICE
    for batch in loader.create_batches(range(8)):
        assert batch[0].device == DEVICE
    assert users == {threading.get_ident()}


def test_kept_and_new_images_are_in_one_batch(cohort):
    images = SquareImages(cohort["path"].tolist(), None, 32, CPU)
    alone = [images.open(position) for position in range(N)]
    loader = loaders(cohort).train
    loader.bs, loader.drop_last = 4, False
    for positions in ([2, 0], [0, 3, 2, 1], [1, 1, 5, 2]):
        (batch,) = loader._gather_batches(images, positions)
        assert torch.equal(batch[0], torch.stack([alone[position] for position in positions]))
    assert np.flatnonzero(images._is_kept).tolist() == [0, 1, 2, 3, 5]


def test_an_unreadable_image_is_black_and_marked_in_every_pass(cohort):
    dls = loaders(cohort, augmentation="none")
    with open(cohort["path"].iloc[1], "wb") as file:
        file.write(b"no image")
    for _ in range(2):
        marked = dls.train.mark_unreadable()
        (batch,) = dls.train._gather_batches(dls.train._square_images(), [0, 1, 2, 3])
        assert marked[:4].tolist() == [False, True, False, False]
        assert [bool(image.any()) for image in batch[0]] == [True, False, True, True]


def test_loaders_can_be_copied(cohort):
    dls = loaders(cohort, augmentation="none")
    batches(dls.valid)
    assert_same(batches(copy.deepcopy(dls).valid), batches(dls.valid))


def test_an_item_transform_of_the_user_is_used(cohort):
    class Invert(ItemTransform):
        order = 2

        def encodes(self, item):
            return (type(item[0])(Image.eval(item[0], lambda value: 255 - value)), *item[1:])

    dls = loaders(cohort, augmentation="none")
    before = batches(dls.valid, epochs=1)
    dls.valid.after_item.add(Invert())
    after = batches(dls.valid, epochs=1)
    for (some, _), (others, _) in zip(before, after, strict=True):
        # (x - 0.5) / 0.25 of x and of 1 - x are opposite
        torch.testing.assert_close(some, -others)


def test_an_image_that_cannot_be_read_raises_with_its_name(cohort):
    dls = loaders(cohort)
    batches(dls.valid)
    (broken,) = cohort["path"][4:5]
    with open(broken, "wb") as file:
        file.write(b"no image")
    for _ in range(2):
        with pytest.raises(ImageError, match=r"4\.png"):
            batches(dls.train)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(broken)
    assert len(batches(dls.train, epochs=1)) == 4


def test_processes_open_images_if_they_are_asked_for(cohort):
    dls = loaders(cohort, num_workers=1, augmentation="none")
    assert dls.train.keep_on is None
    assert_same(batches(dls.valid, epochs=1), batches(loaders(cohort, augmentation="none").valid, epochs=1))


def test_data_fit_if_they_take_less_than_a_third(monkeypatch):
    monkeypatch.setattr(hardware, "free_memory", lambda device: 300)
    assert fits_in_memory(99, CPU) and not fits_in_memory(100, CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not fits_in_memory(99, CPU) and fits_in_memory(49, CPU)
    assert fits_in_memory(99, torch.device("cuda")), "each process has a GPU of its own"


def test_folds_that_are_trained_at_the_same_time_share_the_memory(monkeypatch):
    monkeypatch.setattr(hardware, "free_memory", lambda device: 300)
    monkeypatch.setattr(hardware, "_sharing", {"cpu": 1, "gpu": 1})
    share_devices(5, gpus=2)
    assert fits_in_memory(19, CPU) and not fits_in_memory(20, CPU)
    assert fits_in_memory(33, torch.device("cuda")) and not fits_in_memory(34, torch.device("cuda")), "three on a GPU"
    share_devices(2, gpus=4)
    assert fits_in_memory(99, torch.device("cuda"))


@pytest.mark.filterwarnings("ignore:for .*meta parameter in the current model")
def test_a_batch_of_kept_images_waits_for_nothing(cohort):
    images = SquareImages(cohort["path"].tolist(), [0, 1] * (N // 2), 32, DEVICE)
    with SimulatedDevice() as device:
        images.keep(range(N), [images.open(position) for position in range(N)])
        images.kept_batch([0, 1])
        before = device.counts["waits"]
        x, y = images.kept_batch([3, 1, 2])
    assert x.device == y.device == DEVICE and x.shape == (3, 1, 32, 32) and len(y) == 3
    assert device.counts["waits"] == before and not device.counts["from"]


@pytest.mark.parametrize(
    ("limit", "used", "expected"), [("1000", "400", 600), ("max", "400", None), (None, None, None), ("100", "400", 0)]
)
def test_the_limit_of_a_container_counts(limit, used, expected, tmp_path, monkeypatch):
    files = tmp_path / "max", tmp_path / "current"
    for file, text in zip(files, (limit, used), strict=True):
        if text is not None:
            file.write_text(text)
    monkeypatch.setattr(hardware, "CONTAINER_MEMORY", [files])
    available = psutil.virtual_memory().available
    assert free_memory(CPU) == expected if expected is not None else free_memory(CPU) > available / 2
