//! A job's row as a client reads it.

use postgres::Row;
use serde_json::Value;
use std::time::SystemTime;
use uuid::Uuid;

/// The seven columns in the order of the recipe's statements.
pub const COLUMNS: &str = r#""id","timestamp","payload","completed","cancelled","progress","result""#;

#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub id: Uuid,
    pub timestamp: SystemTime,
    pub payload: Value,
    pub completed: bool,
    pub cancelled: bool,
    pub progress: f32,
    pub result: Option<Value>,
}

impl Job {
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.completed || self.cancelled
    }

    /// What a failed job's result says: `error ->> field`.
    #[must_use]
    pub fn error(&self, field: &str) -> Option<&Value> {
        self.result.as_ref()?.get("error")?.get(field)
    }
}

impl From<&Row> for Job {
    fn from(row: &Row) -> Job {
        Job {
            id: row.get("id"),
            timestamp: row.get("timestamp"),
            payload: row.get("payload"),
            completed: row.get("completed"),
            cancelled: row.get("cancelled"),
            progress: row.get("progress"),
            result: row.get("result"),
        }
    }
}
