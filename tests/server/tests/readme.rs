//! What the README tells people to paste works when pasted.

use server_tests::{Cluster, pair};
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The source of a test program: a file, or all files of a directory.
fn program(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    if !directory.is_dir() {
        return read(&format!("tests/{name}.rs"));
    }
    let files = directory.read_dir().unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

const README: &str = "../../README.md";
const README_OF_TESTS: &str = "../README.md";

/// The section of a file with this heading.
fn section(file: &str, heading: &str) -> String {
    let text = read(file);
    let heading = format!("\n## {heading}\n");
    let start = text.find(&heading).unwrap_or_else(|| panic!("{file} has no section{heading}"));
    let section = &text[start + heading.len()..];
    section[..section.find("\n## ").unwrap_or(section.len())].to_owned()
}

/// The SQL blocks of a section of the README.
fn sql_blocks(heading: &str) -> Vec<String> {
    let section = section(README, heading);
    let blocks = section.split("```sql\n").skip(1);
    blocks.map(|block| block[..block.find("```").expect("an end of the block")].to_owned()).collect()
}

/// Types the statements into psql; returns what it prints.
fn paste(cluster: &Cluster, role: &str, statements: &str) -> String {
    let mut command = cluster.psql("quick_start", role);
    command.args(["--quiet", "--no-align", "--tuples-only"]);
    let mut psql = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    psql.stdin.take().unwrap().write_all(statements.as_bytes()).unwrap();
    let output = psql.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{statements}\n{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn quick_start() {
    let blocks = sql_blocks("Quick start");
    let [superuser, role] = &blocks[..] else { panic!("one block for the superuser and one for the role: {blocks:?}") };
    let cluster = Cluster::builder().start();
    cluster.admin("postgres").batch_execute("CREATE DATABASE quick_start").unwrap();
    paste(&cluster, "postgres", superuser);

    let printed = paste(&cluster, "app", role);
    let job = r#"{"image": 42, "width": 800}"#;
    assert!(printed.trim_end().ends_with(job), "{printed}");
    let mut client = cluster.connect("quick_start", "app");
    let query =
        "SELECT completed, progress = 1, result::text, NOT current_setting('is_superuser')::bool FROM background_jobs";
    let row = client.query_one(query, &[]).unwrap();
    let row: (bool, bool, String, bool) = (row.get(0), row.get(1), row.get(2), row.get(3));
    assert_eq!(row, (true, true, job.to_owned(), true));
}

/// The pairs of servers in `replication` are set up by these statements.
#[test]
fn offline_clients_are_set_up_as_the_tests_of_replication_do_it() {
    let words = |sql: &str| sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let connections = [
        "-- client".to_owned(),
        format!("{};", pair::CLIENT_PUBLICATION),
        "-- server".to_owned(),
        format!("{};", pair::SERVER_PUBLICATION),
        "-- client first, then server; names are unique per client".to_owned(),
        format!("{};", pair::subscription_to_client("client1_down", "'...server...'")),
        format!("{};", pair::subscription_to_server("client1_up", "'...client...'")),
    ];
    let blocks: Vec<String> =
        sql_blocks("Offline clients and logical replication").iter().map(|block| words(block)).collect();
    assert_eq!(blocks, [words(pair::SKIP_ECHOES), words(&connections.join("\n"))]);
}

/// The guarantees of a file, each with what stands beside it.
fn guarantees(file: &str) -> Vec<(String, String)> {
    let section = section(file, "Guarantees");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
    rows.map(|(name, beside)| (name.to_owned(), beside.to_owned())).collect()
}

/// Beside a guarantee in the README of the tests stands "PROGRAM: `test`, `test`; PROGRAM: `test`".
#[test]
fn the_tests_that_hold_the_guarantees_up_are_there() {
    let names = |rows: &[(String, String)]| rows.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let (promised, held_up) = (guarantees(README), guarantees(README_OF_TESTS));
    assert!(promised.len() > 8, "{promised:?}");
    assert_eq!(names(&held_up), names(&promised));
    for (_, tests) in &held_up {
        for group in tests.split("; ") {
            let (name, names) = group.split_once(": ").unwrap_or_else(|| panic!("no program in {group:?}"));
            let source = program(name);
            for test in names.split(", ").map(|test| test.trim_matches('`')) {
                let is_test = source.contains(&format!("#[test]\nfn {test}()"));
                assert!(is_test, "{name} has no test {test}");
            }
        }
    }
}
