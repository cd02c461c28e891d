# Each target makes the environment that it needs; only Python 3.10-3.13 and make
# have to be there. A second call finds the stamp and starts at once.
#
#   make demo  ARGS="--data=cifar10.npz"
#   make test  ARGS="tests/schedules -k linear"
#   make test  PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2

.PHONY: help demo test test-all bench-check lint format wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      the whole way on real digits; writes saved_models/ (ARGS=...)"
	@echo "make test      the tests and the examples in the docstrings (ARGS=..., WORKERS=2)"
	@echo "make test-all  these and the slow ones, and more random cases (ARGS=..., WORKERS=2)"
	@echo "make bench-check  what users wait for, beside the kept figures (ARGS=--keep)"
	@echo "make lint      ruff and mypy"
	@echo "make format    let ruff write the format"
	@echo "make wheel     build dist/tfkd-*.whl"
	@echo "make clean     remove what the other targets made"
	@echo "PYTHON=python3.12 chooses the Python (3.10 to 3.13) of a new environment"

define new-environment
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, 13); \
	ok or sys.exit("tfkd needs Python 3.10 to 3.13, but $(PYTHON) is " \
	+ sys.version.split()[0] + ". Choose another, for example PYTHON=python3.12")'
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
endef

.venv-demo/stamp .venv-test/stamp: .venv-%/stamp: setup.cfg pyproject.toml
	$(new-environment)
	$(@D)/bin/python -m pip install --quiet -e ".[$*]"
	@touch $@

# No TensorFlow here: ruff and mypy do not need it, and this takes seconds.
.venv-lint/stamp: setup.cfg pyproject.toml
	$(new-environment)
	$(PYTHON) -c 'import configparser; c = configparser.ConfigParser(); c.read("setup.cfg"); \
	print(c["options.extras_require"]["lint"])' > $(@D)/requirements.txt
	$(@D)/bin/python -m pip install --quiet -r $(@D)/requirements.txt
	@touch $@

demo: .venv-demo/stamp
	.venv-demo/bin/python examples/digits.py $(ARGS)

# Workers share the processors: one thread each is faster than many in each.
test: .venv-test/stamp
	TF_CPP_MIN_LOG_LEVEL=2 TF_NUM_INTRAOP_THREADS=1 OMP_NUM_THREADS=1 \
	.venv-test/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ALL) $(ARGS)

# What `test` runs, with the tests that it leaves out.
test-all: ALL = -m "" --hypothesis-profile=all
test-all: test

# A few minutes, with nothing else on the machine; ARGS=--keep writes benchmarks/ratios.json.
bench-check: .venv-test/stamp
	.venv-test/bin/python benchmarks/bench_check.py $(ARGS)

lint: .venv-lint/stamp
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .
	.venv-lint/bin/mypy

format: .venv-lint/stamp
	.venv-lint/bin/ruff check --fix .
	.venv-lint/bin/ruff format .

wheel: .venv-lint/stamp
	rm -rf build dist
	.venv-lint/bin/python -m build --wheel
	@ls -l dist

clean:
	rm -rf .venv-demo .venv-test .venv-lint build dist tfkd.egg-info
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
