"""The lung segmentation: masks against those of synthetic radiographs, the rules of the quality, and the inputs."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai.audit import baseline_features
from covid_fastai.data import lungs as lungs_module
from covid_fastai.data.cached_regions import measure_crops
from covid_fastai.data.input_check import check_input, check_inputs
from covid_fastai.data.lung_plots import LUNG_MEASURES, lung_facts, plot_lung_facts, plot_lungs
from covid_fastai.data.lungs import (
    cached_lungs,
    describe_lungs,
    find_lungs,
    judge_lungs,
    measure_lungs,
    results_version,
    segment_lungs,
)
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.data.regions import region_version
from covid_fastai.errors import DataError, ImageError, ModelFormatError, UsageError

GRID = 128


@pytest.fixture(scope="module")
def phantoms():
    return [draw_phantom(np.random.default_rng([9, number]), image_size=256) for number in range(12)]


def probabilities(left=(24, 20, 56, 100), right=(72, 20, 104, 100), value=0.98):
    """Return the model's output for two rectangular lungs, each left, top, right and bottom; None for no lung."""
    output = np.full((2, GRID, GRID), 0.01, dtype=np.float32)
    for lung, box in zip(output, (left, right), strict=True):
        if box is not None:
            lung[box[1] : box[3], box[0] : box[2]] = value
    return output


def test_synthetic_lungs_are_found(phantoms):
    """The model has never seen a synthetic radiograph."""
    found = [find_lungs(Image.fromarray(phantom.image)) for phantom in phantoms]
    overlaps = [
        2 * (lungs.mask & phantom.lungs).sum() / (lungs.mask.sum() + phantom.lungs.sum())
        for lungs, phantom in zip(found, phantoms, strict=True)
    ]
    assert np.mean(overlaps) > 0.8
    assert np.mean([lungs.usable for lungs in found]) > 0.8


def test_the_quality_alone_is_that_of_the_lungs(phantoms):
    images = [Image.fromarray(phantom.image) for phantom in phantoms[:4]] + [Image.new("L", (128, 128), 90)]
    for image in images:
        lungs = find_lungs(image)
        assert judge_lungs(image) == (lungs.quality, lungs.remark)


def test_the_sides_are_those_of_the_image(phantoms):
    image = Image.fromarray(phantoms[0].image)
    for picture in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        first, second = (np.nonzero(mask)[1].mean() for mask in find_lungs(picture).masks)
        assert first < second


def test_two_rectangles_are_fine():
    lungs = describe_lungs(probabilities())
    assert (lungs.quality, lungs.remark, lungs.usable) == ("fine", "", True)
    assert lungs.masks.shape == (2, 256, 256) and not lungs.masks.all(axis=0).any()
    assert lungs.area == pytest.approx(2 * 32 * 80 / GRID**2, abs=0.002) and lungs.area == pytest.approx(
        lungs.mask.mean()
    )
    assert lungs.box == pytest.approx((24 / GRID, 20 / GRID, 104 / GRID, 100 / GRID), abs=1 / 256)


@pytest.mark.parametrize(
    ("output", "quality", "remark"),
    [
        (probabilities(None, None), "none found", "No lung was found."),
        (probabilities((24, 20, 30, 26), None), "none found", "No lung was found."),
        (probabilities(right=None), "one lung", "One lung was found."),
        (probabilities(right=(72, 20, 84, 50)), "one lung", "One lung was found."),
        (probabilities(value=0.7), "implausible", "mean probability 0.70"),
        (probabilities((24, 20, 64, 70), (74, 64, 104, 120)), "implausible", "side by side over only 12%"),
        (probabilities((24, 20, 64, 100), (64, 20, 104, 100)), "implausible", "touch"),
        (probabilities((0, 20, 56, 100)), "cut off", "reach the left edge"),
        (probabilities((0, 0, 56, 100)), "cut off", "reach the left and the top edge"),
        (probabilities((24, 48, 56, 128), (72, 48, 104, 128)), "cut off", "reach the bottom edge"),
        (probabilities(right=(72, 20, 128, 100)), "cut off", "reach the right edge"),
        (probabilities((24, 60, 56, 100), (72, 20, 104, 100)), "cut off", "wider below than above"),
    ],
)
def test_each_quality_has_its_rule(output, quality, remark):
    lungs = describe_lungs(output)
    assert lungs.quality == quality and remark in lungs.remark
    assert lungs.usable == (quality == "cut off")


