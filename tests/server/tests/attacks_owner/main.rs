//! A hostile owner of one job table. Whatever is hung on the table runs, but in the owner's name only (I15), for a bounded time,
//! and at nobody else's expense. What an honest role leaves behind or plants is in `clean_room`.

mod bounded;
mod changing;
mod domains;
mod endless;
mod given;
mod places;
mod role;

use server_tests::{Builder, Cluster, Group};

fn lively() -> Builder {
    Cluster::builder()
        .conf("background_jobs.poll_interval", "300ms")
        .conf("background_jobs.retry_delay", "10ms")
        .conf("max_prepared_transactions", "4")
}

static SHARED: Group = Group::new(lively);
