"""What may import what: the contracts in `pyproject.toml`, as `lint-imports` checks them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import covid_fastai

PACKAGE = Path(covid_fastai.__file__).parent
CONTRACTS = Path(__file__).parents[1] / "pyproject.toml"


def lint_imports(contracts: Path) -> subprocess.CompletedProcess[str]:
    """Run `lint-imports` in a process of its own: it sets up logging for the whole of it."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache", "--config", str(contracts)]
    return subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)


def test_the_contracts_are_kept():
    done = lint_imports(CONTRACTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_import_that_points_up_is_named(tmp_path):
    """The same kind of contract with two layers the wrong way round."""
    upside_down = tmp_path / "pyproject.toml"
    upside_down.write_text(
        '[tool.importlinter]\nroot_package = "covid_fastai"\n[[tool.importlinter.contracts]]\n'
        'name = "Up"\ntype = "layers"\ncontainers = ["covid_fastai"]\nlayers = ["data", "model"]\n'
    )
    done = lint_imports(upside_down)
    assert done.returncode == 1 and "covid_fastai.model is not allowed to import covid_fastai.data" in done.stdout


def test_every_init_but_the_top_one_is_empty():
    """So that a name costs its own module's imports and no neighbour's, and `--help` stays light."""
    for path in PACKAGE.rglob("*/__init__.py"):
        assert not path.read_text(encoding="utf-8"), path
