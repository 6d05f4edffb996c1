"""Dependencies point down only: app -> training -> evidence -> model -> data."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import covid_fastai

PACKAGE = Path(covid_fastai.__file__).parent
LAYERS = [
    "data",
    "model",
    "evidence",
    "run_folder",
    "fitting",
    "folding",
    "training",
    "auditing",
    "validation",
    "app",
]  # lowest first
FOUNDATION = {
    "errors",
    "files",
    "config",
    "notices",
    "plotting",
}  # below every layer; config names the tasks of data only where it must
TAKES_A_LEARNER = {"predictions", "interpretation", "saliency"}  # what in evidence/ may import torch or fastai
TORCH_FREE = ["data/images.py", "data/fingerprints.py", "data/metadata.py", "data/patients.py", "data/phantom.py"]
TORCH_FREE += ["data/splits.py", "data/tasks.py", "data/exploration.py", "config.py", "errors.py", "files.py"]
TORCH_FREE += ["evaluation/formatting.py", "notices.py", "plotting.py"]
TORCH_FREE += [
    "data/pretraining_overlap.py",
    "data/examples.py",
    "model/bundle_config.py",
    "model/card.py",
    "model/hub.py",
    "model/runtime.py",
    "saliency/overlay.py",
]
TORCH_FREE += ["app/server/worker_process.py", "app/server/app.py", "app/server/workers.py"]
TORCH_FREE += [f"evidence/{name}.py" for name in ("abstention", "agreement", "calibration", "comparison")]
TORCH_FREE += [f"evidence/{name}.py" for name in ("pairing", "selection", "subgroups", "thresholds", "usefulness")]
TORCH_FREE += ["data/dicom.py", "data/input_check.py", "model/predictor.py", "app/batch/run.py", "app/batch/ray.py"]
TORCH_FREE += ["app/batch/run.py", "app/batch/local.py", "app/overlays.py", "app/inputs.py", "app/cli/predict.py"]
HEAVY = {"torch", "torchvision", "fastai", "timm"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))


def imported_names(path: Path) -> set[str]:
    """Every dotted name that the file imports, inside functions too; not what only a type checker imports."""
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{path}: import *"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(name: str) -> str | None:
    part = name.split(".")[1] if name.startswith("covid_fastai.") else None
    return part if part in LAYERS else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = layer_of("covid_fastai." + path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."))
    if own is None:
        return
    for name in imported_names(path):
        other = layer_of(name)
        assert other is None or LAYERS.index(other) <= LAYERS.index(own), f"{path.name} ({own}) imports {name}"


@pytest.mark.parametrize("relative", TORCH_FREE)
def test_torch_free_modules(relative):
    assert not {name.split(".")[0] for name in imported_names(PACKAGE / relative)} & HEAVY


def test_evidence_needs_a_learner_in_few_places():
    for path in (PACKAGE / "evidence").glob("*.py"):
        heavy = {name.split(".")[0] for name in imported_names(path)} & HEAVY
        assert not heavy or path.stem in TAKES_A_LEARNER, f"{path.name} imports {heavy}"


def test_no_module_is_a_drawer():
    assert not {path.stem for path in MODULES} & {"utils", "core", "helpers", "misc", "common"}


READS_A_PICKLE = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_reads_a_pickle_but_the_one_audited_function(path):
    assert not {name.split(".")[0] for name in imported_names(path)} & READS_A_PICKLE
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        function = getattr(node, "func", None)
        name = getattr(function, "attr", "") or getattr(function, "id", "")
        assert name not in {"load_learner", "read_pickle"}, f"{path.name} calls {name}"
        assert getattr(function, "id", "") not in {"eval", "exec"}, f"{path.name} runs text as code"
        if name == "load" and getattr(getattr(node.func, "value", None), "id", "") == "torch":
            keywords = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg == "weights_only"}
            assert path.name == "weight_files.py" and keywords == {"weights_only": True}, (
                f"{path.name} calls torch.load"
            )
        if name == "load" and getattr(getattr(node.func, "value", None), "id", "") in {"np", "numpy"}:
            assert not any(word.arg == "allow_pickle" for word in node.keywords), f"{path.name} allows pickles"
