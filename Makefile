# `make lab` and `make test` work on a fresh Debian machine, as root: each installs
# what is missing and then does its job.

# Where rustup and `cargo install` put programs, also where no login shell says so.
export PATH := $(HOME)/.cargo/bin:$(PATH)

.DEFAULT_GOAL := help

.PHONY: help
help: ## tell what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: lab
lab: ## build two sites behind NAT on this machine, and watch them join (root)
	.ci/install lab
	cargo build --locked --release
	target=$${CARGO_TARGET_DIR:-target}; "$$target/release/zonemesh" lab

.PHONY: test
test: ## run every test: first the fast ones, then those in namespaces (root)
	.ci/install test
	cargo nextest run --locked --workspace
	cargo test --locked --workspace --doc --quiet
	cargo nextest run --locked --workspace --profile lab
	cargo nextest run --locked --package zonemesh --profile matrix

.PHONY: test-fast
test-fast: ## run the tests that need neither root nor other programs
	cargo nextest run --locked --workspace

.PHONY: test-matrix
test-matrix: ## run only the matrix: every pair of NATs and firewalls (root)
	.ci/install test
	cargo nextest run --locked --package zonemesh --profile matrix

.PHONY: check
check: ## formatting, lints, documentation, licences, unused dependencies
	.ci/install check
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
	cargo deny --locked check bans licenses sources
	cargo shear

.PHONY: advisories
advisories: ## look for known faults in dependencies (fetches the advisory database)
	.ci/install check
	cargo deny --locked check advisories

.PHONY: fmt
fmt: ## format the code
	cargo fmt --all
	cargo fmt --manifest-path fuzz/Cargo.toml

.PHONY: ci
ci: ## what a build machine runs: test and check, and that nothing is left behind
	.ci/run

# Seconds that each target is fuzzed.
TIME := 600
# Only these, if any.
TARGETS :=

.PHONY: fuzz
fuzz: ## fuzz the parsers of outside bytes: TIME=600 seconds each, only TARGETS="a b"
	.ci/install fuzz
	fuzz/run $(TIME) $(TARGETS)

.PHONY: bench
bench: ## measure the throughput beside boringtun-cli's (root)
	.ci/install bench
	cargo bench --locked --bench throughput

.PHONY: bench-relay
bench-relay: ## measure the relayed throughput beside coturn's (root)
	.ci/install bench-services
	cargo bench --locked --bench relay

.PHONY: bench-idle
bench-idle: ## count what a mesh costs that nobody uses, in packets and bytes per peer (root)
	.ci/install bench-services
	cargo bench --locked --profile dev --bench idle

.PHONY: bench-zone
bench-zone: ## measure the zone of a thousand nodes beside BIND's
	.ci/install bench-services
	cargo bench --locked --bench zone
