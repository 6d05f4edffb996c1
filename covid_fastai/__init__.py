"""Train and honestly evaluate a COVID-19 classifier from a folder of chest radiographs.

Research use only; not a medical device.

The public names are in `__init__.pyi`, where editors and type checkers read them. They are loaded on first use, so
that `import covid_fastai` needs neither torch nor fastai.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

from covid_fastai.imports import importing

_load, _, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = sorted([*_names, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]: the stub lists them


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("covid_fastai")
    try:
        with importing():
            return _load(name)
    except ModuleNotFoundError as error:  # an installation without torch, which can only predict
        error.add_note("Complete the installation: pip install covid_fastai")
        raise


def __dir__() -> list[str]:
    return __all__
