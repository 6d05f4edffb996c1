"""Shortcut baselines on synthetic data: planted shortcuts are flagged, clean data are not; oracle: scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import false_discovery_control
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from covid_fastai.audit import baseline_features
from covid_fastai.audit.baseline_features import OUTSIDE, Features, fill_hidden, kernel_components, read_features
from covid_fastai.audit.baselines import (
    BASELINES,
    LUNG_FREE,
    ShortcutAudit,
    compare_parts,
    find_shortcuts,
    plot_shortcuts,
    predict_shortcuts,
    rows_to_try,
)
from covid_fastai.audit.lung_region import outside_region
from covid_fastai.audit.permutation import _aucs, _hat_matrix, holm
from covid_fastai.data.lungs import segment_lungs
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.phantom import draw_phantom, write_phantom
from covid_fastai.data.splits import fold_by_patient, split_by_patient
from covid_fastai.errors import DataError

PLANTED = {  # the planted shortcut, and the baselines that can detect it
    "corner": {"border ring"},
    "border": {"border ring", "intensity mean and SD"},
    "jpeg_quality": {"headers"},
    "aspect": {"headers"},
    "gain": {"intensity mean and SD", "border ring"},
}


def phantom_split(folder, *, patients: int = 40, seed: int = 0, **options) -> pd.DataFrame:
    counts = {"COVID-19": patients, "Normal": patients}
    root = write_phantom(folder, patients=counts, image_size=48, seed=seed, **options)
    return split_by_patient(read_cohort(root, task="covid"), seed=seed)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return phantom_split(tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture(scope="module")
def audit(clean):
    return find_shortcuts(clean, permutations=299)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind != "corner" else ()) for kind in PLANTED]
)
def test_a_planted_shortcut_is_flagged_by_the_baselines_that_can_detect_it(kind, tmp_path):
    result = find_shortcuts(phantom_split(tmp_path / "data", shortcut=kind, strength=0.8), permutations=299)
    assert PLANTED[kind] <= set(result.flags)
    assert ("headers" in result.flags) == ("headers" in PLANTED[kind])
    assert result.flags[0] in result.notes()[0]


def test_clean_data_are_not_flagged(audit):
    assert audit.flags == []
    assert "No lung-free baseline is shown to separate the classes" in audit.notes()[0]
    assert audit.table["baseline"].tolist() == list(BASELINES)
    assert set(audit.table.loc[audit.table["lung_free"], "baseline"]) == set(LUNG_FREE)
    assert 0.3 < audit.permuted["low"] < 0.5 < audit.permuted["high"] < 0.7
    assert audit.row("prevalence")["auc"] == 0.5


def test_no_patient_is_predicted_by_a_model_that_was_fitted_on_them(clean):
    rows = rows_to_try(clean)
    assert rows.groupby("patient")["fold"].nunique().max() == 1
    held_out = rows["split"] == "valid"
    assert rows.loc[held_out, "fold"].nunique() == 1
    assert set(rows.loc[held_out, "fold"]).isdisjoint(rows.loc[~held_out, "fold"])


def test_the_folds_of_a_cross_validation_are_used(clean):
    folded = fold_by_patient(clean, folds=4, seed=3)
    rows = rows_to_try(folded)
    merged = rows.merge(folded[["path", "fold"]], on="path")
    assert (merged["fold_x"] == merged["fold_y"]).all()


def auc_within_folds(of_class, scores, fold) -> float:
    """Return scikit-learn's AUC of each fold, weighted by the pairs of patients in it."""
    aucs, pairs = [], []
    for number in np.unique(fold):
        positive = of_class[fold == number]
        if 0 < positive.sum() < len(positive):
            aucs.append(roc_auc_score(positive, scores[fold == number]))
            pairs.append(positive.sum() * (~positive).sum())
    return float(np.average(aucs, weights=pairs))


