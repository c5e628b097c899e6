//! The rhythm of the storm: how long a client thinks between two operations, how long a blow lasts, how long it is calm until the next.
//! It is what is tried, and leads to no state that could be waited for; who does wait for one takes `server_tests::wait`.

use std::time::Duration;

pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
