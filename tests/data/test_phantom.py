"""Synthetic radiographs: reproducible, in CoronaHack's layout, with classes that only the lungs distinguish."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, label
from scipy.stats import chi2_contingency
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from covid_fastai.data import phantom
from covid_fastai.data.fingerprints import duplicate_pairs, fingerprint_images
from covid_fastai.data.images import describe_image, open_image
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.phantom import FINDINGS, SHORTCUTS, draw_anatomy, draw_phantom, write_phantom
from covid_fastai.errors import DataError, UsageError

HOSPITALS = list(phantom.HOSPITALS)
SMALL = {"COVID-19": 4, "Normal": 5, "bacteria": 2, "virus": 2}
SIZE = 64


def metadata(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "Chest_xray_Corona_Metadata.csv", keep_default_na=False)


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def many() -> tuple[list[phantom.Phantom], np.ndarray, np.ndarray]:
    """150 patients with COVID-19 and 150 without, in turn, some with two images; images, labels and patients."""
    drawn, labels, patients = [], [], []
    for patient in range(300):
        rng = np.random.default_rng([21, patient])
        anatomy, hospital = draw_anatomy(rng), str(rng.choice(HOSPITALS))
        finding = "COVID-19" if patient % 2 else "Normal"
        for _ in range(1 + (patient % 6 < 2)):  # the same fraction of both classes
            drawn.append(draw_phantom(rng, finding=finding, anatomy=anatomy, hospital=hospital, image_size=SIZE))
            labels.append(patient % 2)
            patients.append(patient)
    return drawn, np.array(labels), np.array(patients)


@pytest.fixture(scope="module")
def pixels(many) -> np.ndarray:
    return np.array([drawn.image for drawn in many[0]], dtype=np.float64)


def cross_validated_auc(features: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float:
    """The AUC of a logistic regression in five folds by patient."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, solver="liblinear"))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(model, features, labels, groups=patients, cv=folds, method="decision_function")
    return float(roc_auc_score(labels, scores))


def mean_and_spread(pixels: np.ndarray) -> np.ndarray:
    return np.column_stack([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))])


def thumbnails(pixels: np.ndarray, side: int = 16) -> np.ndarray:
    step = pixels.shape[1] // side
    return pixels.reshape(len(pixels), side, step, side, step).mean(axis=(2, 4))


def border_ring(pixels: np.ndarray) -> np.ndarray:
    ring = np.ones((16, 16), dtype=bool)
    ring[1:-1, 1:-1] = False
    return thumbnails(pixels)[:, ring]


# no giveaway


def test_mean_and_standard_deviation_do_not_identify_the_class(many, pixels):
    _, labels, patients = many
    assert 0.4 < cross_validated_auc(mean_and_spread(pixels), labels, patients) < 0.6


def test_the_border_does_not_identify_the_class(many, pixels):
    _, labels, patients = many
    assert 0.4 < cross_validated_auc(border_ring(pixels), labels, patients) < 0.6


def test_the_area_outside_the_lungs_does_not_identify_the_class(many, pixels):
    """Lungs filled with their own mean: position, build, bones and exposure are all that is left."""
    drawn, labels, patients = many
    filled = pixels.copy()
    for image, one in zip(filled, drawn, strict=True):
        lungs = binary_dilation(one.lungs, iterations=3)
        image[lungs] = image[lungs].mean()
    assert 0.4 < cross_validated_auc(thumbnails(filled).reshape(len(filled), -1), labels, patients) < 0.6


def test_a_thumbnail_predicts_the_class_but_not_permuted_labels(many, pixels):
    _, labels, patients = many
    features = thumbnails(pixels).reshape(len(pixels), -1)
    assert cross_validated_auc(features, labels, patients) > 0.7
    people, first = np.unique(patients, return_index=True)
    aucs = []
    for seed in range(3):
        permuted = np.random.default_rng(seed).permutation(labels[first])  # by patient, as the truth is
        aucs.append(cross_validated_auc(features, permuted[np.searchsorted(people, patients)], patients))
    assert 0.4 < np.mean(aucs) < 0.6 and max(aucs) < 0.65


