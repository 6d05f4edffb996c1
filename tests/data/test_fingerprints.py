"""Fingerprints: which images are duplicates, which are not, and how patients with duplicates are joined."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from scipy.sparse.csgraph import connected_components

from benchmarks.copies import equalise_locally
from covid_fastai.data import fingerprints
from covid_fastai.data.fingerprints import (
    MAX_DISTANCE,
    MIN_CORRELATION,
    duplicate_groups,
    duplicate_pairs,
    fingerprint_images,
    join_groups,
)
from covid_fastai.data.images import open_image
from covid_fastai.data.keypoints import COUNT, KEYPOINT
from covid_fastai.data.phantom import FINDINGS, draw_anatomy, draw_phantom

PATIENTS = 24


def radiograph(patient: int) -> Image.Image:
    rng = np.random.default_rng([11, patient])
    return Image.fromarray(draw_phantom(rng, finding=list(FINDINGS)[patient % 4], image_size=128).image)


COPIES = {  # file name of the copy: how it is made; a radiologist sees the same image
    "renamed.png": lambda image: (image, {}),
    "lossless.bmp": lambda image: (image, {}),
    "colour.png": lambda image: (image.convert("RGB"), {}),
    "quality-60.jpg": lambda image: (image, {"quality": 60}),
    "half.png": lambda image: (image.resize((64, 64), Image.Resampling.BILINEAR), {}),
    "double.png": lambda image: (image.resize((256, 256), Image.Resampling.BICUBIC), {}),
    "squashed.png": lambda image: (image.resize((150, 110), Image.Resampling.BILINEAR), {}),
    "brighter.png": lambda image: (image.point(lambda value: min(255, round(1.1 * value + 12))), {}),
    "half-quality-60.jpg": lambda image: (image.resize((64, 64), Image.Resampling.LANCZOS), {"quality": 60}),
}
SAME_PIXELS = {"renamed.png", "lossless.bmp", "colour.png"}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("originals")
    paths = [str(folder / f"patient-{patient:02d}.png") for patient in range(PATIENTS)]
    for patient, path in enumerate(paths):
        radiograph(patient).save(path)
    return paths


def test_locally_equalised_copies_are_found_by_their_fine_detail(tmp_path):
    """A strong local equalisation (CLAHE) changes the hash and the shading of an image, but not where its detail is."""
    paths = []
    for patient in range(6):
        rng = np.random.default_rng([12, patient])
        image = Image.fromarray(draw_phantom(rng, finding=list(FINDINGS)[patient % 4], image_size=256).image)
        for name, changed in (("original", image), ("equalised", equalise_locally(image, 4))):
            paths.append(tmp_path / f"{patient}-{name}.png")
            changed.save(paths[-1])
    pairs = duplicate_pairs(fingerprint_images(paths))
    found = set(pairs[["first", "second"]].itertuples(index=False, name=None))
    assert found <= {(2 * patient, 2 * patient + 1) for patient in range(6)}
    assert len(found) >= 5 and (pairs["distance"] > MAX_DISTANCE).any()


@pytest.fixture(scope="module")
def prints(originals) -> pd.DataFrame:
    return fingerprint_images(originals)


def save_copies(folder, kind: str, patients) -> list[str]:
    paths = []
    for patient in patients:
        image, options = COPIES[kind](radiograph(patient))
        paths.append(str(folder / f"{patient:02d}-{kind}"))
        image.save(paths[-1], **options)
    return paths


# the table


def test_the_table_has_one_row_per_image_in_the_given_order(originals, prints):
    assert list(prints.columns) == fingerprints.COLUMNS
    assert prints["path"].tolist() == originals and prints.index.tolist() == list(range(PATIENTS))
    row = prints.iloc[3]
    assert (row["format"], row["mode"], row["width"], row["height"], row["notes"]) == ("PNG", "L", 128, 128, "")
    assert len(row["phash"]) == 32 and len(row["thumbnail"]) == 32 * 32 and len(row["sha256"]) == 64
    assert len(row["picture"]) % 64**2 == 0 and len(row["keypoints"]) % (COUNT * KEYPOINT.itemsize) == 0
    across = np.floor(np.asarray(open_image(originals[3])).reshape(128, 32, 4).mean(axis=2) + 0.5)
    down = np.floor(across.reshape(32, 4, 32).mean(axis=1) + 0.5)  # Pillow rounds after each of the two directions
    np.testing.assert_array_equal(np.frombuffer(row["thumbnail"], np.uint8).reshape(32, 32), down)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(originals, prints, workers):
    pd.testing.assert_frame_equal(fingerprint_images(originals, workers=workers), prints)


def test_paths_can_be_bytes(originals, prints):
    pd.testing.assert_frame_equal(fingerprint_images([os.fsencode(path) for path in originals]), prints)


def test_unreadable_images_have_an_error_and_no_fingerprint(originals, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(Path(originals[0]).read_bytes()[:3000])
    bad = [str(tmp_path / name) for name in ("empty.png", "cut.png", "absent.png")]
    table = fingerprint_images([originals[0], bad[0], originals[0], bad[1], bad[2]])
    unreadable = table.iloc[[1, 3, 4]]
    for (_, row), reason in zip(unreadable.iterrows(), ("empty", "damaged", "missing"), strict=True):
        assert reason in row["error"] and os.path.basename(row["path"]) in row["error"] and row["hint"]
        empty = row[["sha256", "phash", "thumbnail", "picture", "keypoints", "hashes", "width"]].tolist()
        assert empty == ["", b"", b"", b"", b"", b"", 0]
    assert (table.loc[[0, 2], "error"] == "").all()
    pairs = duplicate_pairs(table)
    assert pairs[["first", "second", "kind"]].to_numpy().tolist() == [[0, 2, "exact"]]
    groups = duplicate_groups(table)
    assert groups[0] == groups[2] and groups.nunique() == 4  # unreadable images are no duplicates of each other


@pytest.mark.parametrize("paths", [[], ["/nowhere/absent.png"], ["/nowhere/a.png", "/nowhere/b.png"]])
def test_fewer_than_two_readable_images_give_no_pair(paths):
    table = fingerprint_images(paths)
    assert list(table.columns) == fingerprints.COLUMNS and len(table) == len(paths)
    assert duplicate_pairs(table).empty
    assert duplicate_groups(table).tolist() == list(range(len(paths)))


# the hash


def bits(phash: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(phash, np.uint8)).reshape(16, 16).astype(bool)


def test_phash_equals_imagehash(tmp_path):
    """At 64 x 64 pixels neither library resizes, and every bit agrees, row by row, the lowest frequency first.

    Larger images differ by a few bits: imagehash resizes with Lanczos, this package with the mean of the pixels (box),
    which does not ring at the edges of burnt-in letters. `str(ImageHash)` writes the same bits as hexadecimal digits.
    """
    paths = save_copies(tmp_path, "half.png", range(8))
    table = fingerprint_images(paths)
    for path, phash in zip(paths, table["phash"], strict=True):
        reference = imagehash.phash(Image.open(path), hash_size=16, highfreq_factor=4)
        np.testing.assert_array_equal(bits(phash), reference.hash)
        assert phash.hex() == str(reference)


def test_the_hashes_are_those_of_turned_mirrored_and_inverted_images(originals, prints, tmp_path):
    image = Image.open(originals[0])
    orientations = [image, *(image.transpose(turn) for turn in Image.Transpose)]
    for number, oriented in enumerate([*orientations, *map(ImageOps.invert, orientations)]):
        oriented.save(tmp_path / f"{number:02d}.png")
    expected = fingerprint_images(str(path) for path in sorted(tmp_path.iterdir()))["phash"]
    hashes = prints["hashes"][0][: 16 * 32]
    own = [bits(hashes[start : start + 32]) for start in range(0, len(hashes), 32)]
    for phash in expected:
        assert min(int((bits(phash) != other).sum()) for other in own) <= 2  # ties at the median


def test_phash_of_larger_images_is_close_to_imagehash(originals, prints):
    distances = [
        int((bits(phash) != imagehash.phash(Image.open(path), hash_size=16, highfreq_factor=4).hash).sum())
        for path, phash in zip(originals, prints["phash"], strict=True)
    ]
    assert max(distances) <= 8


def test_distance_and_correlation_equal_their_formulas(originals, tmp_path):
    paths = [originals[2], *save_copies(tmp_path, "half-quality-60.jpg", [2])]
    table = fingerprint_images(paths)
    pair = duplicate_pairs(table).iloc[0]
    first, second = (imagehash.ImageHash(bits(phash)) for phash in table["phash"])
    assert pair["distance"] == first - second
    thumbnails = [np.frombuffer(thumbnail, np.uint8).astype(float) for thumbnail in table["thumbnail"]]
    assert pair["correlation"] == pytest.approx(np.corrcoef(*thumbnails)[0, 1], abs=1e-5)


@pytest.mark.parametrize(
    "alter",
    [
        lambda image: ImageOps.expand(image, border=(12, 20), fill=255),
        lambda image: image.crop((4, 4, 124, 124)),
        lambda image: ImageOps.mirror(ImageOps.invert(image.crop((4, 4, 124, 124)))),
    ],
)
def test_hashes_contain_that_of_the_original_of_framed_and_slightly_cropped_images(alter, originals, prints, tmp_path):
    """The pretraining data are known by the hashes of whole images."""
    known = 0
    for patient in range(8):
        alter(radiograph(patient)).save(tmp_path / f"{patient}.png")
    hashes = fingerprint_images(tmp_path / f"{patient}.png" for patient in range(8))["hashes"]
    for phash, copy in zip(prints["phash"], hashes, strict=False):
        distances = [int((bits(copy[k : k + 32]) != bits(phash)).sum()) for k in range(0, len(copy), 32)]
        known += min(distances) <= MAX_DISTANCE
    assert known >= 7


# duplicates and different images


@pytest.mark.parametrize("kind", COPIES)
def test_only_the_copies_are_found(kind, originals, prints, tmp_path):
    patients = range(0, PATIENTS, 3)
    copies = fingerprint_images(save_copies(tmp_path, kind, patients))
    table = pd.concat([prints, copies], ignore_index=True)
    pairs = duplicate_pairs(table)
    expected = [(patient, PATIENTS + number) for number, patient in enumerate(patients)]
    assert sorted(zip(pairs["first"], pairs["second"], strict=True)) == expected
    assert set(pairs["kind"]) == {"exact" if kind in SAME_PIXELS else "near"}
    if kind in SAME_PIXELS:
        assert (pairs["distance"] == 0).all() and (pairs["correlation"] == 1).all()
    else:
        assert pairs["distance"].max() <= MAX_DISTANCE and pairs["correlation"].min() > MIN_CORRELATION
    groups = duplicate_groups(table)
    assert groups.nunique() == PATIENTS and groups[PATIENTS:].tolist() == [groups[patient] for patient in patients]


def test_images_of_different_patients_are_no_duplicates(prints):
    assert duplicate_pairs(prints).empty and duplicate_groups(prints).tolist() == list(range(PATIENTS))
    distances = [int((bits(a) != bits(b)).sum()) for a, b in itertools.combinations(prints["phash"], 2)]
    assert min(distances) > MAX_DISTANCE + 10


def test_two_images_of_one_patient_are_rarely_duplicates_and_join_no_other_patient(tmp_path):
    """Same anatomy, another exposure: rarely similar enough to be joined, and never with another patient."""
    paths = []
    for patient in range(20):
        rng = np.random.default_rng([12, patient])
        anatomy = draw_anatomy(rng)
        for day in range(2):
            paths.append(str(tmp_path / f"{patient}-{day}.png"))
            Image.fromarray(draw_phantom(rng, anatomy=anatomy, image_size=128).image).save(paths[-1])
    pairs = duplicate_pairs(fingerprint_images(paths))
    assert (pairs["distance"] > MAX_DISTANCE).all() and len(pairs) <= 3
    assert (pairs["first"] // 2 == pairs["second"] // 2).all()


ALTERED = {  # file name of the copy: how it is made, and the kind of pair that is found
    "cropped.png": (lambda image: image.crop((13, 0, 115, 116)), "cropped"),
    "cropped.jpg": (lambda image: image.crop((0, 6, 128, 128)), "cropped"),
    "both.png": (lambda image: ImageOps.mirror(image).crop((3, 5, 128, 124)), "mirrored"),
    "darker.png": (lambda image: image.point(lambda value: round(255 * (value / 255) ** 1.4)), "near"),
    "framed.png": (lambda image: ImageOps.expand(image, border=(20, 9), fill=255), "near"),
    "screenshot.jpg": (lambda image: ImageOps.expand(image, border=(9, 30, 20, 9), fill=60), "near"),
    "turned.png": (lambda image: image.rotate(8, resample=Image.Resampling.BICUBIC), "turned"),
    "right-angle.png": (lambda image: image.transpose(Image.Transpose.ROTATE_270), "turned"),
    "inverted-cropped.jpg": (lambda image: ImageOps.invert(image).crop((5, 3, 126, 125)), "inverted"),
    "inverted-mirrored.png": (lambda image: ImageOps.mirror(ImageOps.invert(image)), "mirrored"),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_only_the_altered_copies_are_found(kind, originals, prints, tmp_path):
    alter, expected_kind = ALTERED[kind]
    patients = range(0, PATIENTS, 3)
    paths = [str(tmp_path / f"{patient:02d}-{kind}") for patient in patients]
    for patient, path in zip(patients, paths, strict=True):
        alter(radiograph(patient)).save(path)
    table = pd.concat([prints, fingerprint_images(paths)], ignore_index=True)
    expected = [(patient, PATIENTS + number) for number, patient in enumerate(patients)]
    tables = [table]
    if kind in ("cropped.png", "framed.png", "turned.png"):  # the smaller one may come before or after the other
        tables.append(table[::-1].reset_index(drop=True))
    for rows in tables:
        pairs = duplicate_pairs(rows)
        positions = expected if rows is table else [(len(table) - 1 - b, len(table) - 1 - a) for a, b in expected]
        assert sorted(zip(pairs["first"], pairs["second"], strict=True)) == sorted(positions)
        assert set(pairs["kind"]) <= {expected_kind, "near"} and expected_kind in set(pairs["kind"])
    assert duplicate_groups(table).nunique() == PATIENTS


def test_distance_of_a_mirrored_copy_is_measured_before_alignment(originals, tmp_path):
    radiograph(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    table = fingerprint_images([originals[0], tmp_path / "mirrored.png"])
    pair = duplicate_pairs(table).iloc[0]
    assert pair["kind"] == "mirrored" and pair["correlation"] > 0.999
    assert pair["distance"] == (bits(table["phash"][0]) != bits(table["phash"][1])).sum() > 60


def test_the_same_pixels_in_another_shape_are_no_duplicates(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, 64 * 100, dtype=np.uint8)
    for name, shape in (("wide.png", (64, 100)), ("high.png", (100, 64))):
        Image.fromarray(pixels.reshape(shape)).save(tmp_path / name)
    table = fingerprint_images([tmp_path / "wide.png", tmp_path / "high.png"])
    assert table["sha256"].nunique() == 2 and duplicate_pairs(table).empty


def test_n_identical_images_give_n_minus_1_pairs(originals):
    table = fingerprint_images([originals[5], originals[1], *[originals[5]] * 3])
    pairs = duplicate_pairs(table)
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == [(0, 2), (0, 3), (0, 4)]


def table_of_hashes(flips: list[int], correlation_noise: float = 0.0) -> pd.DataFrame:
    """A table of fingerprints: each row's hash is the first one's with `flips` bits flipped."""
    rng = np.random.default_rng(0)
    base, image = rng.integers(0, 2, 256).astype(np.uint8), rng.integers(60, 200, 1024)
    rows = []
    for number, flip in enumerate(flips):
        hash_bits = base.copy()
        hash_bits[:flip] ^= 1
        noisy = image + (rng.normal(0, correlation_noise, 1024) if number else 0)
        thumbnail = np.clip(noisy, 0, 255).astype(np.uint8).tobytes()
        hashes = {"phash": np.packbits(hash_bits).tobytes(), "thumbnail": thumbnail, "picture": bytes(64 * 64)}
        hashes["keypoints"] = bytes(COUNT * KEYPOINT.itemsize)  # none, so that only the hash decides
        rows.append({"sha256": str(number), **hashes})
    return pd.DataFrame(rows)


def test_both_limits_are_applied():
    pairs = duplicate_pairs(table_of_hashes([0, MAX_DISTANCE, MAX_DISTANCE + 1]))
    measured = set(zip(pairs["first"], pairs["second"], pairs["distance"], strict=True))
    assert measured == {(0, 1, MAX_DISTANCE), (1, 2, 1)}  # 0 and 2 are joined by the group only
    assert duplicate_groups(table_of_hashes([0, MAX_DISTANCE, MAX_DISTANCE + 1])).tolist() == [0, 0, 0]
    assert duplicate_pairs(table_of_hashes([0, 0], correlation_noise=40)).empty


def test_the_block_size_does_not_change_the_pairs(prints, monkeypatch):
    """Pairs within a block, across blocks and at the ends of a block are all found."""
    table = pd.concat([prints[:9], prints[:9].assign(sha256=[f"copy {n}" for n in range(9)])], ignore_index=True)
    expected = [(n, n + 9) for n in range(9)]
    for block in (1, 2, 5, 512):
        monkeypatch.setattr(fingerprints, "PAIRS", block)
        pairs = duplicate_pairs(table)
        assert sorted(zip(pairs["first"], pairs["second"], strict=True)) == expected


def test_the_order_of_rows_does_not_change_the_groups(originals, tmp_path):
    paths = [*originals[:8], *save_copies(tmp_path, "quality-60.jpg", range(4)), *originals[2:6]]
    table = fingerprint_images(paths)
    reference = partition(duplicate_groups(table))
    for seed in range(3):
        shuffled = table.sample(frac=1, random_state=seed)
        groups = duplicate_groups(shuffled)
        assert groups.index.equals(shuffled.index) and partition(groups) == reference


def partition(groups: pd.Series) -> set[frozenset]:
    return {frozenset(same.index) for _, same in groups.groupby(groups)}


def test_the_index_can_have_any_labels(originals):
    table = fingerprint_images([originals[0], originals[1], originals[0]])
    table.index = ["a", "b", "c"]
    assert duplicate_pairs(table)[["first", "second"]].to_numpy().tolist() == [["a", "c"]]
    assert duplicate_groups(table).to_dict() == {"a": 0, "b": 1, "c": 0}


# patients with duplicates


def test_join_is_transitive():
    """Ann and Bob have one duplicate, Bob and Cem another: all three are one group. Dan is a group of his own."""
    patients = pd.Series(["cem", "bob", "bob", "ann", "dan"], index=[10, 11, 12, 13, 14])
    duplicates = pd.Series([7, 7, 8, 8, 9], index=[10, 11, 12, 13, 14])
    joined = join_groups(patients, duplicates)
    assert joined.tolist() == ["ann", "ann", "ann", "ann", "dan"]
    assert joined.index.equals(patients.index) and joined.name == "group"


@pytest.mark.parametrize("seed", range(5))
def test_join_equals_the_connected_components_of_rows(seed):
    """The oracle is another graph: its nodes are the rows, its edges connect rows of the same patient or image."""
    rng = np.random.default_rng(seed)
    patients = pd.Series([f"p{n}" for n in rng.integers(0, 40, 60)])
    duplicates = pd.Series(rng.integers(0, 45, 60))
    same = (patients.to_numpy()[:, None] == patients.to_numpy()) | (
        duplicates.to_numpy()[:, None] == duplicates.to_numpy()
    )
    oracle = pd.Series(connected_components(same, directed=False)[1])
    joined = join_groups(patients, duplicates)
    assert partition(joined) == partition(oracle)
    assert joined.tolist() == patients.groupby(oracle).transform("min").tolist()


def test_join_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    patients = pd.Series([f"p{n}" for n in rng.integers(0, 20, 40)])
    duplicates = pd.Series(rng.integers(0, 30, 40))
    order = rng.permutation(40)
    joined = join_groups(patients, duplicates)
    pd.testing.assert_series_equal(join_groups(patients[order], duplicates[order]).sort_index(), joined)
    pd.testing.assert_series_equal(
        join_groups(patients, duplicates[order]), joined
    )  # matched by index, not by position


def test_join_does_not_change_rows_without_a_group():
    patients = pd.Series(["a", "b", "c", "d"])
    assert join_groups(patients, pd.Series([0, 0])).tolist() == ["a", "a", "c", "d"]
    assert join_groups(patients, pd.Series([np.nan, 1, np.nan, 1])).tolist() == ["a", "b", "c", "b"]


def test_join_of_empty_series():
    assert join_groups(pd.Series([], dtype=object), pd.Series([], dtype=int)).empty


# real radiographs


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.nightly
def test_coronahack_has_30_exact_groups_and_two_near_pairs(real_data):
    """Reference from another program: 62 images in 30 exact groups, and two pairs of near copies."""
    folder = real_data / "coronahack-224"
    paths = sorted(folder.glob("Coronahack-Chest-XRay-Dataset/Coronahack-Chest-XRay-Dataset/*/*"))
    table = fingerprint_images(paths)
    assert len(table) == 5910 and (table["error"] == "").all()
    exact = table["sha256"].value_counts()
    assert (exact > 1).sum() == 30 and exact[exact > 1].sum() == 62
    pairs = duplicate_pairs(table)
    assert (pairs["kind"] == "exact").sum() == 62 - 30
    prefix = table["path"].map(lambda path: os.path.basename(path).split("-")[0])
    near = pairs[pairs["kind"] == "near"]
    near_names = {
        frozenset((prefix[first], prefix[second])) for first, second in zip(near["first"], near["second"], strict=True)
    }
    assert near_names == {frozenset(("D5ACAA93", "35AF5C3B")), frozenset(("F4341CE7", "E63574A7"))} and len(near) == 2
    assert set(pairs["kind"]) == {"exact", "near"}
    sizes = duplicate_groups(table).value_counts()
    assert (sizes > 1).sum() == 32 and sizes[sizes > 1].sum() == 66


def test_fingerprints_are_cached_by_content_and_not_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("COVID_FASTAI_CACHE", str(tmp_path / "cache"))
    grey = np.random.default_rng(3).integers(0, 255, (90, 80), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.png").read_bytes())
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    first = fingerprint_images(paths)
    assert first["notes"].tolist() == ["", "named .jpg but PNG"]
    monkeypatch.setattr(fingerprints, "read_image", None)
    pd.testing.assert_frame_equal(fingerprint_images(paths), first)
    monkeypatch.undo()
    monkeypatch.setenv("COVID_FASTAI_CACHE", "off")
    pd.testing.assert_frame_equal(fingerprint_images(paths), first)
