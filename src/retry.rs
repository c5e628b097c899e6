//! Backoff: exponential with jitter, from the attempt's number alone. Pure.

use std::time::Duration;

/// How a handler's failed jobs are tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Attempts in all, at least 1.
    pub max_attempts: i32,
    /// Delay after the first failure.
    pub delay: Duration,
    /// No delay is longer than this.
    pub max_delay: Duration,
}

impl Policy {
    /// The delay after attempt number `attempt` (counted from 1) failed, or none if it was the last.
    ///
    /// The delay doubles from attempt to attempt up to `max_delay`. `random` in [0, 1) takes off up to a quarter, so that
    /// jobs that failed together do not come back together, and none ever waits longer than the setting says.
    pub fn delay_after(&self, attempt: i32, random: f64) -> Option<Duration> {
        (attempt < self.max_attempts).then(|| {
            let doublings = attempt.saturating_sub(1).clamp(0, 62) as u32;
            let full = self
                .delay
                .checked_mul(1u32.checked_shl(doublings.min(31)).unwrap_or(u32::MAX))
                .unwrap_or(self.max_delay)
                .min(self.max_delay);
            full.mul_f64(1.0 - 0.25 * random.clamp(0.0, 1.0))
        })
    }
}

/// The delay after a conflict: short and random, because whoever we conflicted with is about to be done.
pub fn conflict_delay(conflicts: i16, random: f64) -> Duration {
    Duration::from_millis(5).mul_f64(f64::from(conflicts.clamp(1, 20)) * (0.5 + random))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { max_attempts: 5, delay: Duration::from_secs(1), max_delay: Duration::from_secs(5) };

    #[test]
    fn doubles_up_to_the_limit() {
        let delays: Vec<_> = (1..=4).map(|n| POLICY.delay_after(n, 0.0).map(|d| d.as_secs())).collect();
        assert_eq!(delays, [Some(1), Some(2), Some(4), Some(5)]);
    }

    #[test]
    fn last_attempt_is_the_last() {
        assert_eq!(POLICY.delay_after(5, 0.0), None);
        assert_eq!(POLICY.delay_after(6, 0.0), None);
    }

    #[test]
    fn jitter_only_shortens_and_by_a_quarter_at_most() {
        for step in 0..100 {
            let delay = POLICY.delay_after(3, f64::from(step) / 100.0);
            let bounds = Duration::from_secs(3)..=Duration::from_secs(4);
            assert!(delay.is_some_and(|delay| bounds.contains(&delay)), "{delay:?}");
        }
    }

    #[test]
    fn far_attempts_do_not_overflow() {
        let policy = Policy { max_attempts: i32::MAX, ..POLICY };
        assert_eq!(policy.delay_after(1_000_000, 0.0), Some(Duration::from_secs(5)));
        assert_eq!(policy.delay_after(i32::MAX - 1, 0.0), Some(Duration::from_secs(5)));
    }
}
