# Bulkhead: what to type. `make help` lists it.
#
# Programs are built in Cargo's target folder; guest kernels and root images in ~/.cache/bulkhead (or
# BULKHEAD_CACHE), once for each state of their sources. `make test-kvm BULKHEAD_KERNEL=my-vmlinux`
# and the like test other things than those built here.

MUSL   := x86_64-unknown-linux-musl
BIN    := $(abspath $(or $(CARGO_TARGET_DIR),target))/$(MUSL)/release

# Arguments for the test program, such as the names of the tests to run.
ARGS    ?=
# How long `make fuzz` stays with each target.
SECONDS ?= 600

CARGO   := cargo
RELEASE := --release --locked --target $(MUSL)
# Guests of the machine's own KVM keep a processor busy each, and there may be two.
JOBS    ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup build kernel demo test test-unit test-kvm test-faithful figures bench fuzz lint clean

help: ## List what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## Install what is missing: packages, Rust's static target
	@scripts/setup

build: setup ## Build the programs, and the root images of the guests
	$(CARGO) build $(RELEASE) --workspace --bins
	@resources/agent/build
	@resources/test-guest/build

kernel: setup ## Build the guest kernel
	@resources/kernel/build

demo: build kernel ## Boot a microVM and show what it is
	@scripts/with-artifacts $(BIN) scripts/demo

test: ## Every test: units, the VM on this machine's KVM, the VM in the faithful lane
	@scripts/in-turn test-unit test-kvm test-faithful

test-unit: setup ## The unit tests of all crates
	$(CARGO) test --locked --workspace --exclude bulkhead-tests $(ARGS)
	$(CARGO) test --locked --package bulkhead-tests --lib $(ARGS)

test-kvm: build kernel ## The end-to-end tests on this machine's KVM
	@scripts/check-kvm
	scripts/with-artifacts $(BIN) $(CARGO) test $(RELEASE) --package bulkhead-tests --test e2e -- --test-threads=$(JOBS) $(ARGS)

test-faithful: build kernel ## The end-to-end tests in the outer machine, on a KVM like hardware's
	scripts/with-artifacts $(BIN) scripts/faithful $(BIN)/faithful \
	    $(CARGO) test $(RELEASE) --package bulkhead-tests --test e2e -- --test-threads=1 $(ARGS)

figures: build kernel ## Measure boot times and memory, in both lanes
	scripts/with-artifacts $(BIN) $(BIN)/figures $(ARGS)
	scripts/with-artifacts $(BIN) scripts/faithful $(BIN)/faithful \
	    $(BIN)/faithful $(BIN)/figures $(ARGS)

bench: setup ## Measure the parts: block requests on a queue in memory
	$(CARGO) bench --locked --workspace --benches $(ARGS)

fuzz: setup ## Fuzz every target for SECONDS each
	scripts/fuzz $(SECONDS)

lint: setup ## Formatting and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

clean: ## Remove the programs (not the cache of kernels and images)
	$(CARGO) clean
