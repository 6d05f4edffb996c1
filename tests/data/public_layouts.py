"""Public data sets rebuilt small: their folders, file names, columns and values as published, with synthetic pixels.

Each layout has the one command that a user types and the counts that follow from its rows by hand. `python -m
tests.data.public_layouts` reads each of them and prints a table of what was read.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

__all__ = ["LAYOUTS", "Layout", "count_images", "describe", "write_dicom", "write_images"]

SIZE = 40  # pixels


@dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes:
        name: The data set.
        build: Writes it into an empty folder.
        options: The options of `read_cohort`, all of which the command line has.
        images: The number of images by split and class, counted by hand.
        patients: The number of patients of those images; None where they are not known.
        excluded: The number of excluded images by reason.
    """

    name: str
    build: Callable[[Path], None]
    options: Mapping[str, Any]
    images: Mapping[str, Mapping[str, int]]
    patients: int | None
    excluded: Mapping[str, int] = field(default_factory=dict)

    def command(self) -> str:
        """Return the command line that checks the data."""
        from covid_fastai.config import TrainConfig

        return TrainConfig(**self.options).to_command("FOLDER").replace(" train ", " check ", 1)


def write_images(folder: Path, names: Iterable[str], start: int = 0) -> None:
    """Write one image of noise for each name, in the format of its ending, from the seeds `start` on."""
    for seed, name in enumerate(names, start):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
        Image.fromarray(values).save(file, quality=95)