def test_islands_are_removed_and_holes_filled():
    output = probabilities()
    output[0, 110:120, 100:110] = 0.98  # an island of the left lung, under the right one
    output[1, 70:80, 80:90] = 0.2  # a hole
    lungs, whole = describe_lungs(output), describe_lungs(probabilities())
    assert (lungs.masks == whole.masks).all() and lungs.quality == "fine"
    assert lungs.shape.islands == pytest.approx(100 / (2 * 32 * 80), rel=0.1)
    output[0, 104:126, 30:126] = 0.98
    assert (describe_lungs(output).quality, describe_lungs(output).box) == ("implausible", whole.box)


def test_without_a_lung_there_is_no_box():
    lungs = describe_lungs(probabilities(None, None))
    assert lungs.box is None and lungs.area == 0 and not lungs.masks.any()


def test_noise_and_an_empty_picture_have_no_usable_lungs():
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    ramp = np.tile(np.arange(224, dtype=np.uint8), (224, 1))
    assert not any(lungs.usable for lungs in segment_lungs([noise, ramp]))


def test_every_kind_of_input_gives_the_same_lungs(phantoms, tmp_path):
    image = Image.fromarray(phantoms[0].image)
    image.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    table = pd.DataFrame({"path": [str(tmp_path / "a.png")]})
    inputs = [tmp_path / "a.png", content, io.BytesIO(content), phantoms[0].image, image, [image], table]
    results = [segment_lungs(given) for given in inputs]
    assert all(len(result) == 1 and (result[0].masks == results[0][0].masks).all() for result in results)


def test_the_number_of_threads_makes_no_difference(phantoms):
    images = [phantom.image for phantom in phantoms]
    one, three = (segment_lungs(images, workers=workers) for workers in (1, 3))
    assert len(one) == len(three) == len(images)
    assert all((first.masks == second.masks).all() for first, second in zip(one, three, strict=True))


def test_the_table_has_a_row_for_every_file(phantoms, tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(3)]
    Image.fromarray(phantoms[0].image).save(files[0])
    files[1].write_bytes(b"not an image")
    Image.fromarray(phantoms[1].image).save(files[2])
    table = measure_lungs(files, workers=2)
    assert table["path"].tolist() == [str(file) for file in files]
    assert table["lung_quality"].iloc[1] == "unreadable" and "1.png" in table["lung_remark"].iloc[1]
    assert table[["lung_area", "lung_left", "lung_bottom"]].iloc[1].isna().all()
    expected = segment_lungs(files[2])[0]
    row = table.iloc[2]
    assert row["lung_quality"] == expected.quality and row["lung_area"] == expected.area
    assert (row["lung_left"], row["lung_top"], row["lung_right"], row["lung_bottom"]) == expected.box


def test_the_lungs_of_a_file_are_segmented_once(phantoms, tmp_path, monkeypatch):
    """From the cache come the same masks, quality and measurements; a changed file is segmented again."""
    file = tmp_path / "a.png"
    Image.fromarray(phantoms[2].image).save(file)
    expected = segment_lungs(file)[0]
    first = cached_lungs(file)
    calls = []
    monkeypatch.setattr(lungs_module, "find_lungs", lambda grey: calls.append(grey) or find_lungs(grey))
    again = cached_lungs(file)
    assert not calls
    for lungs in (first, again):
        assert (lungs.masks == expected.masks).all() and lungs.masks.dtype == bool
        names = ("quality", "remark", "area", "box", "shape")
        assert [getattr(lungs, name) for name in names] == [getattr(expected, name) for name in names]
    empty = tmp_path / "b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(empty)
    assert cached_lungs(empty).box == cached_lungs(empty).box == segment_lungs(empty)[0].box
    n_calls = len(calls)
    Image.fromarray(phantoms[3].image).save(file)
    assert (cached_lungs(file).masks == find_lungs(Image.fromarray(phantoms[3].image)).masks).all()
    assert len(calls) == n_calls + 1
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"broken\.png"):
        cached_lungs(tmp_path / "broken.png")


