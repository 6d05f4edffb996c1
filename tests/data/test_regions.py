"""The region that a model sees: crops to the lungs, the same in training and prediction, and said where they fail."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from covid_fastai.data import cached_regions, regions
from covid_fastai.data.cached_regions import measure_crops, region_pixels
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.data.fastai_types import PILRadiograph, seeing
from covid_fastai.data.images import open_image, open_square
from covid_fastai.data.lungs import find_lungs
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.data.regions import FRAME, Crop, crop_of, crop_square, open_region, pack_region, unpack_region
from covid_fastai.data.square_images import SquareImages
from covid_fastai.errors import ModelFormatError, UsageError
from covid_fastai.model.predictor import Predictor
from covid_fastai.saliency.overlay import draw_layer
from tests.small_model import SIZE, write_small_model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Radiographs whose lungs are found, and one without lungs; large JPEG files, which are decoded at a scale."""
    folder, paths = tmp_path_factory.mktemp("radiographs"), []
    for number in range(6):
        phantom = draw_phantom(np.random.default_rng([9, number]), image_size=512)
        paths.append(str(folder / f"{number}.{'png' if number % 2 else 'jpg'}"))
        Image.fromarray(phantom.image).resize((900, 700)).save(paths[-1])
    paths.append(str(folder / "waves.png"))
    Image.fromarray((np.indices((300, 300)).sum(0) % 200).astype(np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(write_small_model(tmp_path_factory.mktemp("lungs") / "model", region="lungs"), threads=1)


def test_the_margin_is_a_fraction_of_the_box_and_ends_at_the_edge(files):
    lungs = find_lungs(open_image(files[0]))
    left, top, right, bottom = lungs.box
    crop = crop_of(lungs)
    assert crop.left == pytest.approx(max(0, left - 0.06 * (right - left)))
    assert crop.bottom == pytest.approx(min(1, bottom + 0.06 * (bottom - top)))
    assert not crop.reason and not crop.is_whole and all(0 <= edge <= 1 for edge in crop[:4])


def test_an_image_without_lungs_is_whole_and_says_so(files):
    pixels, crop = region_pixels(files[-1], SIZE, "lungs")
    assert crop.is_whole and "lungs were not found" in crop.reason
    assert np.array_equal(pixels, np.asarray(open_image(files[-1]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)))


def test_a_crop_is_pillows():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 100), dtype=np.uint8))
    expected = image.crop((20, 50, 80, 150)).resize((32, 32), Image.Resampling.BILINEAR)
    result = crop_square(image, 32, Crop(0.2, 0.25, 0.8, 0.75))
    inside = (slice(1, -1), slice(1, -1))  # at its edges, a crop within the image takes the pixels beside it in
    assert np.array_equal(np.asarray(result)[inside], np.asarray(expected)[inside])


def test_the_frame_is_todays_square(files):
    for path in files:
        assert open_region(path, SIZE, "frame")[0].tobytes() == open_square(path, SIZE).tobytes()
        assert region_pixels(path, SIZE, "frame")[1] == FRAME


def test_the_cache_keeps_the_crop_with_its_pixels(files, monkeypatch):
    square, crop = open_region(files[0], SIZE, "lungs")
    for _ in range(2):
        pixels, cached = region_pixels(files[0], SIZE, "lungs")
        assert pixels.tobytes() == square.tobytes() and cached == crop
    monkeypatch.setattr(cached_regions, "open_region", None)  # not needed any more
    assert region_pixels(files[0], SIZE, "lungs")[1] == crop
    monkeypatch.setattr(cached_regions, "region_version", lambda region: "lungs-other")
    with pytest.raises(TypeError):  # another segmentation makes other crops
        region_pixels(files[0], SIZE, "lungs")


def test_a_record_is_restored():
    square, crop = Image.new("L", (8, 8), 7), Crop(0.1, 0.2, 0.7, 0.8, "Lungs – not found.")
    pixels, restored = unpack_region(pack_region(square, crop), 8)
    assert restored == crop and (pixels == 7).all()


def test_training_and_prediction_have_the_same_pixels(files, predictor):
    rows = pd.DataFrame({"path": files, "label": ["a", "b"] * 3 + ["a"], "split": ["train"] * 4 + ["valid"] * 3})
    dls = build_dataloaders(
        rows, image_size=SIZE, region="lungs", augmentation="none", batch_size=2, num_workers=0, device="cpu"
    )
    assert dls.facts.region == "lungs"
    loader = dls.test_dl(rows, with_labels=False)
    batches = torch.cat([batch[0] for batch in loader]) * dls.facts.std + dls.facts.mean
    trained = (batches * 255).round().to(torch.uint8).numpy()[:, 0]
    for path, pixels in zip(files, trained, strict=True):
        with open(path, "rb") as file:
            content = file.read()
        for source in (path, content):
            assert np.array_equal(predictor._read_image(source, "x").pixels, pixels)
        assert np.array_equal(np.asarray(PILRadiograph.create(content, image_size=SIZE, region="lungs")), pixels)
    with seeing(dls, "frame"):
        whole = torch.cat([batch[0] for batch in dls.test_dl(rows, with_labels=False)])
    assert not torch.equal(whole[:6], torch.as_tensor((trained[:6, None] / 255 - 0.5) / 0.25))
    assert dls.valid_ds.tls[0].tfms.fs[-1].region == "lungs"


