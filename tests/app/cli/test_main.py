"""The command line as a process, with its output and its exit status."""

from __future__ import annotations

import csv
import inspect
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai.app.cli.doctor import FOR_PREDICTION
from covid_fastai.config import TrainConfig
from tests.app.cli.commands import COVID_FASTAI
from tests.app.cli.commands import run_command as run
from tests.test_extras import WITHOUT
from tests.test_packaging import REPOSITORY


def run_alone(*arguments, cwd):
    """Run a command as a user does, in a process that has imported nothing; `run` is quicker."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [*COVID_FASTAI, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment
    )


@pytest.fixture
def faulty_folder(tmp_path):
    """A truncated JPEG, an HTML page named .jpg, a missing file, an unknown label, and a valid 16-bit PNG."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (64, 64), dtype=np.uint8)
    for number in range(4):
        Image.fromarray(np.roll(pixels, 7 * number, axis=number % 2) // (1 + number)).save(folder / f"good{number}.jpg")
    Image.fromarray(pixels).save(folder / "cut.jpg")
    content = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "page.jpg").write_text("<!doctype html><title>404</title>")
    Image.fromarray(np.linspace(0, 60000, 64 * 64).reshape(64, 64).astype(np.uint16)).save(folder / "deep.png")
    labels = {f"good{n}.jpg": ("Normal", "COVID-19")[n % 2] for n in range(3)}
    labels |= {
        "cut.jpg": "Normal",
        "page.jpg": "Normal",
        "gone.jpg": "COVID-19",
        "good3.jpg": "Cat",
        "deep.png": "Normal",
    }
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "patient"])
        writer.writerows([name, label, f"p{number}"] for number, (name, label) in enumerate(labels.items()))
    return folder


