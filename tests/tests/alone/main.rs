//! End-to-end tests that look at the whole machine, for what should not be left there, and so run one at
//! a time and apart from the others.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod crashes;

/// No other test of this program runs before the result is dropped.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // One that failed has said so, and takes its things with it.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
