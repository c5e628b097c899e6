//! Random offsets that can be had again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Offsets between the parties, from a seed: SplitMix64.
pub struct Dice(u64);

impl Dice {
    pub fn new(test: &str) -> Dice {
        static SALT: AtomicU64 = AtomicU64::new(0);
        let seed = match std::env::var("BACKGROUND_JOBS_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap_or_else(|e| panic!("BACKGROUND_JOBS_TEST_SEED={seed}: {e}")),
            Err(_) => {
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64)
            }
        };
        println!("{test}: BACKGROUND_JOBS_TEST_SEED={seed}");
        Dice(seed ^ SALT.fetch_add(0x1234_5678_9abc, Ordering::Relaxed) ^ test.len() as u64)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Spins: a sleep is too coarse for offsets of microseconds.
    pub fn pause(&mut self, most: Duration) {
        let until = Instant::now() + Duration::from_nanos(self.below(most.as_nanos() as u64 + 1));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
}
