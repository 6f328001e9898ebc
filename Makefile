# Every target sets itself up: Python 3.11, git and make are all that must be there.
PYTHON ?= python3.11
BIN := .venv/bin
SOURCES := l2a_ray envs benchmarks tests

.PHONY: demo test test-slow checks format lint types docs openmmlab lock clean

demo: .venv/ready
	$(BIN)/l2a generate --root demo_videos
	$(BIN)/l2a run --config configs/demo.yaml
	@echo "The report: runs/demo/report/index.html"

# Most of the tests' time is waiting for processes to start, so two files are tested at once.
test: .venv/ready
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/ready
	$(BIN)/pytest -m slow

checks: format lint types test

format: .venv/ready
	$(BIN)/ruff format --check $(SOURCES)

lint: .venv/ready
	$(BIN)/ruff check $(SOURCES)

types: .venv/ready
	$(BIN)/mypy

docs: .venv/ready
	$(BIN)/python -m l2a_ray.config.tables docs/settings.md
	$(BIN)/python tests/test_stage_defaults.py

# uv installs the locked set in seconds where pip takes minutes; it lives in the environment that it fills. Ray starts
# dozens of processes, each of which imports PyTorch and Ray: from source, where Python may not keep what it compiles,
# that takes twice as long, so it is compiled once.
.venv/ready: requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes \
		--requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# mmdet's detectors and mmaction2's recognizers, without a compiler: docs/openmmlab.md.
openmmlab: .venv/ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --requirement requirements-openmmlab.lock

# After a change of dependencies: exact versions with hashes; the second file holds what the extra adds to the first.
lock: .venv/ready
	$(BIN)/uv pip compile --quiet pyproject.toml --group dev --generate-hashes --no-header --python-version 3.11 \
		--output-file requirements.lock
	$(BIN)/uv pip compile --quiet pyproject.toml --extra openmmlab --constraint requirements.lock --generate-hashes \
		--no-header --python-version 3.11 --output-file requirements-openmmlab.lock \
		$$(sed -n 's/^\([a-z0-9_.-]*\)==.*/--no-emit-package \1/p' requirements.lock)

clean:
	rm -rf .venv build dist *.egg-info