@pytest.mark.slow
def test_without_signal_or_severity_a_thumbnail_is_not_predictive(tmp_path):
    for name, options in (("no-signal", {"signal": False}), ("no-severity", {"severity": 0.0})):
        counts = {"COVID-19": 100, "Normal": 100}
        root = write_phantom(tmp_path / name, patients=counts, image_size=SIZE, **options)
        features, labels, patients = from_disk(root)
        auc = cross_validated_auc(thumbnails(features).reshape(len(features), -1), labels, patients)
        assert 0.38 < auc < 0.62  # 100 patients a class: the standard error is 0.04


def from_disk(root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = metadata(root)
    folder = root / "Coronahack-Chest-XRay-Dataset" / "Coronahack-Chest-XRay-Dataset"
    paths = [
        folder / split.lower() / name
        for split, name in zip(table["Dataset_type"], table["X_ray_image_name"], strict=True)
    ]
    pixels = np.array([np.asarray(open_image(path).resize((SIZE, SIZE))) for path in paths], dtype=np.float64)
    return pixels, (table["Label_2_Virus_category"] == "COVID-19").to_numpy().astype(int), table["patient"].to_numpy()


# planted shortcuts


def simple_feature(path: Path, shortcut: str) -> float:
    """What one would look at to find that shortcut."""
    with Image.open(path) as stored:
        width, height = stored.size
        quantiser = stored.quantization[0][0]
    grey = np.asarray(open_image(path), dtype=np.float64)
    if shortcut == "aspect":
        return width / height
    if shortcut == "jpeg_quality":
        return float(quantiser)
    if shortcut == "corner":
        return float(grey[5:11, 5:11].mean())
    if shortcut == "border":
        return -float(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]).mean())
    return float(np.percentile(grey, 75))  # gain: the soft tissue, a larger part than air and lungs


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> dict[str | None, pd.DataFrame]:
    """For each shortcut the table with the simple features of all images; None is the set without one."""
    tables, counts = {}, {"COVID-19": 60, "Normal": 60}
    for shortcut in (None, *SHORTCUTS):
        root = write_phantom(
            tmp_path_factory.mktemp("planted") / "data", patients=counts, image_size=SIZE, shortcut=shortcut, seed=4
        )
        table = metadata(root)
        paths = {path.name: path for path in root.rglob("*.jpeg")}
        for feature in SHORTCUTS:
            table[feature] = [simple_feature(paths[name], feature) for name in table["X_ray_image_name"]]
        table["covid"] = table["Label_2_Virus_category"] == "COVID-19"
        tables[shortcut] = table
    return tables


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_a_planted_shortcut_is_detectable(planted, shortcut):
    table = planted[shortcut]
    assert roc_auc_score(table["covid"], table[shortcut]) > 0.9


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_without_it_the_same_feature_is_not_predictive(planted, shortcut):
    table = planted[None]
    assert 0.3 < roc_auc_score(table["covid"], table[shortcut]) < 0.7  # 60 patients a class: the standard error is 0.05


def test_a_shortcut_leaves_the_other_class_as_it_is(planted):
    for shortcut in SHORTCUTS:
        pd.testing.assert_frame_equal(
            planted[shortcut].loc[~planted[shortcut]["covid"]], planted[None].loc[~planted[None]["covid"]]
        )


def test_strength_is_the_fraction_with_the_shortcut(tmp_path):
    counts = {"COVID-19": 60, "Normal": 10}
    root = write_phantom(tmp_path / "half", patients=counts, image_size=32, shortcut="aspect", strength=0.5)
    wide = {path.name for path in root.rglob("*.jpeg") if describe_image(path).width > 32}
    table = metadata(root)
    covid = table.loc[table["Label_2_Virus_category"] == "COVID-19", "X_ray_image_name"]
    assert wide < set(covid) and 0.35 < len(wide) / len(covid) < 0.65
    root = write_phantom(tmp_path / "none", patients=counts, image_size=32, shortcut="aspect", strength=0)
    assert not any(describe_image(path).width > 32 for path in root.rglob("*.jpeg"))


# the drawing


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("image_size", [32, 65, 128])
def test_a_drawing_has_its_masks(finding, image_size):
    drawn = draw_phantom(np.random.default_rng(0), finding=finding, image_size=image_size)
    shape = (image_size, image_size)
    assert drawn.image.shape == drawn.lungs.shape == drawn.opacity.shape == shape
    assert drawn.image.dtype == np.uint8 and drawn.lungs.dtype == bool and drawn.opacity.dtype == np.float32
    assert (drawn.opacity.max() > 0.05) == (finding != "Normal") and drawn.opacity.min() >= 0
    assert drawn.image.std() > 20


