#!/usr/bin/env bash
# The crash ledger for an hour, or as its arguments say: soak.sh --seconds 600 --seed 1
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

build
[ $# -gt 0 ] || set -- --seconds 3600
exec cargo run --quiet --package ledger -- "$@"
