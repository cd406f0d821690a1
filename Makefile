# All targets need only python3 and make:
#   make demo        dataset, trained network, predictions and pictures, in minutes on a CPU
#   make test        tests except the slow ones: fifteen to twenty minutes on two CPU cores
#   make test-slow   tests that take long and add little; CI runs them as well
#   make lint        ruff and mypy
#   make bench       benchmarks, four minutes on two CPU cores, and the tables of docs/speed.md from their results
#   make bench-slow  benchmarks of PyTorch's own large kernels, a real network on a CT, ONNX Runtime: almost two hours
#   make notebook    run notebooks/rep3d_tour.ipynb and store its outputs: two minutes on two CPU cores
#   make soak        stop a small training run at random moments, and compare its end with that of an undisturbed run
#   make fuzz        run the scripts on random mistakes: headers, files, descriptions, flags, checkpoints; ten minutes

PYTHON ?= python3
VENV ?= .venv
# For example PIP_ARGS="--extra-index-url <PyTorch's CPU index>", which avoids the CUDA packages on a machine without GPU.
PIP_ARGS ?=
BIN := $(VENV)/bin
# Waiting threads must not occupy cores that other processes need.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-slow lint bench bench-slow notebook soak fuzz clean

demo: $(VENV)/.installed
	rm -rf demo
	$(BIN)/python -m tools.make_phantoms --root demo/data --train 12 --val 2
	$(BIN)/python main_train.py @experiments/demo/train.args --root demo/data --output demo/run
	$(BIN)/python test_seg.py --root demo/data --output demo/predictions \
		--trained_weights demo/run/best_metric_model.pth --preview
	$(BIN)/python -m tools.report demo/run demo/predictions --output demo/report.html
	@echo "Open demo/predictions/phantom_013.png (picture), demo/predictions/dice.csv (table), demo/report.html (report)."
	@echo "Curves as they are logged: $(BIN)/tensorboard --logdir demo/run/tensorboard"

# Each file of tests runs in one process, on one core: threads that wait for a core with the other process cost more time
# than they save. Files run in the order of their names: by default those with the most tests come first, and files with a
# single long test last, when the other core may have nothing left to do.
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.training_step
	$(BIN)/python -m benchmarks.data_loading
	$(BIN)/python -m benchmarks.prediction
	$(BIN)/python -m benchmarks.readme

bench-slow: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.large_kernel_conv
	$(BIN)/python -m benchmarks.training_step --published
	$(BIN)/python -m benchmarks.prediction --network REP3D --overlap 0 --cases 2 --loop_only
	$(BIN)/python -m benchmarks.whole_ct
	$(BIN)/python -m benchmarks.kernel_size
	$(BIN)/python -m benchmarks.onnx_runtime
	$(BIN)/python -m benchmarks.readme

notebook: $(VENV)/.installed-dev
	$(BIN)/jupyter execute --inplace notebooks/rep3d_tour.ipynb

soak: $(VENV)/.installed
	$(BIN)/python -m experiments.reliability.soak

# To repeat the same mistakes: make fuzz FUZZ_SEED=<seed in the command that failed>
FUZZ_FACTOR ?= 8
FUZZ_SEED ?= $(shell date +%s)
fuzz: $(VENV)/.installed-dev
	FUZZ_FACTOR=$(FUZZ_FACTOR) $(BIN)/python -m pytest tests/fuzz --hypothesis-seed=$(FUZZ_SEED) \
		--hypothesis-show-statistics -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

$(VENV)/.installed: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-optional.txt requirements-nnunet.txt $(VENV)/.installed
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -r requirements-dev.txt
	$(BIN)/pip install --quiet $(PIP_ARGS) --no-deps -r requirements-optional.txt -r requirements-nnunet.txt
	touch $@

clean:
	rm -rf demo $(VENV)
