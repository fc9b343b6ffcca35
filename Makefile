# What people type. `make help` lists it.

GUEST_TARGET := x86_64-unknown-linux-gnu
AGENT        := target/$(GUEST_TARGET)/guest/sealpod-agent
SEALPOD      := target/release/sealpod
GUEST        := target/guest-image

export SEALPOD_GUEST := $(CURDIR)/$(GUEST)

.PHONY: help setup build guest demo test test-vm lint deny bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing on this machine (Debian 12, Ubuntu 24.04)
	@scripts/setup.sh

build: setup ## Build the programs that run outside the guest
	cargo build --release --locked -p sealpod-cli -p sealpod-kbs

$(AGENT): FORCE
	RUSTFLAGS='-C target-feature=+crt-static -C force-unwind-tables=no' \
		cargo build --profile guest --locked --target $(GUEST_TARGET) -p sealpod-agent

guest: build $(AGENT) ## Build the measured guest: kernel, initrd, command line
	$(SEALPOD) guest build --agent $(AGENT) --output $(GUEST)

demo: guest ## The whole story: an encrypted image in a measured VM, and seven attacks
	@$(SEALPOD) demo

test: lint deny guest ## All tests: unit, interop (skopeo, docker-registry, swtpm) and VM
	cargo test --release --locked --workspace --all-targets --no-fail-fast

lint: setup ## Formatting, clippy without warnings, documentation without broken links
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings

deny: setup ## Licences, duplicates and sources of the dependencies
	scripts/deny.sh

bench: guest ## Boot and attestation times, as ratios within one run (target/bench/)
	cargo run --release --locked -p sealpod-benches

clean: ## Remove everything that was built
	cargo clean

FORCE:
