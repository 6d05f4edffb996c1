"""Pretraining data are recognised under any name, stay in training, and are never evaluated on."""

from __future__ import annotations

import json
import os
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.numpy import save_file

from covid_fastai.data import pretraining_overlap as module
from covid_fastai.data.fingerprints import MAX_DISTANCE, fingerprint_images
from covid_fastai.data.keypoints import PLAIN
from covid_fastai.data.metadata import IN_PRETRAINING, read_cohort
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.data.pretraining_overlap import (
    VIEW_BYTES,
    mark_pretraining_overlap,
    package_manifests,
    patients_not_compared,
    read_manifest,
    read_package_manifests,
    write_manifest,
)
from covid_fastai.data.splits import fold_by_patient, fold_cohort, leaked_patients, split_by_image, split_by_patient
from covid_fastai.errors import DataError, ModelFormatError, ResourceError
from tests.examples import examples


def phantom(number: int) -> Image.Image:
    finding = ("Normal", "COVID-19")[number % 2]
    return Image.fromarray(draw_phantom(np.random.default_rng([5, number]), finding=finding).image)


def save_phantom(path, number, *, encoded_again=False):
    """Save a phantom; encoded again, it is three quarters as large and a JPEG of quality 60."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = phantom(number)
    if encoded_again:
        picture.resize((96, 96), Image.Resampling.BILINEAR).save(path, "JPEG", quality=60)
    else:
        picture.save(path)


PRETRAINING_NUMBERS = range(
    8
)  # phantoms in pretraining: 0 to 3 of Kermany's, with patients, 4 to 7 of a collection without
SEEN_NAMES = ["IM-0007-0001.jpeg", "person12_bacteria_1.jpeg", "person12_virus_30.jpeg", "NORMAL2-IM-0007-0001.jpeg"]
SEEN_NAMES += ["1.png", "image.jpg", "COVID-12.png", "Normal-3.png"]


@pytest.fixture(scope="module")
def pretraining_images(tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("in_pretraining")
    for number, name in zip(PRETRAINING_NUMBERS, SEEN_NAMES, strict=True):
        save_phantom(folder / name, number)
    patients = ["IM-0007", "bacteria-12", "virus-12", "NORMAL2-0007", *SEEN_NAMES[4:]]  # as read_cohort names them
    paths = [str(folder / name) for name in SEEN_NAMES]
    banks, known = ["kermany"] * 4 + ["radiography"] * 4, [True] * 4 + [False] * 4
    return pd.DataFrame({"path": paths, "patient": patients, "patient_known": known, "bank": banks})


@pytest.fixture(scope="module")
def manifest_folder(pretraining_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_manifest(pretraining_images, folder / "cxr-test.manifest.safetensors")
    return folder


@pytest.fixture
def guarded(manifest_folder, monkeypatch):
    """The package has weights that were pretrained on `pretraining_images`."""
    monkeypatch.setattr(module, "MANIFEST_FOLDER", manifest_folder)
    return manifest_folder


def rows(*names, patients=None) -> pd.DataFrame:
    patients = [os.path.basename(name) for name in names] if patients is None else patients
    return pd.DataFrame({"path": [f"/data/{name}" for name in names], "patient": patients})


# the file


def test_a_manifest_holds_hashes_and_no_names(pretraining_images, manifest_folder):
    (path,) = manifest_folder.iterdir()
    manifest = read_manifest(path)
    assert len(manifest) == 8 and manifest.sources == {"kermany": 4, "radiography": 4} and manifest.path == path
    expected = fingerprint_images(pretraining_images["path"])["phash"]
    assert [row.tobytes() for row in manifest.hashes] == expected.tolist()
    assert (manifest.patients[:4] != 0).all() and (manifest.patients[4:] == 0).all()
    assert len(set(manifest.names)) == 8
    content = path.read_bytes()
    assert b"IM-0007" not in content and b"bacteria" not in content and len(content) < 4400


def test_the_same_images_give_the_same_bytes(pretraining_images, manifest_folder, tmp_path):
    prints = fingerprint_images(pretraining_images["path"])
    again = write_manifest(pretraining_images, tmp_path / "again.manifest.safetensors", fingerprints=prints)
    assert again.read_bytes() == (manifest_folder / "cxr-test.manifest.safetensors").read_bytes()


def test_a_manifest_without_keypoints_is_read(pretraining_images, tmp_path):
    path = write_manifest(pretraining_images, tmp_path / "a.manifest.safetensors")
    keypoints = read_manifest(path).keypoints
    views = fingerprint_images(pretraining_images["path"])["keypoints"].map(lambda value: value[: module.VIEW_BYTES])
    for stored, expected in zip(keypoints, module.unpack_keypoints(views), strict=True):
        assert stored["sign"].tolist() == expected["sign"].tolist()
        assert stored["codes"][:, PLAIN].tolist() == expected["codes"][:, PLAIN].tolist()
    with safe_open(path, framework="numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in module.TENSORS}
        save_file(tensors, path, metadata=opened.metadata())
    assert read_manifest(path).keypoints is None
    save_file(tensors | {"keypoints": np.zeros((8, 5), np.uint8)}, path, metadata={"manifest": FACTS_OF_8})
    with pytest.raises(ModelFormatError, match="keypoints is not 384 bytes for each of 8 images"):
        read_manifest(path)


def test_keypoints_recognise_turned_and_cropped_copies_and_no_other_image(
    pretraining_images, manifest_folder, tmp_path
):
    numbers = range(16)
    for number in numbers:  # the first eight are in the manifest
        phantom(number).rotate(7, resample=Image.Resampling.BICUBIC).save(tmp_path / f"{number:02d}.png")
    prints = fingerprint_images(tmp_path / f"{number:02d}.png" for number in numbers)
    nameless = pd.DataFrame({"path": "", "patient": ""}, index=prints.index)
    manifests = [read_manifest(path) for path in manifest_folder.iterdir()]
    by_hash = mark_pretraining_overlap(nameless, prints["hashes"], manifests)
    by_both = mark_pretraining_overlap(nameless, prints["hashes"], manifests, keypoints=prints["keypoints"])
    assert not by_hash.any() and by_both[:8].sum() >= 7 and not by_both[8:].any()


def test_unknown_patients_are_not_stored(pretraining_images, tmp_path):
    images = pretraining_images.assign(patient_known=[False, True] * 2 + [False] * 4)
    manifest = read_manifest(write_manifest(images, tmp_path / "a.manifest.safetensors"))
    assert (manifest.patients != 0).tolist() == [False, True, False, True, False, False, False, False]


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (lambda images: images, "cxr.safetensors", "does not end in .manifest.safetensors"),
        (lambda images: images.drop(columns="patient"), "a.manifest.safetensors", "no column patient"),
        (lambda images: images[:0], "a.manifest.safetensors", "no row"),
        (
            lambda images: images.assign(path="/gone.png"),
            "a.manifest.safetensors",
            "8 pretraining images cannot be read",
        ),
    ],
)
def test_invalid_tables_of_pretraining_images(pretraining_images, tmp_path, change, name, message):
    with pytest.raises(DataError, match=message) as error:
        write_manifest(change(pretraining_images), tmp_path / name)
    assert error.value.hint and not list(tmp_path.iterdir())


def tensors(n=2, **changes):
    return {name: np.zeros((n, width), np.uint8) for name, width in module.TENSORS.items()} | changes


FACTS_OF_8 = json.dumps({"format": 1, "images": 8, "sources": {"a": 8}})
FACTS = {"format": 1, "images": 2, "sources": {"a": 2}}


@pytest.mark.parametrize(
    ("held", "facts"),
    [
        (tensors(), None),
        (tensors(), {**FACTS, "format": 2}),
        (tensors(), {**FACTS, "images": 3}),
        (tensors(), {"format": 1, "images": 2}),
        (tensors(), [1]),
        (tensors(phash=np.zeros((2, 8), np.uint8)), FACTS),
        (tensors(name=np.zeros((2, 8), np.float32)), FACTS),
        ({"phash": np.zeros((2, 32), np.uint8)}, FACTS),
    ],
)
def test_a_file_that_is_not_a_manifest(tmp_path, held, facts):
    path = tmp_path / "odd.manifest.safetensors"
    save_file(held, path, metadata=None if facts is None else {module.KEY: json.dumps(facts)})
    with pytest.raises(ModelFormatError, match="odd.manifest.safetensors cannot be used"):
        read_manifest(path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\0" * len(b), lambda b: b[9:]]
)
def test_a_damaged_manifest_is_named_and_stops_the_reading(manifest_folder, tmp_path, monkeypatch, damage):
    whole = (manifest_folder / "cxr-test.manifest.safetensors").read_bytes()
    (tmp_path / "bad.manifest.safetensors").write_bytes(damage(whole))
    monkeypatch.setattr(module, "MANIFEST_FOLDER", tmp_path)
    frame = pd.DataFrame({"image": ["a.png"], "label": ["Normal"]})
    with pytest.raises(ModelFormatError, match="bad.manifest.safetensors"):
        read_cohort(frame, image_root=tmp_path)
    save_phantom(tmp_path / "a.png", 50)
    assert len(read_cohort(frame, image_root=tmp_path, exclude_pretraining_overlap=False)) == 1


def test_a_missing_manifest_raises_an_error(tmp_path):
    with pytest.raises(ResourceError, match="gone.manifest.safetensors"):
        read_manifest(tmp_path / "gone.manifest.safetensors")


def test_manifests_are_found_sorted_and_weights_are_none(tmp_path, monkeypatch):
    for name in ("b.manifest.safetensors", "a.manifest.safetensors", "a.safetensors", "a.json"):
        (tmp_path / name).touch()
    monkeypatch.setattr(module, "MANIFEST_FOLDER", tmp_path)
    assert [path.name for path in package_manifests()] == ["a.manifest.safetensors", "b.manifest.safetensors"]


def test_the_packages_weights_have_a_manifest_that_can_be_read():
    folder = module.MANIFEST_FOLDER
    assert (folder / "weights.py").is_file(), "the manifests are next to the weights"
    weights = [path for path in folder.glob("*.safetensors") if not path.name.endswith(module.SUFFIX)]
    assert [path.with_suffix("").name + module.SUFFIX for path in sorted(weights)] == [
        path.name for path in package_manifests()
    ]
    manifests = read_package_manifests()
    assert all(len(manifest.keypoints) == len(manifest) > 0 for manifest in manifests)
    assert [id(manifest) for manifest in read_package_manifests()] == [id(manifest) for manifest in manifests]


@pytest.mark.realdata
def test_a_cropped_copy_of_an_image_of_the_package_weights_is_marked(real_data, tmp_path):
    """The hash of a crop by 7% a side is that of another image."""
    present = sorted((real_data / "radiography-224" / "COVID").iterdir())[:10]
    for path in present:
        image = Image.open(path).convert("L")
        width, height = image.size
        image.crop((0.07 * width, 0.07 * height, 0.93 * width, 0.93 * height)).save(tmp_path / f"x{path.name}")
    copies = pd.DataFrame({"path": [str(tmp_path / f"x{path.name}") for path in present], "patient": ""})
    prints, manifests = fingerprint_images(copies["path"].tolist()), read_package_manifests()
    assert mark_pretraining_overlap(copies, prints["hashes"], manifests).sum() < 3
    assert mark_pretraining_overlap(copies, prints["hashes"], manifests, keypoints=prints["keypoints"]).sum() >= 8


def test_the_wheel_includes_manifests():
    repository = Path(__file__).parents[2]
    lines = [line.split() for line in (repository / "MANIFEST.in").read_text().splitlines()]
    (patterns,) = (words[2:] for words in lines if words[:2] == ["recursive-include", "covid_fastai"])
    assert any(fnmatch("cxr-resnet18.manifest.safetensors", pattern) for pattern in patterns)
    assert "include_package_data=True" in (repository / "setup.py").read_text()


# what is recognised


def marked(table, manifest_folder, hashes=None):
    return mark_pretraining_overlap(table, hashes, map(read_manifest, sorted(manifest_folder.iterdir()))).tolist()


@pytest.mark.parametrize(
    ("name", "patient", "expected"),
    [
        ("IM-0007-0001.jpeg", None, True),
        ("im-0007-0001.JPEG", None, True),
        ("IM-0007-0001.png", None, True),  # another image of the patient, as its name says
        ("IM-0007-0002.jpeg", None, True),
        ("person12_bacteria_99.jpeg", None, True),
        ("IM-0008-0001.jpeg", None, False),
        ("person13_bacteria_1.jpeg", None, False),
        ("renamed.png", "bacteria-12", True),
        ("renamed.png", "bacteria-13", False),
        ("IM-0007-0001.jpeg", "their own key", True),
        ("1.png", None, False),
        ("image.jpg", None, False),
        ("COVID-12.png", None, False),
        ("Normal-3.png", "Normal-3.png", False),
        ("a.png", "12", False),
        ("a.png", "", False),
    ],
)
def test_names_and_patients(manifest_folder, name, patient, expected):
    table = rows(name, patients=[name if patient is None else patient])
    assert marked(table, manifest_folder) == [expected]


def test_a_bare_number_identifies_no_patient(pretraining_images, tmp_path):
    write_manifest(pretraining_images.assign(patient="12", patient_known=True), tmp_path / "a.manifest.safetensors")
    assert marked(rows("x.png", patients=["12"]), tmp_path) == [False]


def test_a_known_name_without_a_patient_overlaps(pretraining_images, tmp_path):
    """A name of Kermany's is enough; for other names the image decides."""
    write_manifest(pretraining_images.assign(patient_known=False), tmp_path / "a.manifest.safetensors")
    table = rows("IM-0007-0001.jpeg", "IM-0007-0002.jpeg", "1.png")
    assert marked(table, tmp_path) == [True, False, False]


