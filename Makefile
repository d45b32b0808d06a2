# Everything a person or a machine runs. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)

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
	$(CXX) $(CXXFLAGS) $(NATIVE_FLAGS) -c $< -o $@

native/build/firstlight.node: $(NATIVE_OBJECTS)
	$(CXX) $(CXXFLAGS) -shared -pthread -o $@ $^

.PHONY: native
native: native/build/firstlight.node ## build the native part

.PHONY: lint
lint: ## formatting, lint rules, types
	biome check .
	tsc -p tsconfig.json
