//! The pure parts of the extension, compiled without PostgreSQL so that their own tests run in a moment. A module listed
//! here that reaches for the server no longer compiles, which is the other half of the point.

#![allow(dead_code, reason = "what the extension calls is not called here")]

#[path = "../../../src/job.rs"]
mod job;
#[path = "../../../src/protocol.rs"]
mod protocol;
#[path = "../../../src/retry.rs"]
mod retry;
