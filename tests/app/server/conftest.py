"""The application without worker processes, for tests in which no file is predicted."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_processes(monkeypatch):
    """Let `create_app` start no worker process, and return the class that answers in place of `Workers`."""
    from covid_fastai.app.server import app as app_module
    from tests.app.server.running import NoProcesses

    workers = type("Workers", (NoProcesses,), {})
    monkeypatch.setattr(app_module, "Workers", workers)
    return workers