def test_the_thumbnail_baseline_agrees_with_scikit_learns_logistic_regression(clean, audit):
    rows = rows_to_try(clean)
    x = np.stack([np.asarray(Image.open(path).convert("L").resize((16, 16), Image.BILINEAR)) for path in rows["path"]])
    x, fold, p = x.reshape(len(x), -1).astype(float), rows["fold"].to_numpy(), np.zeros(len(rows))
    for number in np.unique(fold):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
        model.fit(x[fold != number], rows.loc[fold != number, "label"])
        p[fold == number] = model.predict_proba(x[fold == number])[:, list(model.classes_).index("COVID-19")]
    units = rows.assign(p=p).groupby(["patient", "label"]).agg({"p": "mean", "fold": "first"}).reset_index()
    units["of_class"] = units["label"] == "COVID-19"
    expected = auc_within_folds(*(units[name].to_numpy() for name in ("of_class", "p", "fold")))
    assert audit.row("thumbnail")["auc"] == pytest.approx(expected, abs=1e-6)
    ours = audit.predictions["thumbnail"].set_index("path")["p_COVID-19"]
    np.testing.assert_allclose(ours.loc[rows["path"]], p, atol=1e-6)


def test_the_regression_of_the_permutation_test_agrees_with_scikit_learns_ridge():
    rng = np.random.default_rng(0)
    fold = np.arange(60) % 3
    for k in (5, 90):  # fewer features than rows, and more
        x, y = rng.normal(size=(60, k)), rng.normal(size=60)
        scores = _hat_matrix(x, fold) @ y
        for number in range(3):
            fit = fold != number
            scaler = StandardScaler().fit(x[fit])
            model = Ridge(alpha=fit.sum() / 10).fit(scaler.transform(x[fit]), y[fit])
            np.testing.assert_allclose(scores[~fit], model.predict(scaler.transform(x[~fit])) - y[fit].mean())


def test_aucs_with_ties_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    scores, truth = rng.integers(0, 6, (50, 4)).astype(float), rng.integers(0, 2, (50, 4)).astype(bool)
    expected = [roc_auc_score(truth[:, k], scores[:, k]) for k in range(4)]
    np.testing.assert_allclose(_aucs(scores, truth), expected)


def test_holms_correction_of_a_worked_example():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    p = {str(k): value for k, value in enumerate(np.random.default_rng(0).uniform(0, 0.2, 6))}
    assert all(holm(p)[k] >= q for k, q in zip(p, false_discovery_control([*p.values()]), strict=True))


@pytest.mark.slow
def test_the_source_baseline_needs_several_sources(clean, tmp_path):
    confounded = clean.assign(source=np.where(clean["label"] == "COVID-19", "here", "there"))
    result = find_shortcuts(confounded, permutations=299)
    assert result.flags[0] == "source" and result.row("source")["auc"] == 1.0
    single = find_shortcuts(clean.assign(source="one"), permutations=99)
    assert np.isnan(single.row("source")["auc"])
    assert "not tested" in single.summary().set_index("baseline").loc["source", "better than chance"]


@pytest.mark.slow
def test_the_auc_of_three_classes_is_the_mean_against_the_rest(tmp_path):
    counts = {"Normal": 25, "bacteria": 25, "virus": 25}
    root = write_phantom(tmp_path / "data", patients=counts, image_size=48, seed=1)
    cohort = split_by_patient(read_cohort(root, task="etiology"), seed=0)
    result = find_shortcuts(cohort, permutations=299)
    table = result.predictions["thumbnail"]
    names = ("Normal", "Bacterial", "Viral")
    units = table.groupby(["patient", "label"]).agg({**{f"p_{name}": "mean" for name in names}, "fold": "first"})
    units = units.reset_index()
    fold = units["fold"].to_numpy()
    each = [
        auc_within_folds((units["label"] == name).to_numpy(), units[f"p_{name}"].to_numpy(), fold) for name in names
    ]
    assert result.row("thumbnail")["auc"] == pytest.approx(np.mean(each))
    assert result.flags == []


