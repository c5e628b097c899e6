//! A line per job: redrawn in place on a terminal, printed when it changes elsewhere.

use server_tests::postgres::{Client, IsolationLevel};
use std::collections::HashMap;
use std::io::Write as _;

const WIDTH: usize = 30;

#[derive(Clone, PartialEq)]
pub struct Line {
    id: String,
    handler: String,
    state: String,
    progress: f32,
    note: String,
}

impl Line {
    pub fn is_final(&self) -> bool {
        matches!(self.state.as_str(), "completed" | "failed" | "cancelled")
    }

    fn colour(&self) -> &'static str {
        match self.state.as_str() {
            "completed" => "\x1b[32m",
            "failed" => "\x1b[31m",
            "cancelled" => "\x1b[33m",
            "running" => "\x1b[36m",
            _ => "\x1b[2m",
        }
    }

    fn bar(&self) -> String {
        // Rounded down: a bar is full when the job is done, and not before.
        let full = (self.progress.clamp(0.0, 1.0) * WIDTH as f32).floor() as usize;
        format!("{}{}", "#".repeat(full), ".".repeat(WIDTH - full))
    }
}

/// The jobs as their owner sees them.
pub fn read(client: &mut Client) -> Vec<Line> {
    let query = "
        SELECT j.id::text, j.payload ->> 'handler', s.state, s.progress,
               CASE WHEN s.state = 'completed' THEN j.result::text
                    WHEN s.state = 'failed' THEN j.result -> 'error' ->> 'message'
                    WHEN s.attempts > 1 OR s.state = 'retrying' THEN
                        format('attempt %s of %s: %s', s.attempts, s.max_attempts, s.last_error ->> 'message')
               END
          FROM background_jobs j CROSS JOIN LATERAL background_jobs.status(j.id) s
         ORDER BY j.timestamp, j.id";
    // status() is asked row by row, in one snapshot with the rows.
    let mut reading = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start();
    let reading = reading.as_mut().unwrap_or_else(|e| panic!("{e:?}"));
    let rows = reading.query(query, &[]).unwrap_or_else(|e| panic!("{query}: {e:?}"));
    rows.iter()
        .map(|row| Line {
            id: row.get(0),
            handler: row.get(1),
            state: row.get(2),
            progress: row.get(3),
            note: row.get::<_, Option<String>>(4).unwrap_or_default(),
        })
        .collect()
}

pub struct Screen {
    terminal: bool,
    /// How many lines the last drawing has put on the terminal.
    drawn: usize,
    /// What was printed last for each job, where nothing can be redrawn.
    printed: HashMap<String, Line>,
}

impl Screen {
    pub fn new(terminal: bool) -> Screen {
        Screen { terminal, drawn: 0, printed: HashMap::new() }
    }

    pub fn draw(&mut self, lines: &[Line]) {
        if self.terminal {
            self.redraw(lines);
        } else {
            self.print(lines);
        }
        let _ = std::io::stdout().flush();
    }

    fn redraw(&mut self, lines: &[Line]) {
        if self.drawn > 0 {
            print!("\x1b[{}A", self.drawn);
        }
        for line in lines {
            let percent = line.progress * 100.0;
            // A line that the terminal wraps would be two to go up.
            let note: String = line.note.chars().take(36).collect();
            println!(
                "\r\x1b[2K{:9} [{}{}\x1b[0m] {percent:3.0} %  {}{:9}\x1b[0m {note}",
                line.handler,
                line.colour(),
                line.bar(),
                line.colour(),
                line.state
            );
        }
        self.drawn = lines.len();
    }

    fn print(&mut self, lines: &[Line]) {
        for line in lines {
            let known = self.printed.get(&line.id);
            let quarters = |line: &Line| (line.progress * 4.0) as u32;
            let same = |known: &Line| {
                known.state == line.state && known.note == line.note && quarters(known) == quarters(line)
            };
            if !known.is_some_and(same) {
                println!("{:9} {:9} {:3.0} %  {}", line.handler, line.state, line.progress * 100.0, line.note);
                self.printed.insert(line.id.clone(), line.clone());
            }
        }
    }
}