def test_images_are_recognised_under_any_name(manifest_folder, tmp_path):
    for number in range(16):
        save_phantom(tmp_path / f"{number}.jpg", number, encoded_again=True)
    table = rows(*(f"{number}.jpg" for number in range(16)))
    table.index = table.index[::-1] + 5
    prints = fingerprint_images(str(tmp_path / f"{number}.jpg") for number in range(16))
    hashes = pd.Series(prints["phash"].to_numpy(), index=table.index)
    assert marked(table, manifest_folder, hashes) == [True] * 8 + [False] * 8
    assert marked(table, manifest_folder, hashes.sample(frac=1, random_state=0)) == [True] * 8 + [False] * 8
    assert marked(table, manifest_folder, hashes.iloc[4:]) == [False] * 4 + [True] * 4 + [False] * 8
    hashes.iloc[0] = b""
    assert marked(table, manifest_folder, hashes)[0] is False


@examples(30)
@given(bits=st.sets(st.integers(0, 255), max_size=60), seed=st.integers(0, 1000))
def test_the_distance_is_that_of_bits(bits, seed):
    """Against plain Python, on either side of the threshold; several blocks of rows."""
    rng = np.random.default_rng(seed)
    others = rng.integers(0, 256, (5, 32), dtype=np.uint8)
    turned = int.from_bytes(others[3].tobytes(), "little")
    for bit in bits:
        turned ^= 1 << bit
    hashes = [turned.to_bytes(32, "little")] * (module.BLOCK + 3)
    expected = any((turned ^ int.from_bytes(row.tobytes(), "little")).bit_count() <= MAX_DISTANCE for row in others)
    assert expected or len(bits) > MAX_DISTANCE
    assert module._near_any(hashes, others).tolist() == [expected] * len(hashes)


