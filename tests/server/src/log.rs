//! What a server's log may never hold, whatever a test did to the server (invariant I17).

/// Parts of lines that speak of a broken server: an abort, a failed assertion, a process that died of a signal.
const FORBIDDEN: &[&str] = &["PANIC", "TRAP", "was terminated by signal"];

/// The same in what the server warns of: a leaked reference, a snapshot that was not popped. Elsewhere these are ordinary words.
const FORBIDDEN_WARNINGS: &[&str] = &["leak", "snapshot"];

fn is_forbidden(line: &str) -> bool {
    let warning = line.split_once("WARNING:").map_or("", |(_, message)| message);
    FORBIDDEN.iter().any(|part| line.contains(part)) || FORBIDDEN_WARNINGS.iter().any(|part| warning.contains(part))
}

/// The lines that should not be there, but for those that hold one of `allowed`.
#[must_use]
pub fn offences(log: &str, allowed: &[String]) -> Vec<String> {
    log.lines()
        .filter(|line| is_forbidden(line))
        .filter(|line| !allowed.iter().any(|part| line.contains(part)))
        .map(str::to_owned)
        .collect()
}

/// The lines around the first one that holds `part`, for a report: what led to it is above it.
#[must_use]
pub fn around(log: &str, part: &str) -> String {
    let all: Vec<&str> = log.lines().collect();
    match all.iter().position(|line| line.contains(part)) {
        Some(at) => all[at.saturating_sub(15)..all.len().min(at + 10)].join("\n"),
        None => String::new(),
    }
}

/// The last lines that hold `part`, for a report.
#[must_use]
pub fn tail_of(log: &str, part: &str, lines: usize) -> String {
    let some: Vec<&str> = log.lines().filter(|line| line.contains(part)).collect();
    some[some.len().saturating_sub(lines)..].join("\n")
}

/// The last lines, for a report.
#[must_use]
pub fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offences_are_found_and_can_be_allowed() {
        let log = "LOG:  ready\nLOG:  server process (PID 1) was terminated by signal 9: Killed\nWARNING:  relcache reference leak\n";
        assert_eq!(offences(log, &[]).len(), 2);
        assert_eq!(offences(log, &["terminated by signal 9".to_owned()]), ["WARNING:  relcache reference leak"]);
    }

    #[test]
    fn tail_is_the_end() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
    }
}
