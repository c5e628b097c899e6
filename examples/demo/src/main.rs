//! Background jobs to look at: a throw-away server, an ordinary role, its table and handlers, and some jobs.
//!
//! `demo` submits the jobs and shows them until all are final; `demo --psql` hands the same server over to psql.

mod screen;
mod stage;

use nix::sys::signal::{SigHandler, Signal, signal};
use server_tests::Uuid;
use server_tests::postgres::Client;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => show(),
        Some("--psql") => prompt(),
        Some(_) => {
            eprintln!("usage: demo [--psql]");
            ExitCode::from(2)
        }
    }
}

fn show() -> ExitCode {
    let cluster = stage::start();
    stage::set_up(&cluster, true);
    let mut client = cluster.connect(stage::DATABASE, stage::ROLE);
    let jobs = stage::submit(&mut client);
    let victim = jobs.iter().find(|(handler, _)| *handler == stage::CANCELLED).map(|(_, id)| *id);

    println!("\nThe jobs, as the table shows them:\n");
    let mut screen = screen::Screen::new(std::io::stdout().is_terminal());
    cluster.wait_within(Duration::from_secs(120), "the jobs to be final", || {
        let lines = screen::read(&mut client);
        screen.draw(&lines);
        if let Some(id) = victim {
            cancel_when_under_way(&mut client, id);
        }
        let left = lines.iter().filter(|line| !line.is_final()).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} unfinished")) }
    });

    println!("\nThe rows, as every client reads them:\n");
    let query = "SELECT payload ->> 'handler' AS handler, completed, cancelled, progress, result
        FROM background_jobs ORDER BY timestamp";
    let status = cluster.psql(stage::DATABASE, stage::ROLE).args(["-P", "pager=off", "-c", query]).status();
    let shown = status.is_ok_and(|status| status.success());
    drop(client);
    drop(cluster);
    println!("The server is stopped and its directory is gone.");
    if shown { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a user does who has seen enough: the UPDATE that every client may send.
fn cancel_when_under_way(client: &mut Client, id: Uuid) {
    let cancel = "UPDATE background_jobs SET cancelled = true
        WHERE id = $1 AND NOT completed AND NOT cancelled AND progress >= 0.3";
    client.execute(cancel, &[&id]).unwrap_or_else(|e| panic!("{cancel}: {e:?}"));
}

fn prompt() -> ExitCode {
    let cluster = stage::start();
    stage::set_up(&cluster, false);
    if std::io::stdin().is_terminal() {
        println!("{}", stage::HINTS);
    }
    // Ctrl-C at the prompt is for psql, which shares the terminal with us; psql sets a handler of its own.
    // SAFETY: ignoring a signal installs no code of ours.
    unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) }.unwrap_or_else(|e| panic!("SIGINT: {e}"));
    let status = cluster.psql(stage::DATABASE, stage::ROLE).status();
    drop(cluster);
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
        Err(e) => panic!("psql: {e}"),
    }
}
