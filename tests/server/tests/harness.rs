//! The harness itself, on servers without the extension.

use server_tests::{Builder, Cluster, Group, Signal, Stop, sqlstate, wait_until};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

fn plain() -> Builder {
    Cluster::builder().plain()
}

static SHARED: Group = Group::new(plain);

#[test]
fn sessions_roles_and_psql() {
    let cluster = SHARED.cluster();
    cluster.create_role("reader");
    let mut client = cluster.connect("postgres", "reader");
    let user: String = client.query_one("SELECT current_user::text", &[]).unwrap().get(0);
    assert_eq!(user, "reader");
    let error = client.batch_execute("CREATE ROLE x").unwrap_err();
    assert_eq!(sqlstate(&error), "42501");

    let output = cluster.psql("postgres", "reader").args(["-Atc", "SELECT session_user"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "reader\n");
    let output = cluster.psql("postgres", "reader").args(["-c", "SELECT 1/0"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("division by zero"));
}

#[test]
fn settings_are_read_when_set_returns() {
    let cluster = SHARED.cluster();
    cluster.set("vacuum_cost_limit", "217");
    let value: String = cluster.admin("postgres").query_one("SHOW vacuum_cost_limit", &[]).unwrap().get(0);
    assert_eq!(value, "217");
}

/// Nothing of the system's installation is used, or the extension would have to be installed there.
#[test]
fn the_installation_is_private() {
    let mut admin = SHARED.cluster().admin("postgres");
    let settings = "SELECT setting FROM pg_config WHERE name IN ('BINDIR', 'PKGLIBDIR', 'SHAREDIR')";
    for row in admin.query(settings, &[]).unwrap() {
        let path: String = row.get(0);
        assert!(path.starts_with(server_tests::keeper::root().to_str().unwrap()), "{path}");
    }
    // Found through the links: a script of an extension and the library of a language.
    admin.batch_execute("DO $$ BEGIN PERFORM 1; END $$; SELECT count(*) FROM pg_available_extensions").unwrap();
}

#[test]
fn stop_restart_and_crash_keep_what_was_committed() {
    let cluster = plain().start();
    cluster.admin("postgres").batch_execute("CREATE TABLE t AS SELECT 1 AS n").unwrap();
    for how in [Stop::Smart, Stop::Fast, Stop::Immediate] {
        assert!(cluster.stop(how) < Duration::from_secs(30));
        assert!(cluster.try_connect("postgres", "postgres").is_err());
        cluster.start();
    }
    cluster.crash();
    cluster.restart(Stop::Fast);
    let n: i32 = cluster.admin("postgres").query_one("SELECT n FROM t", &[]).unwrap().get(0);
    assert_eq!(n, 1);
}

#[test]
fn a_crash_takes_a_busy_backend_with_it() {
    let cluster = plain().start();
    let mut busy = cluster.admin("postgres");
    let pid: i32 = busy.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let loops = std::thread::spawn(move || busy.batch_execute("DO $$ BEGIN LOOP END LOOP; END $$"));
    let mut admin = cluster.admin("postgres");
    cluster.wait_until("the loop to run", || {
        let row = admin.query_one("SELECT coalesce(state, '') FROM pg_stat_activity WHERE pid = $1", &[&pid]).unwrap();
        (row.get::<_, &str>(0) == "active").then_some(()).ok_or_else(|| row.get(0))
    });
    cluster.crash();
    assert!(loops.join().unwrap().is_err());
    assert!(!exists(&working_directory(pid)));
}

#[test]
fn only_processes_of_the_server_can_be_killed() {
    let cluster = SHARED.cluster();
    let refused = std::panic::catch_unwind(|| cluster.kill(std::process::id(), Signal::SIGTERM));
    assert!(refused.is_err());
}

#[test]
fn what_a_log_may_not_hold_fails_the_test_that_drops_the_server() {
    let kill_one = |cluster: &Cluster| {
        let mut victim = cluster.admin("postgres");
        let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
        cluster.kill(pid.cast_unsigned(), Signal::SIGKILL);
        cluster.wait_until("the server to be up again", || {
            let up = cluster.log().matches("ready to accept connections").count();
            if up == 2 { Ok(()) } else { Err(format!("{up} times up")) }
        });
    };
    let allowed = plain().allow_in_log("was terminated by signal 9").start();
    kill_one(&allowed);
    drop(allowed);

    let cluster = plain().start();
    kill_one(&cluster);
    assert_eq!(cluster.offences().len(), 1);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(cluster)));
    let report = outcome.unwrap_err();
    assert!(report.downcast_ref::<String>().unwrap().contains("was terminated by signal 9"));
}

#[test]
fn a_report_tells_what_was_awaited_and_seen() {
    let outcome = std::panic::catch_unwind(|| {
        server_tests::wait_within(Duration::from_millis(20), "the moon", || -> Result<(), _> { Err("a cloud".into()) })
    });
    let report = outcome.unwrap_err();
    let report = report.downcast_ref::<String>().unwrap();
    assert!(report.contains("waiting for the moon; last seen: a cloud"), "{report}");
}

/// Run by the test below in a process of its own, which is then killed.
#[test]
#[ignore = "run by a_killed_test_process_leaves_nothing"]
fn inner_process() {
    let cluster = plain().start();
    println!("\nup {} {}", cluster.postmaster_pid(), server_tests::keeper::root().display());
    wait_until("being killed", || -> Result<(), _> { Err("alive".into()) });
}

/// Nothing unwinds and nothing is dropped when a test process is killed, and still nothing may be left.
#[test]
fn a_killed_test_process_leaves_nothing() {
    let mut inner = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "inner_process", "--nocapture"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(inner.stdout.take().unwrap()));
    let up = lines.map_while(Result::ok).find(|line| line.starts_with("up ")).expect("the inner server's line");
    let mut words = up.split(' ').skip(1);
    let (pid, root) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    assert!(exists(&working_directory(&pid)) && exists(&root));

    inner.kill().unwrap();
    inner.wait().unwrap();
    wait_until("the keeper to clean up", || {
        let left: Vec<_> = [working_directory(&pid), root.clone()].into_iter().filter(|path| exists(path)).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    });
}

/// A dead process that nobody has asked about yet still has an entry, but works nowhere.
fn working_directory(pid: impl std::fmt::Display) -> String {
    format!("/proc/{pid}/cwd/.")
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

#[test]
fn regress_compares_with_what_is_expected() {
    let directory = server_tests::keeper::root().join("regress-input");
    for (file, text) in [
        ("sql/one.sql", "SELECT 1 AS one;\n"),
        ("expected/one.out", "SELECT 1 AS one;\n one \n-----\n   1\n(1 row)\n\n"),
    ] {
        std::fs::create_dir_all(directory.join(file).parent().unwrap()).unwrap();
        std::fs::write(directory.join(file), text).unwrap();
    }
    let run = || server_tests::regress::run(SHARED.cluster(), "postgres", &directory);
    assert_eq!(run(), Ok(1));
    std::fs::write(directory.join("expected/one.out"), "something else\n").unwrap();
    let report = run().unwrap_err();
    assert!(report.contains("-something else"), "{report}");
}
