"""Saliency: maps against their definition and captum, fractions against explicit sums, the check against chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import LayerGradCam, Occlusion
from fastai.torch_core import no_random
from matplotlib.figure import Figure
from PIL import Image

from covid_fastai.data.dataloaders import empty_dataloaders
from covid_fastai.data.images import open_image, resize_image
from covid_fastai.data.lungs import segment_lungs
from covid_fastai.data.phantom import write_phantom
from covid_fastai.errors import DataError, ImageError, UsageError
from covid_fastai.model.learner import build_learner, map_weights
from covid_fastai.saliency.maps import stages
from covid_fastai.saliency.methods import (
    class_activation_map,
    grad_cam,
    occlusion_map,
    plot_saliency,
    randomisation_check,
    saliency_fraction,
)
from covid_fastai.saliency.region_fraction import (
    BOX_NAME,
    CENTRAL_BOX,
    measure_region_fractions,
    summarise_saliency_fraction,
)

CLASSES = ["Normal", "COVID-19", "other"]
SIZE = 64


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """The folder of the masks, and the rows of a few synthetic radiographs."""
    patients = {"COVID-19": 3, "Normal": 3}
    root = write_phantom(tmp_path_factory.mktemp("saliency") / "data", patients=patients, image_size=SIZE, masks=True)
    paths = sorted(root.rglob("*.jpeg"))
    table = pd.DataFrame({"path": [str(path) for path in paths], "patient": [path.stem[:-2] for path in paths]})
    return root / "lung-masks", table.assign(label="Normal")


@pytest.fixture(scope="module")
def learn():
    """A learner with random weights; BatchNorm statistics and biases differ from 0 and 1, which would hide errors."""
    with no_random(1):
        learn = build_learner(empty_dataloaders(classes=CLASSES, image_size=SIZE, device="cpu"), weights=None)
        for norm in learn.model.modules():
            if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                norm.running_mean.uniform_(-0.2, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
                torch.nn.init.uniform_(norm.bias, -0.2, 0.2)
                torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return learn


@pytest.fixture(scope="module")
def x(learn, phantoms):
    """The model input from the loaders; the maps must be computed from the same pixels."""
    return next(iter(learn.dls.test_dl(phantoms[1])))[0].as_subclass(torch.Tensor)


@pytest.fixture(scope="module")
def logits(learn, x):
    with torch.no_grad():
        return learn.model.eval()(x).numpy()


# the maps


def test_the_mean_of_a_class_activation_map_is_the_logit(learn, phantoms, logits):
    maps = class_activation_map(learn, phantoms[1])
    assert maps.shape == (len(phantoms[1]), 3, 2, 2) and maps.dtype == np.float32
    np.testing.assert_allclose(maps.mean((2, 3)) + map_weights(learn.model)[1].numpy(), logits, atol=1e-5)
    assert np.ptp(logits, axis=0).min() > 1e-3  # otherwise the comparison would be trivial


@pytest.mark.parametrize("layer", ["0", "0.7", "0.6", "0.6.0.conv2"])
def test_grad_cam_agrees_with_captum(learn, phantoms, x, layer):
    maps = grad_cam(learn, phantoms[1], layer=layer)
    oracle = LayerGradCam(learn.model.eval(), learn.model.get_submodule(layer))
    for number in range(3):
        expected = oracle.attribute(x, target=number, relu_attributions=False).detach().numpy()
        np.testing.assert_allclose(maps[:, number], expected[:, 0], atol=1e-5 * np.abs(expected).max() + 1e-9)


def test_grad_cam_of_a_linear_head_is_the_class_activation_map(learn, phantoms):
    """Zhou's map is Grad-CAM at the last layer times the number of cells, by which the pooling divides."""
    maps = class_activation_map(learn, phantoms[1])
    np.testing.assert_allclose(grad_cam(learn, phantoms[1]) * 4, maps, atol=1e-5)


def test_grad_cam_works_on_a_frozen_body_and_does_not_change_it(learn, phantoms):
    learn.freeze()
    learn.model.train()
    try:
        frozen = grad_cam(learn, phantoms[1], layer="0.6")
        assert learn.model.training and all(module.training for module in learn.model.modules())
        assert not any(parameter.grad is not None for parameter in learn.model.parameters())
    finally:
        learn.unfreeze()
    np.testing.assert_allclose(grad_cam(learn, phantoms[1], layer="0.6"), frozen, atol=1e-6)


@pytest.mark.parametrize(("patch_size", "stride"), [(16, 16), (20, 12)])
def test_occlusion_agrees_with_captum(learn, phantoms, x, patch_size, stride):
    rows = phantoms[1].head(2)
    maps = occlusion_map(learn, rows, patch_size=patch_size, stride=stride)
    window = {"sliding_window_shapes": (1, patch_size, patch_size), "strides": (1, stride, stride)}
    for number in range(3):
        expected = Occlusion(learn.model.eval()).attribute(x[:2], target=number, baselines=0, **window)[:, 0].numpy()
        np.testing.assert_allclose(maps[:, number], expected, atol=1e-5)


def test_maps_do_not_depend_on_the_batch(learn, phantoms):
    maps = class_activation_map(learn, pd.concat([phantoms[1]] * 3))
    alone = class_activation_map(learn, [phantoms[1]["path"].iloc[2]])
    np.testing.assert_allclose(maps[len(phantoms[1]) + 2], alone[0], rtol=1e-4, atol=1e-4)


# the fractions


def write_image(folder, name="a.png"):
    """Write an image of random pixels and return its row."""
    path = folder / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)).save(path)
    return pd.DataFrame({"path": [str(path)], "patient": "p", "label": ""})


def test_fractions_in_the_box_and_in_the_border(tmp_path):
    """With 16 x 16 cells, box and border consist of whole cells; the oracle is a sum of slices."""
    saliency = np.random.default_rng(1).random((1, 16, 16)).astype(np.float32)
    row = measure_region_fractions(write_image(tmp_path), saliency, ["a"]).iloc[0]
    assert CENTRAL_BOX == (3 / 16, 13 / 16)
    assert row["inside"] == pytest.approx(saliency[0, 3:13, 3:13].sum() / saliency.sum())
    assert row["border"] == pytest.approx(1 - saliency[0, 1:15, 1:15].sum() / saliency.sum())
    assert row["inside_area"] == pytest.approx(100 / 256) and row["border_area"] == pytest.approx(60 / 256)
    assert (row["box"], row["box_area"]) == (row["inside"], row["inside_area"])  # noise has no lungs
    assert row["lung"].startswith(f"{BOX_NAME}, instead of the lungs: ") and row["lung"].endswith(".")


@pytest.mark.parametrize("shape", [(4, 4), (7, 7), (5, 3), (64, 64)])
def test_fractions_of_a_uniform_map_are_those_of_the_area(tmp_path, shape):
    row = measure_region_fractions(write_image(tmp_path), np.ones((1, *shape), np.float32), ["a"]).iloc[0]
    assert row["inside"] == pytest.approx(0.625**2) and row["border"] == pytest.approx(1 - 0.875**2)


def test_fractions_in_a_lung_mask(phantoms):
    masks, rows = phantoms
    rows = rows.head(3)
    saliency = np.random.default_rng(2).random((3, SIZE, SIZE)).astype(np.float32)
    table = measure_region_fractions(rows, saliency, ["a"] * 3, masks=masks)
    for number, path in enumerate(rows["path"]):
        lung = np.asarray(Image.open(masks / f"{path.rsplit('/', 1)[1][:-5]}.png").convert("L")) > 0
        expected = saliency[number][lung].sum() / saliency[number].sum()
        assert table["inside"][number] == pytest.approx(expected, abs=1e-6)
        assert table["inside_area"][number] == pytest.approx(lung.mean(), abs=1e-6)
    assert set(table["lung"]) == {"lung mask"}


