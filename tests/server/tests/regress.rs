//! The SQL surface and its errors: the scripts in tests/pg_regress.

use server_tests::{Cluster, Group, regress};
use std::path::Path;

static SHARED: Group = Group::new(Cluster::builder);

#[test]
fn scripts_print_what_is_expected() {
    let cluster = SHARED.cluster();
    cluster.admin("postgres").batch_execute("CREATE DATABASE regression").unwrap();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pg_regress");
    match regress::run(cluster, "regression", &directory) {
        Ok(count) => assert!(count > 0, "there are no scripts in {}", directory.display()),
        Err(report) => panic!("{report}"),
    }
}