def test_lungs_are_two_inside_the_image_of_a_plausible_area(many):
    fractions = np.array([drawn.lungs.mean() for drawn in many[0]])
    assert fractions.min() > 0.08 and fractions.max() < 0.5 and 0.18 < fractions.mean() < 0.32
    for drawn in many[0][::5]:
        parts, number = label(drawn.lungs)
        sizes = np.sort(np.bincount(parts.ravel())[1:])[::-1]
        assert number >= 2 and sizes[:2].sum() > 0.97 * drawn.lungs.sum() and sizes[1] > 0.25 * sizes[0]
        edge = np.concatenate([drawn.lungs[0], drawn.lungs[-1]])
        assert not edge.any()


def test_lungs_are_darker_than_the_rest_of_the_chest(many, pixels):
    for drawn, image in list(zip(many[0], pixels, strict=True))[::5]:
        around = binary_dilation(drawn.lungs, iterations=4) & ~binary_dilation(drawn.lungs, iterations=1)
        assert image[drawn.lungs].mean() < image[around].mean() - 10


@pytest.mark.parametrize("finding", ["COVID-19", "bacteria", "virus"])
def test_opacities_lie_within_the_lungs(finding):
    for seed in range(20):
        drawn = draw_phantom(np.random.default_rng([1, seed]), finding=finding, image_size=128)
        assert (drawn.opacity[~drawn.lungs] == 0).all() and drawn.opacity[drawn.lungs].max() > 0.1


def test_findings_differ_where_they_should():
    """COVID-19 and virus in both lungs, bacteria in one; patches of COVID-19 low and near the chest wall."""
    one_sided, height, reach = {}, {}, {}
    for finding in ("COVID-19", "bacteria", "virus"):
        sides, rows, columns = [], [], []
        for seed in range(30):
            drawn = draw_phantom(np.random.default_rng([2, seed]), finding=finding, image_size=SIZE)
            y, x = np.indices(drawn.opacity.shape)
            middle = np.average(x, weights=drawn.lungs)
            left = drawn.opacity[x < middle].sum() / drawn.opacity.sum()
            sides.append(max(left, 1 - left))
            rows.append(np.average(y, weights=drawn.opacity) - np.average(y, weights=drawn.lungs))
            away = np.abs(x - middle)
            columns.append(np.average(away, weights=drawn.opacity) - np.average(away, weights=drawn.lungs))
        one_sided[finding], height[finding], reach[finding] = np.mean(sides), np.mean(rows), np.mean(columns)
    assert one_sided["bacteria"] > 0.97 and max(one_sided["COVID-19"], one_sided["virus"]) < 0.8
    assert height["COVID-19"] > 0 and reach["COVID-19"] > 0.5


def test_opacities_do_not_change_the_mean_density():
    """What an opacity adds is taken from the rest of the lungs: the same chance, the same mean with and without it."""
    rng = np.random.default_rng
    for finding, severity in itertools.product(["COVID-19", "bacteria", "virus"], [0.5, 1.0]):
        means = []
        for strength in (0.0, severity):
            images = [
                draw_phantom(rng([6, n]), finding=finding, severity=strength, image_size=SIZE).image for n in range(10)
            ]
            means.append(np.mean(images))
        assert abs(means[1] - means[0]) < 1.5


def test_severity_scales_the_opacity():
    weak, full = (draw_phantom(np.random.default_rng(3), finding="virus", severity=s).opacity for s in (0.5, 1.0))
    np.testing.assert_allclose(2 * weak, full, rtol=1e-5)
    assert draw_phantom(np.random.default_rng(3), finding="virus", severity=0).opacity.max() == 0


def test_the_images_of_a_patient_have_the_same_anatomy():
    """Two images of one patient are more alike than those of two, once position and exposure are averaged out."""
    rng = np.random.default_rng(0)
    anatomies = [draw_anatomy(rng) for _ in range(8)]
    means = [
        [np.mean([draw_phantom(rng, anatomy=a, image_size=32).image for _ in range(15)], axis=0) for a in anatomies]
        for _ in range(2)
    ]
    flat = [np.reshape(mean, (8, -1)) - np.mean(mean) for mean in means]
    distance = ((flat[0][:, None] - flat[1][None]) ** 2).mean(axis=2)
    assert (distance.argmin(axis=1) == np.arange(8)).mean() >= 0.75