@pytest.mark.slow
def test_an_unreadable_image_is_counted_and_left_out(clean, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    cohort = clean.copy()
    cohort.loc[cohort.index[0], "path"] = str(broken)
    result = find_shortcuts(cohort, permutations=299)
    assert result.unreadable == 1 and "1 images could not be opened" in result.notes()[2]
    assert str(broken) not in set(result.predictions["thumbnail"]["path"])


def test_the_sample_holds_whole_patients(clean):
    rows = rows_to_try(clean, most=20)
    counts = clean[clean["split"].isin(["train", "valid"])].groupby("patient").size()
    assert (rows.groupby("patient").size() == counts[rows["patient"].unique()].sort_index()).all()
    assert rows.groupby("label").size().max() <= 22


def test_too_few_patients_are_refused(clean):
    with pytest.raises(DataError, match="too few patients"):
        find_shortcuts(clean[clean["label"] == "Normal"])


def test_baselines_predict_other_images(clean, tmp_path):
    train, valid = clean[clean["split"] == "train"], clean[clean["split"] == "valid"]
    predicted = predict_shortcuts(train, valid)["thumbnail"]
    again = find_shortcuts(clean, permutations=99).predictions["thumbnail"]
    merged = predicted.merge(again, on="path")
    np.testing.assert_allclose(merged["p_COVID-19_x"], merged["p_COVID-19_y"], atol=1e-6)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    other = predict_shortcuts(train, pd.DataFrame({"path": [str(broken)]}))["border ring"]
    assert other["status"].tolist() == ["unreadable"] and other["p_Normal"].isna().all()


def test_a_test_set_from_the_same_batch_shows_no_batch_effect(clean):
    rng = np.random.default_rng(0)
    normal = clean[(clean["label"] == "Normal") & clean["split"].isin(["train", "valid"])]
    tested = set(rng.choice(normal["patient"].unique(), 15, replace=False))
    same = clean.assign(split=np.where(clean["patient"].isin(tested), "test", clean["split"]))
    row = compare_parts(same).set_index("class").loc["Normal"]
    assert row["low"] < 0.5 < row["high"]
    assert compare_parts(clean).empty  # no official TEST


def test_a_test_set_from_another_batch_shows_a_batch_effect(clean, tmp_path):
    normal = clean[(clean["label"] == "Normal") & clean["split"].isin(["train", "valid"])]
    tested = set(normal["patient"].unique()[:15])
    rows = clean.assign(split=np.where(clean["patient"].isin(tested), "test", clean["split"]))
    for index, row in rows[rows["split"] == "test"].iterrows():
        pixels = np.asarray(Image.open(row["path"]).convert("L")).copy()
        pixels[:6] = 255  # a bright edge: another machine
        rows.loc[index, "path"] = str(tmp_path / f"{index}.png")
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    assert compare_parts(rows).set_index("class").loc["Normal", "auc"] > 0.95


def test_a_stored_audit_can_be_restored(audit):
    again = ShortcutAudit.from_dict(json.loads(json.dumps(audit.to_dict()).replace("NaN", "null")))
    pd.testing.assert_frame_equal(again.table, audit.table)
    assert again.notes() == audit.notes() and "<table" in again._repr_html_() and "Research use" in repr(again)


def test_the_plot_names_its_rows(audit):
    figure = plot_shortcuts(audit, network={"value": 0.9, "low": 0.8, "high": 0.95, "n": 40})
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[-1] == "network (n = 40)" and "thumbnail" in labels


def test_header_features_differ_between_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)
    for name, options in {"a.jpg": {"quality": 95}, "b.jpg": {"quality": 30}, "c.png": {}}.items():
        Image.fromarray(pixels).save(tmp_path / name, **options)
    features = read_features([tmp_path / name for name in ("a.jpg", "b.jpg", "c.png", "missing.png")])
    headers = features.blocks["headers"]
    assert features.readable.tolist() == [True, True, True, False]
    assert headers[1, 5] > headers[0, 5] > headers[2, 5] == 0  # the first quantiser
    np.testing.assert_allclose(headers[:3, 2], np.log(96 / 64))


def describe_outside(image, lungs):
    return baseline_features._describe_outside(baseline_features._Opened(image), lungs)


def test_no_pixel_of_the_lungs_reaches_a_lung_free_feature():
    """A flag would otherwise be the disease itself: the frame at 16 x 16 pixels holds 18% of the lungs."""
    assert set(OUTSIDE) <= set(LUNG_FREE)
    for number in range(3):
        image = Image.fromarray(draw_phantom(np.random.default_rng([9, number]), image_size=256).image)
        (lungs,) = segment_lungs([image])
        assert lungs.usable
        pixels = np.asarray(image).copy()
        pixels[lungs.mask] = 255 - pixels[lungs.mask]
        before, after = (describe_outside(each, lungs) for each in (image, Image.fromarray(pixels)))
        for name in OUTSIDE:
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
        assert 0.2 < np.isfinite(before["frame"]).mean() < 0.9
        assert np.isfinite(before["border ring"]).mean() > 0.8
        grown = ~outside_region(lungs)
        assert grown[lungs.mask].all() and grown.mean() < 0.7


