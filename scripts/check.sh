#!/usr/bin/env bash
# What everybody does first, tried out as they do it: `make install`, here below a directory of its own, and `make demo`, twice, without
# a terminal. Nothing of it can hang: each step has a limit, which leaves room for a build from nothing.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

limit=${CHECK_SECONDS:-900}
setup
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

# Runs a command with its output in a file: that is no terminal.
try() {
    local log=$1 began=$SECONDS
    shift
    say "$*"
    timeout --kill-after=30 "$limit" "$@" </dev/null >"$log" 2>&1 || {
        local status=$?
        tail -n 40 "$log"
        [ "$status" -ne 124 ] || die "$* was not done after $limit s"
        die "$* failed with status $status"
    }
    say "done after $((SECONDS - began)) s"
}

wrong() { # what is wrong, and the file that shows it
    cat "$2"
    die "$1"
}

check_install() {
    local destination=$directory/destination log=$directory/install.log version file count
    local library extension
    library=$("$PG_CONFIG" --pkglibdir)/background_jobs.so
    extension=$("$PG_CONFIG" --sharedir)/extension
    local before
    before=$(stat -c '%i %Y' "$library" 2>/dev/null) || before=none
    mkdir "$destination"
    try "$log" make --no-print-directory install "PG_CONFIG=$PG_CONFIG" "DESTDIR=$destination"
    local control=$destination$extension/background_jobs.control
    [ -s "$control" ] || wrong "there is no control file in $extension below DESTDIR" "$log"
    version=$(sed -nE "s/^default_version *= *'(.*)'/\1/p" "$control")
    for file in "$library" "$extension/background_jobs--$version.sql"; do
        [ -s "$destination$file" ] || wrong "there is no $file below DESTDIR" "$log"
    done
    count=$(find "$destination" -type f | wc -l)
    [ "$count" -eq 3 ] || wrong "$count files were installed below DESTDIR, and there should be three" "$log"
    [ "$before" = "$(stat -c '%i %Y' "$library" 2>/dev/null || echo none)" ] ||
        wrong "with a DESTDIR $library itself was written" "$log"
}

check_demo() {
    local log=$directory/demo.log shown expected
    # Where its server lies, which another user has to reach.
    mkdir -p "$directory/tmp"
    chmod 755 "$directory" "$directory/tmp"
    try "$log" env "TMPDIR=$directory/tmp" make --no-print-directory demo
    # What was shown last of each job.
    shown=$(awk '/^The jobs, as/ { live = 1 } /^The rows, as/ { live = 0 }
        live && / %/ { last[$1] = $2 } END { for (job in last) print job, last[job] }' "$log" | sort)
    expected=$(printf '%s\n' 'call_api completed' 'import failed' 'report cancelled' 'resize completed' 'sum completed')
    [ "$shown" = "$expected" ] || wrong "the jobs of the demo did not all end as they should" "$log"
    grep -q '^The server is stopped' "$log" || wrong "the demo did not come to its end" "$log"
    if sed -n '/^Starting/,$p' "$log" | grep -q $'\033'; then wrong "without a terminal the demo has control characters" "$log"; fi
    [ -z "$(find "$directory/tmp" -maxdepth 1 -name 'bgj-*')" ] || wrong "the demo has left its server's directory" "$log"
}

SECONDS=0
check_install
check_demo
check_demo
say "make install and make demo work; $SECONDS s"
