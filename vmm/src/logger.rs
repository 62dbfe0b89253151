//! The process's log: lines on standard error, bounded, because a guest can cause them.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use log::{LevelFilter, Log, Metadata, Record};

/// Lines after which the log goes silent. A healthy VM writes none; a hostile one could write for
/// ever and fill the disk that standard error goes to.
const MAX_LINES: u32 = 1000;

struct StderrLog {
    lines: AtomicU32,
}

static LOG: StderrLog = StderrLog {
    lines: AtomicU32::new(0),
};

impl Log for StderrLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = self.lines.fetch_add(1, Ordering::Relaxed);
        let mut stderr = std::io::stderr().lock();
        // Nobody is left to tell when standard error cannot be written.
        let _ = match line {
            0..MAX_LINES => writeln!(stderr, "bulkhead-vmm: {}", record.args()),
            MAX_LINES => writeln!(
                stderr,
                "bulkhead-vmm: too many messages, no more are written"
            ),
            _ => {
                self.lines.store(MAX_LINES + 1, Ordering::Relaxed);
                Ok(())
            }
        };
    }

    fn flush(&self) {}
}

/// Installs the log. `BULKHEAD_LOG` (`off`, `error`, `warn`, `info`, `debug`, `trace`) sets its
/// level; the default is `warn`.
pub fn install() {
    let level = std::env::var("BULKHEAD_LOG")
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::Warn);
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(level);
    }
}
