"""What may import what: the contracts in `pyproject.toml`, as `lint-imports` checks them."""

from __future__ import annotations

from pathlib import Path

from importlinter.cli import EXIT_STATUS_ERROR, EXIT_STATUS_SUCCESS, lint_imports

import covid_fastai

PACKAGE = Path(covid_fastai.__file__).parent
CONTRACTS = Path(__file__).parents[1] / "pyproject.toml"


def test_the_contracts_are_kept(monkeypatch):
    monkeypatch.syspath_prepend(str(PACKAGE.parent))
    assert lint_imports(config_filename=str(CONTRACTS), no_cache=True) == EXIT_STATUS_SUCCESS


def test_an_import_that_points_up_breaks_them(tmp_path, monkeypatch, capsys):
    """The same contract, the layers the other way round."""
    reversed_layers = tmp_path / "pyproject.toml"
    reversed_layers.write_text(
        '[tool.importlinter]\nroot_package = "covid_fastai"\n[[tool.importlinter.contracts]]\n'
        'name = "up"\ntype = "layers"\ncontainers = ["covid_fastai"]\nlayers = ["data", "model"]\n'
    )
    monkeypatch.syspath_prepend(str(PACKAGE.parent))
    assert lint_imports(config_filename=str(reversed_layers), no_cache=True) == EXIT_STATUS_ERROR


def test_every_init_but_the_top_one_is_empty():
    """So that a name costs its own module's imports and no neighbour's, and `--help` stays light."""
    for path in PACKAGE.rglob("*/__init__.py"):
        assert not path.read_text(encoding="utf-8"), path
