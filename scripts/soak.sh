#!/usr/bin/env bash
# The model within its wider bounds and the crash ledger for an hour; with arguments the ledger only, as they say:
# soak.sh --seconds 600 --seed 1
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

build
if [ $# -eq 0 ]; then
    say "checking the model within wider bounds"
    cargo test --quiet --package model -- --ignored --nocapture --test-threads=1
    set -- --seconds 3600
fi
exec cargo run --quiet --package ledger -- "$@"
