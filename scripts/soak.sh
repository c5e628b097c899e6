#!/usr/bin/env bash
# The long tests, one after the other, and a summary:
#   soak.sh                              all parts
#   soak.sh --only memory,signals        some: model, races, properties, floods, ledger, memory, signals, sqlsmith
#   soak.sh --seconds 600 --seed 1       the ledger alone, as long and with that seed; with --only, those parts
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

all=(model races properties floods ledger memory signals sqlsmith)
only= length= seed=()
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || die "$1 needs a value"
    case $1 in
    --only) only=$2 ;;
    --seconds) length=$2 ;;
    --seed) seed=(--seed "$2") ;;
    *) die "unknown argument: $1" "see scripts/soak.sh" ;;
    esac
    shift 2
done
parts=("${all[@]}")
if [ -n "$only" ]; then
    IFS=, read -ra parts <<<"$only"
elif [ -n "$length" ] || [ ${#seed[@]} -gt 0 ]; then
    parts=(ledger)
fi
for part in "${parts[@]}"; do
    [[ " ${all[*]} " == *" $part "* ]] || die "there is no part $part" "there are: ${all[*]}"
done

build
if [[ " ${parts[*]} " == *" sqlsmith "* ]] && ! command -v sqlsmith >/dev/null; then
    (install_packages sqlsmith) || warn "without sqlsmith that part fails"
fi
cargo build --quiet --package ledger --package storm

# Rounds of the races and cases of the properties, as a multiple of those in `make test`.
export BACKGROUND_JOBS_TEST_TIMES=${BACKGROUND_JOBS_TEST_TIMES:-20}

lines=()
status=0
for part in "${parts[@]}"; do
    case $part in
    model) command=(test --quiet --package model -- --ignored --nocapture --test-threads=1) ;;
    # What `make test` has of them, twenty times over.
    races | properties) command=(test --quiet --package server_tests --test "$part" -- --nocapture --test-threads=4) ;;
    # What is too much for `make test`.
    floods) command=(test --quiet --package server_tests --test floods -- --ignored --nocapture --test-threads=1) ;;
    ledger) command=(run --quiet --package ledger -- --seconds "${length:-3600}" --violations target/soak-ledger.violations "${seed[@]}") ;;
    memory) command=(run --quiet --package storm -- memory) ;;
    *) command=(run --quiet --package storm -- "$part" --seconds "${length:-600}" "${seed[@]}") ;;
    esac
    say "cargo ${command[*]}"
    log=target/soak-$part.log
    SECONDS=0
    outcome=passed
    cargo "${command[@]}" 2>&1 | tee "$log" || { outcome=FAILED status=1; }
    lines+=("$(printf '%-10s %s after %s s, %s violations; %s' "$part" "$outcome" "$SECONDS" "$(grep -c '^VIOLATION' "$log")" "$log")")
done
printf '\n'
printf '%s\n' "${lines[@]}"
exit "$status"