def test_the_same_seed_draws_the_same():
    first, second, other = (draw_phantom(np.random.default_rng(seed), finding="COVID-19") for seed in (0, 0, 1))
    for name in ("image", "lungs", "opacity"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert (getattr(first, name) != getattr(other, name)).any()
    assert draw_anatomy(np.random.default_rng(0)) == draw_anatomy(np.random.default_rng(0))


def test_numbers_of_numpy_draw_the_same():
    """Computed in 32 bits, whatever the type of a number: one of 64 bits would turn all pixels into 64 bits."""
    plain = draw_phantom(np.random.default_rng(0), finding="virus", image_size=48, severity=0.5)
    options = {"image_size": np.int64(48), "severity": np.float64(0.5)}
    numpy = draw_phantom(np.random.default_rng(0), finding="virus", **options)
    np.testing.assert_array_equal(numpy.image, plain.image)
    np.testing.assert_array_equal(numpy.opacity, plain.opacity)
    assert numpy.opacity.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"finding": "covid"}, "COVID-19"),
        ({"hospital": "hospital-Z"}, "hospital-A"),
        ({"image_size": 31}, "32"),
        ({"image_size": 64.5}, "32"),
        ({"severity": -1}, "severity"),
        ({"severity": float("nan")}, "severity"),
        ({"severity": float("inf")}, "severity"),
    ],
)
def test_wrong_options_of_a_drawing_are_refused(options, named):
    with pytest.raises(UsageError) as caught:
        draw_phantom(np.random.default_rng(0), **options)
    assert named in str(caught.value) and repr(next(iter(options.values()))) in caught.value.message


# the data set


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("small") / "data", patients=SMALL, image_size=32, masks=True)


def test_the_same_arguments_give_the_same_bytes(small, tmp_path):
    again = write_phantom(tmp_path / "again", patients=SMALL, image_size=32, masks=True)
    assert digest(again) == digest(small)
    turned = dict(reversed(SMALL.items()))  # the same mapping, spelt in another order
    assert digest(write_phantom(tmp_path / "turned", patients=turned, image_size=32, masks=True)) == digest(small)
    other = digest(write_phantom(tmp_path / "other", patients=SMALL, image_size=32, masks=True, seed=1))
    images = [name for name in digest(small) if name.endswith(".jpeg")]
    assert not any(other.get(name) == digest(small)[name] for name in images)


def test_numbers_of_numpy_are_numbers(small, tmp_path):
    counts = {finding: np.int64(number) for finding, number in SMALL.items()}
    options = {"image_size": np.int64(32), "seed": np.int64(0), "severity": np.float32(1), "masks": np.True_}
    assert digest(write_phantom(tmp_path / "numpy", patients=counts, **options)) == digest(small)


@pytest.mark.parametrize("patients", [1, 3, 7, 10, 13, 25])
def test_a_number_of_patients_is_that_number(patients, tmp_path):
    table = metadata(write_phantom(tmp_path / "data", patients=patients, image_size=32))
    assert table["patient"].nunique() == patients
    if patients >= 10:
        fractions = table.groupby(["Label_2_Virus_category", "Label_1_Virus_category"])["patient"].nunique() / patients
        wanted = {("COVID-19", "Virus"): 0.4, ("", ""): 0.4, ("", "bacteria"): 0.1, ("", "Virus"): 0.1}
        assert all(abs(fractions[key] - fraction) <= 1 / patients for key, fraction in wanted.items())


