#!/usr/bin/env bash
# pgspot reads the generated install script: an object that is found through the caller's search_path, or that replaces
# somebody else's, is how an ordinary role becomes the superuser. Findings that are none are explained in pgspot.allow.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

version=0.9.4
venv=target/pgspot-$version
if ! [ -x "$venv/bin/pgspot" ]; then
    if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        (install_packages python3 python3-venv) || true
    fi
    say "installing pgspot $version into $venv"
    if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet "pgspot==$version"; } >target/pgspot.log 2>&1; then
        rm -rf "$venv"
        tail -n 5 target/pgspot.log >&2
        warn "pgspot could not be installed (python3 with venv, and PyPI): the install script was NOT checked"
        exit 0
    fi
fi

release=$(sed -nE 's/^version = "(.*)"/\1/p' Cargo.toml | head -n 1)
script=$(find "target/release/background_jobs-pg$pg_major" -name "background_jobs--$release.sql" | head -n 1)
[ -n "$script" ] || die "there is no packaged install script: build first"

"$venv/bin/python" scripts/check_install_script.py "$script" scripts/pgspot.allow
