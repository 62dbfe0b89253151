# Bulkhead: what to type. `make help` lists it.
#
# Programs lie in Cargo's target folder, and beside them, in `guest`, links to what guests boot. Those
# are built once for each state of their sources and kept in ~/.cache/bulkhead (or BULKHEAD_CACHE).

MUSL   := x86_64-unknown-linux-musl
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BIN    := $(TARGET)/$(MUSL)/release
TESTS  := $(TARGET)/$(MUSL)/e2e
GUEST  := $(TARGET)/guest

# The tests are told what to test, and can be told otherwise: `make test-kvm BULKHEAD_VMM=...`.
export BULKHEAD             ?= $(BIN)/bulkhead
export BULKHEAD_VMM         ?= $(BIN)/bulkhead-vmm
export BULKHEAD_KERNEL      ?= $(GUEST)/vmlinux
export BULKHEAD_AGENT_IMAGE ?= $(GUEST)/agent.erofs
export BULKHEAD_BENCH       ?= $(GUEST)/bulkhead-bench
export BULKHEAD_TEST_IMAGE  ?= $(GUEST)/test.erofs
export BULKHEAD_TEST_INITRAMFS ?= $(GUEST)/test-initramfs.cpio
export BULKHEAD_TEST_CONTAINER ?= $(GUEST)/test-container.erofs
export BULKHEAD_TEST_PYTHON ?= $(GUEST)/test-python.tar
export BULKHEAD_TEST_BUSYBOX ?= $(or $(shell command -v busybox),/bin/busybox)

# Arguments for the test program, such as the names of the tests to run.
ARGS    ?=
# How long `make fuzz` stays with each target.
SECONDS ?= 600

# Where `make install` puts things.
PREFIX  ?= /usr/local

CARGO   := cargo
STATIC  := --locked --target $(MUSL)
E2E     := $(STATIC) --profile e2e --package bulkhead-tests
# How many tests run at a time. Guests of a software-assisted KVM keep a processor busy each.
JOBS    ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup build kernel install demo compare test test-unit test-kvm test-faithful figures volume-figures host-figures bench fuzz lint clean

help: ## List what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## Install what is missing: packages, Rust's static target
	@scripts/setup

build: setup ## Build the programs, and the root images of the guests
	$(CARGO) build $(STATIC) --release --package bulkhead --package bulkhead-runc --package bulkhead-vmm
	@scripts/place $(GUEST)/agent.erofs resources/agent/build
	@scripts/place $(GUEST)/bulkhead-bench resources/compare/build
	@scripts/place $(GUEST)/test.erofs resources/test-guest/build erofs
	@scripts/place $(GUEST)/test-initramfs.cpio resources/test-guest/build initramfs
	@scripts/place $(GUEST)/test-container.erofs resources/test-container/build
	@scripts/place $(GUEST)/test-python.tar resources/test-python/build

kernel: setup ## Build the guest kernel
	@scripts/place $(GUEST)/vmlinux resources/kernel/build

install: build kernel ## Put the programs, the guest's parts, manual pages and completions under PREFIX
	install -D -m 0755 $(BIN)/bulkhead $(DESTDIR)$(PREFIX)/bin/bulkhead
	install -D -m 0755 $(BIN)/bulkhead-runc $(DESTDIR)$(PREFIX)/bin/bulkhead-runc
	install -D -m 0755 $(BIN)/bulkhead-vmm $(DESTDIR)$(PREFIX)/lib/bulkhead/bulkhead-vmm
	install -D -m 0644 $(GUEST)/vmlinux $(DESTDIR)$(PREFIX)/lib/bulkhead/vmlinux
	install -D -m 0644 $(GUEST)/agent.erofs $(DESTDIR)$(PREFIX)/lib/bulkhead/agent.erofs
	install -D -m 0755 $(GUEST)/bulkhead-bench $(DESTDIR)$(PREFIX)/lib/bulkhead/bulkhead-bench
	$(BIN)/bulkhead man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,bash-completion/completions zsh/site-functions fish/vendor_completions.d)
	$(BIN)/bulkhead completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/bulkhead
	$(BIN)/bulkhead completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_bulkhead
	$(BIN)/bulkhead completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/bulkhead.fish

demo: build kernel ## Boot a microVM and show what it is
	@scripts/demo

compare: build kernel ## Run one image in a microVM and in a container, and measure both
	$(BULKHEAD) compare $(ARGS)

test: ## Every test: units, the VM on this machine's KVM, the VM in the faithful lane
	@scripts/in-turn test-unit test-kvm test-faithful

test-unit: setup ## The unit tests of all crates
	$(CARGO) test --locked --workspace --exclude bulkhead-tests $(ARGS)
	$(CARGO) test --locked --package bulkhead-tests --lib $(ARGS)

test-kvm: build kernel ## The end-to-end tests on this machine's KVM
	@scripts/check-kvm
	$(CARGO) test $(E2E) --no-fail-fast --test e2e --test alone -- --test-threads=$(JOBS) $(ARGS)

test-faithful: build kernel ## The end-to-end tests in the outer machine, on a KVM like hardware's
	$(CARGO) build $(E2E) --bins
	scripts/faithful $(TESTS)/faithful $(CARGO) test $(E2E) --no-fail-fast --test e2e --test alone -- --test-threads=$(JOBS) $(ARGS)

figures: build kernel ## Measure boot times and memory, in both lanes
	$(CARGO) build $(E2E) --bins
	$(TESTS)/figures $(ARGS)
	scripts/faithful $(TESTS)/faithful $(TESTS)/faithful $(TESTS)/figures $(ARGS)

volume-figures: build kernel ## Measure folders of the host in containers: a file server against copies
	@scripts/volume-figures

host-figures: build ## Measure containers on the host against crun's, in turn
	@scripts/host-figures

bench: setup ## Measure the parts: block requests on a queue in memory
	$(CARGO) bench --locked --workspace --benches $(ARGS)

fuzz: setup ## Fuzz every target for SECONDS each
	scripts/fuzz $(SECONDS)

lint: setup ## Formatting and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

clean: ## Remove the programs (not the cache of kernels and images)
	$(CARGO) clean