def test_fractions_in_segmented_lungs(phantoms):
    rows = phantoms[1].head(4)
    saliency = np.random.default_rng(3).random((len(rows), 8, 8)).astype(np.float32)
    table = measure_region_fractions(rows, saliency, ["a"] * len(rows))
    true = measure_region_fractions(rows, saliency, ["a"] * len(rows), masks=phantoms[0])
    found = segment_lungs(rows)
    assert [lungs.usable for lungs in found] == (table["lung"] == "segmented lungs").tolist()
    usable = table[table["lung"] == "segmented lungs"]
    assert len(usable) >= 2
    for number in usable.index:
        assert table["inside_area"][number] == pytest.approx(found[number].area, abs=1e-6)
        assert table["inside"][number] == pytest.approx(true["inside"][number], abs=0.12)


def test_saliency_is_the_positive_difference_to_the_other_classes(learn, phantoms, logits):
    maps = class_activation_map(learn, phantoms[1])
    predicted = saliency_fraction(learn, phantoms[1], masks=phantoms[0])
    assert predicted["of"].tolist() == [CLASSES[number] for number in logits.argmax(axis=1)]
    number = CLASSES.index("Normal")
    saliency = np.clip(maps[:, number] - np.delete(maps, number, axis=1).mean(axis=1), 0, None)
    table = saliency_fraction(learn, phantoms[1], of="Normal").drop(columns="path")
    expected = measure_region_fractions(phantoms[1], saliency, ["Normal"] * len(saliency)).drop(columns="path")
    pd.testing.assert_frame_equal(table, expected, check_exact=False, atol=1e-5)


def test_an_image_without_saliency_has_no_fraction(tmp_path):
    row = measure_region_fractions(write_image(tmp_path), np.zeros((1, 4, 4), np.float32), ["a"]).iloc[0]
    assert np.isnan(row["inside"]) and np.isnan(row["border"])


def test_the_intervals_of_the_summary_are_over_patients():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"patient": [f"p{n // 2}" for n in range(60)], "label": "x", "of": ["a"] * 50 + ["b"] * 10})
    table = table.assign(path="", inside=rng.random(60), border=0.1, inside_area=0.4, border_area=0.2)
    table = table.assign(box=0.5, box_area=0.4)
    table.loc[0, ["inside", "box", "border"]] = np.nan
    summary = summarise_saliency_fraction(table).set_index(["of", "region"])
    row = summary.loc["a", "inside"]
    images = table[(table["of"] == "a") & table["inside"].notna()]
    assert (row["images"], row["patients"]) == (49, 25) and row["fraction"] == pytest.approx(images["inside"].mean())
    assert row["low"] < row["fraction"] < row["high"] and row["ratio"] == pytest.approx(row["fraction"] / 0.4)
    by_patient = images.groupby("patient")["inside"].mean()
    half_width = 1.96 * by_patient.std() / np.sqrt(len(by_patient))  # two images per patient: their mean is the unit
    assert row["high"] - row["low"] == pytest.approx(2 * half_width, rel=0.15)
    few = summary.loc["b", "border"]
    assert few["patients"] == 5 and np.isnan(few["low"]) and few["fraction"] == pytest.approx(0.1)


# the randomisation check


@pytest.mark.slow
def test_maps_of_a_random_head_are_uncorrelated_on_average(learn, phantoms, monkeypatch):
    """The random weights of the head are symmetric around 0, so a map and its negative are equally likely."""
    from covid_fastai.saliency import methods

    monkeypatch.setattr(methods, "stages", lambda model: stages(model)[:1])
    table = randomisation_check(learn, phantoms[1].head(2), method="grad_cam", layer="0.5", repeats=20, seed=3)
    head = table.iloc[0]
    assert abs(head["correlation"]) < 0.25 and head["absolute"] > abs(head["correlation"])


def test_the_check_randomises_every_stage_of_a_copy(learn, phantoms):
    before = {key: value.clone() for key, value in learn.model.state_dict().items()}
    state = torch.get_rng_state()
    table = randomisation_check(learn, phantoms[1].head(2), repeats=2)
    assert table["randomised"].tolist() == ["head", "0.7", "0.6", "0.5", "0.4", "0.1", "0.0"]
    assert (table[["images", "repeats"]].to_numpy() == (2, 2)).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in learn.model.state_dict().items())


