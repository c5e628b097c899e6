//! What was measured, as it is printed and kept.

use crate::options::Options;
use crate::{machine, stats};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// All sections by name, each from the run that measured it last.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Book {
    pub sections: BTreeMap<String, Section>,
}

/// What was measured together, on one machine and one build.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Section {
    pub date: String,
    pub commit: String,
    pub machine: String,
    pub server: String,
    pub extension: String,
    pub settings: String,
    pub scale: String,
    pub figures: Vec<Figure>,
    pub curves: Vec<Curve>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// What targets call it.
    pub key: String,
    pub label: String,
    pub unit: String,
    pub rounds: Vec<f64>,
}

/// For the picture.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Curve {
    pub key: String,
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

impl Book {
    /// Nothing when there is no such file yet.
    pub fn read(path: &Path) -> Book {
        let Ok(text) = fs::read_to_string(path) else {
            return Book::default();
        };
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub fn write(&self, path: &Path) {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).unwrap_or_else(|e| panic!("mkdir {}: {e}", directory.display()));
        }
        let text = serde_json::to_string_pretty(self).unwrap_or_else(|e| panic!("{e}"));
        fs::write(path, text + "\n").unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    pub fn figure(&self, key: &str) -> Option<&Figure> {
        self.sections.values().flat_map(|section| &section.figures).find(|figure| figure.key == key)
    }
}

impl Section {
    pub fn begin(options: &Options) -> Section {
        Section {
            commit: commit(),
            machine: machine::describe(),
            scale: format!(
                "{} rounds, {} jobs, {} one after another",
                options.rounds, options.jobs, options.sequential
            ),
            ..Section::default()
        }
    }

    /// Adds a figure and prints it; gives the rounds back for ratios.
    pub fn figure(&mut self, key: &str, label: &str, unit: &str, rounds: Vec<f64>) -> Vec<f64> {
        let figure = Figure { key: key.to_owned(), label: label.to_owned(), unit: unit.to_owned(), rounds };
        println!("  {figure}");
        self.figures.push(figure);
        self.figures[self.figures.len() - 1].rounds.clone()
    }

    pub fn curve(&mut self, key: &str, label: &str, points: Vec<(f64, f64)>) {
        self.curves.push(Curve { key: key.to_owned(), label: label.to_owned(), points });
    }
}

impl Figure {
    pub fn median(&self) -> f64 {
        stats::median(&self.rounds)
    }

    /// Median, lowest and highest.
    pub fn spread(&self) -> (String, String, String) {
        let low = self.rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (number(self.median()), number(low), number(high))
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (median, low, high) = self.spread();
        write!(f, "{:58} {median:>10} {:9} ({low} to {high})", self.label, self.unit)
    }
}

/// Three digits that mean something.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 10.0 => 3,
        middling if middling < 100.0 => 2,
        large if large < 1000.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// The commit that was built, marked when there is more than it in the tree.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    if changed { format!("{commit} with changes") } else { commit }
}