def test_what_cannot_be_read_is_an_error_that_names_it(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"broken\.png"):
        segment_lungs(tmp_path / "broken.png")
    with pytest.raises(DataError, match="no column path"):
        segment_lungs(pd.DataFrame({"file": ["a.png"]}))
    with pytest.raises(UsageError, match="workers"):
        segment_lungs([], workers=0)


def test_no_images_give_no_lungs():
    assert segment_lungs([]) == [] and len(measure_lungs([])) == 0


def test_a_damaged_model_is_named(monkeypatch, tmp_path):
    (tmp_path / "lungs.onnx").write_bytes(b"damaged")
    monkeypatch.setattr(lungs_module, "MODEL", tmp_path / "lungs.onnx")
    lungs_module.open_model.cache_clear()
    with pytest.raises(ModelFormatError, match=r"lungs\.onnx cannot be used"):
        segment_lungs(np.zeros((64, 64), dtype=np.uint8) + np.arange(64, dtype=np.uint8))
    lungs_module.open_model.cache_clear()


@pytest.fixture
def without_model(monkeypatch, tmp_path):
    """Remove the model's file, as its card says for those who may not use it."""
    caches = lungs_module.has_model, lungs_module.model_digest, lungs_module.open_model, region_version
    monkeypatch.setattr(lungs_module, "MODEL", tmp_path / "lungs.onnx")
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


def test_without_the_model_all_but_what_asks_for_lungs_goes_on(without_model, phantoms, tmp_path):
    file = tmp_path / "a.png"
    image = Image.fromarray(phantoms[2].image)
    image.save(file)
    for lungs in (find_lungs(image), cached_lungs(file)):
        assert lungs.quality == "none found" and lungs.box is None and "lungs.onnx" in lungs.remark
    assert judge_lungs(image) == (lungs.quality, lungs.remark) and "none" in results_version()
    assert not [remark for remark in check_input(image) if remark.kind == "lungs"]
    features = baseline_features._read(file, ["border ring", "thumbnail"])
    assert features is not None and np.isfinite(features["border ring"]).any()
    asked = [lambda: segment_lungs(file), lambda: measure_lungs([file]), lambda: plot_lungs([file])]
    for ask in [*asked, lambda: region_version("lungs"), lambda: measure_crops([file])]:
        with pytest.raises(ModelFormatError, match=r"lungs\.onnx cannot be used") as caught:
            ask()
        assert "region='frame'" in str(caught.value.hint)


