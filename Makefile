# Bulkhead: what to type. `make help` lists it.
#
# Everything built lies in Cargo's target folder and in the guest kernel's cache; whatever is there
# already is used again.

MUSL   := x86_64-unknown-linux-musl
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BIN    := $(TARGET)/$(MUSL)/release
GUEST  := $(TARGET)/guest

# The tests are told what to test. The same names work from the command line: `make test-kvm
# BULKHEAD_KERNEL=/boot/my-vmlinux`.
export BULKHEAD             ?= $(BIN)/bulkhead
export BULKHEAD_VMM         ?= $(BIN)/bulkhead-vmm
export BULKHEAD_KERNEL      ?= $(GUEST)/vmlinux
export BULKHEAD_AGENT_IMAGE ?= $(GUEST)/agent.erofs
export BULKHEAD_TEST_IMAGE  ?= $(GUEST)/test.erofs
export BULKHEAD_HELLO       ?= $(BIN)/hello

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
	scripts/images $(BIN) $(GUEST)

kernel: setup ## Build the guest kernel
	scripts/kernel $(GUEST)

demo: build kernel ## Boot a microVM and show what it is
	scripts/demo

test: ## Every test: units, the VM on this machine's KVM, the VM in the faithful lane
	@scripts/in-turn test-unit test-kvm test-faithful

test-unit: setup ## The unit tests of all crates
	$(CARGO) test --locked --workspace --exclude bulkhead-tests $(ARGS)
	$(CARGO) test --locked --package bulkhead-tests --lib $(ARGS)

test-kvm: build kernel ## The end-to-end tests on this machine's KVM
	@scripts/check-kvm
	$(CARGO) test $(RELEASE) --package bulkhead-tests --test e2e -- --test-threads=$(JOBS) $(ARGS)

test-faithful: build kernel ## The end-to-end tests in the outer machine, on a KVM like hardware's
	@scripts/faithful $(BIN)/faithful \
	    $(CARGO) test $(RELEASE) --package bulkhead-tests --test e2e -- --test-threads=1 $(ARGS)

figures: build kernel ## Measure boot times and memory, in both lanes
	$(BIN)/figures $(ARGS)
	@scripts/faithful $(BIN)/faithful $(BIN)/faithful $(BIN)/figures $(ARGS)

bench: setup ## Measure the parts: block requests on a queue in memory
	$(CARGO) bench --locked --workspace --benches $(ARGS)

fuzz: setup ## Fuzz every target for SECONDS each
	scripts/fuzz $(SECONDS)

lint: setup ## Formatting and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

clean: ## Remove what was built (not the guest kernel's cache)
	$(CARGO) clean
	rm -rf $(GUEST)
