"""The input check: which images have remarks, which have none, and its scores against an oracle."""

from __future__ import annotations

import io
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.decomposition import PCA

from covid_fastai.data import input_check, lungs
from covid_fastai.data.input_check import check_input, check_inputs, fit_look, ood_score, shrink_picture
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.errors import ModelFormatError, UsageError

PATIENTS = 40


def kinds(image) -> list[str]:
    return [remark.kind for remark in check_input(image)]


@pytest.fixture(scope="module")
def radiographs() -> list[Image.Image]:
    rngs = [np.random.default_rng([51, patient]) for patient in range(PATIENTS)]
    return [Image.fromarray(draw_phantom(rng, image_size=128).image) for rng in rngs]


def remark_fraction(images, kind: str) -> float:
    return float(np.mean([kind in kinds(image) for image in images]))


def test_radiographs_pass(radiographs):
    assert np.mean([not kinds(image) for image in radiographs]) >= 0.95


def test_gamma_makes_no_difference(radiographs):
    brighter = [image.point([round(255 * (value / 255) ** 0.7) for value in range(256)]) for image in radiographs]
    assert np.mean([not kinds(image) for image in brighter]) >= 0.95


@pytest.mark.parametrize(
    ("turn", "kind"),
    [
        (lambda image: image.transpose(Image.Transpose.ROTATE_180), "turned"),
        (lambda image: image.transpose(Image.Transpose.ROTATE_90), "turned"),
        (lambda image: image.transpose(Image.Transpose.ROTATE_270), "turned"),
        (lambda image: image.point(lambda value: 255 - value), "inverted"),
    ],
)
def test_turned_and_inverted_radiographs_are_named(radiographs, turn, kind):
    assert remark_fraction([turn(image) for image in radiographs], kind) >= 0.85


def test_the_text_states_the_rotation(radiographs):
    usual = min(radiographs, key=lambda image: ood_score(shrink_picture(image)[None])[0])
    left = usual.transpose(Image.Transpose.ROTATE_90)  # Pillow turns against the clock
    right = usual.transpose(Image.Transpose.ROTATE_270)
    assert "to the left" in check_input(left)[0].text and "to the right" in check_input(right)[0].text
    assert "upside down" in check_input(usual.transpose(Image.Transpose.ROTATE_180))[0].text


def test_photographs_have_a_remark_and_colour_ones_a_remark_on_colour():
    for pixels in load_sample_images().images:
        photograph = Image.fromarray(pixels)
        with io.BytesIO() as file:
            photograph.save(file, "JPEG")
            assert "colour" in kinds(file.getvalue())
        assert kinds(photograph.convert("L"))


def test_noise_is_unlike():
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    assert kinds(Image.fromarray(noise)) == ["unlike"]


def test_an_image_without_two_lungs_has_a_remark(radiographs, monkeypatch):
    usual = min(radiographs, key=lambda image: ood_score(shrink_picture(image)[None])[0])
    assert kinds(usual) == []
    one = np.zeros((2, 128, 128), dtype=np.float32)
    monkeypatch.setattr(lungs, "_run_model", lambda grey: one)
    assert kinds(usual) == ["lungs"] and "No lung was found." in check_input(usual)[0].text
    one[0, 20:100, 20:50] = 0.98
    assert "One lung was found." in check_input(usual)[0].text
    one[1, 20:100, 80:110] = 0.98
    assert kinds(usual) == []


def test_frame_and_size(radiographs):
    framed = Image.new("L", (200, 200), 255)
    framed.paste(radiographs[0], (36, 36))
    remark = next(remark for remark in check_input(framed) if remark.kind == "frame")
    assert "59%" in remark.text  # 1 - (128 / 200)^2
    assert "small" in kinds(radiographs[0].resize((80, 128))) and "small" not in kinds(radiographs[0].resize((96, 128)))


def test_a_file_that_cannot_be_read_is_a_remark(tmp_path):
    (tmp_path / "blank.png").write_bytes(b"")
    Image.new("L", (128, 128), 7).save(tmp_path / "grey.png")
    for name, reason in (("blank.png", "empty"), ("grey.png", "blank"), ("absent.png", "missing")):
        (remark,) = check_input(tmp_path / name)
        assert remark.kind == "unreadable" and reason in remark.text and name in remark.text