def test_files_are_one_path_several_or_a_table(phantoms, tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(phantoms[2].image).save(file)
    for function in (measure_lungs, measure_crops, check_inputs):
        expected = function([str(file)])
        for files in (str(file), file, pd.DataFrame({"path": [file]}), pd.Series([file]), iter([file])):
            pd.testing.assert_frame_equal(function(files), expected)
        with pytest.raises(DataError, match="no column path"):
            function(pd.DataFrame({"file": ["a.png"]}))
        with pytest.raises(DataError, match="Item 2 is of the type float, not a path"):
            function([file, float("nan")])


@pytest.mark.parametrize("value", [None, 3, 2.5, object()])
def test_what_is_no_image_is_an_error(value):
    for function in (segment_lungs, plot_lungs):
        with pytest.raises(ImageError, match=f"type {type(value).__name__} is not an image"):
            function(value)


def test_where_no_lung_is_found_there_is_no_area(phantoms):
    small = np.zeros((800, 800), dtype=np.uint8)
    small[300:370, 310:380] = np.asarray(Image.fromarray(phantoms[2].image).resize((70, 70)))
    images = [Image.fromarray(phantom.image).rotate(90) for phantom in phantoms] + [Image.fromarray(small)]
    none = [lungs for lungs in segment_lungs(images) if lungs.quality == "none found"]
    assert none and all(lungs.area == 0 and lungs.box is None and not lungs.mask.any() for lungs in none)


def test_cached_features_follow_the_rules_of_the_lungs(phantoms, tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    Image.fromarray(phantoms[2].image).save(file)
    before = baseline_features._read(file, ["frame"])["frame"]
    monkeypatch.setattr(lungs_module, "MIN_CONFIDENCE", 2.0)
    monkeypatch.setattr(lungs_module, "FORMAT", 999)
    after = baseline_features._read(file, ["frame"])["frame"]
    assert not np.array_equal(before, after, equal_nan=True)


def test_the_plot_has_the_outlines_and_the_quality(phantoms):
    figure = plot_lungs([phantom.image for phantom in phantoms], k=3)
    shown = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title().split("\n")[0] for axes in shown] == ["image 1", "image 2", "image 3"]
    assert all(any(name in axes.get_title() for name in ("fine", "cut off")) for axes in shown)
    assert all(len(axes.collections) == 2 for axes in shown)
    with pytest.raises(UsageError, match="no images"):
        plot_lungs([])


@pytest.mark.realdata
def test_the_held_out_figures(real_data):
    """`python -m pretraining.lung_metrics` gives the figures of all held-out images; these are 40 of them."""
    from pretraining.lung_images import list_masked
    from pretraining.lung_metrics import compare_masks

    images = list_masked(real_data, seed=0)
    compared = compare_masks(images[images["part"] == "held-out"].iloc[::4])
    assert compared["dice"].mean() > 0.95 and compared["dice"].min() > 0.8
    assert compared["quality"].isin(["fine", "cut off"]).mean() > 0.95


def test_a_framing_that_differs_by_class_is_measured(covid_cohort, tmp_path):
    """The images of one class are enlarged by a black margin, so that its lungs are smaller and more in the middle."""
    rows = covid_cohort[covid_cohort["split"] != "excluded"].copy()
    chosen = rows.groupby("label").head(12)
    for number, row in chosen.iterrows():
        image = Image.open(row["path"]).convert("L").resize((128, 128))
        if row["label"] == "Normal":
            larger = Image.new("L", (170, 170))
            larger.paste(image, (21, 21))
            image = larger
        image.save(tmp_path / f"{number}.png")
        chosen.loc[number, "path"] = str(tmp_path / f"{number}.png")
    facts = lung_facts(chosen)
    assert len(facts) == len(chosen) and set(LUNG_MEASURES) <= set(facts)
    normal, other = (facts[(facts["label"] == "Normal") == same]["area"].dropna() for same in (True, False))
    assert len(normal) >= 6 and len(other) >= 6 and normal.median() < 0.75 * other.median()
    unusable = ~facts["lung_quality"].isin(["fine", "cut off"])
    assert (facts["area"].isna() == unusable).all()
    figure = plot_lung_facts(facts, classes=["Normal", "COVID-19"])
    assert [axes.get_xlabel() for axes in figure.axes][1:] == list(LUNG_MEASURES.values())
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["Normal", "COVID-19"]


def test_a_lung_where_the_image_shows_nothing_is_none(phantoms):
    """The model expects two lungs, and outlines a second one in a half that was painted black."""
    pixels = np.random.default_rng(0).integers(60, 120, (GRID, GRID), dtype=np.uint8)
    assert describe_lungs(probabilities(), pixels).quality == "fine"
    pixels[:, :64] = 0
    lungs = describe_lungs(probabilities(), pixels)
    assert lungs.quality == "one lung" and "where the image shows nothing" in lungs.remark and not lungs.usable
    pixels[20:100, 72:104] = 30
    assert describe_lungs(probabilities(), pixels).quality == "none found"
    for phantom in phantoms[:4]:
        painted = phantom.image.copy()
        painted[:, : painted.shape[1] // 2] = 0
        assert not find_lungs(Image.fromarray(painted)).usable
        dark = Image.fromarray((phantom.image // 8).astype(np.uint8))  # a dark image has less detail everywhere
        assert find_lungs(dark).quality == find_lungs(Image.fromarray(phantom.image)).quality
