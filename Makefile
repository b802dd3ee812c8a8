# `make demo` and `make test` are all a fresh machine with Python 3.10+ needs; both set up .venv on their own.
PYTHON ?= python3
BIN := .venv/bin
# `make gpu` installs nothing: it takes the machine's own Python and torch.
GPU_PYTHON ?= python3
GPU_OUT ?= out/gpu
# Such as --full, or --step kernels; see benchmarks/gpu.py.
GPU_OPTIONS ?=
WORKERS ?= 2
# A policy file or a published system for the demo, such as POLICY=forcing_kv; without it the demo's own policy.
POLICY ?=
# What the demo ends with: the model's heads, measured, and a page to look at.
PROFILED := examples/profile_and_compile.py

.PHONY: demo demo-tiny test test-slow plugins lint gpu bench-cpu clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "headforce needs Python 3.10 or later")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/headforce demo $(if $(POLICY),--policy $(POLICY))
	$(BIN)/headforce profile $(PROFILED):demo --budget 0.35 --queries 0.1 --inner eager --blocks blocks --fresh --out out/demo/profile

# Half a minute, without a C++ compiler: structure, bytes and exactness, at a size where times mean nothing.
demo-tiny: .venv/ready
	$(BIN)/headforce demo --preset tiny --inner eager $(if $(POLICY),--policy $(POLICY))
	$(BIN)/headforce profile $(PROFILED):tiny --method forcing_kv --budget 0.7 --inner eager --blocks blocks --fresh --out out/demo/profile

test: .venv/ready lint plugins
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"
	$(BIN)/python -m headforce.testing.fault_matrix

# What takes long: the other schedules, dtypes and inner compilers of what `make test` covers, random graphs, second
# processes, and most kernels compiled ahead of time, that for Hopper among them. CI runs both.
test-slow: .venv/ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

# The packages of examples/ that extend headforce, installed beside it, found through their entry points, and tested.
# They go into a folder of their own, so that nothing else is tested with them.
PLUGINS := examples/plugin_dilated_window examples/plugin_ema_sink
plugins: .venv/ready
	rm -rf build/plugins && mkdir -p build/sources
	cp -r $(PLUGINS) build/sources/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--target build/plugins $(addprefix ./build/sources/,$(notdir $(PLUGINS)))
	OMP_NUM_THREADS=1 PYTHONPATH=build/plugins $(BIN)/python -m pytest -p no:cacheprovider $(addsuffix /tests,$(PLUGINS))

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Everything that needs a GPU, in one command; GPU_OUT/summary.json and results.tar.gz are what it leaves.
gpu:
	$(GPU_PYTHON) benchmarks/gpu.py --out $(GPU_OUT) $(GPU_OPTIONS)

# Ratios on a CPU, for a quiet machine with two cores: three minutes.
bench-cpu: .venv/ready
	PYTHONPATH=. $(BIN)/python benchmarks/cpu.py

clean:
	rm -rf .venv out build .pytest_cache .mypy_cache .ruff_cache .hypothesis
