#!/usr/bin/env bash
# Writes bench/RESULTS.md and bench/drain.svg from what the last runs have left: bench-report.sh [--json IN] [--out DIRECTORY]
set -euo pipefail
. "$(dirname "$0")/common.sh"

exec cargo run --quiet --release --package bench -- --report "$@"
