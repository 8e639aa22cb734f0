# make install | demo | test | test-long | check | bench | fuzz | docs | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: install demo test test-long check bench fuzz docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("metricli needs Python 3.11 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'open-metric-learning==4.0.0'
	touch $@

demo: install
	@rm -rf $(DEMO)
	$(BIN)/metricli inspect-dataset data/figures_mini/df.csv
	@echo; echo "== untrained: row 0 of every comparison"
	$(BIN)/metricli validate examples/configs/figures_triplet.yaml
	@echo; echo "== train"
	$(BIN)/metricli train examples/configs/figures_triplet.yaml --run-dir $(DEMO)
	@echo; echo "== validate"
	$(BIN)/metricli validate --ckpt $(DEMO)/checkpoints/best.ckpt
	@echo; echo "== predict"
	$(BIN)/metricli predict --ckpt $(DEMO)/checkpoints/best.ckpt --out $(DEMO)/feats.npy
	@echo; echo "Everything lies in $(DEMO):"; ls $(DEMO) $(DEMO)/checkpoints

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test-long: install
	$(BIN)/python -m pytest -m long
	$(BIN)/python benchmarks/memory.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/table.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/samplers.py
	$(BIN)/python benchmarks/retrieval.py --plan
	$(BIN)/python benchmarks/reranking.py

fuzz: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=3.0'
	for target in spec table checkpoint; do $(BIN)/python -m fuzzing.run $$target 600 || exit 1; done

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest tests/docs
	@echo "the site is in site/index.html"

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
