"""What DICOM headers state in `read_cohort`: views are filled, contradictions reported, unfit images excluded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai import read_cohort
from covid_fastai.data.dicom_facts import is_chest
from covid_fastai.data.images import describe_image
from covid_fastai.data.input_check import check_input
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.data.tasks import Task

pytest.importorskip("pydicom", reason="the extra dicom is not installed")

from tests.data.test_dicom import code, dataset, encode


def write_images(folder: Path, headers: list[dict | None], **columns) -> pd.DataFrame:
    """Write one radiograph per header, as DICOM, or as PNG for None, and return the table."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, header in enumerate(headers):
        pixels = np.asarray(draw_phantom(np.random.default_rng([9, number]), image_size=64).image)
        paths.append(folder / f"{number}.{'png' if header is None else 'dcm'}")
        if header is None:
            Image.fromarray(pixels).save(paths[-1])
        else:
            paths[-1].write_bytes(encode(dataset(pixels.astype(np.uint16), **header)))
    labels = ["Normal", "COVID-19"] * len(headers)
    return pd.DataFrame({"path": map(str, paths), "label": labels[: len(headers)], **columns})


def test_the_header_fills_the_view_where_no_column_states_one(tmp_path):
    headers = [{"ViewPosition": "PA"}, {"ViewPosition": "AP"}, {}, None, {"ViewCodeSequence": [code("272479007", "")]}]
    headers += [{"ViewPosition": "ANTERO_POSTERIOR"}, {"ViewPosition": "UNKNOWN"}, {"ViewPosition": "PA"}]
    table = write_images(tmp_path, headers)
    views = ["PA", "AP", "", "", "PA", "AP", "", "PA"]
    cohort = read_cohort(table)
    assert cohort["view"].tolist() == views and (cohort["split"] == "train").all()
    assert read_cohort(table, check_images=False)["view"].tolist() == [""] * 8
    cohort = read_cohort(table.assign(view=["", "nan", "AP", "PA", "", "-", "", "unknown"]))
    assert cohort["view"].tolist() == ["PA", "AP", "AP", "PA", "PA", "AP", "", "PA"]


UNFIT = [
    ({"ViewPosition": "LL"}, "lateral view"),
    ({"ViewPosition": "RL"}, "lateral view"),
    ({"ViewPosition": "LATERAL"}, "lateral view"),
    ({"ViewPosition": "LLO"}, "view 'other' is not known to be frontal"),
    ({"ViewPosition": "SWIMMERS"}, "view 'other' is not known to be frontal"),
    ({"ViewCodeSequence": [code("R-10241", "Axial")]}, "view 'other' is not known to be frontal"),
    ({"ViewCodeSequence": [code("399198007", "right lateral")]}, "lateral view"),
    ({"BodyPartExamined": "HAND"}, "another part of the body"),
    ({"BodyPartExamined": "ABDOMEN"}, "another part of the body"),
    ({"AnatomicRegionSequence": [code("T-D8000", "Leg")]}, "another part of the body"),
    ({"BurnedInAnnotation": "YES"}, "text burned into the picture"),
    ({"Modality": "CT"}, "modality 'CT' is not a radiograph"),
    ({"Modality": "MG"}, "modality 'MG' is not a radiograph"),
    ({"Modality": "JOHN"}, "another modality than a radiograph"),
]


def test_a_header_excludes_what_is_no_frontal_chest_radiograph_with_its_reason(tmp_path):
    headers = [{"ViewPosition": "PA", "BodyPartExamined": "CHEST", "BurnedInAnnotation": "NO"}, {}]
    table = write_images(tmp_path, [*headers, *(header for header, _ in UNFIT)])
    cohort = read_cohort(table)
    assert cohort["split"].tolist() == ["train"] * 2 + ["excluded"] * len(UNFIT)
    assert cohort["note"].tolist() == ["", "", *(f"{reason} (DICOM header)" for _, reason in UNFIT)]
    assert not [row for row in cohort.facts.problems if row["severity"] == "error"]
    assert "JOHN" not in cohort.to_csv() + repr(cohort.facts)
    for path, (header, reason) in zip(cohort["path"][2:], UNFIT, strict=True):
        if "Modality" not in header:  # the remarks of a prediction come from the same words
            assert reason in describe_image(path).notes
            assert [remark.kind for remark in check_input(path)].count("header") == 1


