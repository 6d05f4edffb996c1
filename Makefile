# `make check` is what CI runs; `make docs` builds the site into _docs and needs Quarto.
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
	python nbs/_site.py
	cd nbs && quartodoc build
	nbdev-docs
	rm -f covid_fastai/_modidx.py

bench:
	python -m benchmarks
