# Builds of the native part for tests: the core without Node.js (native/test/), and the addon under
# AddressSanitizer. The ordinary build stands in the Makefile.
SANITIZE := -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all
ASAN_FLAGS := $(SANITIZE) -fsanitize=address,undefined
TSAN_FLAGS := $(SANITIZE) -fsanitize=thread
NATIVE_HEADERS := $(wildcard native/*.h)
# What knows of N-API is not in the harness.
NATIVE_CORE := $(shell grep -LE 'node_api|napi_util|_napi|session_binding|upper_io' $(NATIVE_SOURCES))
HARNESS_SOURCES := $(NATIVE_CORE) $(wildcard native/test/*.cc)
# Seconds for each part of the harness.
NATIVE_FUZZ_S ?= 5

native/build/asan/%.o: native/%.cc $(NATIVE_HEADERS) $(wildcard native/test/*.h)
	@mkdir -p $(@D)
	$(CXX) -g $(NATIVE_FLAGS) $(ASAN_FLAGS) -c $< -o $@

native/build/tsan/%.o: native/%.cc $(NATIVE_HEADERS) $(wildcard native/test/*.h)
	@mkdir -p $(@D)
	$(CXX) -g $(NATIVE_FLAGS) $(TSAN_FLAGS) -c $< -o $@

native/build/harness-asan: $(HARNESS_SOURCES:native/%.cc=native/build/asan/%.o)
	$(CXX) $(ASAN_FLAGS) -pthread -o $@ $^

native/build/harness-tsan: $(HARNESS_SOURCES:native/%.cc=native/build/tsan/%.o)
	$(CXX) $(TSAN_FLAGS) -pthread -o $@ $^

native/build/firstlight-asan.node: $(NATIVE_SOURCES:native/%.cc=native/build/asan/%.o)
	$(CXX) $(ASAN_FLAGS) -shared -pthread -o $@ $^

.PHONY: native-test native-tsan-test native-asan native-asan-test
native-test: ## fuzz the native core without a kernel, under address and undefined-behaviour sanitizers
	@$(MAKE) --no-print-directory -j$(JOBS) native/build/harness-asan
	@for mode in units toc requests threads opens writable; do native/build/harness-asan $$mode $(NATIVE_FUZZ_S) || exit 1; done

native-tsan-test: ## the native core's threads under ThreadSanitizer
	@$(MAKE) --no-print-directory -j$(JOBS) native/build/harness-tsan
	@for mode in threads opens writable; do native/build/harness-tsan $$mode $(NATIVE_FUZZ_S) || exit 1; done

native-asan: ## the addon under AddressSanitizer
	@$(MAKE) --no-print-directory -j$(JOBS) native/build/firstlight-asan.node

# Only the process that loads the addon runs with the sanitizer's library. Leaks are not looked for:
# Node.js keeps what it has until its end.
native-asan-test: native native-asan ## the mount tests with the addon under AddressSanitizer
	@FIRSTLIGHT_NATIVE=$(CURDIR)/native/build/firstlight-asan.node \
	FIRSTLIGHT_TEST_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
	ava --config test/native.config.js
