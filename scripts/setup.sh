# Sourced by the scripts that build: installs what is missing and says so; quick and silent when nothing is.
# Sets PG_CONFIG and, where the user's pgrx knows another PostgreSQL of that version, PGRX_HOME.

packages_for() { # the Debian packages of a task that are not installed
    local package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || printf '%s\n' "$package"
    done
}

# Sets as_root to what a command of an administrator begins with; fails when this user is none.
find_administrator() {
    as_root=()
    [ "$(id -u)" -ne 0 ] || return 0
    # -n first: a script without a terminal must not hang on a question for a password.
    command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; } || return 1
    as_root=(sudo)
}

install_packages() {
    local missing
    mapfile -t missing < <(packages_for "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    local as_root
    find_administrator || die "packages are missing, and installing them takes an administrator" \
        "please ask one to run: apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    "${as_root[@]}" apt-get update -q
    if [[ " ${missing[*]} " == *" postgresql-$pg_major "* ]]; then
        without_a_server apt_install "${missing[@]}"
    else
        apt_install "${missing[@]}"
    fi
}

apt_install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

# Runs a command that installs Debian's package of the server. Left alone that makes a server of its own, on port 5432 and
# started with the machine: more than anybody expects of a demo. The programs are all that is wanted here.
without_a_server() (
    directory=/etc/postgresql-common/createcluster.d
    setting=$directory/background_jobs.conf
    trap '"${as_root[@]}" rm -f "$setting"; "${as_root[@]}" rmdir --ignore-fail-on-non-empty "$directory"' EXIT
    "${as_root[@]}" mkdir -p "$directory"
    echo 'create_main_cluster = false' | "${as_root[@]}" tee "$setting" >/dev/null
    "$@"
    say "no server was set up: pg_createcluster $pg_major main makes Debian's usual one"
)

setup_packages() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        find_pg_config >/dev/null || die "this is not a Debian system, and there is no server of PostgreSQL $pg_major" \
            "install PostgreSQL $pg_major with its headers, clang with libclang, pkg-config and OpenSSL's headers," \
            "and name it: make PG_CONFIG=/path/to/pg_config ..."
        return 0
    fi
    local wanted=(libclang-dev clang pkg-config libssl-dev make)
    command -v cc >/dev/null || wanted+=(gcc libc6-dev)
    if [ -z "${PG_CONFIG:-}" ]; then
        wanted+=("postgresql-$pg_major" "postgresql-server-dev-$pg_major")
    elif [[ $PG_CONFIG =~ ^/usr/lib/postgresql/([0-9]+)/bin/pg_config$ && -x $PG_CONFIG ]]; then
        # A server of Debian's often has no headers yet.
        wanted+=("postgresql-server-dev-${BASH_REMATCH[1]}")
    fi
    install_packages "${wanted[@]}"
}

# The version that Cargo.toml pins: pgrx and cargo-pgrx have to agree.
pgrx_version() { sed -nE 's/^pgrx = .*"=([0-9][^"]*)".*/\1/p' Cargo.toml; }

setup_cargo_pgrx() {
    local version private
    version=$(pgrx_version)
    [ -n "$version" ] || die "Cargo.toml pins no version of pgrx"
    private="$root/target/cargo-pgrx-$version"
    if [ -x "$private/bin/cargo-pgrx" ]; then PATH="$private/bin:$PATH"; fi
    local found
    found=$(cargo pgrx --version 2>/dev/null) || found=
    [ "$found" = "cargo-pgrx $version" ] && return
    local where=()
    if [ -n "$found" ]; then
        # Other projects of this user may need the one they have.
        where=(--root "$private")
        PATH="$private/bin:$PATH"
    fi
    say "installing cargo-pgrx $version (some minutes, once)"
    cargo install cargo-pgrx --version "$version" --locked "${where[@]}"
}

registered() { # the pg_config that pgrx knows for a major version
    sed -nE "s/^pg$1 = \"(.*)\"/\1/p" "${PGRX_HOME:-$HOME/.pgrx}/config.toml" 2>/dev/null
}

setup_pgrx() {
    local major known
    major=$(major_of "$PG_CONFIG")
    known=$(registered "$major" || true)
    if [ -n "$known" ] && [ "$known" != "$PG_CONFIG" ]; then
        # pgrx takes the headers from the one it knows, so this one gets a home of its own.
        export PGRX_HOME="$root/target/pgrx-$(printf '%s' "$PG_CONFIG" | cksum | cut -d ' ' -f 1)"
        mkdir -p "$PGRX_HOME"
        known=$(registered "$major" || true)
    fi
    [ "$known" = "$PG_CONFIG" ] && return
    say "telling pgrx about $PG_CONFIG"
    cargo pgrx init "--pg$major" "$PG_CONFIG"
}

setup_toolchain() {
    local wanted found
    command -v cargo >/dev/null && command -v rustc >/dev/null ||
        die "there is no Rust toolchain" "install one: https://rustup.rs"
    wanted=$(sed -nE 's/^rust-version = "(.*)"/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d ' ' -f 2) || die "the Rust toolchain does not work"
    # Asked here, because an older one says it later, in many lines, and of some other crate.
    printf '%s\n' "$wanted" "$found" | sort -C -V || die "this is Rust $found, and $wanted or later is needed" \
        "with rustup: rustup update stable"
}

setup() {
    setup_toolchain
    setup_packages
    local named=${PG_CONFIG:-}
    PG_CONFIG=$(find_pg_config) || {
        [ -z "$named" ] || die "$named is not the pg_config of a PostgreSQL server with its headers"
        die "no server of PostgreSQL $pg_major with its headers was found" \
            "name one: make PG_CONFIG=/path/to/pg_config ..."
    }
    export PG_CONFIG PATH
    setup_cargo_pgrx
    setup_pgrx
}

# Builds the extension into target/release/background_jobs-pgNN, the tree that tests and the demo take it from.
build() {
    setup
    say "building the extension for $("$PG_CONFIG" --version)"
    cargo pgrx package --pg-config "$PG_CONFIG"
}
