//! Doing something for some time.

use std::time::{Duration, Instant};

/// What was done, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Done {
    /// How often, or how much: what `batch` counted.
    pub count: u64,
    /// How long.
    pub seconds: f64,
}

impl Done {
    /// So much a second.
    pub fn rate(self) -> f64 {
        self.count as f64 / self.seconds
    }
}

/// Calls `batch`, which says how much it did, until `budget` has passed or it has no more to do (and says
/// zero); at least once.
pub fn for_about<E>(
    budget: Duration,
    mut batch: impl FnMut() -> Result<u64, E>,
) -> Result<Done, E> {
    let start = Instant::now();
    let mut count: u64 = 0;
    loop {
        let done = batch()?;
        count = count.saturating_add(done);
        let passed = start.elapsed();
        if done == 0 || passed >= budget {
            let seconds = passed.as_secs_f64().max(1e-9);
            return Ok(Done { count, seconds });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_done_until_the_time_is_over_or_nothing_is_left() {
        let once = for_about(Duration::ZERO, || Ok::<_, ()>(7)).expect("done");
        assert_eq!(once.count, 7);
        let mut left = 3;
        let done = for_about(Duration::from_secs(3600), || {
            left -= 1;
            Ok::<_, ()>(if left >= 0 { 2 } else { 0 })
        });
        assert_eq!(done.expect("done").count, 6);
        assert_eq!(for_about(Duration::from_secs(1), || Err(5)), Err(5));
        let rate = Done {
            count: 10,
            seconds: 2.0,
        };
        assert_eq!(rate.rate(), 5.0);
    }
}