def test_the_layout_is_coronahacks(small):
    table = metadata(small)
    assert table.columns[0] == "Unnamed: 0" and table.columns[1:6].tolist() == [
        "X_ray_image_name",
        "Label",
        "Dataset_type",
        "Label_2_Virus_category",
        "Label_1_Virus_category",
    ]
    assert set(table["Label"]) == {"Normal", "Pnemonia"}
    folder = small / "Coronahack-Chest-XRay-Dataset" / "Coronahack-Chest-XRay-Dataset"
    listed = {
        f"{split.lower()}/{name}" for split, name in zip(table["Dataset_type"], table["X_ray_image_name"], strict=True)
    }
    assert listed == {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    summary = pd.read_csv(small / "Chest_xray_Corona_dataset_Summary.csv", keep_default_na=False)
    assert summary["Image_Count"].sum() == len(table)
    assert summary.columns.tolist()[1:] == ["Label", "Label_1_Virus_category", "Label_2_Virus_category", "Image_Count"]
    for path in folder.rglob("*.jpeg"):
        facts = describe_image(path)
        assert (facts.format, facts.mode, facts.width, facts.height, facts.notes) == ("JPEG", "L", 32, 32, ())


def test_masks_are_the_true_lungs(small):
    names = metadata(small)["X_ray_image_name"].str.replace(".jpeg", ".png")
    assert set(names) == {path.name for path in (small / "lung-masks").iterdir()}
    for path in (small / "lung-masks").iterdir():
        with Image.open(path) as mask:
            assert mask.mode == "1" and 0.08 < np.asarray(mask).mean() < 0.5


@pytest.mark.parametrize(
    ("task", "counts"),
    [
        ("covid", {"Normal": 20, "COVID-19": 20}),
        ("pneumonia", {"Normal": 20, "Pneumonia": 16}),
        ("etiology", {"Normal": 20, "Bacterial": 8, "Viral": 8}),
    ],
)
def test_every_task_reads_it(phantom_root, task, counts):
    cohort = read_cohort(phantom_root, task=task)
    assert not [row for row in cohort.facts.problems if row["severity"] == "error"]
    assert cohort.patients_known and set(cohort["source"]) == set(HOSPITALS)
    of_task = cohort[cohort["label"].isin(counts)]
    assert of_task.groupby("label")["patient"].nunique().to_dict() == counts
    tested = set(cohort.loc[cohort["split"] == "test", "label"])
    assert tested == (set() if task == "covid" else set(counts))
    assert (cohort["group"] == cohort["patient"]).all()  # there are no duplicate images


def test_no_covid_19_in_test_and_no_patient_on_both_sides(phantom_root):
    table = metadata(phantom_root)
    test = table[table["Dataset_type"] == "TEST"]
    assert len(test) and "COVID-19" not in set(test["Label_2_Virus_category"])
    assert (table.groupby("patient")["Dataset_type"].nunique() == 1).all()
    normal = table[table["Label"] == "Normal"].groupby("patient")["Dataset_type"].first()
    assert (normal == "TEST").sum() == round(0.15 * 20)


def test_patients_have_several_images_of_one_hospital(phantom_root):
    table = metadata(phantom_root)
    images = table.groupby("patient").size()
    assert set(images) == {1, 2, 3} and 1.2 < images.mean() < 1.8
    for column in ("source", "sex", "age", "Label", "Label_1_Virus_category"):
        assert (table.groupby("patient")[column].nunique() == 1).all()
    assert set(table["source"]) == set(HOSPITALS) and set(table["view"]) <= {"PA", "AP"}
    assert table["age"].between(18, 89).all()


def test_hospital_sex_view_and_age_do_not_depend_on_the_class(tmp_path, monkeypatch):
    """Only the tables are looked at, so one drawing serves all: 1,200 patients in a second."""
    drawn = draw_phantom(np.random.default_rng(0), image_size=32)
    monkeypatch.setattr(phantom, "draw_phantom", lambda rng, **options: drawn)
    table = metadata(write_phantom(tmp_path / "data", patients=1200, image_size=32))
    finding = table["Label_2_Virus_category"] + table["Label_1_Virus_category"]
    people = table.assign(finding=finding).drop_duplicates("patient")
    for column in ("source", "sex", "view"):
        assert chi2_contingency(pd.crosstab(people["finding"], people[column])).pvalue > 0.01
    assert people.groupby("finding")["age"].mean().std() < 3
    images = table.assign(finding=finding).groupby(["finding", "patient"]).size()
    assert images.groupby("finding").mean().std() < 0.1


def test_all_images_are_different(phantom_root):
    prints = fingerprint_images(sorted(phantom_root.rglob("*.jpeg")))
    assert prints["sha256"].is_unique and (prints["error"] == "").all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "patients"),
    [(256, 100), *(pytest.param(*case, marks=pytest.mark.nightly) for case in ((224, 600), (256, 600), (512, 300)))],
)
def test_no_two_patients_are_called_copies(size, patients, tmp_path):
    """In larger drawings of similar bones, a pair in 100,000 was called a copy, and two labels ended `read_cohort`."""
    files = sorted(write_phantom(tmp_path / "data", patients=patients, image_size=size).rglob("*.jpeg"))
    owners = np.array([file.name.split("-")[1] for file in files])
    pairs = duplicate_pairs(fingerprint_images(files))
    assert (owners[pairs["first"]] == owners[pairs["second"]]).all()


