//! A token bucket for each of a device's bytes and operations, and a timer for when to go on.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm_sys_util::timerfd::TimerFd;

const NANOSECONDS: i128 = 1_000_000_000;

/// How much a device may do. 0, or a field left out, means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes a second.
    pub bytes_per_second: u64,
    /// Operations (requests, packets) a second.
    pub operations_per_second: u64,
    /// Bytes that may pass at once after a pause. A tenth of a second's worth if 0.
    pub burst_bytes: u64,
    /// Operations that may pass at once after a pause. A tenth of a second's worth if 0.
    pub burst_operations: u64,
}

/// Holds a device to a [`RateLimit`].
///
/// What it promises: over any `t` seconds, at most `rate * t + burst` passes. A single request larger
/// than the burst would wait for ever by that rule, so it passes once the bucket is full and leaves a
/// debt to be paid before the next; for such a request read its size in place of the burst.
///
/// Time is `CLOCK_MONOTONIC`.
#[derive(Debug)]
pub struct RateLimiter {
    buckets: Buckets,
    timer: TimerFd,
    start: Instant,
    blocked: bool,
}

impl RateLimiter {
    /// A limiter with full buckets, or `None` if `limit` limits nothing.
    pub fn new(limit: &RateLimit) -> io::Result<Option<Self>> {
        let Some(buckets) = Buckets::new(limit) else {
            return Ok(None);
        };
        Ok(Some(RateLimiter {
            buckets,
            timer: nonblocking_timer()?,
            start: Instant::now(),
            blocked: false,
        }))
    }

    /// Asks to let one operation of `bytes` bytes pass.
    ///
    /// `false` means not now: nothing was taken, the timer is set for when enough will be there, and
    /// every call until [`Self::timer_fired`] gets the same answer (so that requests keep their
    /// order, and a driver that goes on notifying costs no system calls).
    #[must_use]
    pub fn consume(&mut self, bytes: u64) -> bool {
        if self.blocked {
            return false;
        }
        let now = self.start.elapsed();
        let Err(wait) = self.buckets.take(now, bytes) else {
            return true;
        };
        // A relative timer cannot be refused, but a limiter that is never woken would stop the
        // device for good: better to let one request through.
        self.blocked = self.timer.reset(wait, None).is_ok();
        !self.blocked
    }

    /// Whether the last [`Self::consume`] was refused and the timer has not fired since.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The timer to watch for input.
    pub fn timer_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Call when [`Self::timer_fd`] is readable, then try again what was refused.
    pub fn timer_fired(&mut self) {
        // An error means that it has not fired after all, and so will yet.
        if self.timer.wait().is_ok() {
            self.blocked = false;
        }
    }
}

fn nonblocking_timer() -> io::Result<TimerFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe {
        libc::timerfd_create(
            libc::CLOCK_MONOTONIC,
            libc::TFD_NONBLOCK | libc::TFD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened as a timerfd and nobody else has it.
    Ok(unsafe { TimerFd::from_raw_fd(fd) })
}

/// The arithmetic, with time as an argument.
#[derive(Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Buckets {
    fn new(limit: &RateLimit) -> Option<Self> {
        let bytes = Bucket::new(limit.bytes_per_second, limit.burst_bytes);
        let operations = Bucket::new(limit.operations_per_second, limit.burst_operations);
        (bytes.is_some() || operations.is_some()).then_some(Buckets { bytes, operations })
    }

    /// Takes one operation and `bytes` bytes, or neither and says how long to wait for them.
    fn take(&mut self, now: Duration, bytes: u64) -> Result<(), Duration> {
        let mut wait = 0;
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.refill(now);
                wait = wait.max(bucket.wait_for(tokens));
            }
        }
        if wait > 0 {
            return Err(Duration::from_nanos(wait));
        }
        for (bucket, tokens) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.level -= i128::from(tokens) * NANOSECONDS;
            }
        }
        Ok(())
    }
}

/// One bucket. Counts in billionths of a token, so that refilling `rate` tokens a second is exact for
/// every number of nanoseconds and nothing is lost to rounding however often it is done.
#[derive(Debug)]
struct Bucket {
    rate: i128,
    capacity: i128,
    /// Negative while there is debt.
    level: i128,
    refilled: Duration,
}

impl Bucket {
    fn new(rate: u64, burst: u64) -> Option<Self> {
        if rate == 0 {
            return None;
        }
        let burst = if burst == 0 {
            (rate / 10).max(1)
        } else {
            burst
        };
        let capacity = i128::from(burst) * NANOSECONDS;
        Some(Bucket {
            rate: rate.into(),
            capacity,
            level: capacity,
            refilled: Duration::ZERO,
        })
    }

