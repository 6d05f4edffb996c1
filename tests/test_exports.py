"""The public names: sorted, documented, loaded on first use."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import covid_fastai

MODULES = [
    module.name
    for module in pkgutil.walk_packages(covid_fastai.__path__, "covid_fastai.")
    if not module.ispkg and not module.name.endswith("__main__")
]


def test_names_are_sorted_and_each_loads():
    assert list(covid_fastai.__all__) == sorted(covid_fastai.__all__)
    for name in covid_fastai.__all__:
        assert getattr(covid_fastai, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'train_clasifier'"):
        covid_fastai.train_clasifier  # noqa: B018


@pytest.mark.parametrize("module_name", MODULES)
def test_every_module_exports_what_it_says_and_documents_it(module_name):
    module = importlib.import_module(module_name)
    assert module.__doc__
    exported = getattr(module, "__all__", None)
    assert exported is not None, f"{module_name} has no __all__"
    assert list(exported) == sorted(exported)
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


def test_import_needs_no_torch():
    code = (
        "import sys, covid_fastai; print(sorted({'torch', 'fastai', 'pandas', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
