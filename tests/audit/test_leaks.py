"""The leak audit: planted copies, and only these, are listed with the boundaries that they cross."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai.audit.leaks import WITHIN, find_leaks, plot_leak_groups
from covid_fastai.data.phantom import FINDINGS, draw_phantom
from covid_fastai.errors import DataError, UsageError

PEOPLE = 8
SPLITS = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
FLIP = Image.Transpose.FLIP_LEFT_RIGHT


def radiograph(person: int) -> Image.Image:
    rng = np.random.default_rng([41, person])
    return Image.fromarray(draw_phantom(rng, finding=list(FINDINGS)[person % 4], image_size=96).image)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("leaks")
    rows = []
    for person in range(PEOPLE):
        path = folder / f"p{person}.png"
        radiograph(person).save(path)
        label = "Normal" if person % 2 else "COVID-19"
        rows.append({"path": str(path), "patient": f"p{person}", "label": label, "split": SPLITS[person]})
    return pd.DataFrame(rows)


def with_copy(cohort, path, person, *, edit, **facts) -> pd.DataFrame:
    edit(radiograph(person)).save(path)
    row = cohort.iloc[person].to_dict() | {"path": str(path)} | facts
    return pd.concat([cohort, pd.DataFrame([row])], ignore_index=True)


def test_data_without_copies_have_no_group(cohort):
    audit = find_leaks(cohort)
    assert audit.groups.empty and audit.crossings.empty and audit.unreadable.empty
    assert audit.images == {"cohort": PEOPLE} and "0 groups of copies with 0 images" in str(audit)
    assert "0 groups" in audit._repr_html_()
    with pytest.raises(UsageError, match="nothing to plot"):
        plot_leak_groups(audit)


@pytest.mark.parametrize(
    ("facts", "crossing"),
    [
        ({}, {WITHIN}),
        ({"split": "valid"}, {"train and valid"}),
        ({"split": "test"}, {"train and test"}),
        ({"split": "excluded"}, {WITHIN}),
        ({"label": "Normal"}, {"two labels"}),
        ({"patient": "somebody"}, {"two patients"}),
        ({"patient": ""}, {WITHIN}),
        ({"patient": "somebody", "label": "Normal", "split": "test"}, {"train and test", "two labels", "two patients"}),
    ],
)
def test_a_copy_is_listed_with_the_boundaries_that_it_crosses(cohort, tmp_path, facts, crossing):
    audit = find_leaks(with_copy(cohort, tmp_path / "copy.png", 2, edit=lambda image: image.transpose(FLIP), **facts))
    assert set(audit.crossings["crossing"]) == crossing
    assert (audit.crossings["groups"] == 1).all() and (audit.crossings["images"] == 2).all()
    assert audit.groups["path"].map(lambda path: path.rsplit("/", 1)[1]).tolist() == ["p2.png", "copy.png"]
    assert audit.groups["kind"].tolist() == ["", "mirrored"] and audit.groups["group"].tolist() == [1, 1]
    assert audit.groups["correlation"].iloc[1] > 0.99 and audit.groups["distance"].isna().tolist() == [True, False]
    assert set(audit.groups["crossing"].iloc[0].split("; ")) == crossing


def test_unknown_patients_do_not_count_as_two_patients(cohort, tmp_path):
    table = with_copy(cohort, tmp_path / "copy.png", 2, edit=lambda image: image, patient="copy.png")
    assert find_leaks(table).crossings["crossing"].tolist() == ["two patients"]
    table["patient_known"] = table["patient"] != "copy.png"
    assert find_leaks(table).crossings["crossing"].tolist() == [WITHIN]
    table["patient_known"] = True
    assert find_leaks(table).crossings["crossing"].tolist() == ["two patients"]


def test_the_most_serious_group_comes_first(cohort, tmp_path):
    table = with_copy(cohort, tmp_path / "harmless.png", 0, edit=lambda image: image)
    table = with_copy(table, tmp_path / "person.png", 1, edit=lambda image: image, patient="other")
    table = with_copy(table, tmp_path / "split.jpg", 3, edit=lambda image: image.crop((3, 0, 96, 94)), split="test")
    audit = find_leaks(table)
    assert audit.crossings["crossing"].tolist() == ["train and test", "two patients", WITHIN]
    assert audit.groups.groupby("group", sort=False)["kind"].last().tolist() == ["cropped", "exact", "exact"]
    page = audit._repr_html_()
    assert "train and test" in page and "split.jpg" in page


def test_images_of_a_large_group_are_matched_with_the_earliest(cohort, tmp_path):
    table = cohort
    for number in range(5):
        table = with_copy(table, tmp_path / f"copy-{number}.png", 6, edit=lambda image: image)
    audit = find_leaks(table)
    assert audit.groups["kind"].tolist() == ["", *["exact"] * 5] and audit.crossings["images"].tolist() == [6]
    figure = plot_leak_groups(audit)
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 4 and "6 images" in drawn[0].get_title() and "copy-2.png" in drawn[3].get_title()


def test_other_data_sets_as_folder_table_and_mapping(cohort, tmp_path):
    folder = tmp_path / "hospital"
    (folder / "deep").mkdir(parents=True)
    radiograph(5).resize((60, 80)).save(folder / "deep" / "person1_virus_2.jpeg")
    radiograph(30).save(folder / "other.png")
    (folder / "list.csv").write_text("no image")
    audit = find_leaks(cohort, against=folder, name="ours")
    assert audit.images == {"ours": PEOPLE, "hospital": 2}
    assert audit.crossings["crossing"].tolist() == ["two data sets: ours and hospital"]
    assert audit.groups["patient"].tolist() == ["p5", "virus-1"] and audit.groups["kind"].tolist() == ["", "near"]
    table = pd.DataFrame({"path": [str(folder / "deep" / "person1_virus_2.jpeg")]})
    again = find_leaks(cohort, against=[folder, table])
    assert again.images == {"cohort": PEOPLE, "hospital": 2, "other 2": 1} and len(again.groups) == 3
    named = find_leaks(cohort, against={"A": folder, "B": table}, same_by_design=[("A", "B")])
    assert named.crossings["crossing"].tolist() == [
        "two data sets: cohort and A",
        "two data sets: cohort and B",
        "A and B, by design",
    ]


def test_labels_and_splits_of_different_data_sets_are_not_compared(cohort):
    """`positive` in one data set and `COVID-19` in the other are not two labels; nor do their splits leak."""
    other = cohort.iloc[:2].assign(label="positive", split="test", patient="x")
    assert find_leaks(cohort, against=[other]).crossings["crossing"].tolist() == ["two data sets: cohort and other 1"]


def test_unreadable_images_are_listed(cohort, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    table = pd.concat([cohort, cohort.tail(1).assign(path=str(tmp_path / "broken.png"))], ignore_index=True)
    audit = find_leaks(table)
    assert audit.unreadable["path"].tolist() == [str(tmp_path / "broken.png")] and "could not be read" in str(audit)
    assert audit.unreadable["error"].str.contains("broken.png").all()


def test_faulty_arguments_are_refused(cohort, tmp_path):
    with pytest.raises(DataError, match="no column 'path'"):
        find_leaks(cohort.drop(columns="path"))
    with pytest.raises(DataError, match="holds no image"):
        find_leaks(cohort, against=[tmp_path])
    with pytest.raises(UsageError, match="Two data sets"):
        find_leaks(cohort, against={"cohort": cohort})
    with pytest.raises(UsageError, match="unknown data set 'elsewhere'"):
        find_leaks(cohort, same_by_design=[("cohort", "elsewhere")])


def test_names_are_escaped_in_the_page(cohort, tmp_path):
    path = tmp_path / "<script>$x.png"
    audit = find_leaks(with_copy(cohort, path, 0, edit=lambda image: image, label="<b>"))
    assert "<script>" not in audit._repr_html_() and "&lt;script&gt;" in audit._repr_html_()
    plot_leak_groups(audit)


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.nightly
def test_external_adult_shares_images_with_coronahack(real_data):
    """Three images are in both, confirmed by eye. One is a child of CoronaHack under the label positive."""
    audit = find_leaks(
        pd.DataFrame({"path": [str(path) for path in sorted((real_data / "external-adult").rglob("*.*g"))]}),
        against=[real_data / "coronahack-224"],
    )
    crossing = audit.groups[audit.groups["crossing"].str.contains("two data sets")]
    names = {path.rsplit("/", 1)[1] for path in crossing["path"]}
    assert {"COVID-00020.jpg", "person1004_virus_1686.jpeg", "COVID-00022.jpg"} <= names
    assert crossing["group"].nunique() == 2
