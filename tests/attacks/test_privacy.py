"""Personal data in images, tables and file names do not reach the outputs of a training."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from covid_fastai.data.phantom import draw_phantom

IN_IMAGE, IN_COLUMN = "DOE^JOHN", "ROE^JANE"


def write_data(folder: Path) -> Path:
    """Write 24 radiographs with a name in EXIF, PNG text or JPEG comments, and a CSV with another name."""
    folder.mkdir()
    rows = []
    for number in range(24):
        label = ("Normal", "COVID-19")[number % 2]
        drawn = draw_phantom(np.random.default_rng(number), image_size=64).image
        exif = Image.Exif()
        exif[0x010E] = exif[0x9286] = IN_IMAGE
        text = PngImagePlugin.PngInfo()
        text.add_text("PatientName", IN_IMAGE, zip=True)
        name = f"{number}.{'png' if number % 4 else 'jpg'}"
        options = {"pnginfo": text} if name.endswith("png") else {"comment": IN_IMAGE.encode()}
        Image.fromarray(np.asarray(drawn)).save(folder / name, exif=exif, **options)
        rows.append({"image": name, "label": label, "patient": f"p{number // 2}-{label}", "remark": IN_COLUMN})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def everything(path: Path) -> bytes:
    """Return a file's bytes, with the decompressed content of archives and PNG text chunks."""
    content = path.read_bytes()
    parts = [content]
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    place = content.find(b"zTXt")
    while place >= 0:  # compressed text
        try:
            parts.append(zlib.decompress(content[content.index(b"\0", place) + 2 :]))
        except (zlib.error, ValueError):  # the four letters occur in base64 by chance
            pass
        place = content.find(b"zTXt", place + 4)
    return b"\n".join(parts)


@pytest.mark.slow
def test_a_training_writes_no_text_from_its_images(tmp_path, monkeypatch, caplog, capfd):
    from covid_fastai import Predictor, train_classifier

    monkeypatch.setenv("COVID_FASTAI_CACHE", str(tmp_path / "cache"))
    data = write_data(tmp_path / "data")
    assert IN_IMAGE.encode() in (tmp_path / "data" / "0.jpg").read_bytes()
    caplog.set_level("DEBUG", logger="covid_fastai")
    learn = train_classifier(
        data, out=tmp_path / "run", image_size=64, batch_size=8, frozen_epochs=1, unfrozen_epochs=1, weights=None
    )
    Predictor(learn.path / "model").explain([str(tmp_path / "data" / "0.jpg")])
    written = [path for place in ("run", "cache") for path in (tmp_path / place).rglob("*") if path.is_file()]
    assert len(written) > 20
    for path in written:
        assert IN_IMAGE.encode() not in everything(path), path
    # no other column of the CSV is kept
    assert not [path for path in written if IN_COLUMN.encode() in everything(path)]
    out, err = capfd.readouterr()
    assert IN_IMAGE not in caplog.text + out + err and IN_COLUMN not in caplog.text + out + err
    shared = [path for path in (learn.path / "model").iterdir()]
    assert all(str(tmp_path).encode() not in everything(path) for path in shared), "no folder of this machine"


@pytest.mark.slow
def test_no_file_of_a_pseudonymised_run_names_a_patient_or_a_folder(tmp_path, monkeypatch):
    """Patients, files and folders have names of people; after all that can be done with a run, none is there."""
    from covid_fastai import read_run, train_classifier, validate
    from covid_fastai.audit.audit import BLIND, UNTRAINED, audit_run
    from covid_fastai.reporting.documents import write_documents
    from covid_fastai.reporting.report import render_report
    from covid_fastai.training.retrain import retrain

    monkeypatch.setenv("COVID_FASTAI_CACHE", str(tmp_path / "cache"))
    source = write_data(tmp_path / IN_COLUMN)
    rows = pd.read_csv(source)
    for name in rows["image"]:
        (source.parent / name).rename(source.parent / f"MILLER_{name}")
    rows = rows.assign(image="MILLER_" + rows["image"], patient=IN_IMAGE + rows["patient"])
    rows.to_csv(source, index=False)
    out = tmp_path / "runs" / "first"
    quick = {"image_size": 64, "batch_size": 8, "frozen_epochs": 1, "unfrozen_epochs": 1, "weights": None}
    train_classifier(source, out=out, pseudonymise=True, quiet=True, **quick)
    other = write_data(tmp_path / "MILLER_other")
    validate(out, other, n_resamples=100)
    source.parent.rename(tmp_path / "MILLER_moved")
    audit_run(out, data=tmp_path / "MILLER_moved")
    retrain(out, changes=(BLIND, UNTRAINED))
    audit_run(out)
    render_report(out)
    write_documents(out)
    run = read_run(out)
    assert run.status == "finished" and (out / "report.html").stat().st_size > 50_000
    secrets = [IN_IMAGE, IN_COLUMN, "MILLER", str(tmp_path), str(Path.home()) + "/"]
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) > 20 and len(list(out.glob("retrained/*/predictions.csv"))) == 2
    for path in written:
        assert not [secret for secret in secrets if secret.encode() in everything(path)], path
    assert "numbers" in run.folder.datasheet.read_text()
    assert IN_IMAGE in (out.parent / "first.key" / "key.csv").read_text()
