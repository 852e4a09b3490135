# What a reader or a developer types. Each target sets up what it needs: .venv with the tested set of constraints.txt.
PYTHON ?= python3
NB ?=
JOBS ?= 2
ONLY ?=
ROUNDS ?= 31
MODELS ?= 1000
SEED ?= 0
SESSION ?=
MINUTES ?= 10
LIBS ?=
GPT ?=
SCALE ?=
BIN := .venv/bin
READY := .venv/.ready
PORT ?= 8000
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)

.DEFAULT_GOAL := help
.PHONY: help run lab test test-processors checks hook mutants differential fuzz doctor doctor-torch bench wheel docs docs-serve \
  test-site badges accuracy cnn gpt scale readme imports export notebooks exercises images clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 24

# An interrupted set-up leaves no stamp and is made again. An older Python would fail much later and say less.
$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < tuple(map(int, "$(MIN_PYTHON)".split("."))))' || \
	  { echo "make: '$(PYTHON)' is no Python $(MIN_PYTHON) or newer; name one, as in:" \
	         "make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo 'Setting up .venv: a minute or so, and the download of PyTorch where pip has none in its cache.'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

run: $(READY)  ## execute all notebooks into _run/ (or some: make run NB=05_backward, NB=doctor/report or NB=doctor)
	@$(BIN)/python tools/run_notebooks.py $(NB)

lab: $(READY)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/nbs $(LAB_ARGS)

# The checks in the notebooks, and what is no business of a notebook: both, even if the first fails.
NOTEBOOKS = $(BIN)/nbdev_test --n_workers $(JOBS) --do_print --timing </dev/null
TESTS = $(BIN)/pytest -n $(JOBS) --dist loadgroup --ignore tests/test_project.py

# Tests never use the net. One thread for each of the JOBS processes, unless the environment says how many: more would
# only take turns on the same cores.
test: export FB_PASS_OFFLINE := 1
test: export OMP_NUM_THREADS ?= 1
test: $(READY)  ## lint, notebooks and package in step, then the notebooks' checks, then the tests
	@echo '--- 1 of 4: lint'
	$(BIN)/ruff check
	@echo '--- 2 of 4: are notebooks, package and README in step?'
	$(BIN)/pytest -q tests/test_project.py
	@echo '--- 3 of 4: the checks in the notebooks'
	$(NOTEBOOKS)
	@echo '--- 4 of 4: what is no business of a notebook'
	$(TESTS)

checks: $(READY)
	@notebooks=0; $(NOTEBOOKS) || notebooks=$$?; $(TESTS) && exit $$notebooks

# Other processors, as far as one can play them: which instructions torch, MKL and OpenBLAS may use, on how many threads.
# Sums are then taken in another order, so the last bits differ. Whatever else is set here already is taken away first.
# With more threads than cores, those that wait must not spin: they would keep the others from their work.
on-default  :=
on-oldest   := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem OMP_NUM_THREADS=4
on-avx2     := ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 OPENBLAS_CORETYPE=Haswell OMP_NUM_THREADS=2
on-old-aten := ATEN_CPU_CAPABILITY=default MKL_CBWR=AVX2 OPENBLAS_CORETYPE=Haswell OMP_NUM_THREADS=1
on-old-blas := ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem OMP_NUM_THREADS=1
ALL_SETTINGS := default oldest avx2 old-aten old-blas
SETTINGS ?= $(ALL_SETTINGS)
AS_IT_IS := env -u ATEN_CPU_CAPABILITY -u MKL_CBWR -u OPENBLAS_CORETYPE -u OMP_NUM_THREADS -u FB_PASS_DATA

test-processors: $(READY)  ## all notebooks and tests as on other processors, on the embedded sample (or some: SETTINGS="oldest avx2")
	@$(if $(filter-out $(ALL_SETTINGS),$(SETTINGS)),$(error no such setting; there are: $(ALL_SETTINGS)))failed=; \
	$(foreach o,$(SETTINGS),echo '=== $(o): $(or $(on-$(o)),nothing is set)'; \
	  $(AS_IT_IS) $(on-$(o)) OMP_WAIT_POLICY=PASSIVE FB_PASS_OFFLINE=1 $(MAKE) --no-print-directory checks || failed="$$failed $(o)";) \
	if [ -n "$$failed" ]; then echo "=== failed:$$failed" >&2; exit 1; fi; echo '=== passed: $(SETTINGS)'

hook: $(READY)  ## have git call ruff before each commit
	$(BIN)/pre-commit install

