#!/usr/bin/env bash
# Arrows point down: a module of src/ uses only those that stand before it here. And the workers meet in shared memory alone.
set -euo pipefail
. "$(dirname "$0")/common.sh"

order=(pg planted retry gaps job protocol gucs shmem journal running progress finishing inserted owner job_table catalog
    destinations successors notes handler prepared databases enqueue submit worker api entry lib)

failed=0
files_of() { find src -path "src/$1.rs" -o -path "src/$1/*.rs"; }
uses() { # files of $1 that use $2
    files_of "$1" | xargs grep -nHE "crate::(\{[^}]*)?\b$2\b"
}
for i in "${!order[@]}"; do
    [ -n "$(files_of "${order[i]}")" ] || die "scripts/arrows.sh names a module that is not there: ${order[i]}"
    for upper in "${order[@]:i+1}"; do
        if uses "${order[i]}" "$upper"; then failed=1; fi
    done
done
for file in src/*; do
    module=$(basename "$file" .rs)
    [[ " ${order[*]} " == *" $module "* ]] || die "scripts/arrows.sh has no place for src/$module"
done
if grep -rnE "crate::worker::(launcher|dispatcher|executor|progress_writer)\b" src/worker; then failed=1; fi
[ "$failed" -eq 0 ] || die "these point upwards, or from one worker to another"
