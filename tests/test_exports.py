"""The public names: sorted, documented, loaded on first use."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import covid_fastai
from covid_fastai import errors

STUB = ast.parse((Path(covid_fastai.__file__).with_suffix(".pyi")).read_text(encoding="utf-8"))
STUB_IMPORTS = [node for node in STUB.body if isinstance(node, ast.ImportFrom)]


def test_names_are_sorted_and_each_loads():
    assert list(covid_fastai.__all__) == sorted(covid_fastai.__all__) == dir(covid_fastai)
    for name in covid_fastai.__all__:
        assert getattr(covid_fastai, name) is not None


def test_the_stub_names_what_is_loaded():
    """Editors and type checkers read the stub: each name stands in it once, as itself, and is exported."""
    assert [(node.module, node.names[0].name) for node in STUB_IMPORTS] == sorted(
        (node.module, node.names[0].name) for node in STUB_IMPORTS
    )
    names = []
    for node in STUB_IMPORTS:
        (alias,) = node.names
        assert node.level == 1 and alias.asname == alias.name
        value = getattr(importlib.import_module(f"covid_fastai.{node.module}"), alias.name)
        assert getattr(covid_fastai, alias.name) is value
        names.append(alias.name)
    (exported,) = [ast.literal_eval(node.value) for node in STUB.body if isinstance(node, ast.Assign)]
    assert exported == sorted([*names, "__version__"]) == covid_fastai.__all__


def test_each_name_is_exported_by_the_module_that_the_stub_names():
    for node in STUB_IMPORTS:
        assert node.names[0].name in importlib.import_module(f"covid_fastai.{node.module}").__all__


def test_every_error_is_public():
    assert set(errors.__all__) <= set(covid_fastai.__all__)


@pytest.mark.slow
def test_a_type_checker_knows_the_public_names(tmp_path):
    pyright = shutil.which("pyright", path=Path(sys.executable).parent) or shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed")
    (tmp_path / "use.py").write_text(
        "import covid_fastai\nreveal_type(covid_fastai.split_by_patient)\n"
        "covid_fastai.train_classifier('data', seed='one')\ncovid_fastai.train_classifier('data', sede=1)\n"
        "covid_fastai.train_clasifier\n"
    )
    done = subprocess.run(
        [pyright, "--pythonpath", sys.executable, "use.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(covid_fastai.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert "(cohort: DataFrame, *, valid_pct: float = 0.2, seed: int = 42) -> Cohort" in done.stdout, done.stdout
    assert """"Literal['one']" cannot be assigned to parameter "seed\"""" in done.stdout
    assert 'No parameter named "sede"' in done.stdout and '"train_clasifier" is not a known attribute' in done.stdout


def test_the_wheel_and_the_source_hold_the_stub():
    setup = Path(covid_fastai.__file__).parents[1] / "MANIFEST.in"
    assert {"*.pyi", "py.typed"} <= set(setup.read_text().split())


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No covid_fastai attribute train_clasifier"):
        covid_fastai.train_clasifier  # noqa: B018


def test_every_module_exports_what_it_says_and_documents_it():
    found = pkgutil.walk_packages(covid_fastai.__path__, "covid_fastai.")
    modules = [module.name for module in found if not module.ispkg and not module.name.endswith("__main__")]
    assert len(modules) > 100
    for module_name in modules:
        module = importlib.import_module(module_name)
        assert module.__doc__, f"{module_name} has no docstring"
        exported = getattr(module, "__all__", None)
        assert exported is not None, f"{module_name} has no __all__"
        assert list(exported) == sorted(exported), f"{module_name}: __all__ is not sorted"
        for name in exported:
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                assert inspect.getdoc(value), f"{module_name}.{name} has no docstring"


@pytest.mark.parametrize("name", [name for name in covid_fastai.__all__ if name != "__version__"])
def test_public_functions_document_every_parameter(name):
    value = getattr(covid_fastai, name)
    if not inspect.isfunction(value):
        return
    text = inspect.getdoc(value)
    parameters = [p.name for p in inspect.signature(value).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for parameter in parameters:
        assert parameter in text, f"{name}: {parameter} is not in its docstring"
    assert "Returns:" in text or value.__annotations__.get("return") in (None, "None"), f"{name}: no Returns:"


WITH_EXAMPLE = """
    Predictor Task TrainConfig abstain_by_fold audit_run build_dataloaders build_learner calibrate check_input
    choose_threshold compare cross_validate decision_curve evaluate evaluate_subgroups example_data find_leaks
    find_shortcuts fit fold_by_patient list_runs load_model open_image plot_confusion_matrix plot_history
    plot_reliability plot_roc plot_saliency plot_top_losses predict predictive_values read_audit read_cohort
    read_predictions read_run risk_coverage save_model split_by_image split_by_patient summarise_cohort
    thresholds_by_fold train_classifier write_phantom
""".split()


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_the_most_used_names_have_an_example(name):
    """`pytest -n 0 --doctest-modules covid_fastai` runs them."""
    examples = doctest.DocTestParser().get_examples(getattr(covid_fastai, name).__doc__)
    assert any(example.want for example in examples)


def test_import_needs_no_torch():
    code = (
        "import sys, covid_fastai; print(sorted({'torch', 'fastai', 'pandas', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
