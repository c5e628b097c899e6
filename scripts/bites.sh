#!/usr/bin/env bash
# Shows that the crash ledger bites: each bug of src/planted.rs is planted in turn and has to be found within a minute, by what
# it breaks (tests/ledger/src/plants.rs) and not by something else. The extension with
# the bugs in it is built into a directory of its own, so that nothing else ever picks it up. Names of bugs may be given.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

setup
planted=$root/target/planted
say "building the extension with planted bugs"
CARGO_TARGET_DIR=$planted cargo pgrx package --pg-config "$PG_CONFIG" --features planted_bugs
cargo build --quiet --package ledger
export BACKGROUND_JOBS_PACKAGE=$planted/release/background_jobs-pg$pg_major

if [ $# -eq 0 ]; then
    # The names are where the bugs are: a bug that is added there is tried here.
    mapfile -t bugs < <(sed -n 's/^ *Bug::[A-Za-z]* => c"\(.*\)",$/\1/p' src/planted.rs)
    [ ${#bugs[@]} -gt 0 ] || die "no names of bugs in src/planted.rs" "see its function is()"
    set -- "${bugs[@]}"
fi
found=0 missed=0
for bug in "$@"; do
    log=$root/target/planted/$bug.log
    SECONDS=0
    if cargo run --quiet --package ledger -- --seconds 12 --plant "$bug" --violations "${log%.log}.violations" >"$log" 2>&1; then
        found=$((found + 1))
        say "$bug: found in $SECONDS s: $(grep '^test crash ledger' "$log")"
        grep '^violations by invariant' "$log"
    else
        missed=$((missed + 1))
        say "$bug: NOT found as it has to be; see $log"
        tail -n 5 "$log"
    fi
done
printf '\n%s found, %s missed\n' "$found" "$missed"
[ "$missed" -eq 0 ]
