# Every target does its own set-up and nothing twice: the stamp files say what is up to date.
PYTHON ?= python3
BIN = .venv/bin
STAMP = .venv/.installed

.PHONY: install demo test lint bench docs clean

install: $(STAMP)

$(STAMP): setup.cfg constraints.txt detectron2.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[extract,train,sample,test,dev]'
	$(BIN)/python -c 'import detectron2' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check \
	    --no-deps --only-binary=:all: --python-version 3.10 --require-hashes \
	    --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" -r detectron2.txt
	touch $@

demo: $(STAMP)
	$(BIN)/python demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	for script in $(filter-out benchmarks/detector.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/.docs: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf .venv runs site
