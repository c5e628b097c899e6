# Sourced by the other scripts: where things are, and how they speak.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# A shell that was not started by the toolchain's installer does not know its programs yet.
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

say() { printf '==> %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    if [ $# -gt 0 ]; then printf '       %s\n' "$@" >&2; fi
    exit 1
}

# The major version of the PostgreSQL that tests, the demo and development use.
pg_major=15

# Is this the pg_config of a whole server of that major version, with headers? Without a second argument, of any.
is_server() {
    local version bin include
    version=$("$1" --version 2>/dev/null) && bin=$("$1" --bindir) && include=$("$1" --includedir-server) || return 1
    [ -x "$bin/postgres" ] && [ -f "$include/postgres.h" ] || return 1
    [ -z "${2:-}" ] || [[ $version == "PostgreSQL $2"[.a-z]* ]]
}

# Prints the pg_config to use: the one asked for, whatever its version, or the first that is a server of our major version.
find_pg_config() {
    local candidate
    if [ -n "${PG_CONFIG:-}" ]; then
        candidate=$(command -v "$PG_CONFIG") && is_server "$candidate" && printf '%s\n' "$candidate"
        return
    fi
    for candidate in pg_config "/usr/lib/postgresql/$pg_major/bin/pg_config"; do
        if candidate=$(command -v "$candidate") && is_server "$candidate" "$pg_major"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

major_of() { "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }
