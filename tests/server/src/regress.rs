//! PGXS's `pg_regress` against a temporary server: scripts whose output is compared with what is expected.

use crate::installation::Installation;
use crate::{Cluster, keeper, os};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs every `sql/*.sql` of `directory`, in the order of their names, in `database` as the superuser, each against
/// `expected/*.out`. The error is the program's report and the differences; `Ok` tells how many ran.
pub fn run(cluster: &Cluster, database: &str, directory: &Path) -> Result<usize, String> {
    // A copy, because the server's user may not be able to read the repository, and the program writes beside its input.
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let work = keeper::root().join(format!("regress{number}"));
    keeper::subdirectory(&work);
    let mut tests = Vec::new();
    for kind in ["sql", "expected"] {
        keeper::subdirectory(&work.join(kind));
        for entry in directory.join(kind).read_dir().into_iter().flatten().flatten() {
            let target = work.join(kind).join(entry.file_name());
            fs::copy(entry.path(), &target).map_err(|e| format!("{}: {e}", target.display()))?;
            let name = entry.path();
            if name.extension().is_some_and(|extension| extension == "sql") {
                tests.extend(name.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
            }
        }
    }
    tests.sort();

    let installation = Installation::get();
    let program = installation.pgxs().join("src/test/regress/pg_regress");
    let bin = installation.program("psql");
    let mut command = os::server_command(program, &work);
    command.args(["--use-existing", "--user=postgres", "--inputdir=.", "--outputdir=."]);
    command.arg(format!("--bindir={}", bin.parent().unwrap_or(&bin).display()));
    command.arg(format!("--host={}", cluster.socket_directory().display()));
    command.arg(format!("--dbname={database}")).args(&tests);
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(tests.len());
    }
    let differences = fs::read_to_string(work.join("regression.diffs")).unwrap_or_default();
    Err(format!("{}{}{differences}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}