def test_a_map_that_ignores_the_weights_keeps_a_correlation_of_1(learn, phantoms, monkeypatch):
    """A method that shows the image itself must be recognisable by its correlation in the last row."""
    from covid_fastai.saliency import methods

    image_itself = lambda model, x: torch.cat([x, -x, 0 * x], dim=1)  # noqa: E731 - `(n, 3, h, w)` for any model
    monkeypatch.setattr(methods, "_map_function", lambda *_: image_itself)
    table = randomisation_check(learn, phantoms[1].head(2), of="Normal", repeats=1)
    assert table["correlation"].tolist() == pytest.approx([1.0] * 7)


def test_the_check_is_reproducible_from_its_seed(learn, phantoms):
    tables = [randomisation_check(learn, phantoms[1].head(2), repeats=1, seed=seed) for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])


# the figure, and errors


@pytest.mark.parametrize("masked", [True, False])
def test_the_figure_names_class_region_and_fraction(learn, phantoms, masked):
    masks = phantoms[0] if masked else None
    figure = plot_saliency(learn, phantoms[1], k=3, of="COVID-19", masks=masks)
    fractions = saliency_fraction(learn, phantoms[1].head(3), of="COVID-19", masks=masks)
    assert isinstance(figure, Figure) and len(figure.axes) == 7
    titles = [axes.get_title() for axes in figure.axes[3:6]]
    for title, row in zip(titles, fractions.to_dict("records"), strict=True):
        region = "box" if row["lung"].startswith(BOX_NAME) else "lungs"
        assert title.startswith("for COVID-19\n") and f"(uniform: {row['inside_area']:.0%})" in title
        assert ("no saliency" if np.isnan(row["inside"]) else f"{row['inside']:.0%} in {region}") in title
    shown = [image for image in figure.axes[3].images if image.get_cmap().name == "viridis"]
    assert len(shown) == 1 and "log odds" in figure.axes[6].get_ylabel()
    np.testing.assert_array_equal(
        np.asarray(figure.axes[0].images[0].get_array()),
        np.asarray(resize_image(open_image(phantoms[1]["path"].iloc[0]), SIZE)),
    )


def test_rows_without_a_prediction_are_left_out(learn, phantoms):
    table = phantoms[1].assign(status=["ok"] + ["unreadable"] * (len(phantoms[1]) - 1))
    assert len(class_activation_map(learn, table)) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "lime"}, "lime"),
        ({"of": "SARS"}, "SARS"),
        ({"layer": "0.6"}, "no option 'layer'"),
        ({"method": "grad_cam", "layer": "9"}, "no layer '9'"),
        ({"method": "grad_cam", "layer": "1.4"}, "There is no map"),
        ({"method": "occlusion", "patch_size": 64}, "patch_size=64"),
        ({"method": "occlusion", "patch_size": 8, "stride": 9}, "stride=9"),
    ],
)
def test_errors_name_the_wrong_option(learn, phantoms, options, words):
    with pytest.raises(UsageError, match=words) as caught:
        saliency_fraction(learn, phantoms[1].head(1), **options)
    assert caught.value.hint


def test_errors_name_the_faulty_rows(learn, phantoms, tmp_path):
    with pytest.raises(DataError, match="no column 'path'"):
        class_activation_map(learn, pd.DataFrame({"file": ["a"]}))
    with pytest.raises(UsageError, match="no image to explain"):
        class_activation_map(learn, [])
    with pytest.raises(ImageError, match="missing"):
        class_activation_map(learn, [tmp_path / "gone.png"])
    with pytest.raises(DataError, match="lung mask .*a.png does not exist"):
        saliency_fraction(learn, write_image(tmp_path), masks=tmp_path / "masks")
    with pytest.raises(UsageError, match="repeats=0"):
        randomisation_check(learn, phantoms[1], repeats=0)
