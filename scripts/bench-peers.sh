#!/usr/bin/env bash
# The figures of this machine beside those of other job systems, in one run. Arguments go to the peers' benchmark.
#   PEERS       where that benchmark lies (its program is called run); has to be given
#   PEERS_WORK  its scratch directory, about 1.5 GB, prepared once; default: target/peers
#   PEERS_JSON  where the results go; default: target/bench/peers.json
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

peers=${PEERS:-}
export PEERS_WORK=${PEERS_WORK:-$root/target/peers}
json=${PEERS_JSON:-$root/target/bench/peers.json}

where="it is not part of this repository; say where it is: make bench-peers PEERS=/path/to/their/benchmark"
[ -n "$peers" ] || die "PEERS does not say where the benchmark of the peers is" "$where"
[ -f "$peers/run" ] && [ -f "$peers/bench.py" ] || die "there is no benchmark of the peers at $peers" "$where"
missing=()
for program in python3 node npm pgrep; do command -v "$program" >/dev/null || missing+=("$program"); done
[ ${#missing[@]} -eq 0 ] || die "missing: ${missing[*]}" "the peers need Python 3.11, Node 20 with npm, and procps"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$(python3 --version) is too old: 3.11 is needed"

mkdir -p "$PEERS_WORK" "$(dirname "$json")" target/bench
PEERS_WORK=$(cd "$PEERS_WORK" && pwd)
# Their server's data lies there, and root's server runs as another user.
if [ "$(id -u)" -eq 0 ] && ! runuser -u postgres -- test -x "$PEERS_WORK"; then
    die "the user postgres cannot reach $PEERS_WORK" "name another scratch directory: make bench-peers PEERS_WORK=/path"
fi

build
# A look at all waiting jobs, many times a second, is nobody's work but the harness's, and only we are looked at while we
# drain. One row tells as much, but not to the tests of a million, which ask how many are left.
spec=$root/target/bench/peers-spec.json
version=$(sed -nE '/^\[package\]/,/^\[dep/s/^version = "(.*)"/\1/p' Cargo.toml)
sed "s/@VERSION@/$version/" bench/peers.json >"$spec"
case " $* " in *million*)
    sed -i 's/(SELECT FROM background_jobs.queued_job LIMIT 1) waiting/background_jobs.queued_job/' "$spec"
    ;;
esac
# Started by itself below: what cargo run adds to the environment would make the peers' own build begin anew every time.
cargo build --quiet --release --package bench
has_tests=
for argument in "$@"; do case $argument in --tests | --tests=*) has_tests=1 ;; esac; done
[ -n "$has_tests" ] || set -- --tests limits,drain,db,enqueue,latency "$@"
"${CARGO_TARGET_DIR:-target}/release/bench" --peers "$peers" -- --plugin "$spec" --json "$json.part" "$@"
# When and from what, for the report.
commit=$(git describe --always --exclude='*' --abbrev=10 --dirty=' with changes' 2>/dev/null) || commit=unknown
python3 - "$json.part" "$(date -u '+%Y-%m-%d %H:%M UTC')" "$commit" <<'END'
import json, sys
path, date, commit = sys.argv[1:]
with open(path) as file:
    results = json.load(file)
results["machine"].update(date=date, commit=commit)
with open(path, "w") as file:
    json.dump(results, file, indent=1)
END
mv "$json.part" "$json"
say "results are in $json; make bench-report writes the table"
