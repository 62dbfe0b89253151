//! Trying again, with more and more time in between.

use std::thread;
use std::time::{Duration, SystemTime};

use super::client::Failure;

/// How often something is tried that makes no progress.
const ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest that a registry's `Retry-After` is obeyed.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Counts attempts.
#[derive(Debug, Default)]
pub(super) struct Retry {
    failed: u32,
}

impl Retry {
    /// Something came of it: the count begins anew.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// After a failure: waits, and returns why; or gives up.
    pub(super) fn after(&mut self, failure: Failure) -> Result<String, Failure> {
        let Failure::Transient(why, after) = failure else {
            return Err(failure);
        };
        self.failed += 1;
        if self.failed >= ATTEMPTS {
            return Err(Failure::Transient(why, after));
        }
        let backoff = FIRST_WAIT * 2u32.pow(self.failed - 1);
        // So that all who were thrown out together do not come back together.
        let nanoseconds = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.subsec_nanos());
        let spread = backoff / 4 * (nanoseconds % 1000) / 1000;
        thread::sleep(
            (backoff + spread)
                .max(after.unwrap_or_default())
                .min(LONGEST_WAIT),
        );
        Ok(why)
    }
}

/// Does something until it works or makes no sense any more.
pub(super) fn retry<T>(mut action: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut retry = Retry::default();
    loop {
        match action() {
            Ok(value) => return Ok(value),
            Err(failure) => drop(retry.after(failure)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_when_it_makes_no_sense_stops_at_once() {
        let mut tried = 0;
        let result: Result<(), _> = retry(|| {
            tried += 1;
            Err(Failure::Fatal("no".into()))
        });
        assert!(result.is_err());
        assert_eq!(tried, 1);
    }

    #[test]
    fn retry_when_it_works_the_second_time_succeeds() {
        let mut tried = 0;
        let result = retry(|| {
            tried += 1;
            match tried {
                1 => Err(Failure::Transient("later".into(), None)),
                n => Ok(n),
            }
        });
        assert!(matches!(result, Ok(2)));
    }
}
