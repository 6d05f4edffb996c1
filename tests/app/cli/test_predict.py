"""The commands predict and export as processes that import no torch, and the listing of inputs."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai.app.inputs import list_images, openable
from covid_fastai.app.overlays import draw_explained
from covid_fastai.data.images import open_image
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.errors import DataError, UnavailableError
from covid_fastai.model.predictor import Predictor
from tests.app.cli.commands import LIGHT, run_command
from tests.small_model import write_small_model

REPOSITORY = Path(__file__).parents[3]
SENTINEL = "DOE^JOHN"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    write_small_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three radiographs, of which two have the same name, and an HTML page named .png."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "b").mkdir()
    for number, name in enumerate(["a.png", "b/a.png", "z.jpeg"]):
        phantom = draw_phantom(np.random.default_rng(number), image_size=128).image
        exif = Image.Exif()
        exif[0x010E] = SENTINEL  # ImageDescription
        Image.fromarray(phantom).save(folder / name, exif=exif)
    (folder / "bad.png").write_text("<!doctype html>")
    (folder / "notes.txt").write_text("no image")
    return folder


def covid_fastai(*arguments, cwd):
    """Run the command, and check that it imported no heavy package."""
    done = run_command(*arguments, cwd=cwd, imports=LIGHT)
    assert not {"torch", "fastai", "scipy", "sklearn", "matplotlib", "pydicom"} & done.imported, done.stderr
    return done


def test_predict_writes_json_csv_and_overlays(run_folder, images, tmp_path):
    done = covid_fastai("predict", run_folder, images, "--json", "--csv", "t.csv", "--explain", "maps", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [Path(row["path"]).relative_to(images).as_posix() for row in rows] == [
        "a.png",
        "b/a.png",
        "bad.png",
        "z.jpeg",
    ]
    expected = Predictor(run_folder / "model").predict([row["path"] for row in rows])
    written = pd.read_csv(tmp_path / "t.csv", keep_default_na=False, na_values={"p_COVID-19": [""]})
    for table in (pd.DataFrame(rows), written):
        np.testing.assert_allclose(table["p_COVID-19"].astype(float), expected["p_COVID-19"], atol=1e-6)
        assert table["prediction"].tolist() == expected["prediction"].tolist()
        assert table["status"].tolist() == ["ok", "ok", "unreadable", "ok"]
    assert "HTML" in rows[2]["reason"] and rows[2]["overlay"] == ""
    assert sorted(os.listdir(tmp_path / "maps")) == ["a-2.png", "a.png", "z.png"]
    for name in os.listdir(tmp_path / "maps"):
        content = (tmp_path / "maps" / name).read_bytes()
        assert SENTINEL.encode() not in content and np.asarray(open_image(content)).size > 128 * 128


def test_predict_prints_a_table(run_folder, images, tmp_path):
    done = covid_fastai("predict", run_folder / "model", images / "a.png", images / "gone.png", cwd=tmp_path)
    assert done.returncode == 0 and "2 images, 1 without a prediction." in done.stdout
    assert "gone.png is missing" in done.stdout
    assert "not a diagnosis" in done.stdout and "Research use only" in done.stdout


def test_a_withheld_class_is_not_printed_as_probabilities(run_folder, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)).save(tmp_path / "noise.png")
    done = covid_fastai("predict", run_folder, "noise.png", "--csv", "t.csv", cwd=tmp_path)
    (row,) = pd.read_csv(tmp_path / "t.csv").to_dict("records")
    assert row["withheld"] and 0 <= row["p_COVID-19"] <= 1
    (line,) = (line for line in done.stdout.splitlines() if line.split()[:1] == ["noise.png"])
    assert line.split()[1:] == ["–", "–", "withheld", "ok"]


@pytest.mark.slow
def test_the_status_is_3_without_any_prediction(run_folder, images, tmp_path):
    assert covid_fastai("predict", run_folder, images / "bad.png", cwd=tmp_path).returncode == 3
    assert covid_fastai("predict", run_folder, tmp_path, cwd=tmp_path).returncode == 3  # a folder without images
    assert covid_fastai("predict", tmp_path, images, cwd=tmp_path).returncode == 3  # no model
    for command in ("predict", "export", "batch"):
        assert "--help" in covid_fastai(command, "--help", cwd=tmp_path).stdout


def test_export_writes_a_usable_model_and_overwrites_nothing(run_folder, images, tmp_path):
    done = covid_fastai("export", run_folder, "out/shared", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == [
        "README.md",
        "config.json",
        "findings.json",
        "model.onnx",
        "model.safetensors",
    ]
    target = tmp_path / "out/shared"
    exported, original = (Predictor(path).predict(str(images / "a.png")) for path in (target, run_folder / "model"))
    pd.testing.assert_frame_equal(exported, original)
    assert "# first" in (target / "README.md").read_text() and "Not stated" in (target / "README.md").read_text()
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    done = covid_fastai("export", run_folder, "out/shared", cwd=tmp_path)
    assert done.returncode == 4 and "exists and is not empty" in done.stderr
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_export_of_a_damaged_model_writes_nothing(run_folder, tmp_path):
    model = write_small_model(tmp_path / "model")
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)
    done = covid_fastai("export", model, "out", cwd=tmp_path)
    assert done.returncode == 3 and "damaged or exchanged" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(40, 40), (2000, 900), (300, 900)])
def test_the_overlay_leaves_the_rest_of_the_radiograph_unchanged(size):
    grey = Image.new("L", size, 100)
    empty = draw_explained(grey, np.zeros((4, 4)), name="COVID-19", probability=0.5)
    saliency = np.zeros((4, 4))
    saliency[0, 0] = 2.0
    overlay = np.asarray(draw_explained(grey, saliency, name="COVID-19", probability=0.5)).astype(int)
    assert empty.width == overlay.shape[1] >= 360
    width = min(1, 768 / max(size)) * size[0]
    left, right = int((overlay.shape[1] - width) / 2 + 2), int((overlay.shape[1] + width) / 2 - 3)
    assert np.ptp(overlay[2, left]) > 50  # coloured where the saliency is high
    assert (overlay[2, right] == 100).all()  # grey elsewhere


# inputs


def test_inputs_of_every_kind(images, tmp_path):
    expected = [str(images / name) for name in ("a.png", "b/a.png", "bad.png", "z.jpeg")]
    assert list(list_images(images)) == expected
    assert list(list_images(f"{images}/**/*.png")) == expected[:3]
    (tmp_path / "list.csv").write_text(f"\ufeffid,path\n1,gone.png\n2,{images}/a.png\n", encoding="utf-8")
    root = tmp_path.parent
    assert list(list_images(tmp_path / "list.csv", image_root=root)) == [str(root / "gone.png"), expected[0]]
    assert list(list_images([images / "a.png", "no.png"])) == [expected[0], "no.png"]
    (images / "b" / "1.2.840").write_bytes(bytes(128) + b"DICM")
    assert str(images / "b" / "1.2.840") in list(list_images(images))
    (images / "b" / "1.2.840").unlink()
    (tmp_path / "odd[1].png").write_bytes(b"")
    assert list(list_images(tmp_path / "odd[1].png")) == [str(tmp_path / "odd[1].png")]
    (tmp_path / "t.csv").write_text("scan\na\n")
    for path, message in ((tmp_path / "x*.png", "contains no image"), (tmp_path / "t.csv", "hold the image files")):
        with pytest.raises(DataError, match=message):
            list(list_images(path))


def test_inputs_that_are_urls(images):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for name in ("scans/a.png", "scans/b/c.png"):
        store.pipe(f"/{name}", (images / "a.png").read_bytes())
    store.pipe("/scans/notes.txt", b"x")
    urls = list(list_images("memory://scans"))
    assert urls == ["memory:///scans/a.png", "memory:///scans/b/c.png"]
    assert list(list_images("memory://scans/*.png")) == urls[:1]
    assert open_image(openable(urls[0])) == open_image(images / "a.png")
    with pytest.raises(UnavailableError, match="cannot be read"):
        list(list_images("nowhere://x"))
    store.rm("/scans", recursive=True)


# an environment without torch


def lowest_versions(text: str) -> dict[str, str]:
    """Return the lower bound of each requirement that has no other bound, by package."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    return dict(line.split(">=") for line in lines if line.count(">=") == 1 and "," not in line)


