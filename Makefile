# Everything a person or a machine runs. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)

# Compilers at a time.
JOBS := $(shell nproc)

CXX ?= g++
CXXFLAGS ?= -O2 -g
NATIVE_FLAGS := -std=c++20 -fPIC -fno-exceptions -fvisibility=hidden -Wall -Wextra -Werror -pthread \
  -DNAPI_VERSION=9 -isystem node_modules/node-api-headers/include
NATIVE_SOURCES := $(wildcard native/*.cc)
NATIVE_OBJECTS := $(NATIVE_SOURCES:native/%.cc=native/build/%.o)

.PHONY: help
help: ## this list
	@grep -hE '^[a-zA-Z_-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | column -t -s "$$(printf '\t')"

native/build/%.o: native/%.cc $(wildcard native/*.h)
	@mkdir -p $(@D)
	@echo 'compile $<'
	@$(CXX) $(CXXFLAGS) $(NATIVE_FLAGS) -c $< -o $@

native/build/firstlight.node: $(NATIVE_OBJECTS)
	@echo 'link $@'
	@$(CXX) $(CXXFLAGS) -shared -pthread -o $@ $^

.PHONY: native
native: native/build/firstlight.node ## build the native part
	@:
include native/native.mk

.PHONY: setup
setup: ## prepare a fresh Debian 12 machine: packages, npm ci, native part
	@scripts/setup.sh
	@$(MAKE) --no-print-directory -j$(JOBS) native

.PHONY: demo
demo: setup ## a real redis answers while its image is still on the way
	@node bench/demo.ts

.PHONY: lint
lint: ## formatting, lint rules, types
	biome check .
	tsc -p tsconfig.json
	@for file in scripts/*.sh deploy/*.sh test/images/*.sh bench/images/*.sh bench/images/recipes/*.sh .ci/run; do bash -n "$$file" || exit 1; done
	clang-format --dry-run --Werror native/*.cc native/*.h native/test/*.cc native/test/*.h bench/wan/*.cc

# Each suite is a target of its own, so that one that fails does not hide the others
# (make --keep-going). SUITE keeps the counts for the closing line of .ci/run.
SUITE := scripts/suite.sh
FUZZ_MS ?= 15000
FUZZ_LONG_MS ?= 240000

.PHONY: test test-lint test-unit test-fuzz test-native test-native-core test-e2e
test: test-lint test-unit test-fuzz test-native test-e2e ## everything that fits into ten minutes
test-lint: setup
	@$(SUITE) lint $(MAKE) --no-print-directory lint
test-unit: setup
	@$(SUITE) unit ava
test-native: setup
	@$(SUITE) native ava --config test/native.config.js
test-native-core: setup
	@$(SUITE) native-core $(MAKE) --no-print-directory native-test
test-fuzz: setup
	@FUZZ_MS=$(FUZZ_MS) $(SUITE) fuzz ava --config test/fuzz.config.js
test-e2e: setup
	@$(SUITE) e2e ava --config test/e2e.config.js

.PHONY: test-long test-long-fuzz test-long-native test-long-native-core test-long-e2e test-browser
test-long: test-long-fuzz test-long-native test-long-native-core test-long-e2e test-browser ## what takes longer: more images, long fuzzing, sanitizers, a browser
test-long-fuzz: setup
	@FUZZ_MS=$(FUZZ_LONG_MS) $(SUITE) long-fuzz ava --config test/fuzz.config.js
test-long-native: setup
	@$(SUITE) long-native $(MAKE) --no-print-directory native-asan-test
test-long-native-core: setup
	@$(SUITE) long-native-core $(MAKE) --no-print-directory native-test native-tsan-test NATIVE_FUZZ_S=30
test-long-e2e: setup
	@scripts/setup.sh systemd
	@SUITE_LIMIT_S=2900 $(SUITE) long-e2e ava --config test/long.config.js
test-browser: setup
	@scripts/setup.sh chromium
	@$(SUITE) browser ava --config test/browser.config.js

.PHONY: images
images: setup ## build the test images (kept in .cache/images)
	@test/images/build.sh redis layers python >/dev/null

.PHONY: traces
traces: setup ## record the traces in traces/ again; SERVICES=redis,nginx for some of them
	@node bench/trace/record.ts

.PHONY: clean
clean: ## remove what has been built: native part, compiled sources, cached test images and results
	rm -rf native/build dist .cache

.PHONY: bench-metadata bench-receive bench-trace bench-trace-cost
bench-metadata: setup ## metadata, opens, mounts and memory against overlayfs; JSON=FILE for rows
	node bench/metadata.ts
bench-receive: setup ## taking an image in against zstd, sha256sum and plain writes; JSON=FILE for rows
	node bench/receive.ts
bench-trace: setup ## what a recorded run is worth: five services, tree order against traced; JSON=FILE for rows
	node bench/trace/main.ts
bench-trace-cost: setup ## what recording costs those who read; JSON=FILE for rows
	node bench/trace-cost.ts

.PHONY: bench-density
bench-density: setup ## twenty containers of one image at once, against containerd's overlayfs; JSON=FILE for rows
	node bench/density.ts

.PHONY: bench-writes
bench-writes: setup ## files created, written and first written to, initdb, against overlayfs; JSON=FILE for rows
	node bench/writes.ts
.PHONY: bench-levers
bench-levers: setup ## what each way around slow start is worth on a long link; JSON=FILE for rows
	@scripts/setup.sh iproute2
	node bench/wan/levers.ts

BENCH_RESULTS := .cache/results/bench
RESULTS_PAGE = node bench/results/page.ts --html $(BENCH_RESULTS)/results.html --svg $(BENCH_RESULTS) \
  $(addprefix --samples ,$(wildcard $(BENCH_RESULTS)/startup.jsonl)) \
  $(addprefix --rows ,$(wildcard $(BENCH_RESULTS)/*-rows.json))
.PHONY: bench bench-startup bench-runtime
bench: ## startup over a long link, and what a service costs that runs; under half an hour
	@$(MAKE) --no-print-directory bench-startup
	@$(MAKE) --no-print-directory bench-runtime
	@echo 'results: $(BENCH_RESULTS)/results.html'
bench-startup: setup ## from the command to ready over a long link, against containerd; ARGS=--all for everything
	@scripts/setup.sh containerd
	@mkdir -p $(BENCH_RESULTS)
	OUT=$(BENCH_RESULTS)/startup.jsonl JSON=$(or $(JSON),$(BENCH_RESULTS)/startup-rows.json) node bench/startup/startup.ts $(ARGS)
	@$(MAKE) --no-print-directory bench-page
bench-runtime: setup ## services that run: redis, PostgreSQL, nginx, Python, against overlayfs; JSON=FILE for rows
	@scripts/setup.sh redis-tools wrk iproute2
	@mkdir -p $(BENCH_RESULTS)
	JSON=$(or $(JSON),$(BENCH_RESULTS)/runtime-rows.json) node bench/runtime/runtime.ts $(ARGS)
	@$(MAKE) --no-print-directory bench-page
.PHONY: bench-page
bench-page: # one HTML page and SVG files of what has been measured last
	@$(RESULTS_PAGE)
