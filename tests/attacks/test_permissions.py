"""Every file that a command writes has the permissions that the umask gives, or fewer."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.small_model import write_small_model

CODE = """
import json, sys
from covid_fastai.app.cli.main import main
for arguments in json.loads(sys.argv.pop()):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        print(arguments[0], end.code, flush=True)
"""
COMMANDS = [
    ["predict", "model", "images", "--csv", "predicted.csv", "--explain", "overlays"],
    ["batch", "model", "images", "batch.csv", "--workers", "1"],
    ["batch", "model", "images", "batch.parquet", "--workers", "1"],
    ["check", "images/labels.csv", "--out", "problems.csv"],
    ["explore", "images/labels.csv", "--out", "explored.html", "--pseudonymise"],
    ["evaluate", "a.csv", "--report", "evaluated.html", "--pseudonymise"],
    ["compare", "a.csv", "b.csv", "--out", "compared.csv", "--cases", "cases.csv"],
    ["audit", "images/labels.csv", "--out", "audited.html"],
    ["export", "model", "exported"],
    ["new-notebook", "notebooks"],
]


def write_data(folder: Path) -> None:
    (folder / "images").mkdir()
    rows, predictions = ["path,label,patient", "gone.png,Normal,q"], ["path,label,patient,p_Normal,p_COVID-19"]
    for number in range(12):
        label, p = ("Normal", "COVID-19")[number % 2], 0.5 + 0.03 * number * (-1) ** number
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        rows.append(f"{number}.png,{label},p{number}")
        predictions.append(f"images/{number}.png,{label},p{number},{p},{1 - p}")
    (folder / "images" / "labels.csv").write_text("\n".join(rows))
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text("\n".join(predictions))
    write_small_model(folder / "model")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="system: Windows has no umask")
@pytest.mark.parametrize(
    "umask", [0o027, *(pytest.param(other, marks=pytest.mark.nightly) for other in (0o000, 0o077))]
)
def test_every_file_of_every_command_respects_the_umask(tmp_path, umask):
    write_data(tmp_path)
    before = {*tmp_path.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(COMMANDS)],
        cwd=tmp_path,
        env={**os.environ, "COVID_FASTAI_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.umask(umask) and None,
    )
    assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.rglob("*") if path not in before and not path.is_symlink()]
    names = {path.relative_to(tmp_path).parts[0] for path in written}
    outputs = {word for command in COMMANDS for word in command if word.endswith((".csv", ".parquet", ".html"))}
    assert outputs - {"images/labels.csv", "a.csv", "b.csv"} <= names and {"exported", "notebooks", "cache"} <= names
    assert not [path for path in written if path.name.startswith(".")]
    for path in written:
        is_private = any(part == "cache" or part.endswith(".key") for part in path.relative_to(tmp_path).parts)
        allowed = 0o700 if is_private else 0o777 & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == (allowed if path.is_dir() else allowed & 0o666), path