def test_no_row_and_no_manifest():
    assert mark_pretraining_overlap(rows("IM-0007-0001.jpeg"), None, []).tolist() == [False]
    empty = mark_pretraining_overlap(rows(), None, [])
    assert empty.dtype == bool and empty.empty


@pytest.mark.parametrize(
    "change",
    [
        ImageOps.mirror,
        ImageOps.flip,
        ImageOps.invert,
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
        lambda image: ImageOps.invert(image.transpose(Image.Transpose.TRANSVERSE)),
    ],
)
def test_altered_images_are_recognised_and_no_others(change, manifest_folder, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(16)]
    for number, path in enumerate(paths):
        change(phantom(number)).save(path)
    prints = fingerprint_images(map(str, paths))
    table = rows(*(path.name for path in paths))
    assert marked(table, manifest_folder, prints["hashes"]) == [True] * 8 + [False] * 8
    assert not any(marked(table, manifest_folder, prints["phash"]))  # of the image as it is


# the cohort, the splits and the folds

NEW = range(20, 36)  # phantoms outside the pretraining data


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> pd.DataFrame:
    """A hospital's images: copies of pretraining images under its own names and patients, others of these
    patients, and new ones."""
    folder = tmp_path_factory.mktemp("hospital")
    found = []
    for number in PRETRAINING_NUMBERS:
        save_phantom(folder / f"copy{number}.jpg", number, encoded_again=True)
        save_phantom(folder / f"other{number}.png", 40 + number)  # another picture of that patient
        found += [(f"copy{number}.jpg", number, f"p{number}"), (f"other{number}.png", number, f"p{number}")]
    for number in NEW:
        save_phantom(folder / f"new{number}.png", number)
        found.append((f"new{number}.png", number, f"p{number}"))
    frame = pd.DataFrame(found, columns=["image", "number", "patient"])
    frame["label"] = np.where(frame["number"] % 2, "COVID-19", "Normal")
    frame["image"] = str(folder) + "/" + frame["image"]
    return frame