def test_without_lungs_only_the_outermost_pixels_are_outside():
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
    (lungs,) = segment_lungs([image])
    outside = outside_region(lungs)
    assert not outside[16:-16, 16:-16].any() and outside.sum() == 256**2 - 224**2
    features = describe_outside(image, lungs)
    assert np.isfinite(features["border ring"]).all()
    assert all(np.isnan(features[name]).all() for name in OUTSIDE if name != "border ring")


def test_that_lungs_are_not_found_is_no_lung_free_feature():
    """Opacities hide lungs from the segmentation: in one class more images have none."""
    rng = np.random.default_rng(5)
    blocks = {name: rng.normal(size=(400, size)) for name, size in zip(OUTSIDE, (2, 60, 96, 29), strict=True)}
    unfound = rng.random(400) < np.repeat([0.1, 0.6], 200)
    for name in ("intensity mean and SD", "frame", "frame texture"):
        blocks[name][unfound] = np.nan
    components = kernel_components(Features(blocks, np.ones(400, dtype=bool)))
    labels = np.repeat([0, 1], 200)
    separated = [abs(roc_auc_score(labels, column) - 0.5) for column in components.T]
    assert len(separated) == 30 and max(separated) < 0.12  # the largest of 30 by chance, of 200 per class


def test_what_the_lungs_hide_is_the_mean_of_the_other_images():
    block = np.array([[1.0, np.nan, 5.0], [3.0, np.nan, np.nan], [5.0, 2.0, 7.0]])
    np.testing.assert_array_equal(fill_hidden(block), [[1, 5], [3, 6], [5, 7]])  # the second is seen in 1 of 3
    np.testing.assert_array_equal(fill_hidden(np.array([[np.nan] * 3]), block), [[3, 6]])
    assert fill_hidden(np.full((3, 2), np.nan)).shape == (3, 0)


def test_baselines_that_the_lungs_hide_are_not_tested(clean):
    """Images cut to the lungs show nothing else; they must not count as free of shortcuts."""
    rows = rows_to_try(clean)
    features = read_features(rows["path"])
    for name in OUTSIDE:
        features.blocks[name][:] = np.nan
    result = find_shortcuts(clean, permutations=99, features=features)
    assert result.hidden == 1
    for name in (*OUTSIDE, "non-linear"):
        assert np.isnan(result.row(name)["auc"]) and not result.row(name)["flagged"]
        assert "the lungs fill most images" in result.summary().set_index("baseline").loc[name, "better than chance"]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_disease_of_many_patients_is_no_shortcut(tmp_path):
    """With 300 patients per class an effect of an AUC of 0.57 would be flagged; python -m benchmarks.adversary."""
    root = write_phantom(tmp_path, patients={"COVID-19": 300, "Normal": 300}, image_size=96, seed=0)
    cohort = split_by_patient(read_cohort(root, task="covid", on_problem="skip"), seed=0)
    assert find_shortcuts(cohort).flags == []


def test_features_are_computed_once(tmp_path, monkeypatch):
    """The probes and the audit read the same images."""
    pixels = np.random.default_rng(1).integers(0, 255, (64, 96), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    first = read_features([tmp_path / "a.png", tmp_path / "b.png"])

    def read(*arguments, **options):
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(baseline_features, "read_image", read)
    again = read_features([tmp_path / "a.png"], blocks=["thumbnail", "headers"])
    assert list(again.blocks) == ["thumbnail", "headers"]
    for name, values in again.blocks.items():
        np.testing.assert_array_equal(values, first.blocks[name][:1])


@pytest.mark.nightly
@pytest.mark.slow
def test_clean_data_are_rarely_flagged_and_shortcuts_always(tmp_path):
    """A small version of benchmarks.flags, which uses 200 data sets of each kind."""
    clean = [bool(find_shortcuts(phantom_split(tmp_path / f"{s}", seed=s), permutations=299).flags) for s in range(12)]
    assert sum(clean) <= 2
    planted = [
        find_shortcuts(phantom_split(tmp_path / f"{kind}-{s}", seed=s, shortcut=kind, strength=0.8), permutations=299)
        for kind in PLANTED
        for s in range(2)
    ]
    assert all(result.flags for result in planted)


def test_dicom_files_have_header_features(tmp_path):
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from tests.data.test_dicom import dataset, encode

    (tmp_path / "a.dcm").write_bytes(encode(dataset()))
    features = read_features([tmp_path / "a.dcm"])
    assert features.readable.all() and features.blocks["headers"][0, 5] == 0