def test_the_requirements_of_the_predictor_agree_with_settings():
    settings = ConfigParser(delimiters=("=",), interpolation=None)
    settings.read(REPOSITORY / "settings.ini", encoding="utf-8")
    package = lowest_versions(settings["DEFAULT"]["requirements"])
    predictor = lowest_versions((REPOSITORY / "requirements-predict.txt").read_text())
    assert len(predictor) >= 8 and predictor == {name: package[name] for name in predictor}
    assert predictor.items() <= lowest_versions((REPOSITORY / "requirements-serve.txt").read_text()).items()


@pytest.mark.slow
@pytest.mark.network
def test_predict_in_an_environment_without_torch(run_folder, images, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    for arguments in (["-r", REPOSITORY / "requirements-predict.txt"], ["--no-deps", REPOSITORY]):
        subprocess.run([python, "-m", "pip", "install", "-q", *arguments], check=True)
    done = subprocess.run(
        [python, "-m", "covid_fastai", "predict", run_folder, images / "a.png", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    expected = Predictor(run_folder / "model").predict(str(images / "a.png"))
    assert abs(json.loads(done.stdout)["rows"][0]["p_COVID-19"] - expected["p_COVID-19"][0]) < 1e-4
    absent = "import importlib.util as u; assert not u.find_spec('torch') and not u.find_spec('fastai')"
    subprocess.run([python, "-c", absent], check=True)
    size = sum(path.lstat().st_size for path in (tmp_path / "env").rglob("*") if path.is_file())
    assert size < 400e6