def write_dicom(file: Path, seed: int, **tags: str) -> None:
    """Write a DICOM radiograph of noise."""
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(seed)])
    header.Modality, header.PhotometricInterpretation, header.SamplesPerPixel = "CR", "MONOCHROME2", 1
    header.Rows = header.Columns = SIZE
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.PixelData = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE), dtype=np.uint8).tobytes()
    for name, value in tags.items():
        setattr(header, name, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(file, header, enforce_file_format=True)


# the layouts, in the order of their first publication


def build_coronahack(folder: Path) -> None:
    """CoronaHack: 8 Normal and 8 pneumonia images of children and 6 COVID-19 in TRAIN, 4 and 4 in TEST."""
    rows = []
    normal = [f"IM-{number:04d}-0001.jpeg" for number in range(8)]
    virus = [f"person{number}_virus_{number}.jpeg" for number in range(4)]
    bacteria = [f"person{number}_bacteria_{number}.jpeg" for number in range(4)]
    covid = [f"covid-{number}.jpeg" for number in range(6)]
    rows += [(name, "Normal", "TRAIN", "", "") for name in normal]
    rows += [(name, "Pnemonia", "TRAIN", "", "Virus") for name in virus]
    rows += [(name, "Pnemonia", "TRAIN", "", "bacteria") for name in bacteria]
    rows += [(name, "Pnemonia", "TRAIN", "COVID-19", "Virus") for name in covid]
    rows += [(f"NORMAL2-IM-{number:04d}-0001.jpeg", "Normal", "TEST", "", "") for number in range(4)]
    rows += [(f"person{number}_virus_{number}.jpeg", "Pnemonia", "TEST", "", "Virus") for number in range(90, 94)]
    images = folder / "Coronahack-Chest-XRay-Dataset" / "Coronahack-Chest-XRay-Dataset"
    write_images(images, [f"{split.lower()}/{name}" for name, _, split, _, _ in rows])
    columns = ["X_ray_image_name", "Label", "Dataset_type", "Label_2_Virus_category", "Label_1_Virus_category"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "Chest_xray_Corona_Metadata.csv")


def build_kermany(folder: Path) -> None:
    """Kermany's chest_xray as Kaggle's archive unpacks: with `__MACOSX` and a copy of itself inside."""
    names = [f"train/NORMAL/IM-{number:04d}-0001.jpeg" for number in range(10)]
    names += [f"train/PNEUMONIA/person{number}_bacteria_{number}.jpeg" for number in range(1, 7)]
    names += [f"train/PNEUMONIA/person{number // 2}_virus_{number}.jpeg" for number in range(20, 28)]  # 4 children
    names += [f"val/NORMAL/NORMAL2-IM-{number:04d}-0001.jpeg" for number in range(4)]
    names += [f"val/PNEUMONIA/person{number}_bacteria_{number}.jpeg" for number in range(30, 34)]
    names += [f"test/NORMAL/IM-{number:04d}-0001.jpeg" for number in range(50, 55)]
    names += [f"test/PNEUMONIA/person{number}_virus_{number}.jpeg" for number in range(60, 65)]
    write_images(folder / "chest_xray", names)
    write_images(folder / "chest_xray" / "chest_xray", names)
    for name in [*names[:3], ".DS_Store"]:
        file = folder / "chest_xray" / "__MACOSX" / "chest_xray" / Path(name).parent / f"._{Path(name).name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (folder / "chest_xray" / "chest_xray" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


COHEN_COLUMNS = ["patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "intubated"]
COHEN_COLUMNS += ["view", "modality", "date", "location", "folder", "filename", "doi", "url", "license"]


def build_cohen(folder: Path) -> None:
    """ieee8023/covid-chestxray-dataset: paths of findings; CT slices and volumes among the radiographs."""
    kinds = [  # number of images, first patient, images a patient, finding, view, modality
        (12, 1, 2, "Pneumonia/Viral/COVID-19", "PA", "X-ray"),  # patients 1 to 6
        (4, 7, 1, "Pneumonia/Viral/COVID-19", "AP Supine", "X-ray"),  # 7 to 10
        (2, 1, 1, "Pneumonia/Viral/COVID-19", "L", "X-ray"),
        (4, 11, 1, "Pneumonia/Viral/COVID-19", "Axial", "CT"),
        (2, 11, 1, "Pneumonia/Viral/COVID-19", "Coronal", "CT"),
        (8, 20, 1, "No Finding", "PA", "X-ray"),  # 20 to 27
        (3, 30, 1, "Pneumonia/Bacterial/Streptococcus", "AP", "X-ray"),
        (2, 40, 1, "Pneumonia/Viral/SARS", "PA", "X-ray"),
        (2, 50, 1, "Tuberculosis", "PA", "X-ray"),
        (1, 60, 1, "todo", "PA", "X-ray"),
        (1, 61, 1, "Unknown", "AP", "X-ray"),
    ]
    rows = []
    for count, first, images, finding, view, modality in kinds:
        for number in range(count):
            patient, offset = first + number // images, number % images
            name = f"{len(rows):03d}.{patient}-day{offset}.{('jpg', 'png', 'jpeg')[number % 3]}"
            facts = {"patientid": patient, "offset": offset, "finding": finding, "view": view, "modality": modality}
            rows.append({**facts, "sex": "MF"[number % 2], "folder": "images", "filename": name})
    table = pd.DataFrame(rows).reindex(columns=COHEN_COLUMNS)
    write_images(folder / "images", table["filename"])
    volume = {"patientid": 70, "finding": "Pneumonia/Viral/COVID-19", "view": "Axial", "modality": "CT"}
    volume |= {"folder": "volumes", "filename": "coronacases_org_001.nii.gz"}
    (folder / "volumes").mkdir()
    (folder / "volumes" / "coronacases_org_001.nii.gz").write_bytes(b"\x1f\x8b\x08\0")
    pd.concat([table, pd.DataFrame([volume])]).to_csv(folder / "metadata.csv", index=False)
    (folder / "annotations").mkdir()
    (folder / "README.md").write_text("# COVID-19 image data collection\n")


def build_covidx(folder: Path) -> None:
    """COVIDx: lists of `patient file class source` without a header, images in train/ and test/."""
    train = [(str(number // 2), f"covid-{number}.png", "COVID-19", "cohen") for number in range(8)]  # 4 patients
    train += [(f"rsna-{number}", f"{number}a.png", "normal", "rsna") for number in range(10)]
    train += [(f"rsna-p{number}", f"{number}b.png", "pneumonia", "rsna") for number in range(8)]
    test = [(f"S-{number}", f"sirm-{number}.jpg", "COVID-19", "sirm") for number in range(5)]
    test += [(f"rsna-t{number}", f"{number}t.png", "normal", "rsna") for number in range(6)]
    test += [(f"rsna-u{number}", f"{number}u.png", "pneumonia", "rsna") for number in range(5)]
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows, start in (("train", train, 0), ("test", test, 100)):
        (folder / f"{part}_COVIDx9A.txt").write_text("".join(f"{' '.join(row)}\n" for row in rows))
        write_images(folder / part, [row[1] for row in rows], start)


def build_radiography_database(folder: Path) -> None:
    """COVID-19 Radiography Database: images and masks by class, an Excel workbook a class."""
    counts = {"COVID": 10, "Lung_Opacity": 8, "Normal": 12, "Viral Pneumonia": 6}
    for start, (name, count) in enumerate(counts.items()):
        files = [f"{name}-{number}.png" for number in range(1, count + 1)]
        write_images(folder / name / "images", files, start * 100)
        write_images(folder / name / "masks", files, 1000 + start * 100)
        (folder / f"{name}.metadata.xlsx").write_bytes(b"PK\3\4")
    (folder / "README.md.txt").write_text("COVID-19 CHEST X-RAY DATABASE\n")


def build_qu_ex(folder: Path) -> None:
    """COVID-QU-Ex: Train, Val and Test, each with images and lung masks by class; the infection part repeats some."""
    counts = {"Train": (10, 8, 9), "Val": (4, 3, 4), "Test": (3, 3, 3)}
    root = folder / "Lung Segmentation Data" / "Lung Segmentation Data"
    for start, (part, numbers) in enumerate(counts.items()):
        for column, (name, count) in enumerate(zip(("COVID-19", "Non-COVID", "Normal"), numbers, strict=True)):
            files = [f"{name.lower()}_{start}_{number}.png" for number in range(count)]
            write_images(root / part / name / "images", files, 100 * start + 30 * column)
            write_images(root / part / name / "lung masks", files, 1000 + 100 * start + 30 * column)
    infection = folder / "Infection Segmentation Data" / "Infection Segmentation Data" / "Train" / "COVID-19"
    write_images(infection / "images", ["covid-19_0_0.png", "covid-19_0_1.png"])
    write_images(infection / "infection masks", ["covid-19_0_0.png", "covid-19_0_1.png"], 2000)


NIH_HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
NIH_HEADER += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"


def build_nih(folder: Path) -> None:
    """NIH ChestX-ray14: findings joined by a bar, twelve folders of images, lists of the official split."""
    findings = ["No Finding"] * 5 + ["Pneumonia", "Infiltration|Pneumonia", "Effusion", "Pneumonia|Edema", "Hernia"]
    folder.mkdir(parents=True, exist_ok=True)
    rows, tests = [], []
    for patient in range(1, 21):  # two images each, with the same findings
        for follow_up in range(2):
            name = f"{patient:08d}_{follow_up:03d}.png"
            view = "AP" if follow_up else "PA"
            finding = findings[patient % 10]
            rows.append(f"{name},{finding},{follow_up},{patient},58,M,{view},2682,2749,0.143,0.143,")
            tests += [name] if patient > 14 else []
    (folder / "Data_Entry_2017.csv").write_text("\n".join([NIH_HEADER, *rows]) + "\n")
    names = [row.split(",")[0] for row in rows]
    for number, name in enumerate(names):
        write_images(folder / f"images_{number % 12 + 1:03d}" / "images", [name], number)
    (folder / "train_val_list.txt").write_text("\n".join(name for name in names if name not in tests))
    (folder / "test_list.txt").write_text("\n".join(tests))
    (folder / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n")


CHEXPERT_FINDINGS = ["No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"]
CHEXPERT_FINDINGS += ["Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"]
CHEXPERT_FINDINGS += ["Fracture", "Support Devices"]


def build_chexpert(folder: Path) -> None:
    """CheXpert: 14 columns of 1, 0, -1 and blank; the patient is in the path; laterals beside frontals."""
    root = folder / "CheXpert-v1.0-small"
    kinds = {  # findings of a patient's frontal and lateral image
        "positive": {"Pneumonia": "1.0", "Lung Opacity": "1.0"},
        "negative": {"Pneumonia": "0.0", "Edema": "1.0"},
        "uncertain": {"Pneumonia": "-1.0"},
        "blank": {"Cardiomegaly": "1.0"},
        "normal": {"No Finding": "1.0"},
    }
    parts = {  # patients by kind
        "train": {"positive": 6, "negative": 5, "uncertain": 3, "blank": 2, "normal": 4},
        "valid": {"positive": 3, "negative": 3, "normal": 2},
    }
    patient = 0
    for part, counts in parts.items():
        rows = []
        for kind, count in counts.items():
            for _ in range(count):
                patient += 1
                study = f"CheXpert-v1.0-small/{part}/patient{patient:05d}/study1"
                findings = [kinds[kind].get(name, "") for name in CHEXPERT_FINDINGS]
                rows.append(
                    [f"{study}/view1_frontal.jpg", "Male", 61, "Frontal", "AP" if patient % 2 else "PA", *findings]
                )
                rows.append([f"{study}/view2_lateral.jpg", "Male", 61, "Lateral", "", *findings])
        columns = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS]
        root.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=columns).to_csv(root / f"{part}.csv", index=False)
        write_images(folder, [row[0] for row in rows], 100 * len(rows))


def build_mimic(folder: Path) -> None:
    """MIMIC-CXR-JPG: labels by study, views and split by image, in three compressed tables."""
    images, studies, splits = [], [], []
    for number in range(24):  # one study a patient, a frontal and a lateral image
        subject, study = 10000032 + 1000 * number, 50414267 + number
        part = "test" if number >= 20 else "validate" if number >= 16 else "train"
        labels = {0: {"Pneumonia": "1.0"}, 1: {"No Finding": "1.0"}, 2: {"Pneumonia": "-1.0"}, 3: {"Pneumonia": "0.0"}}
        studies.append({"subject_id": subject, "study_id": study, **labels[number % 4]})
        for view in ("PA" if number % 2 else "AP", "LATERAL"):
            dicom = f"{number:08x}-{view.lower():->8}-0000"
            key = {"dicom_id": dicom, "study_id": study, "subject_id": subject}
            splits.append({**key, "split": part})
            images.append({**key, "PerformedProcedureStepDescription": "CHEST (PA AND LAT)", "ViewPosition": view})
            write_images(folder, [f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg"], len(images))
    tables = {"metadata": pd.DataFrame(images), "split": pd.DataFrame(splits)}
    tables["chexpert"] = pd.DataFrame(studies).reindex(columns=["subject_id", "study_id", *sorted(CHEXPERT_FINDINGS)])
    for name, table in tables.items():
        table.to_csv(folder / f"mimic-cxr-2.0.0-{name}.csv.gz", index=False)


def build_rsna(folder: Path) -> None:
    """RSNA Pneumonia: a box a row, so several rows an image; DICOM files named after `patientId`."""
    rows, classes = [], []
    for number in range(30):
        name, target = f"{number:08x}-aaaa-4bbb-8ccc-{number:012x}", int(number % 3 == 0)
        boxes = [[264.0, 152.0, 213.0, 379.0], [562.0, 152.0, 256.0, 453.0]][: 1 + number % 2] if target else [[""] * 4]
        rows += [[name, *box, target] for box in boxes]
        kind = "Lung Opacity" if target else ("Normal", "No Lung Opacity / Not Normal")[number % 2]
        classes += [[name, kind]] * len(boxes)
        write_dicom(folder / "stage_2_train_images" / f"{name}.dcm", number, ViewPosition="PA" if number % 2 else "AP")
    columns = ["patientId", "x", "y", "width", "height", "Target"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "stage_2_train_labels.csv", index=False)
    pd.DataFrame(classes, columns=["patientId", "class"]).to_csv(
        folder / "stage_2_detailed_class_info.csv", index=False
    )
    write_dicom(folder / "stage_2_test_images" / "0000a175-0e68-4ca4-b1af-167204a7e0bc.dcm", 99)


SIIM_CLASSES = ["Negative for Pneumonia", "Typical Appearance", "Indeterminate Appearance", "Atypical Appearance"]


def build_siim(folder: Path) -> None:
    """SIIM-FISABIO-RSNA: one-hot labels by study, images by `study/series/image.dcm`, joined by the study."""
    studies, images = [], []
    for number in range(32):
        study, kind = f"5{number:011x}", (0, 1, 1, 2, 3, 0, 1, 0)[number % 8]
        studies.append([f"{study}_study", *(int(kind == column) for column in range(4))])
        for image in range(1 + (number % 8 == 1)):
            name = f"{number:010x}{image:02x}"
            boxes = "" if kind == 0 else "[{'x': 789.28836, 'y': 582.43035, 'width': 1026.65662, 'height': 1917.30292}]"
            images.append(
                [f"{name}_image", boxes, "none 1 0 0 1 1" if kind == 0 else "opacity 1 789 582 1815 2499", study]
            )
            write_dicom(folder / "train" / study / f"{number + 500:012x}" / f"{name}.dcm", len(images))
    pd.DataFrame(studies, columns=["id", *SIIM_CLASSES]).to_csv(folder / "train_study_level.csv", index=False)
    columns = ["id", "boxes", "label", "StudyInstanceUID"]
    pd.DataFrame(images, columns=columns).to_csv(folder / "train_image_level.csv", index=False)


def build_fastai_folders(folder: Path) -> None:
    """fastai's own style: train/ and valid/ with a folder a class."""
    for start, (part, count) in enumerate({"train": 12, "valid": 5}.items()):
        for column, name in enumerate(("covid", "normal")):
            names = [f"{part}/{name}/{name}{number}.png" for number in range(count)]
            write_images(folder, names, 100 * start + 50 * column)


def build_is_valid(folder: Path) -> None:
    """fastai's own style: a table with 0/1 labels and `is_valid`."""
    table = pd.DataFrame({"name": [f"images/{number}.png" for number in range(32)]})
    table = table.assign(label=table.index % 2, is_valid=table.index >= 24, patient=[f"p{n // 2}" for n in table.index])
    write_images(folder, table["name"])
    table.to_csv(folder / "labels.csv", index=False)


def build_parquet(folder: Path) -> None:
    """A Parquet file of Windows paths, whose images are now in another place."""
    table = pd.DataFrame({"image_path": [rf"D:\cxr\set\img{number}.png" for number in range(30)]})
    table["label"] = pd.Categorical(["Normal", "COVID-19"] * 15)
    write_images(folder / "set", [f"img{number}.png" for number in range(30)])
    table.assign(patient_id=[n // 3 for n in range(30)]).to_parquet(folder / "rows.parquet")


CT, LATERAL, OTHER = "modality 'CT' is not a radiograph", "lateral view", "another finding than Pneumonia"
PNEUMONIA = {"positive": "Pneumonia"}
LAYOUTS = (
    Layout(
        "CoronaHack",
        build_coronahack,
        {"recipe": "coronahack"},
        {"train": {"Normal": 8, "COVID-19": 6}},
        None,
        {"official TEST: holds no COVID-19": 4, "not of this task: bacteria": 4, "not of this task: virus": 8},
    ),
    Layout(
        "Kermany chest_xray",
        build_kermany,
        {"recipe": "kermany-chest-xray"},
        {
            "train": {"Normal": 10, "Pneumonia": 14},
            "valid": {"Normal": 4, "Pneumonia": 4},
            "test": {"Normal": 5, "Pneumonia": 5},
        },
        20 + 8 + 10,
    ),
    Layout(
        "ieee8023/covid-chestxray-dataset",
        build_cohen,
        {"recipe": "covid-chestxray-dataset"},
        {"train": {"Normal": 8, "COVID-19": 12 + 4}},
        8 + 6 + 4,
        {
            **{CT: 4 + 2 + 1, LATERAL: 2, "excluded by the option labels (*)": 2 + 1 + 1},
            **{"not of this task: Streptococcus": 3, "not of this task: SARS": 2},
        },
    ),
    Layout(
        "COVIDx (COVID-Net)",
        build_covidx,
        {"recipe": "covidx"},
        {"train": {"Normal": 10, "COVID-19": 8}, "test": {"Normal": 6, "COVID-19": 5}},
        10 + 4 + 6 + 5,
        {"not of this task: pneumonia": 8 + 5},
    ),
    Layout(
        "COVIDx, three classes",
        build_covidx,
        {"recipe": "covidx", "classes": ("normal", "pneumonia", "COVID-19")},
        {
            "train": {"normal": 10, "pneumonia": 8, "COVID-19": 8},
            "test": {"normal": 6, "pneumonia": 5, "COVID-19": 5},
        },
        10 + 8 + 4 + 6 + 5 + 5,
    ),
    Layout(
        "COVID-19 Radiography Database",
        build_radiography_database,
        {"recipe": "covid-radiography-database"},
        {"train": {"Normal": 12, "COVID-19": 10, "Lung opacity": 8, "Viral pneumonia": 6}},
        None,
    ),
    Layout(
        "COVID-QU-Ex",
        build_qu_ex,
        {"recipe": "covid-qu-ex"},
        {
            "train": {"Normal": 9, "COVID-19": 10, "Non-COVID": 8},
            "valid": {"Normal": 4, "COVID-19": 4, "Non-COVID": 3},
            "test": {"Normal": 3, "COVID-19": 3, "Non-COVID": 3},
        },
        None,
    ),
    Layout(
        "NIH ChestX-ray14",
        build_nih,
        {"recipe": "nih-chestxray14", **PNEUMONIA},
        {"train": {"No Pneumonia": 18, "Pneumonia": 6}, "test": {"No Pneumonia": 2, "Pneumonia": 6}},
        9 + 3 + 1 + 3,
        {OTHER: 8},
    ),
    Layout(
        "CheXpert",
        build_chexpert,
        {"recipe": "chexpert", **PNEUMONIA},
        {"train": {"No Pneumonia": 4, "Pneumonia": 6}, "valid": {"No Pneumonia": 2, "Pneumonia": 3}},
        4 + 6 + 2 + 3,
        {OTHER: 2 * (5 + 2 + 3), "uncertain (-1): Pneumonia": 2 * 3, LATERAL: 4 + 6 + 2 + 3},
    ),
    Layout(
        "CheXpert, -1 as positive, other findings as negative",
        build_chexpert,
        {"recipe": "chexpert", **PNEUMONIA, "uncertain": "positive", "labels": {"*": "No Pneumonia"}},
        {
            "train": {"No Pneumonia": 4 + 5 + 2, "Pneumonia": 6 + 3},
            "valid": {"No Pneumonia": 2 + 3, "Pneumonia": 3},
        },
        20 + 8,
        {LATERAL: 20 + 8},
    ),
    Layout(
        "MIMIC-CXR-JPG",
        build_mimic,
        {"recipe": "mimic-cxr-jpg", **PNEUMONIA},
        {part: {"No Pneumonia": 2 * n, "Pneumonia": n} for part, n in (("train", 4), ("valid", 1), ("test", 1))},
        18,
        {LATERAL: 18, "uncertain (-1): Pneumonia": 2 * 6},
    ),
    Layout(
        "RSNA Pneumonia",
        build_rsna,
        {"recipe": "rsna-pneumonia"},
        {"train": {"No pneumonia": 20, "Pneumonia": 10}},
        None,
    ),
    Layout(
        "SIIM-FISABIO-RSNA",
        build_siim,
        {"recipe": "siim-fisabio-rsna-covid19"},
        {"train": dict(zip(SIIM_CLASSES, (12, 16, 4, 4), strict=True))},
        None,
    ),
    Layout(
        "fastai: train/ and valid/",
        build_fastai_folders,
        {},
        {"train": {"Normal": 12, "COVID-19": 12}, "valid": {"Normal": 5, "COVID-19": 5}},
        None,
    ),
    Layout(
        "fastai: 0/1 labels and is_valid",
        build_is_valid,
        {"labels": {"0": "Normal", "1": "COVID-19"}, "path_column": "name"},
        {"train": {"Normal": 12, "COVID-19": 12}, "valid": {"Normal": 4, "COVID-19": 4}},
        16,
    ),
    Layout(
        "Parquet with Windows paths",
        build_parquet,
        {},
        {"train": {"Normal": 15, "COVID-19": 15}},
        10,
    ),
)


def count_images(cohort: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return the number of used images by split and class, in the form of `Layout.images`."""
    used = cohort[cohort["split"] != "excluded"]
    counts = used.groupby(["split", "label"]).size()
    return {str(split): counts[split].to_dict() for split in counts.index.unique("split")}


def describe(layout: Layout, cohort: pd.DataFrame) -> list[str]:
    """Return the row of a layout in the table that `main` prints."""
    used, excluded = cohort[cohort["split"] != "excluded"], cohort[cohort["split"] == "excluded"]
    images = count_images(cohort)
    reasons = excluded["note"].value_counts().to_dict()
    patients = used["patient"].nunique() if used["patient_known"].all() else None
    right = images == layout.images and reasons == layout.excluded and patients == layout.patients
    splits = "; ".join(
        f"{split}: {', '.join(f'{name} {n}' for name, n in images[split].items())}"
        for split in ("train", "valid", "test")
        if split in images
    )
    left_out = "; ".join(f"{n} {reason}" for reason, n in reasons.items()) or "none"
    known = "not known" if patients is None else str(patients)
    return [layout.name, f"`{layout.command()}`", splits, known, left_out, "yes" if right else "NO"]


def main() -> None:
    """Read each layout and print what was read, as a Markdown table."""
    from covid_fastai import read_cohort

    logging.disable(logging.WARNING)
    rows = [["layout", "command", "images by split and class", "patients", "excluded", "as counted by hand"]]
    rows.append(["---"] * len(rows[0]))
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            layout.build(Path(folder))
            cohort = read_cohort(folder, **layout.options)
        rows.append(describe(layout, cohort))
    print("\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows))


if __name__ == "__main__":
    main()