# In copies of the project, on the embedded data. SESSION=file keeps the results, so that an interrupted run can go on.
mutants: $(READY)  ## put faults into the backward functions, one at a time: who notices? (or some: make mutants ONLY=backward)
	@$(BIN)/python tools/mutants.py $(ONLY) --jobs $(JOBS) $(if $(SESSION),--session '$(abspath $(SESSION))')

fuzz: $(READY)  ## feed damaged and malicious files to each reader (10 minutes, or MINUTES=...)
	@$(BIN)/python tools/fuzz_files.py --minutes $(MINUTES)

doctor: $(READY)  ## try check_layer: false alarms, each fault caught and named, other checks beside it, into results/ (an hour; PART=4: one case of four; QUICK=1: minutes)
	$(BIN)/python tools/doctor_trials.py --jobs $(JOBS) $(if $(PART),--part $(PART)) $(if $(QUICK),--quick)

differential: $(READY)  ## random models, optimizers and schedules against torch (MODELS=5000 for more, SEED=7 for others)
	$(BIN)/python tools/differential.py --models $(MODELS) --seed $(SEED)

# The libraries need a place of their own: pip install --no-deps --target FOLDER entmax torchdiffeq ..., and then LIBS=FOLDER.
doctor-torch: $(READY)  ## try check_layer and gradcheck on torch.nn, functions of torch and public libraries, into results/ (a quarter of an hour; LIBS=folder of the libraries)
	$(BIN)/python tools/doctor_torch.py --jobs $(JOBS) $(if $(LIBS),--folder '$(abspath $(LIBS))')

bench: $(READY)  ## time of a training step: ours, torch, torch.compile, JAX, numpy, into results/ (all of MNIST; some minutes, on a free machine)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]' -c constraints.txt
	$(BIN)/python tools/bench.py --rounds $(ROUNDS)

wheel: $(READY)  ## build the wheel and try it in an empty environment without network
	$(BIN)/pytest -s -m wheel tests/test_wheel.py

docs: $(READY)  ## build the site into _docs/ (by Quarto where it is installed, else by smalldocs)
	@$(BIN)/python tools/build_docs.py

docs-serve: docs  ## show the site at http://localhost:8000 (PORT=... for another)
	$(BIN)/python -m http.server --bind localhost --directory _docs $(PORT)

test-site: docs  ## build the site and try every page in Chromium; pictures of the pages are left in _screenshots/
	$(BIN)/pytest -n $(JOBS) --dist loadgroup -m site tests/test_site.py tests/test_viewer_browser.py

badges: $(READY)  ## write badges, neighbors and the table of the index into the notebooks (SOURCES=folder: into others)
	@$(BIN)/python tools/badges.py $(if $(SOURCES),--sources '$(SOURCES)')

accuracy: $(READY)  ## train over five seeds, by hand and by torch, into results/ (all of MNIST; a while)
	$(BIN)/python tools/accuracy.py

cnn: $(READY)  ## train the convolutional network over five seeds, by hand and by torch, into results/ (all of MNIST; about an hour; goes on where it stopped)
	$(BIN)/python tools/cnn.py

gpt: $(READY)  ## train a small GPT over three seeds, by hand and by torch, into results/ (the whole text; half an hour; goes on where it stopped; GPT='--steps 5000 ...' for others: tools/gpt.py --help)
	$(BIN)/python tools/gpt.py $(GPT)

scale: $(READY)  ## time, bytes and efficiency of 1, 2 and 4 processes, beside DistributedDataParallel, into results/ (minutes, on a free machine; SCALE='--rounds 41')
	$(BIN)/python tools/scale.py $(SCALE)

readme: $(READY)  ## make README.md from nbs/index.ipynb
	$(BIN)/python tools/make_readme.py

imports: $(READY)  ## draw in CONTRIBUTING.md which module imports which
	@$(BIN)/python tools/imports.py

export: $(READY)  ## write the package from the notebooks
	$(BIN)/nbdev_export

# As they are committed: on all of MNIST, each from top to bottom in a fresh kernel.
notebooks: export  ## execute the notebooks in place, as they are committed (or some: make notebooks NB=05_backward)
	@$(BIN)/python tools/run_notebooks.py $(NB) --out nbs

exercises: $(READY)  ## write the notebooks without solutions, for a class, into _exercises/
	@$(BIN)/python tools/make_exercises.py $(NB)

images: $(READY)  ## draw the pictures in images/
	$(BIN)/python tools/draw_images.py

clean:  ## remove what the commands wrote, except .venv
	rm -rf _run _exercises _proc _docs _screenshots build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find fb_pass tools tests nbs -name __pycache__ -prune -exec rm -rf {} +
	find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too
	rm -rf .venv
