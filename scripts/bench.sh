#!/usr/bin/env bash
# The figures of this machine. Arguments go to the program: bench.sh --help.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

build
exec cargo run --quiet --release --package bench -- "$@"
