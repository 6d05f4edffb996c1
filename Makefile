# `make check` is what CI runs; `make docs` builds the documentation into _docs.
.PHONY: format check test doctest slow docs bench

format:
	ruff check --fix .
	ruff format .

check:
	ruff check .
	ruff format --check .
	lint-imports
	pyright -p .
	pytest
	pytest -n 0 --doctest-modules covid_fastai
	pytest -m "slow and not nightly"
	OMP_NUM_THREADS=1 nbdev-test nbs --n-workers 2

test:
	pytest

doctest:
	pytest -n 0 --doctest-modules covid_fastai

slow:
	pytest -m slow

docs:
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

bench:
	python -m benchmarks
