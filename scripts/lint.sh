#!/usr/bin/env bash
# Format, compiler and clippy warnings, the order of the modules, and what the install script leaves open to attack.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

setup
for component in rustfmt clippy; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component"
done
say "format"
cargo fmt --all --check
say "clippy"
cargo clippy --workspace --all-targets --quiet -- -D warnings
say "shell syntax"
for script in scripts/*.sh tests/server/src/*.sh .ci/run; do bash -n "$script"; done
say "layers"
scripts/arrows.sh
say "install script"
build >target/lint-build.log 2>&1 || { cat target/lint-build.log; die "the extension does not build"; }
scripts/pgspot.sh
say "lint passed"