    fn refill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.refilled).as_nanos();
        // 292 years at most, so that the product with a rate below 2^64 fits.
        let elapsed = i128::from(i64::try_from(elapsed).unwrap_or(i64::MAX));
        self.refilled = self.refilled.max(now);
        let level = self.level.saturating_add(elapsed * self.rate);
        self.level = self.capacity.min(level);
    }

    /// Nanoseconds until `tokens` may be taken; 0 if they may be now.
    fn wait_for(&self, tokens: u64) -> u64 {
        let wanted = self.capacity.min(i128::from(tokens) * NANOSECONDS);
        let missing = (wanted - self.level).max(0);
        let wait = missing / self.rate + i128::from(missing % self.rate != 0);
        u64::try_from(wait).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn buckets(bytes: u64, operations: u64) -> Buckets {
        Buckets::new(&RateLimit {
            bytes_per_second: bytes,
            operations_per_second: operations,
            ..Default::default()
        })
        .unwrap()
    }

    #[test]
    fn limit_when_all_zero_is_no_limiter() {
        assert!(RateLimiter::new(&RateLimit::default()).unwrap().is_none());
    }

    #[test]
    fn burst_when_not_given_is_a_tenth_of_a_second() {
        let mut b = buckets(1000, 0);
        assert_eq!(b.take(ms(0), 100), Ok(()));
        assert_eq!(b.take(ms(0), 1), Err(ms(1)));
    }

    #[test]
    fn refused_request_takes_nothing_from_either_bucket() {
        let mut b = buckets(1000, 10);
        assert_eq!(b.take(ms(0), 50), Ok(()));
        assert_eq!(b.take(ms(0), 50), Err(ms(100)));
        assert_eq!(b.take(ms(100), 100), Ok(()));
    }

    #[test]
    fn request_larger_than_the_burst_passes_when_full_and_leaves_a_debt() {
        let mut b = buckets(1000, 0);
        assert_eq!(b.take(ms(0), 1), Ok(()));
        assert_eq!(b.take(ms(0), 1100), Err(ms(1)));
        assert_eq!(b.take(ms(1), 1100), Ok(()));
        assert_eq!(b.take(ms(1), 100), Err(ms(1100)));
        assert_eq!(b.take(ms(1101), 100), Ok(()));
    }

    #[test]
    fn extreme_numbers_do_not_overflow() {
        let mut b = Buckets::new(&RateLimit {
            bytes_per_second: 1,
            operations_per_second: u64::MAX,
            burst_bytes: u64::MAX,
            burst_operations: u64::MAX,
        })
        .unwrap();
        assert_eq!(b.take(Duration::ZERO, u64::MAX), Ok(()));
        let wait = b.take(Duration::MAX, u64::MAX).unwrap_err();
        assert!(wait > Duration::ZERO);
    }

    #[test]
    fn clock_that_goes_back_gives_nothing_twice() {
        let mut b = buckets(1000, 0);
        assert_eq!(b.take(ms(50), 100), Ok(()));
        assert_eq!(b.take(ms(0), 1), Err(ms(1)));
        assert_eq!(b.take(ms(50), 1), Err(ms(1)));
    }

    #[test]
    fn consume_when_refused_stays_refused_until_the_timer_fires() {
        let limit = RateLimit {
            operations_per_second: 100,
            burst_operations: 1,
            ..Default::default()
        };
        let mut limiter = RateLimiter::new(&limit).unwrap().unwrap();
        assert!(limiter.consume(0));
        assert!(!limiter.consume(0));
        limiter.timer_fired();
        let mut poll = libc::pollfd {
            fd: limiter.timer_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, borrowed for the call.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, -1) }, 1);
        assert!(limiter.is_blocked());
        limiter.timer_fired();
        assert!(limiter.consume(0));
    }

    proptest! {
        /// Whatever is asked for and when, no window sees more than `rate * t + burst` pass (or one
        /// request larger than the burst in its place), and who waits as told gets through.
        #[test]
        fn no_window_passes_more_than_its_share(
            rate in 1u64..5_000_000,
            burst in 1u64..1_000_000,
            requests in prop::collection::vec((0u64..200_000_000, 0u64..2_000_000), 1..60),
        ) {
            let mut b = Bucket::new(rate, burst).map(|bucket| Buckets {
                bytes: Some(bucket),
                operations: None,
            }).unwrap();
            let mut now = Duration::ZERO;
            let mut passed = Vec::new();
            for (pause, bytes) in requests {
                now += Duration::from_nanos(pause);
                if let Err(wait) = b.take(now, bytes) {
                    prop_assert!(b.take(now + wait - Duration::from_nanos(1), bytes).is_err());
                    now += wait;
                    prop_assert_eq!(b.take(now, bytes), Ok(()));
                }
                passed.push((now, bytes));
            }
            for first in 0..passed.len() {
                let mut sum = 0u128;
                let mut slack = burst;
                for &(at, bytes) in &passed[first..] {
                    sum += u128::from(bytes);
                    slack = slack.max(bytes);
                    let time = (at - passed[first].0).as_nanos();
                    let allowed = u128::from(rate) * time + u128::from(slack) * 1_000_000_000;
                    prop_assert!(sum * 1_000_000_000 <= allowed);
                }
            }
        }
    }
}
