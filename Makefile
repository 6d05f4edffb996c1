# Four verbs; `make check` is what CI runs.
.PHONY: format check test slow

format:
	ruff check --fix .
	ruff format .

check:
	ruff check .
	ruff format --check .
	pytest
	pytest -m slow

test:
	pytest

slow:
	pytest -m slow