def test_bones_are_those_of_the_patient():
    one, other = draw_anatomy(np.random.default_rng(0)), draw_anatomy(np.random.default_rng(1))
    x, y = np.meshgrid(*[np.linspace(-1, 1, 200, dtype=np.float32)] * 2)
    bends = [phantom._bends(x, y, anatomy) for anatomy in (one, one, other)]
    assert (bends[0] == bends[1]).all() and bends[0].std() > 0.2
    assert abs(np.corrcoef(bends[0].ravel(), bends[2].ravel())[0, 1]) < 0.8


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"patients": 0}, "patients=0"),
        ({"patients": -5}, "patients=-5"),
        ({"patients": 2.5}, "patients=2.5"),
        ({"patients": True}, "patients=True"),
        ({"patients": "400"}, "patients='400'"),
        ({"patients": {}}, "patients={}"),
        ({"patients": {"COVID": 4}}, "COVID-19"),
        ({"patients": {"COVID-19": -1, "Normal": 5}}, "-1"),
        ({"patients": {"COVID-19": 0}}, "patients="),
        ({"image_size": 31}, "32"),
        ({"severity": -0.1}, "severity=-0.1"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": None}, "seed=None"),
        ({"shortcut": "watermark"}, "one of 'corner', 'border', 'jpeg_quality', 'aspect', 'gain', or None"),
        ({"strength": 1.1}, "strength=1.1"),
        ({"strength": float("nan")}, "strength=nan"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(options, named, tmp_path):
    with pytest.raises(UsageError) as caught:
        write_phantom(tmp_path / "data", **options)
    assert named in str(caught.value) and caught.value.hint and not (tmp_path / "data").exists()


def test_a_complete_folder_is_left_as_it_is(tmp_path, monkeypatch):
    options = {"patients": SMALL, "image_size": 32}
    root = write_phantom(tmp_path / "data", **options)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(phantom, "draw_phantom", lambda *args, **options: pytest.fail("it was drawn again"))
    assert write_phantom(str(root), **options) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"image_size": 48}, {"masks": True}, {"severity": 0.5}, {"shortcut": "gain"}]
)
def test_other_settings_are_not_taken_for_the_same(other, tmp_path):
    options = {"patients": {"Normal": 1}, "image_size": 32}
    root = write_phantom(tmp_path / "data", **options)
    before = digest(root)
    with pytest.raises(DataError, match="other settings") as caught:
        write_phantom(root, **{**options, **other})
    assert str(root) in caught.value.message and caught.value.hint and digest(root) == before


def test_a_half_written_folder_is_not_taken_for_complete(tmp_path, monkeypatch):
    """The process dies at the third image: what is there is refused, not read as if it were all."""
    draw, calls = draw_phantom, itertools.count()

    def dying(*args, **options):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return draw(*args, **options)

    monkeypatch.setattr(phantom, "draw_phantom", dying)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "data", patients=SMALL, image_size=32)
    monkeypatch.undo()
    assert list((tmp_path / "data").rglob("*.jpeg")) and not (tmp_path / "data" / phantom.SETTINGS).exists()
    with pytest.raises(DataError, match="incomplete data set"):
        write_phantom(tmp_path / "data", patients=SMALL, image_size=32)


@pytest.mark.parametrize("settings", ["", "{", "null", json.dumps({"seed": 0})])
def test_damaged_settings_are_not_taken_for_complete(settings, tmp_path):
    root = write_phantom(tmp_path / "data", patients={"Normal": 1}, image_size=32)
    (root / phantom.SETTINGS).write_text(settings)
    with pytest.raises(DataError, match=" has (other files|synthetic data with other settings)"):
        write_phantom(root, patients={"Normal": 1}, image_size=32)


def test_a_folder_with_other_files_is_refused_and_an_empty_one_is_used(tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(DataError, match="other files"):
        write_phantom(tmp_path, patients={"Normal": 1}, image_size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="is a file"):
        write_phantom(tmp_path / "thesis.txt", patients={"Normal": 1}, image_size=32)
    (tmp_path / "empty").mkdir()
    assert (
        metadata(write_phantom(tmp_path / "empty", patients={"Normal": 1}, image_size=32))["Label"].eq("Normal").all()
    )