def is_pretraining(cohort) -> pd.Series:
    return cohort["number"].isin(PRETRAINING_NUMBERS)


def test_copies_and_other_images_of_their_patients_are_marked(hospital, guarded):
    cohort = read_cohort(hospital)
    assert cohort["in_pretraining"].dtype == bool and (cohort["in_pretraining"] == is_pretraining(cohort)).all()
    assert set(cohort["split"]) == {"train"} and (cohort["note"] == "").all()
    (note,) = (row for row in cohort.facts.problems if row["kind"] == "in_pretraining")
    assert (
        "16 training images" in note["reason"]
        and note["severity"] == "note"
        and "exclude_pretraining_overlap=False" in note["remedy"]
    )


def test_pretraining_images_are_never_held_out(hospital, guarded):
    cohort = read_cohort(hospital)
    for seed in range(5):
        split = split_by_patient(cohort, valid_pct=0.3, seed=seed)
        assert (split.loc[is_pretraining(cohort), "split"] == "train").all()
        assert (split["split"] == "valid").sum() == 8 and leaked_patients(
            split
        ) == []  # half of the 16 outside pretraining
        by_image = split_by_image(cohort, valid_pct=0.3, seed=seed)
        assert (by_image.loc[is_pretraining(cohort), "split"] == "train").all() and (
            by_image["split"] == "valid"
        ).sum() == 8
        folded = fold_by_patient(cohort, folds=4, seed=seed)
        assert (folded.loc[is_pretraining(cohort), "fold"] == -1).all()
        held_out = []
        for fold in range(4):
            part = fold_cohort(folded, fold)
            assert (part.loc[is_pretraining(cohort), "split"] == "train").all() and leaked_patients(part) == []
            held_out += part.index[part["split"] == "valid"].tolist()
        assert sorted(held_out) == cohort.index[~is_pretraining(cohort)].tolist()


