# Every target sets up what it needs; PYTHON and VENV can be set on the command line.
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= output/blendmask_shapes
BIN := $(VENV)/bin
READY := $(VENV)/.instseg_d2_ready
SOURCES := setup.py pyproject.toml requirements.txt instseg_d2/get_detectron2.py $(shell find csrc -type f)

.PHONY: setup demo test cluster-test wheel-test docs docs-test bench lint sanitize sanitize-cuda emulate-cuda emulate-cuda-mutants \
	emulate-cuda-sanitize

setup: $(READY)

$(READY): $(SOURCES)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python projects/get_detectron2.py
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-build-isolation --no-deps -e .
	@touch $@
	@echo "Ready: $(BIN)/instseg doctor shows what is installed."

# Generate data, train a small BlendMask from scratch, evaluate it and draw pictures.
demo: setup
	$(BIN)/python projects/train_net.py --config-file configs/quick/blendmask_shapes.yaml OUTPUT_DIR $(OUTPUT)
	$(BIN)/python projects/demo.py --weights $(OUTPUT)/model_final.pth --input shapes_val \
		--output $(OUTPUT)/pictures --max-images 24 --explain
	@echo "Results: $(OUTPUT)/metrics.json. Pictures: $(OUTPUT)/pictures/index.html"

# On all cores, up to 8.
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# Prediction on a small Ray cluster that loses a machine, and training that loses a process.
cluster-test: setup
	$(BIN)/python -m pip install --disable-pip-version-check -q 'ray[data]==2.60.0'
	$(BIN)/python -m pytest tests/cluster

# The wheel, installed without the checkout and used in an empty folder.
wheel-test: setup
	PYTHON=$(BIN)/python tests/wheel.sh

# The documents as a web site: output/docs/index.html. Their search needs a server, such as
# `python -m http.server --directory output/docs`.
docs: setup
	$(BIN)/python -m pip install --disable-pip-version-check -q -r projects/docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f projects/docs/mkdocs.yml

# Runs the code of README.md and of the documents, and the notebook, in short forms (projects/docs/blocks.yaml).
docs-test: docs
	$(BIN)/python projects/docs/run_blocks.py

bench: setup
	$(BIN)/python projects/bench.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The operators' tests under AddressSanitizer; on a GPU, under NVIDIA's compute-sanitizer.
sanitize: setup
	rm -rf build/sanitize
	mkdir -p build/sanitize
	cp -r setup.py pyproject.toml csrc instseg_d2 projects tests build/sanitize
	rm -f build/sanitize/instseg_d2/*.so
	cd build/sanitize && CFLAGS="-fsanitize=address -fno-omit-frame-pointer -g" LDFLAGS=-fsanitize=address \
		$(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/sanitize && ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
		sh -ec '$(abspath $(BIN))/python -c "import instseg_d2._C as c; assert c.__file__.startswith(\"$$PWD\"), c"; \
		$(abspath $(BIN))/python -m pytest tests/ops --ignore tests/ops/test_build.py -k "not temporaries"'

sanitize-cuda: setup
	compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/python -m pytest tests/ops -k cuda

# The CUDA kernels on the CPU, built with FLAGS: copied, rewritten, in a copy of the tree (tests/cuda_emulation/README.md).
EMULATION := build/cuda_emulation
FLAGS ?= --fma
emulate-cuda: setup
	$(BIN)/python -m tests.cuda_emulation.build --output $(EMULATION) $(FLAGS)
	cd $(EMULATION) && INSTSEG_EMULATION_SEED=1 \
		sh -ec '$(abspath $(BIN))/python -c "import instseg_d2._C as c; assert c.__file__.startswith(\"$$PWD\"), c"; \
		$(abspath $(BIN))/python -m pytest -n auto --maxprocesses 8 tests/ops tests/cuda_emulation \
		--ignore tests/ops/test_build.py -k "not temporaries"'

# Do these tests find faults? Each N-th of the list is seeded; EVERY=1: all (tests/cuda_emulation/mutants.py).
EVERY ?= 16
emulate-cuda-mutants: emulate-cuda
	$(BIN)/python -m tests.cuda_emulation.mutate --output $(EMULATION) --every $(EVERY) $(FLAGS)

# The same kernels under sanitizers: memory and undefined behaviour; a thread for each of CUDA's, for races.
emulate-cuda-sanitize: setup
	$(BIN)/python -m tests.cuda_emulation.build --output $(EMULATION)_address --sanitize address,undefined
	cd $(EMULATION)_address && ASAN_OPTIONS=detect_leaks=0 INSTSEG_EMULATION_SEED=1 INSTSEG_FUZZ=50 \
		LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
		$(abspath $(BIN))/python -m pytest tests/ops tests/cuda_emulation/test_limits.py \
		--ignore tests/ops/test_build.py -k "not temporaries and not environment_variable"
	$(BIN)/python -m tests.cuda_emulation.build --output $(EMULATION)_threads --sanitize thread
	cd $(EMULATION)_threads && LD_PRELOAD="$$(c++ -print-file-name=libtsan.so)" OMP_NUM_THREADS=1 \
		TSAN_OPTIONS=report_signal_unsafe=0 setarch -R $(abspath $(BIN))/python -m tests.cuda_emulation.races
