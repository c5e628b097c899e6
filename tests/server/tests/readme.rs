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

/// The section with this heading.
fn section(heading: &str) -> String {
    let readme = read("../../README.md");
    let heading = format!("\n## {heading}\n");
    let start = readme.find(&heading).unwrap_or_else(|| panic!("the README has no section{heading}"));
    let section = &readme[start + heading.len()..];
    section[..section.find("\n## ").unwrap_or(section.len())].to_owned()
}

/// Its SQL blocks.
fn sql_blocks(heading: &str) -> Vec<String> {
    let section = section(heading);
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

/// The last cell of a row of the table: "PROGRAM: `test`, `test`; PROGRAM: `test`".
#[test]
fn the_tests_that_hold_the_guarantees_up_are_there() {
    let section = section("Guarantees");
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert!(rows.len() > 8, "{rows:?}");
    for row in rows {
        let tests = row.trim_end_matches([' ', '|']).rsplit(" | ").next().expect("a last cell");
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
