//! The pure parts of the extension, compiled without PostgreSQL, so that their own tests run in a moment and the model and the
//! agreement tests can use them. A module listed here that reaches for the server no longer compiles, which is the other
//! half of the point.

#[path = "../../../src/gaps.rs"]
pub mod gaps;
#[path = "../../../src/job.rs"]
pub mod job;
#[path = "../../../src/protocol.rs"]
pub mod protocol;
#[path = "../../../src/worker/dispatcher/rescan.rs"]
pub mod rescan;
#[path = "../../../src/retry.rs"]
pub mod retry;