def test_the_exclusion_does_not_depend_on_the_weights_and_can_be_turned_off(hospital, guarded):
    cohort = read_cohort(hospital, exclude_pretraining_overlap=False)
    assert not cohort["in_pretraining"].any() and cohort["in_pretraining"].dtype == bool
    assert not any(row["kind"] == "in_pretraining" for row in cohort.facts.problems)
    assert (fold_by_patient(cohort, folds=2)["fold"] >= 0).all()


def test_without_a_manifest_nothing_changes(hospital, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MANIFEST_FOLDER", tmp_path)
    pd.testing.assert_frame_equal(read_cohort(hospital), read_cohort(hospital, exclude_pretraining_overlap=False))


def test_without_opened_images_names_alone_are_compared_and_a_note_states_it(hospital, guarded):
    cohort = read_cohort(hospital, check_images=False)
    assert not cohort["in_pretraining"].any()
    (note,) = (row for row in cohort.facts.problems if row["kind"] == "not_opened")
    assert "by name and patient only" in note["reason"]
    (note,) = read_cohort(hospital, check_images=False, exclude_pretraining_overlap=False).facts.problems
    assert "name and patient" not in note["reason"]


def test_kermanys_names_are_recognised_without_opening_an_image(pretraining_images, guarded):
    frame = pretraining_images.assign(label="Normal").drop(columns=["patient", "bank"])
    cohort = read_cohort(frame, check_images=False)
    assert cohort["in_pretraining"].tolist() == [True] * 4 + [False] * 4
    assert read_cohort(frame)["in_pretraining"].all()


def test_pretraining_images_of_the_official_test_are_excluded(hospital, guarded):
    frame = hospital.assign(split=np.where(hospital["number"].isin([0, 1, 20, 21]), "test", "train"))
    cohort = read_cohort(frame)
    by_split = cohort.groupby("split")["number"].agg(set)
    assert (
        by_split["test"] == {20, 21} and by_split["excluded"] == {0, 1} and by_split["train"].isdisjoint({0, 1, 20, 21})
    )
    assert set(cohort.loc[cohort["split"] == "excluded", "note"]) == {IN_PRETRAINING}
    assert (read_cohort(frame, exclude_pretraining_overlap=False)["split"] == frame["split"]).all()


def test_a_pretraining_patient_of_the_test_can_be_trained_on(hospital, guarded):
    """Their test image is excluded, so that no evaluation forbids the training image."""
    frame = hospital.assign(split="train")
    frame.loc[frame["image"].str.contains("copy0|new20|new21"), "split"] = "test"
    cohort = read_cohort(frame)
    assert cohort.loc[cohort["number"] == 0, "split"].tolist() == ["excluded", "train"]


def test_an_excluded_image_marks_its_patient(hospital, guarded):
    frame = hospital.assign(view=np.where(hospital["image"].str.contains("copy1"), "L", "PA"))
    cohort = read_cohort(frame)
    assert cohort.loc[cohort["number"] == 1, ["split", "in_pretraining"]].to_numpy().tolist() == [
        ["excluded", True],
        ["train", True],
    ]
    for seed in range(5):
        assert (split_by_patient(cohort, seed=seed).loc[cohort["number"] == 1, "split"] != "valid").all()


@pytest.mark.parametrize(("ratio", "new", "pretraining"), [(0.25, 3, 0), (0.5, 6, 0), (1, 8, 4)])
def test_negatives_outside_pretraining_are_sampled_first(hospital, guarded, ratio, new, pretraining):
    frame = hospital[hospital["label"] == "COVID-19"].head(12)  # 12 positives
    frame = pd.concat([frame, hospital[hospital["label"] == "Normal"]], ignore_index=True)
    draws = set()
    for seed in range(4):
        cohort = read_cohort(frame, negatives_per_positive=ratio, seed=seed)
        drawn = cohort[(cohort["split"] == "train") & (cohort["label"] == "Normal")]
        assert (~is_pretraining(drawn)).sum() == new and is_pretraining(drawn).sum() == pretraining
        draws.add(tuple(drawn["image"]))
    assert len(draws) > 1


def test_too_few_patients_outside_pretraining_raise_an_error_with_the_remedy(hospital, guarded):
    cohort = read_cohort(hospital[~hospital["number"].isin(range(22, 36, 2))])  # one Normal patient is new
    for function, options in ((split_by_patient, {}), (fold_by_patient, {"folds": 2})):
        with pytest.raises(DataError, match="Too few patients of 'Normal' .* outside the pretraining data") as error:
            function(cohort, **options)
        assert "'Normal' 1, and 4 in it, 'COVID-19' 8, and 4 in it" in error.value.message
        assert (
            "exclude_pretraining_overlap=False" in error.value.hint and "weights=None or 'imagenet'" in error.value.hint
        )
        (row,) = error.value.details
        assert (
            row["kind"] == "too_few"
            and row["reason"] == "'Normal' has 1 patient outside the pretraining data, and 4 in it"
        )
    with pytest.raises(DataError, match="Too few images of 'Normal' .* outside the pretraining data"):
        split_by_image(cohort)


def test_comparing_many_images_is_fast(tmp_path):
    """6,000 images against 11,000 pretraining images."""
    from time import process_time

    rng = np.random.default_rng(0)
    manifest = module.Manifest(
        tmp_path, rng.integers(0, 256, (11_000, 32), np.uint8), np.arange(1, 11_001), np.zeros(11_000, "<u8"), {}
    )
    table = rows(*(f"{number}.png" for number in range(6_000)))
    hashes = pd.Series([row.tobytes() for row in rng.integers(0, 256, (6_000, 32), np.uint8)])
    started = process_time()
    assert not mark_pretraining_overlap(table, hashes, [manifest]).any()
    assert process_time() - started < 10


# real images


@pytest.mark.slow
@pytest.mark.parametrize("patients", [600, pytest.param(None, marks=pytest.mark.nightly)])
@pytest.mark.realdata
def test_a_renamed_copy_of_coronahack_is_recognised_and_no_other_patient(patients, real_data, tmp_path):
    """Half of Kermany's TRAIN patients are in pretraining; without names, the image hashes alone identify them."""
    cohort = read_cohort(
        real_data / "coronahack-224", task="pneumonia", check_images=False, exclude_pretraining_overlap=False
    )
    drawn = np.random.default_rng(0).permutation(cohort["patient"].unique())[:patients]
    cohort = cohort[cohort["patient"].isin(drawn)]
    kermany = cohort[(cohort["split"] == "train") & (cohort["source"] == "kermany")]
    prints = fingerprint_images(cohort["path"]).set_index(cohort.index)
    half = kermany[kermany["patient"].isin(sorted(set(kermany["patient"]))[::2])]
    manifest = read_manifest(
        write_manifest(half, tmp_path / "half.manifest.safetensors", fingerprints=prints.loc[half.index])
    )
    by_name = mark_pretraining_overlap(cohort, None, [manifest])
    assert by_name[by_name].index.tolist() == half.index.tolist()
    nameless = rows(*(f"{number}.png" for number in cohort.index)).set_index(cohort.index)
    pd.testing.assert_series_equal(mark_pretraining_overlap(nameless, prints["phash"], [manifest]), by_name)


def test_a_bare_number_is_a_patient_of_its_source_only(tmp_path):
    rows = pd.DataFrame({"path": ["a.png", "b.png"], "patient": ["12", "13"], "source": ["Lyon", ""]})
    prints = pd.DataFrame({"phash": [bytes(32), bytes([255] * 32)], "keypoints": [bytes(VIEW_BYTES)] * 2})
    manifest = read_manifest(write_manifest(rows, tmp_path / "x.manifest.safetensors", fingerprints=prints))
    others = pd.DataFrame({"path": list("cdefg"), "patient": ["12", "12", "12", "13", "Lyon/12"]})
    others["source"] = ["Lyon", "Turin", "", "", "Lyon"]
    overlap = mark_pretraining_overlap(others, None, [manifest])
    assert overlap.tolist() == [True, False, False, False, True]
    assert patients_not_compared(others).tolist() == [False, False, True, True, False]