def test_a_task_of_any_view_takes_all_that_can_be_read(tmp_path):
    table = write_images(tmp_path, [{}, {}, {"ViewPosition": "LL"}, {"BodyPartExamined": "HAND"}, {"Modality": "CT"}])
    cohort = read_cohort(table, task=Task(name="any", classes=("Normal", "COVID-19"), frontal_only=False))
    assert cohort["split"].tolist() == ["train"] * 4 + ["excluded"]
    assert cohort["view"].tolist() == ["", "", "L", "", ""]


@pytest.mark.parametrize(
    ("column", "header", "warned"),
    [("PA", "LL", True), ("AP", "PA", True), ("L", "PA", True), ("Axial", "AP", True), ("frontal", "LL", True)]
    + [("PA", "PA", False), ("AP Supine", "AP", False), ("frontal", "PA", False), ("PA", "", False), ("L", "RL", False)]
    + [("unknown", "LL", False), ("PA", "LAO", True)],
)
def test_a_column_that_contradicts_the_header_is_a_warning_that_names_the_row(column, header, warned, tmp_path):
    table = write_images(tmp_path, [{}, {}, {"ViewPosition": header}])
    table.assign(view=["PA", "AP", column]).to_csv(tmp_path / "rows.csv", index=False)
    cohort = read_cohort(tmp_path / "rows.csv")
    warnings = [row for row in cohort.facts.problems if row["kind"] == "view_contradicted"]
    assert [(row["row"], row["severity"]) for row in warnings] == ([(4, "warning")] if warned else [])
    if warned:
        assert repr(cohort["view"][2]) in warnings[0]["reason"] and Path(warnings[0]["path"]).name == "2.dcm"
        assert cohort["view"][2] == {"Axial": "Axial"}.get(column, column), "that of the data counts"


def test_a_modality_that_contradicts_the_header_is_a_warning(tmp_path):
    table = write_images(tmp_path, [{}, {}, {"Modality": "CT"}]).assign(modality=["X-ray", "DX", "X-ray"])
    cohort = read_cohort(table)
    (warning,) = [row for row in cohort.facts.problems if row["severity"] == "warning"]
    assert warning["kind"] == "modality_contradicted" and "CT" in warning["reason"]
    assert cohort["split"][2] == "excluded"


def test_a_sample_reads_the_headers_of_the_sample_and_says_so(tmp_path):
    table = write_images(tmp_path, [{"ViewPosition": "PA"}] * 6)
    cohort = read_cohort(table, check_images=2)
    assert sorted(cohort["view"]) == [""] * 4 + ["PA"] * 2
    assert any("no DICOM header was read" in row["reason"] for row in cohort.facts.problems)


CHEST = (
    "CHEST;THORAX;TORAX;TORACE;PECHO;CXR;PORT CHEST;BRUSTKORB;POITRINE;Chest PA;CHEST_PORT;THORAX^PA;TÓRAX;LUNG;LUNGS"
)
CHEST += ";Thorakal;PULMON;Pulmões;POLMONI;TORAKS;klatka piersiowa;PŁUCA;Hrudník;MELLKAS;Göğüs;Grudnaya kletka;ОГК"
CHEST += ";органы грудной клетки;лёгкие;胸部;흉부;Lunge;BRUST;CHEST_ABDOMEN;cardiac;HERZ;Mediastinum;Rintakehä;dada"
OTHERS = "HAND;ABDOMEN;SKULL;TSPINE;THORACIC SPINE;THORACOLUMBAR;LSPINE;KNEE;BREAST;SHOULDER;PELVIS;RODILLA;MANO;FUSS"
OTHERS += ";COLUMNA DORSAL;BRAIN;NECK;CERVICAL;рука;膝;RIBS;CLAVICLE"


@pytest.mark.parametrize("text", CHEST.split(";"))
def test_words_for_the_chest_are_known(text):
    assert is_chest(text)


@pytest.mark.parametrize("text", OTHERS.split(";"))
def test_words_for_other_parts_are_not_the_chest(text):
    assert not is_chest(text)


@pytest.mark.parametrize("text", ["", "UNKNOWN", "DEFAULT", "X-RAY", "N/A", None])
def test_a_part_that_is_not_stated_is_unknown(text, tmp_path):
    table = write_images(tmp_path, [{}, {}, {"BodyPartExamined": text}])
    assert (read_cohort(table)["split"] == "train").all() and describe_image(table["path"][2]).body_part == ""
