//! Libraries of a few lines, compiled when they are needed: functions in C, and what a test's server is made to preload
//! (`LD_PRELOAD`) and is told what to do by a number in a file, which every process of that server sees at once, and nobody else.

use crate::installation::include_directory;
use crate::{Builder, keeper, run};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A number that the library maps.
pub(crate) struct Number {
    path: PathBuf,
    file: File,
}

impl Number {
    pub fn new(value: i64) -> Number {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let path = keeper::root().join(format!("number{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let file = OpenOptions::new().create_new(true).write(true).open(&path);
        let number = Number { file: file.unwrap_or_else(|e| panic!("{}: {e}", path.display())), path };
        number.set(value);
        number
    }

    pub fn set(&self, value: i64) {
        self.file.write_all_at(&value.to_ne_bytes(), 0).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
    }

    /// The server preloads `library`, which finds the number's file in the environment as `variable`.
    #[must_use]
    pub fn preload(&self, builder: Builder, library: &str, variable: &str) -> Builder {
        builder.env("LD_PRELOAD", library).env(variable, &self.path.to_string_lossy())
    }
}

/// Compiles the source into a library; returns its path.
pub(crate) fn compile(name: &str, source: &str) -> String {
    cc(name, source, &[])
}

/// As [`compile`], with PostgreSQL's headers: for functions that a server loads by `CREATE FUNCTION ... LANGUAGE c`.
#[must_use]
pub fn compile_functions(name: &str, source: &str) -> String {
    // What is wrong in there is not ours to mend.
    cc(name, source, &["-isystem".to_owned(), include_directory()])
}

fn cc(name: &str, source: &str, options: &[String]) -> String {
    let (code, library) = (keeper::root().join(format!("{name}.c")), keeper::root().join(format!("{name}.so")));
    std::fs::write(&code, source).unwrap_or_else(|e| panic!("{}: {e}", code.display()));
    run(Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror"])
        .args(options)
        .arg("-o")
        .arg(&library)
        .arg(&code));
    library.to_string_lossy().into_owned()
}