@pytest.mark.slow
def test_check_lists_all_problems_with_their_fixes(faulty_folder, tmp_path):
    done = run("check", faulty_folder / "labels.csv", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    errors = [line for line in done.stdout.splitlines() if line.startswith("error:")]
    assert len(errors) == 4
    for name in ("cut.jpg", "page.jpg", "gone.jpg", "good3.jpg"):
        assert any(name in line for line in errors), name
    assert "deep.png" not in done.stdout
    problems = pd.read_csv(tmp_path / "problems.csv")
    n_warnings, n_notes = ((problems["severity"] == severity).sum() for severity in ("warning", "note"))
    plural = {True: "", False: "s"}
    last_line = f"4 errors, {n_warnings} warning{plural[n_warnings == 1]}, {n_notes} note{plural[n_notes == 1]}."
    assert done.stdout.splitlines()[-1] == f"{last_line} problems.csv lists all of them."
    assert (problems["severity"] == "error").sum() == 4
    assert problems["remedy"].str.len().min() > 5
    assert sorted(problems["row"]) == [5, 6, 7, 8]


@pytest.mark.slow
def test_check_of_valid_data(covid_dataset, tmp_path):
    done = run_alone("check", covid_dataset, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["faults"] == 0 and sum(row["images"] for row in result["counts"]) > 40
    assert not (tmp_path / "problems.csv").exists()


QUICK = ("--image-size", 32, "--batch-size", 8, "--frozen-epochs", 0, "--unfrozen-epochs", 1, "--weights", "none")


@pytest.fixture(scope="module")
def trained(covid_dataset, tmp_path_factory):
    """One training from the command line: the finished process and the folder of its run."""
    folder = tmp_path_factory.mktemp("cli")
    return run_alone("train", covid_dataset, "--out", "runs/first", *QUICK, cwd=folder), folder / "runs" / "first"


@pytest.mark.slow
def test_train_prints_a_table_the_python_call_and_the_report(trained, covid_dataset):
    done, folder = trained
    assert done.returncode == 0, done.stderr
    assert "95% interval" in done.stdout and "Research use only" in done.stdout
    assert f"train_classifier({str(covid_dataset)!r}, image_size=32" in done.stdout
    assert "Report: runs/first/report.html" in done.stdout
    assert done.stdout.startswith("This shows nothing about COVID-19 in patients.") and "Verdict: " in done.stdout
    assert done.stdout.count("Report: ") == 1 and "covid-fastai validate runs/first DATA" in done.stdout
    assert (folder / "report.html").exists()
    epochs = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 1 and "\r" not in done.stderr
    assert "FutureWarning" not in done.stderr


@pytest.mark.slow
@pytest.mark.nightly
def test_the_command_in_the_report_reproduces_the_metrics(trained, tmp_path):
    import shlex

    _, folder = trained
    command = json.loads((folder / "config.json").read_text())["command"]
    arguments = shlex.split(command)
    assert arguments[:2] == ["covid-fastai", "train"]
    done = run_alone(*arguments[1:], "--out", "again", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    second = json.loads(done.stdout)
    first = json.loads((folder / "metrics.json").read_text())
    assert second["valid"]["metrics"] == first["valid"]["metrics"]


def test_evaluate_needs_no_torch_and_returns_the_metrics_of_the_run(run_folder, tmp_path):
    done = run("evaluate", run_folder / "predictions.csv", "--json", cwd=tmp_path)
    metrics = json.loads((run_folder / "metrics.json").read_text())["valid"]["metrics"]
    assert json.loads(done.stdout)["metrics"] == metrics and not {"torch", "fastai"} & done.imported


def test_runs_lists_the_runs(run_folder, tmp_path):
    done = run("runs", run_folder.parent, cwd=tmp_path)
    assert done.returncode == 0 and "evidence/run" in done.stdout and "finished" in done.stdout


@pytest.mark.slow
def test_explore_writes_a_page(covid_dataset, tmp_path):
    done = run("explore", covid_dataset, "--task", "pneumonia", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<img" in (tmp_path / "exploration.html").read_text()


@pytest.mark.slow
def test_doctor_names_versions_and_device(tmp_path):
    done = run_alone("doctor", "--json", cwd=tmp_path)
    findings = {row["what"]: row for row in json.loads(done.stdout)}
    assert findings["torch"]["state"] == "ok"
    assert any(device in findings["device"]["details"] for device in ("cpu", "cuda", "mps"))
    assert findings["working folder"]["state"] == "ok"
    assert findings["installation"]["details"] == "trains and predicts"


def test_doctor_in_an_installation_that_only_predicts(tmp_path):
    names = (REPOSITORY / "requirements-predict.txt").read_text().splitlines()
    assert {name.partition(">=")[0] for name in names if ">=" in name} == FOR_PREDICTION
    blocked = "torch,torchvision,fastai,fastcore,sklearn,matplotlib,psutil,jinja2,onnx,onnxscript,scipy"
    command = [sys.executable, "-c", WITHOUT, blocked, "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    findings = {row["what"]: row for row in json.loads(done.stdout)}
    assert findings["installation"]["details"].startswith("predicts only")
    assert "torch" not in findings and findings["onnxruntime"]["state"] == "ok"
    assert findings["device"]["details"].endswith("ONNX Runtime)")
    assert findings["models of the package"]["details"] == "pneumonia-children"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["train", "gone"], 3, "gone does not exist"),
        (["train", ".", "--imagesize", "3"], 2, "image-size"),
        (["train", ".", "--image-size", "3"], 2, "--image-size 3"),
        (["train", ".", "--balance", "much"], 2, "sampler"),
        (["train", ".", "--preset", "artikel"], 2, "article"),
        (["train"], 2, "No data were given"),
        (["evaluate", "gone.csv"], 3, "gone.csv"),
        (["runs", "gone"], 3, "gone"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_an_error_has_a_status_a_reason_and_no_traceback(arguments, status, text, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert text in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "a command that failed at once left files"


def test_debug_prints_the_traceback_and_json_the_error(tmp_path):
    assert "Traceback" in run("train", "gone", "--debug", cwd=tmp_path).stderr
    answer = json.loads(run("train", "gone", "--json", cwd=tmp_path).stdout)
    assert answer["exit_code"] == 3 and "gone" in answer["error"] and answer["hint"]


@pytest.mark.slow
def test_the_audit_of_a_run_begins_with_what_it_shows(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    lines = run("audit", "run", cwd=tmp_path).stdout.splitlines()
    assert lines[0].startswith("This shows nothing about COVID-19 in patients.")  # they are drawings
    assert lines[1].startswith("Verdict: Disease signal not shown") and lines[-1] == "Page: run/report.html"


def test_nothing_is_collected_at_the_end():
    """The last collection searches all objects of torch and fastai, which took 20 s on a busy machine."""
    code = "import atexit, gc, sys; sys.argv[1:] = ['--version']; from covid_fastai.app.cli.main import main\n"
    code += "atexit.register(lambda: print('frozen:', gc.get_freeze_count() > 1000)); main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "frozen: True"


@pytest.mark.slow
def test_an_installation_that_only_predicts_says_so(tmp_path):
    code = "import sys; sys.modules['scipy'] = None; sys.argv[1:] = ['check', '.']\n"
    code += "from covid_fastai.app.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4 and "needs the package scipy, which is not installed" in done.stderr
    assert "pip install covid_fastai" in done.stderr and "report the traceback" not in done.stderr


@pytest.mark.parametrize("command", ["--help", "train --help", "check -h", "--version"])
def test_help_imports_no_heavy_package(command):
    code = "import sys; sys.argv[1:] = %r\nfrom covid_fastai.app.cli.main import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n"
    code += "    print(sorted({'torch', 'fastai', 'pandas', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code % command.split()], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    if command == "--version":
        assert done.stdout.startswith("covid_fastai ")


def test_every_field_of_the_config_is_an_option_of_train():
    from covid_fastai.app.cli.main import train

    assert set(TrainConfig.model_fields) <= set(inspect.signature(train).parameters)


def test_every_default_is_the_one_in_the_signature():
    """An option that is not given has the command's default: no callback changes a number."""
    import typer

    from covid_fastai.app.cli.main import COMMANDS, app

    functions = {function.__name__.replace("_", "-"): function for panel in COMMANDS.values() for function in panel}
    checked = set()
    for name, command in typer.main.get_command(app).commands.items():
        signature = inspect.signature(functions[name]).parameters
        context = command.make_context(name, [], resilient_parsing=True)
        context.resilient_parsing = False
        for option in command.params:
            if option.name in signature and not option.required and option.expose_value:
                value, _ = option.handle_parse_result(context, {}, [])
                expected = signature[option.name].default
                assert value == expected or (not value and not expected), f"{name} --{option.name}: {value!r}"
                assert isinstance(value, bool) == isinstance(expected, bool)
                checked.add((name, option.name))
    assert {("evaluate", "threshold"), ("batch", "seconds"), ("evaluate", "n_resamples")} <= checked


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {}),
        (["--no-exclude-pretraining-overlap"], {"exclude_pretraining_overlap": False}),
        (["--exclude-pretraining-overlap"], {"exclude_pretraining_overlap": True}),
        (
            ["--no-exclude-pretraining-overlap", "--evaluate-test"],
            {"evaluate_test": True, "exclude_pretraining_overlap": False},
        ),
    ],
)
def test_switches_are_on_or_off(flags, expected, monkeypatch):
    from typer.testing import CliRunner

    from covid_fastai.app.cli import main

    given = {}
    monkeypatch.setattr(main, "set_up_logging", lambda **options: None)  # it would change the logging of all tests
    monkeypatch.setattr(main, "_train", lambda *arguments, choices, **options: given.update(choices))
    done = CliRunner().invoke(main.app, ["train", "data", *flags, "--quiet"])
    assert done.exit_code == 0 and given == expected
    assert TrainConfig.build(**given).to_command("data").split()[3:] == [
        flag for flag in flags if flag != "--exclude-pretraining-overlap"
    ]


@pytest.mark.slow
@pytest.mark.nightly  # tests/attacks/test_training.py sends both signals
def test_an_interrupt_ends_with_130_and_the_message_tells_how_to_resume(covid_dataset, tmp_path):
    import signal

    process = subprocess.Popen(
        [
            *COVID_FASTAI,
            "train",
            str(covid_dataset),
            "--out",
            "run",
            *map(str, QUICK[:6]),
            "--unfrozen-epochs",
            "50",
            "--weights",
            "none",
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    for line in process.stderr:
        if line.startswith("epoch 1/"):
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "resume" in rest and "Traceback" not in rest
    assert (tmp_path / "run" / "history.csv").exists()


@pytest.mark.slow
def test_the_demo_is_accurate_on_held_out_patients(tmp_path):
    done = run_alone("demo", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    metrics = {row["metric"]: row for row in result["valid"]["metrics"]}
    assert metrics["accuracy"]["n"] >= 100
    assert metrics["accuracy"]["value"] >= 0.9
    assert (tmp_path / result["report"]).exists()


@pytest.mark.slow
def test_cache_lists_and_clears_the_cache(tmp_path, monkeypatch, phantom_root):
    monkeypatch.setenv("COVID_FASTAI_CACHE", str(tmp_path / "cache"))
    run("check", phantom_root, "--quiet", cwd=tmp_path)
    facts = json.loads(run("cache", "--json", cwd=tmp_path).stdout)
    (row,) = facts["contents"]
    assert facts["folder"] == str(tmp_path / "cache") and row["kind"].startswith("prints-") and row["entries"] > 50
    monkeypatch.setenv("COVID_FASTAI_CACHE_GB", "2.5")
    assert "of at most 2,500 MB" in run("cache", cwd=tmp_path).stdout
    assert json.loads(run("cache", "--clear", "--json", cwd=tmp_path).stdout)["contents"] == []
    monkeypatch.setenv("COVID_FASTAI_CACHE", "off")
    assert run("cache", cwd=tmp_path).stdout == "The cache is off.\n"
