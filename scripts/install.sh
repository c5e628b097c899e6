#!/usr/bin/env bash
# Builds the extension for the PostgreSQL of PG_CONFIG and installs it there, below DESTDIR if that is set.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. scripts/setup.sh

setup
as_root=()
library=${DESTDIR:-}$("$PG_CONFIG" --pkglibdir)
if [ -z "${DESTDIR:-}" ] && ! [ -w "$library" ]; then
    find_administrator || die "no right to write to $library" \
        "run this as an administrator or as the owner of that installation: make install PG_CONFIG=$PG_CONFIG" \
        "or install into a directory of your own: make install PG_CONFIG=$PG_CONFIG DESTDIR=/some/where"
fi

# A tree of its own: the one that tests use may hold another installation's paths.
tree="$root/target/install"
rm -rf "$tree"
say "building the extension for $("$PG_CONFIG" --version)"
cargo pgrx package --pg-config "$PG_CONFIG" --out-dir "$tree"

say "installing"
while IFS= read -r -d '' file; do
    target=${DESTDIR:-}/${file#"$tree"/}
    mode=644
    case $file in *.so | *.dylib) mode=755 ;; esac
    # install replaces the file instead of writing into it: servers that run have the old library mapped.
    "${as_root[@]}" install -D -m "$mode" "$file" "$target"
    printf '    %s\n' "$target"
done < <(find "$tree" -type f -print0)

cat <<TXT

Next, in postgresql.conf:  shared_preload_libraries = 'background_jobs'
restart the server, and in each database that shall run jobs:  CREATE EXTENSION background_jobs;
TXT