def written_as(kind: str, folder) -> str:
    """Write a radiograph whose lungs are found, as a file of a kind."""
    phantom = Image.fromarray(draw_phantom(np.random.default_rng([9, 1]), image_size=512).image).resize((900, 700))
    if kind == "turned by EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a turn by 90 degrees to the right
        phantom.rotate(90, expand=True).save(folder / "exif.jpg", exif=exif, quality=95)
        return str(folder / "exif.jpg")
    if kind == "DICOM":
        pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
            pydicom.uid.DigitalXRayImageStorageForPresentation
        )
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PixelRepresentation = "MONOCHROME1", 1, 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.Columns, dataset.Rows = phantom.size
        dataset.PixelData = (4095 - np.asarray(phantom, dtype=np.uint16) * 16).tobytes()
        dataset.save_as(folder / "scan.dcm", enforce_file_format=True)
        return str(folder / "scan.dcm")
    if kind == "16 bits":
        phantom = Image.fromarray(np.asarray(phantom, dtype=np.uint16) * 16)
    elif kind == "colour":
        phantom = phantom.convert("RGB")
    elif kind == "a wide film":
        phantom = phantom.resize((2400, 500))
    path = folder / f"scan.{'tif' if kind == '16 bits' else 'jpg' if kind == 'colour' else 'png'}"
    phantom.save(path)
    return str(path)


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "colour", "turned by EXIF", "DICOM", "a wide film"])
def test_every_kind_of_file_is_cropped_alike_in_training_and_prediction(kind, predictor, tmp_path):
    path = written_as(kind, tmp_path)
    read = predictor._read_image(path, "x")
    pixels, crop = region_pixels(path, SIZE, "lungs")
    assert not crop.is_whole and read.crop == crop and np.array_equal(read.pixels, pixels)
    loaders = SquareImages([path], None, SIZE, region="lungs")
    assert np.array_equal(loaders.open(0)[0].numpy(), pixels)
    row = predictor.predict([path]).iloc[0]
    np.testing.assert_array_equal(row[regions.CROP_COLUMNS].to_numpy(float), crop[:4])


def test_images_in_memory_are_cropped_as_their_files(files, predictor):
    image = open_image(files[1])  # PNG, which is not decoded at a scale
    expected = predictor._read_image(files[1], "x")
    for source in (image, np.asarray(image), torch.from_numpy(np.array(image))):
        read = predictor._read_image(source, "x")
        assert np.array_equal(read.pixels, expected.pixels) and read.crop == expected.crop


def test_predictions_say_what_the_model_saw(files, predictor, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    table = predictor.predict([*files, broken])
    assert table["region"].tolist() == ["lungs"] * 6 + ["frame", ""]
    assert "the whole image is used" in table["remark"].iloc[6] and not table["remark"].iloc[0].count("whole image")
    edges = table[regions.CROP_COLUMNS].to_numpy(float)
    crops = measure_crops([*files, broken], image_size=SIZE)
    np.testing.assert_array_equal(edges, crops[["left", "top", "right", "bottom"]])
    assert crops["region"].tolist() == ["lungs"] * 6 + ["frame", "unreadable"] and math.isnan(edges[7, 0])
    examination = predictor.examine(files[0])
    assert regions.crop_of_row(examination.row) == examination.crop and not examination.crop.is_whole


def test_a_model_of_whole_images_has_no_such_columns(small_model, files):
    table = Predictor(small_model, threads=1).predict(files[-1:])
    assert "region" not in table and "whole image" not in table["remark"].iloc[0]
    assert regions.crop_of_row(table.iloc[0].to_dict()) == FRAME


def test_the_map_lies_on_the_crop():
    layer = np.asarray(draw_layer(np.ones((4, 4)), (100, 60), crop=(0.2, 0.5, 0.6, 1.0)))
    shown = layer[..., 3] > 0
    assert shown[30:, 20:60].all() and shown.sum() == 30 * 40
    whole = draw_layer(np.ones((4, 4)), (100, 60))
    assert (np.asarray(whole)[..., 3] > 0).all()


def test_crops_of_another_segmentation_are_refused(tmp_path, monkeypatch):
    folder = write_small_model(tmp_path / "model", region="lungs")
    assert json.loads((folder / "config.json").read_text())["segmentation"] == regions.region_version("lungs")
    monkeypatch.setattr("covid_fastai.model.bundle_config.region_version", lambda region: "lungs-0-ff")
    with pytest.raises(ModelFormatError, match=r"crops of the lung segmentation lungs-\d+-\w+.*lungs-0-ff"):
        Predictor(folder)


def test_an_unknown_region_is_refused(files):
    with pytest.raises(UsageError, match="region='lung' is not one of 'frame', 'lungs'"):
        measure_crops(files, region="lung")
