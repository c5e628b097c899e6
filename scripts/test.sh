#!/usr/bin/env bash
# All tests, with one summary line at the end. Arguments go to cargo test: scripts/test.sh --test cancel
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

build
mkdir -p target
log=target/test.log

# The servers of a test file are shared by its threads, and most of a test is waiting, so more threads than processors pay.
say "running the tests"
status=0
cargo test --package unit_tests --package model --package server_tests --package ledger --package storm --no-fail-fast "$@" -- --test-threads=4 2>&1 | tee "$log" || status=$?

# A storm of 90 seconds (longer on a busy machine), unless something else was asked for. It leaves no processor to others, so it runs alone.
if [ $# -eq 0 ]; then
    say "running the crash ledger"
    cargo run --quiet --package ledger -- --seconds 90 2>&1 | tee -a "$log" || status=$?
fi

read -r passed failed < <(awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0, failed + 0 }' "$log")
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
    # It did not compile, or a test program failed after its last test: a server that it shared misbehaved.
    failed=1
fi
if [ "$failed" -gt 0 ]; then
    say "failed:"
    grep -E '^test .* FAILED$|^a shared server misbehaved|lines that no log may hold|^error(\[|:)|^    `-p ' "$log" || true
fi
printf '\n%s passed, %s failed\n' "$passed" "$failed"
[ "$status" -eq 0 ] && [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
