"""Splits: no patient on two sides, every class on each, close to the requested fraction, the test set unchanged."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from covid_fastai.data import splits
from covid_fastai.data.cohort import Cohort, CohortInfo, load_cohort, save_cohort
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.splits import (
    fold_by_patient,
    fold_cohort,
    leaked_patients,
    split_by_image,
    split_by_patient,
)
from covid_fastai.errors import DataError, UsageError
from tests.examples import examples

CLASSES = ["Normal", "COVID-19"]


def make_cohort(groups, *, classes=CLASSES, others=()) -> Cohort:
    """A cohort from (patient, label, images) and, for rows that are not training, (patient, label, images, split)."""
    rows = [
        {"path": f"/data/{patient}-{label}-{i}.png", "label": label, "patient": patient, "group": patient, "split": s}
        for patient, label, images, s in [*((*group, "train") for group in groups), *others]
        for i in range(images)
    ]
    facts = CohortInfo(classes=classes, positive=classes[-1])
    return Cohort(rows, columns=["path", "label", "patient", "group", "split"], facts=facts)


def uneven(*, seed=0, patients=(120, 40), classes=CLASSES) -> list[tuple[str, str, int]]:
    """Patients with mostly one image and at most a dozen, as in CoronaHack."""
    rng = np.random.default_rng(seed)
    return [
        (f"{label}-{i}", label, int(min(12, rng.geometric(0.6))))
        for label, n in zip(classes, patients, strict=True)
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def cohort():
    others = [("t", "Normal", 4, "test"), ("u", "COVID-19", 2, "test"), ("v", "Normal", 3, "excluded")]
    return make_cohort(uneven(), others=others)


def by_path(cohort, column="split"):
    return cohort.set_index("path")[column].sort_index()


# by patient


def test_no_patient_on_both_sides_and_each_class_on_each(cohort):
    split = split_by_patient(cohort)
    assert leaked_patients(split) == []
    used = split[split["split"].isin(["train", "valid"])]
    assert (used.groupby("group")["split"].nunique() == 1).all()
    assert set(used.groupby(["split", "label"]).size().index) == set(itertools.product(["train", "valid"], CLASSES))


def test_only_training_rows_move(cohort):
    before = cohort.copy(deep=True)
    split = split_by_patient(cohort)
    pd.testing.assert_frame_equal(cohort, before)
    pd.testing.assert_frame_equal(split.drop(columns="split"), cohort.drop(columns="split"))
    for name in ("test", "excluded"):
        assert ((split["split"] == name) == (cohort["split"] == name)).all()
    assert isinstance(split, Cohort) and split.facts == cohort.facts


@pytest.mark.parametrize("valid", [0.1, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_each_class_is_close_to_the_requested_fraction(cohort, valid, seed):
    split = split_by_patient(cohort, valid_pct=valid, seed=seed)
    used = split[split["split"].isin(["train", "valid"])]
    for label, rows in used.groupby("label"):
        largest = rows.groupby("group").size().max()
        assert abs((rows["split"] == "valid").sum() - valid * len(rows)) <= largest, label


@pytest.mark.parametrize("function", [split_by_patient, split_by_image, fold_by_patient])
def test_the_seed_decides_and_the_order_of_rows_does_not(cohort, function):
    column = "fold" if function is fold_by_patient else "split"
    first = by_path(function(cohort, seed=3), column)
    shuffled = cohort.sample(frac=1, random_state=1).reset_index(drop=True)
    pd.testing.assert_series_equal(first, by_path(function(shuffled, seed=3), column))
    assert (first != by_path(function(cohort, seed=4), column)).any()


def test_any_unique_index_will_do(cohort):
    moved = cohort.set_index(cohort["path"].str[::-1])
    pd.testing.assert_series_equal(by_path(split_by_patient(moved)), by_path(split_by_patient(cohort)))


def test_groups_stay_on_one_side():
    cohort = make_cohort([(f"{label}-{i}", label, 1) for label in CLASSES for i in range(10)])
    cohort["group"] = cohort["patient"].str.replace("-1$", "-0", regex=True)  # patients 0 and 1 fraction an image
    for seed in range(20):
        split = split_by_patient(cohort, seed=seed).set_index("patient")["split"]
        assert all(split[f"{label}-0"] == split[f"{label}-1"] for label in CLASSES)


def test_two_patients_of_a_class_are_enough():
    cohort = make_cohort([("a", "Normal", 9), ("b", "Normal", 1), ("c", "COVID-19", 1), ("d", "COVID-19", 20)])
    for valid in (0.01, 0.5, 0.99):
        counts = split_by_patient(cohort, valid_pct=valid).groupby(["split", "label"])["patient"].nunique()
        assert counts.tolist() == [1, 1, 1, 1]


def test_valid_rows_are_split_again(cohort):
    once = split_by_patient(cohort, seed=1)
    pd.testing.assert_frame_equal(split_by_patient(once, seed=2), split_by_patient(cohort, seed=2))


labels = st.sampled_from(["a", "b", "c"])
mixed_groups = st.lists(st.lists(labels, min_size=1, max_size=6), min_size=1, max_size=14)


@given(groups=mixed_groups, valid=st.floats(0.01, 0.99), folds=st.integers(2, 4), seed=st.integers(0, 2**32 - 1))
@examples(30)
def test_any_split_meets_its_conditions_or_is_refused(groups, valid, folds, seed):
    rows = [(f"g{i}", label, 1) for i, group in enumerate(groups) for label in group]
    cohort = make_cohort(rows, classes=["a", "b", "c"])
    cohort["path"] += cohort.index.astype(str)
    for function, column, subsets in (
        (lambda: split_by_patient(cohort, valid_pct=valid, seed=seed), "split", 2),
        (lambda: fold_by_patient(cohort, folds=folds, seed=seed), "fold", folds),
    ):
        holding = cohort.groupby("label")["group"].nunique().reindex(["a", "b", "c"], fill_value=0)
        try:
            result = function()
        except DataError as error:
            pure = cohort.groupby("group")["label"].nunique().max() == 1
            assert (holding < subsets).any() or not pure, "every class has a patient for each subset"
            assert error.hint
            continue
        assert (holding >= subsets).all()
        assert (result.groupby("group")[column].nunique() == 1).all()
        assert (result.groupby("label")[column].nunique() == subsets).all()


@pytest.mark.slow
def test_patients_with_several_classes_are_split_where_a_split_exists(monkeypatch):
    """Compared with an exhaustive search: repeated attempts find splits that one attempt misses, nearly all of them."""
    classes = ["a", "b", "c"]
    cohorts = []
    for trial in range(500):
        rng = np.random.default_rng(trial)
        images = rng.integers(0, 3, (rng.integers(3, 7), 3))
        images = images * (rng.random(images.shape) < 0.5)
        images = images[images.sum(axis=1) > 0]
        ways = (np.array(way) for way in itertools.product((0, 1), repeat=len(images)))
        if any(all((images[way == part] > 0).any(axis=0).all() for part in (0, 1)) for way in ways):
            rows = [(f"g{i}", classes[j], n) for i, group in enumerate(images) for j, n in enumerate(group) if n]
            cohorts.append(make_cohort(rows, classes=classes))

    def refused():
        number = 0
        for cohort in cohorts:
            try:
                split = split_by_patient(cohort, seed=1)
                assert (split.groupby("label")["split"].nunique() == 2).all()
            except DataError:
                number += 1
        return number

    assert len(cohorts) > 50
    often = refused()
    monkeypatch.setattr(splits, "MAX_ATTEMPTS", 1)
    assert often <= 0.01 * len(cohorts) and often < refused()


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_as_balanced_as_scikit_learns(seed):
    cohort = make_cohort(uneven(seed=seed, patients=(300, 60)))
    ours = fold_by_patient(cohort, folds=5, seed=seed)["fold"].to_numpy()
    theirs = np.zeros(len(cohort), dtype=int)
    folder = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(folder.split(cohort, cohort["label"], cohort["group"])):
        theirs[held_out] = number

    def farthest(folds):
        positive = (cohort["label"] == "COVID-19").groupby(folds).mean()
        return (positive - (cohort["label"] == "COVID-19").mean()).abs().max()

    assert farthest(ours) <= farthest(theirs) + 0.02
    for label, rows in cohort.groupby("label"):
        counts = np.bincount(ours[rows.index], minlength=5)
        assert np.ptp(counts) <= rows.groupby("group").size().max(), label


# folds


def test_folds_cover_every_training_row_once(cohort):
    folded = fold_by_patient(cohort, folds=4)
    training = cohort["split"] == "train"
    assert set(folded.loc[training, "fold"]) == {0, 1, 2, 3} and (folded.loc[~training, "fold"] == -1).all()
    assert (folded.loc[training].groupby("group")["fold"].nunique() == 1).all()
    held_out = []
    for fold in range(4):
        split = fold_cohort(folded, fold)
        assert leaked_patients(split) == []
        assert (split.loc[~training, "split"] == cohort.loc[~training, "split"]).all()
        assert set(split.loc[training, "split"]) == {"train", "valid"}
        assert (split[split["split"] == "valid"].groupby("label").size() > 0).sum() == 2
        held_out += split.index[split["split"] == "valid"].tolist()
    assert sorted(held_out) == cohort.index[training].tolist()


def test_folding_takes_valid_rows_back(cohort):
    split = split_by_patient(cohort)
    pd.testing.assert_frame_equal(fold_by_patient(split), fold_by_patient(cohort))


def test_as_many_folds_as_patients_of_the_rarest_class():
    cohort = make_cohort(uneven(patients=(30, 5)))
    folded = fold_by_patient(cohort, folds=5)
    assert folded[folded["label"] == "COVID-19"].groupby("fold")["patient"].nunique().tolist() == [1] * 5


@pytest.mark.parametrize("fold", [-1, 5, "0", None])
def test_an_unknown_fold_raises_an_error(cohort, fold):
    with pytest.raises(UsageError, match="There is no fold") as error:
        fold_cohort(fold_by_patient(cohort, folds=5), fold)
    assert "0 to 4" in error.value.hint


def test_a_cohort_without_folds(cohort):
    with pytest.raises(UsageError, match="no column fold") as error:
        fold_cohort(cohort, 0)
    assert "fold_by_patient" in error.value.hint


# the pretraining data


def cohort_with_pretraining(fraction=0.5, *, patients=(120, 40), seed=0) -> pd.DataFrame:
    cohort = make_cohort(uneven(patients=patients, seed=seed))
    numbers = cohort["patient"].str.rsplit("-", n=1).str[1].astype(int)
    return cohort.assign(in_pretraining=numbers % 20 < 20 * fraction)


SPLIT_FUNCTIONS = [split_by_patient, split_by_image, fold_by_patient]


@pytest.mark.parametrize("function", SPLIT_FUNCTIONS)
def test_a_cohort_without_pretraining_data_is_split_as_usual(cohort, function):
    pd.testing.assert_frame_equal(
        function(cohort.assign(in_pretraining=False)).drop(columns="in_pretraining"), function(cohort)
    )


@pytest.mark.parametrize("valid", [0.1, 0.2, 0.4, 0.8])
@pytest.mark.parametrize("function", [split_by_patient, split_by_image])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.75])
def test_validation_is_a_fraction_of_all_images_and_at_most_half_of_those_outside_pretraining(
    function, valid, fraction
):
    cohort = cohort_with_pretraining(fraction)
    cohort.loc[cohort["label"] == "COVID-19", "in_pretraining"] = (
        False  # no image of this class is in pretraining: the usual fraction
    )
    split = function(cohort, valid_pct=valid)
    assert (split.loc[cohort["in_pretraining"], "split"] == "train").all()
    for label, rows in split.groupby("label"):
        available = (~rows["in_pretraining"]).sum()
        wanted = min(valid * len(rows), max(valid, 0.5) * available)
        off = rows.groupby("group").size().max() if function is split_by_patient else 1
        assert abs((rows["split"] == "valid").sum() - wanted) <= off, label


@pytest.mark.parametrize("function", SPLIT_FUNCTIONS)
def test_the_group_of_a_pretraining_image_stays_in_training_whatever_its_split(function):
    cohort = make_cohort(uneven(), others=[("t", "Normal", 1, "excluded")]).assign(in_pretraining=False)
    cohort.loc[cohort["split"] == "excluded", ["group", "in_pretraining"]] = ["Normal-0", True]
    cohort.loc[cohort["patient"] == "Normal-1", "group"] = "Normal-0"  # who fractions an image with them
    for seed in range(10):
        split = function(cohort, seed=seed)
        pinned = split[split["patient"].isin(["Normal-0", "Normal-1"])]
        assert (pinned["split"] == "train").all()
        assert function is not fold_by_patient or (pinned["fold"] == -1).all()


@pytest.mark.parametrize("function", SPLIT_FUNCTIONS)
def test_a_saved_cohort_has_the_same_exclusions(function, tmp_path):
    cohort = cohort_with_pretraining()
    save_cohort(cohort, tmp_path)
    pd.testing.assert_frame_equal(function(load_cohort(tmp_path)), function(cohort))


@pytest.mark.parametrize("function", SPLIT_FUNCTIONS)
@pytest.mark.parametrize("kind", [str, int, float])
def test_texts_or_numbers_in_place_of_booleans_are_refused(function, kind):
    cohort = cohort_with_pretraining()
    changed = cohort.assign(in_pretraining=cohort["in_pretraining"].astype(kind))
    with pytest.raises(DataError, match="in_pretraining of the cohort is not boolean") as error:
        function(changed)
    remedy = error.value.hint.split("Convert it: ")[1].removesuffix(".")
    exec(remedy, {"cohort": changed})
    pd.testing.assert_frame_equal(function(changed), function(cohort))


def test_pretraining_rows_that_were_held_out_go_back_to_training():
    cohort = split_by_patient(cohort_with_pretraining().drop(columns="in_pretraining")).assign(
        in_pretraining=cohort_with_pretraining()["in_pretraining"]
    )
    assert (cohort.loc[cohort["in_pretraining"], "split"] == "valid").any()
    for function in SPLIT_FUNCTIONS:
        assert (function(cohort).loc[cohort["in_pretraining"], "split"] == "train").all()


def test_folds_cover_every_row_outside_pretraining_once():
    cohort = cohort_with_pretraining()
    folded = fold_by_patient(cohort, folds=4)
    assert folded["fold"].dtype.kind == "i" and ((folded["fold"] == -1) == cohort["in_pretraining"]).all()
    splits_of_folds = [fold_cohort(folded, fold) for fold in range(4)]
    times = sum((split["split"] == "valid").astype(int) for split in splits_of_folds)
    assert (times == (~cohort["in_pretraining"]).astype(int)).all()
    assert all(leaked_patients(split) == [] for split in splits_of_folds)


@given(groups=mixed_groups, pinned=st.sets(st.integers(0, 13)), folds=st.integers(2, 3), seed=st.integers(0, 2**32 - 1))
@examples(30)
def test_no_pretraining_row_is_ever_held_out(groups, pinned, folds, seed):
    rows = [(f"g{i}", label, 1) for i, group in enumerate(groups) for label in group]
    cohort = make_cohort(rows, classes=["a", "b", "c"])
    cohort["path"] += cohort.index.astype(str)
    cohort["in_pretraining"] = cohort["group"].isin([f"g{i}" for i in pinned])
    available = (
        cohort[~cohort["in_pretraining"]].groupby("label")["group"].nunique().reindex(["a", "b", "c"], fill_value=0)
    )
    for function, subsets in ((split_by_patient, 2), (split_by_image, 2), (fold_by_patient, folds)):
        try:
            result = function(cohort, seed=seed, **({"folds": folds} if function is fold_by_patient else {}))
        except DataError as error:
            assert error.hint
            continue
        assert (result.loc[cohort["in_pretraining"], "split"] == "train").all()
        if function is split_by_image:
            held_out = result["split"] == "valid"
        else:
            assert (available >= subsets).all()
            held_out = result["fold"] >= 0 if function is fold_by_patient else result["split"] == "valid"
        assert (
            set(result.loc[held_out, "label"]) == {"a", "b", "c"} and not cohort.loc[held_out, "in_pretraining"].any()
        )


def test_the_message_names_the_pretraining_data_only_where_they_are_the_reason():
    cohort = make_cohort([(f"n{i}", "Normal", 1) for i in range(9)] + [("c0", "COVID-19", 1)])
    for pretraining in (["c0"], ["n0", "n1"], ["c0", "n0"]):
        with pytest.raises(DataError, match=r"Too few patients of 'COVID-19' .*'Normal' 9, 'COVID-19' 1") as error:
            split_by_patient(cohort.assign(in_pretraining=cohort["patient"].isin(pretraining)))
        assert "exclude_pretraining_overlap" not in str(error.value)
    with pytest.raises(DataError, match="exclude_pretraining_overlap=False.*fewer folds"):
        fold_by_patient(
            cohort_with_pretraining(0.9, patients=(40, 20)).assign(
                in_pretraining=lambda rows: rows["label"] == "Normal"
            )
        )


# by image


def test_split_by_image_holds_out_the_requested_fraction(cohort):
    split = split_by_image(cohort, valid_pct=0.25)
    rows = split[split["split"].isin(["train", "valid"])]
    assert (rows["split"] == "valid").sum() == round(0.25 * len(rows))
    fraction = (rows["split"] == "valid").groupby(rows["label"]).mean()
    np.testing.assert_allclose(fraction, 0.25, atol=0.01)
    assert (split.loc[cohort["split"] == "test", "split"] == "test").all()


def test_the_leaked_fraction_is_right(cohort, caplog):
    with caplog.at_level(logging.WARNING, "covid_fastai"):
        split = split_by_image(cohort)
    train, valid = (set(split.loc[split["split"] == part, "patient"]) for part in ("train", "valid"))
    assert 0 < len(train & valid) < len(valid)
    assert split.facts.leaked_fraction == len(train & valid) / len(valid)
    assert leaked_patients(split) == sorted(train & valid)
    assert f"{len(train & valid)} of {len(valid)} validation patients" in caplog.text
    for again in (split_by_patient(split), fold_by_patient(split), fold_cohort(fold_by_patient(split), 0)):
        assert again.facts == cohort.facts


def test_the_leaked_fraction_is_of_validation_patients_only():
    cohort = make_cohort([(f"{label}-{i}", label, 1) for label in CLASSES for i in range(10)])
    extra = cohort[cohort["label"] == "Normal"].assign(path=lambda rows: rows["path"] + "2", split="test")
    both = pd.concat([cohort, extra], ignore_index=True)
    assert split_by_image(both).facts.leaked_fraction == 0


@pytest.mark.parametrize("rare", [2, 3])
@pytest.mark.parametrize("valid", [0.01, 0.2, 0.99])
def test_split_by_image_has_each_class_on_both_sides(rare, valid):
    cohort = make_cohort([("a", "Normal", 60), ("b", "COVID-19", rare)])
    for seed in range(10):
        split = split_by_image(cohort, valid_pct=valid, seed=seed)
        assert (split.groupby("label")["split"].nunique() == 2).all()


def test_leaked_patients_covers_shared_images_and_the_test_set():
    cohort = make_cohort(
        [("a", "Normal", 1), ("b", "Normal", 1)], others=[("c", "Normal", 1, "valid"), ("d", "Normal", 1, "test")]
    )
    assert leaked_patients(cohort) == []
    cohort["group"] = ["a", "b", "a", "b"]
    assert leaked_patients(cohort) == ["c", "d"]
    assert leaked_patients(cohort.drop(columns="group")) == []


# refused


@pytest.mark.parametrize("function", [split_by_patient, split_by_image])
@pytest.mark.parametrize("valid", [0, 1, -0.1, 20, float("nan")])
def test_fractions_outside_of_0_and_1(cohort, function, valid):
    with pytest.raises(UsageError, match="valid_pct="):
        function(cohort, valid_pct=valid)


@pytest.mark.parametrize("function", [split_by_patient, split_by_image, fold_by_patient])
@pytest.mark.parametrize("seed", [-1, 1.5, "1", None, True, 2**32])
def test_invalid_seeds(cohort, function, seed):
    with pytest.raises(UsageError, match="seed="):
        function(cohort, seed=seed)


@pytest.mark.parametrize("folds", [1, 0, -2, 2.0, "5", True])
def test_invalid_numbers_of_folds(cohort, folds):
    with pytest.raises(UsageError, match="folds="):
        fold_by_patient(cohort, folds=folds)


@pytest.mark.parametrize(
    ("groups", "options", "message", "reasons"),
    [
        ([("a", "Normal", 5), ("b", "Normal", 5)], {}, "only one class .*'Normal' 2, 'COVID-19' 0", [2, 0]),
        ([("a", "Normal", 1), ("b", "Normal", 1), ("c", "COVID-19", 9)], {}, "Too few patients of 'COVID-19'", [1]),
        ([("a", "Normal", 9), ("c", "COVID-19", 9)], {}, "of 'Normal' and 'COVID-19'", [1, 1]),
        (uneven(patients=(9, 3)), {"folds": 4}, "of 'COVID-19' for 4 folds .*'Normal' 9, 'COVID-19' 3", [3]),
    ],
)
def test_too_few_patients_are_refused_with_their_counts(groups, options, message, reasons):
    function = fold_by_patient if options else split_by_patient
    with pytest.raises(DataError, match=message) as error:
        function(make_cohort(groups), **options)
    assert error.value.hint
    for row, number in zip(error.value.details, reasons, strict=True):
        assert row["kind"] == "too_few" and f"has {number} patient" in row["reason"] and row["remedy"]


def test_a_class_of_one_image_is_refused():
    with pytest.raises(DataError, match="Too few images of 'COVID-19'") as error:
        split_by_image(make_cohort([("a", "Normal", 5), ("b", "COVID-19", 1)]))
    assert error.value.details[0]["reason"] == "'COVID-19' has 1 image"


def test_a_class_without_any_row_is_refused():
    cohort = make_cohort(uneven(patients=(5, 5))).with_facts(classes=[*CLASSES, "Viral"])
    for function in (split_by_patient, split_by_image, fold_by_patient):
        with pytest.raises(DataError, match="Too few .* of 'Viral'"):
            function(cohort)


def test_patients_with_several_classes_that_cannot_be_split():
    groups = [("p", "a"), ("p", "b"), ("q", "b"), ("q", "c"), ("r", "c"), ("r", "a")]
    cohort = make_cohort([(*group, 1) for group in groups], classes=["a", "b", "c"])
    with pytest.raises(DataError, match="in every subset was found: its patients have images of other classes too"):
        split_by_patient(cohort)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cohort: cohort.drop(columns=["group", "label"]), "no column label, group"),
        (lambda cohort: cohort.assign(split="test"), r"no training row to split \(test 11\)"),
        (lambda cohort: cohort.iloc[:0], r"no training row to split \(no row\)"),
        (lambda cohort: pd.concat([cohort, cohort]), "have the same index"),
    ],
)
@pytest.mark.parametrize("function", [split_by_patient, split_by_image, fold_by_patient])
def test_tables_that_are_not_cohorts(function, change, message):
    cohort = make_cohort([(f"{label}-{i}", label, 1) for label in CLASSES for i in range(6)]).iloc[:11]
    with pytest.raises(DataError, match=message):
        function(change(cohort))


# real images


@pytest.fixture(scope="module")
def pneumonia(real_data):
    return read_cohort(real_data / "coronahack-224", task="pneumonia", check_images=False)


@pytest.mark.realdata
def test_the_official_test_never_moves(pneumonia):
    test = pneumonia["split"] == "test"
    assert test.sum() == 624
    for function in (split_by_patient, split_by_image, fold_by_patient):
        moved = function(pneumonia)
        assert ((moved["split"] == "test") == test).all()
    assert leaked_patients(split_by_patient(pneumonia)) == []


@pytest.mark.realdata
def test_coronahack_is_split_near_a_fifth(pneumonia):
    split = split_by_patient(pneumonia)
    used = split[split["split"].isin(["train", "valid"])]
    fraction = (used["split"] == "valid").groupby(used["label"]).mean()
    np.testing.assert_allclose(fraction, 0.2, atol=0.005)


@pytest.mark.realdata
def test_splitting_coronahack_by_image_leaks_patients(real_data):
    """With valid_pct=0.1, half of the held-out COVID-19 images are of patients who are in training."""
    cohort = read_cohort(real_data / "coronahack-224", task="covid", check_images=False)
    fractions = []
    for seed in range(20):
        split = split_by_image(cohort, valid_pct=0.1, seed=seed)
        train = set(split.loc[split["split"] == "train", "patient"])
        held_out = split[(split["split"] == "valid") & (split["label"] == "COVID-19")]
        fractions.append(held_out["patient"].isin(train).mean())
    assert 0.35 < np.mean(fractions) < 0.65
