# `make demo` and `make test` on a fresh machine: Python 3.11 or 3.12 and its headers, pip, a C++ compiler, make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-pure test-faults test-oldest lint bench ui clean

demo: .venv/installed ## the whole method on the embedded data set
	$(BIN)/python ray_jobs/dynamic.py

test: lint test-pure ## everything
	$(BIN)/python -m pytest -m "(ray or programs) and not minutes"

test-pure: .venv/installed ## what needs neither a Ray cluster nor a slow program
	$(BIN)/python -m pytest -n logical --maxprocesses 8 -m "not ray and not programs and not minutes"

test-faults: .venv/installed ## lost nodes, a bucket, a full object store, a long run with kills: half an hour
	$(BIN)/python -m pytest -m minutes -s

test-oldest: .venv-oldest/installed ## the jobs with the oldest Ray, torch, torchvision, timm and MLflow that are declared
	.venv-oldest/bin/python -m pytest tests/test_jobs.py tests/test_faults.py tests/test_sweeps.py
	.venv-oldest/bin/python -m pytest tests/test_workers.py -m minutes

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed ## every benchmark, a quarter of an hour; bench/results.json
	$(BIN)/python bench/run.py

ui: .venv/installed ## MLflow's comparison UI on the default workspace
	$(BIN)/mlflow ui --backend-store-uri sqlite:///workspace/mlflow.db

.venv/installed: pyproject.toml
	$(BIN)/python -c 'import pip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2> /dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

.venv-oldest/installed: pyproject.toml tests/oldest.py
	rm -rf .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf workspace
