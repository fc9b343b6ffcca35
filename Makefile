# What people type. `make help` lists it.

GUEST_TARGET := x86_64-unknown-linux-gnu
AGENT        := target/$(GUEST_TARGET)/guest/sealpod-agent
SEALPOD      := target/debug/sealpod
GUEST        := target/guest-image

export SEALPOD_GUEST := $(CURDIR)/$(GUEST)
# Where rustup puts cargo, for a shell that has not heard of it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

# Tests on genuine evidence are ignored where there is none; in continuous integration there must be.
GENUINE := $(if $(SEALPOD_FIXTURES)$(CI),-- --include-ignored)

.PHONY: help setup build guest containerds demo demo-node test lint deny bench bench-node clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing on this machine (Debian 12, Ubuntu 24.04)
	@scripts/setup.sh

build: setup ## Build the programs that run outside the guest
	cargo build --locked --workspace --bins

$(AGENT): setup FORCE
	scripts/guest-programs.sh

guest: setup ## Build the measured guest: kernel, initrd, agent, command line
	@# The agent is optimised as a whole, on one processor.
	@$(MAKE) --no-print-directory --jobs=2 build $(AGENT)
	$(SEALPOD) guest build --agent $(AGENT) --output $(GUEST)

demo: guest ## The whole story: an encrypted image in a measured VM, and seven attacks
	@$(SEALPOD) demo

demo-node: guest ## A pod from a YAML file on a private node with a stock containerd
	@target/debug/demo-node

containerds: setup ## Fetch newer releases of containerd for the tests (target/containerd/)
	@scripts/containerds.sh

test: lint deny guest containerds ## All tests: unit, interop (skopeo, docker-registry, swtpm) and VM
	$(if $(GENUINE),,@echo 'SEALPOD_FIXTURES is not set: tests on genuine evidence are ignored')
	cargo test --locked --workspace --all-targets --no-fail-fast $(GENUINE)

lint: setup ## Formatting, and clippy without warnings
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@# What it is in a guest, which is not what it is here.
	cargo clippy --locked --profile loader --target $(GUEST_TARGET) --package sealpod-loader -- -D warnings

deny: setup ## Licences, duplicates and sources of the dependencies
	scripts/deny.sh

bench: guest ## Boot times beside a bare guest's in the same run, and attestation (target/bench/)
	target/debug/sealpod-benches

bench-node: guest ## Pods by CRI beside sealpod run and runc, memory, execs, output (target/bench/)
	@# The host's programs as they are shipped: their memory and speed are what is measured.
	cargo build --locked --release $(addprefix --package sealpod-,cli kbs shim snapshotter benches) --bins
	target/release/bench-node

clean: ## Remove everything that was built
	cargo clean

FORCE:
