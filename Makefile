# `make plan` and `make test` each set up everything they need: a machine with Python >= 3.11 and make is enough.

PYTHON ?= python3
TORCH  ?= torch>=2.11,<2.14
# Models for tests/zoo, without their dependencies: those would bring another torch.
MODELS := torchvision==0.28.0 timm==1.0.31 ultralytics==8.4.190 opencv-python-headless==5.0.0.93 \
          diffusers==0.42.1 importlib_metadata zipp
JOBS   ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
CLEAN  := build/clean-venv

# pip compiles nothing (most of torch is never imported), so what a process imports must be kept for the next.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help plan test lint type unit coverage zoo campaign fuzz bench wheel clean

help:                    ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nestify needs Python >= 3.11; try: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile "$(TORCH)"
	$(BIN)/python -m pip install --no-compile --no-deps $(MODELS)
	$(BIN)/python -m pip install --no-compile --editable ".[dev]"
	@touch $@

plan: $(READY)           ## the main job: MobileNetV2 to a plan, a table and a checked ONNX file
	$(BIN)/nestify plan examples/mobilenet_v2.py --target cpu --out out/mobilenet_v2

test: lint type unit     ## the whole suite: lint, types, tests

lint: $(READY)           ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)           ## pyright, strict
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

unit: $(READY)           ## pytest, all but the campaigns and most of the zoo
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

coverage: $(READY)       ## pytest with branch coverage of nestify, passes and targets
	$(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term-missing

zoo: $(READY)            ## all models of the zoo against docs/zoo.md; ARGS=--update-golden writes it
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/zoo -m "zoo or not zoo" $(ARGS)

campaign: $(READY)       ## the long property tests (hours)
	$(BIN)/python -m pytest -n $(JOBS) -m campaign --hypothesis-profile=campaign

fuzz: $(READY)           ## 10,000 random models against every law (an hour or two; resumes)
	mkdir -p out
	$(BIN)/python -m tests.fuzz --models 10000 --seed 0 --jobs $(JOBS) --storage out/fuzz.jsonl --scripts out/fuzz-failures

bench: $(READY)          ## every script of benchmarks/, one after the other
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

# The clean environment sees the packages of .venv through a .pth file, so that torch is not installed
# twice; .pth files found that way are not read, so the editable nestify of .venv stays out of sight.
wheel: $(READY)          ## build sdist and wheel, install the wheel in a clean environment, import it there
	rm -rf dist $(CLEAN)
	$(BIN)/python -m build --no-isolation
	$(PYTHON) -m venv $(CLEAN)
	$(CLEAN)/bin/python -m pip install --no-deps dist/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(CLEAN)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	cd build && clean-venv/bin/python -I -c 'import pathlib, sys, nestify, nestify.passes, nestify.targets; \
	  where = {pathlib.Path(m.__file__) for m in (nestify, nestify.passes, nestify.targets)}; \
	  assert all(p.is_relative_to(sys.prefix) for p in where), where; print(*sorted(where), sep="\n")'

clean:                   ## remove what was built, and .venv
	rm -rf $(VENV) build dist out .pytest_cache .ruff_cache .hypothesis .coverage*
