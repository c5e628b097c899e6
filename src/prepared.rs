//! COMMIT PREPARED. The session told others when it prepared, too early for them to see anything; so they are told again once
//! it is committed. Nobody knows what it was, so whoever could be concerned looks. (Where logical replication applies such a
//! commit, only the next poll does.)

use crate::pg::{database, shmem as pg_shmem};
use crate::shmem::{self, WaiterSlot};

/// After the commit, in the session's own transaction, which has done nothing else.
pub fn after_commit() {
    if !pg_shmem::attached() || !database::has_extension() {
        return;
    }
    let database = database::current().to_u32();
    // It may have been this that created the extension. A dispatcher that looked for it before is gone, or about to go.
    shmem::announce_extension(database);
    if let Some(slot) = shmem::database(database) {
        slot.ask_to_poll();
    }
    WaiterSlot::wake_all(database);
}