@pytest.mark.parametrize("workers", [1, 3])
def test_the_table_has_a_row_per_image_in_order(radiographs, tmp_path, workers):
    paths = [tmp_path / "b.png", tmp_path / "a.png", tmp_path / "absent.png"]
    radiographs[0].save(paths[0])
    radiographs[1].transpose(Image.Transpose.ROTATE_90).save(paths[1])
    table = check_inputs(paths, workers=workers)
    assert list(table.columns) == ["path", "flagged", "kinds", "ood_score", "remarks"]
    assert table["path"].tolist() == [os.fspath(path) for path in paths]
    assert table["kinds"].tolist() == ["", "turned", "unreadable"] and table["flagged"].tolist() == [False, True, True]
    assert 0 < table["ood_score"][0] < 1 and np.isnan(table["ood_score"][2])
    assert "turned by 90 degrees" in table["remarks"][1] and check_inputs([]).empty


# the reference


def test_ood_score_is_the_sum_of_hotellings_t_squared_and_q(tmp_path, monkeypatch):
    """The oracle is scikit-learn's PCA; the ranks are checked by their invariance."""
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(1200, 30)) @ rng.normal(size=(30, 256)) + rng.normal(size=(1200, 256))).reshape(
        -1, 16, 16
    )
    look = fit_look(images)
    ranks = input_check.rank_pixels(images)
    np.testing.assert_allclose(ranks, input_check.rank_pixels(np.exp(images)))
    pca = PCA(input_check.COMPONENTS, svd_solver="full").fit(ranks)
    scores = pca.transform(ranks)
    residual = ((ranks - pca.inverse_transform(scores)) ** 2).sum(axis=1)
    rest = residual.mean() / (256 - input_check.COMPONENTS)
    n = len(ranks)
    oracle = (scores**2 / (pca.explained_variance_ * (n - 1) / n)).sum(axis=1) + residual / rest
    monkeypatch.setattr(input_check, "_read_look", lambda: input_check._Look(**look))
    np.testing.assert_allclose(ood_score(images), oracle / np.quantile(oracle, 0.99), rtol=1e-3)
    assert (ood_score(images) > 1).mean() == pytest.approx(0.01, abs=0.001)


def test_too_few_images_raise_an_error():
    with pytest.raises(UsageError, match="too few"):
        fit_look(np.zeros((100, 16, 16)))


def test_a_damaged_reference_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(input_check, "LOOK", tmp_path / "input_check.safetensors")
    input_check._read_look.cache_clear()
    with pytest.raises(ModelFormatError, match="input_check.safetensors"):
        ood_score(np.zeros((1, 16, 16)))
    input_check._read_look.cache_clear()


# real radiographs


@pytest.mark.realdata
@pytest.mark.slow
def test_few_false_positives_and_false_negatives_on_real_radiographs(real_data):
    """The official TEST and the two external sets, none of which was used for the reference."""
    folders = ["external-adult", "external-actualmed", "coronahack-224/Coronahack-Chest-XRay-Dataset"]
    paths = [path for folder in folders[:2] for path in sorted((real_data / folder).rglob("*.*g"))]
    paths += sorted((real_data / folders[2]).rglob("test/*.jpeg"))[:200]
    assert check_inputs(paths)["flagged"].mean() < 0.05
    turned = [Image.open(path).convert("L").transpose(Image.Transpose.ROTATE_180) for path in paths]
    assert remark_fraction(turned, "turned") > 0.95


@pytest.mark.realdata
def test_most_laterals_have_a_remark(real_data):
    """Four images of three patients: too few for a metric; the documentation states that laterals can pass."""
    metadata = pd.read_csv(real_data / "cohen-metadata.csv")
    names = set(metadata.loc[metadata["view"] == "L", "filename"])
    paths = [path for path in (real_data / "coronahack-224").rglob("*.*g") if path.name in names]
    assert len(paths) == 4 and check_inputs(paths)["flagged"].sum() == 3
