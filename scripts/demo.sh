#!/usr/bin/env bash
# The demo (or, with --psql, a prompt) on a throw-away server with the freshly built extension.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

build
exec cargo run --quiet --package demo -- "$@"
