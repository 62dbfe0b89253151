//! Times and sizes, as Docker says them.

use jiff::Timestamp;

/// How long ago `then` was: `3 minutes ago`.
pub fn ago(then: Timestamp) -> String {
    format!("{} ago", since(then))
}

/// How long it is since `then`: `3 minutes`.
pub fn since(then: Timestamp) -> String {
    let seconds = Timestamp::now().as_second() - then.as_second();
    duration(seconds.max(0))
}

fn duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        3600..5400 => "About an hour".to_owned(),
        5400..172_800 => format!("{hours} hours"),
        172_800..1_209_600 => format!("{} days", hours / 24),
        1_209_600..5_184_000 => format!("{} weeks", hours / 24 / 7),
        5_184_000..63_072_000 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Bytes in decimal units, `4.26MB`, as for images.
pub fn decimal(bytes: u64) -> String {
    human(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// Bytes in binary units, `4.262MiB`, as for memory.
pub fn binary(bytes: u64) -> String {
    human(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

fn human(bytes: u64, step: f64, units: &[&str]) -> String {
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= step && unit + 1 < units.len() {
        size /= step;
        unit += 1;
    }
    // Three figures that count, and no zeros behind them.
    let places = match size {
        _ if unit == 0 => 0,
        s if s < 10.0 => 2,
        s if s < 100.0 => 1,
        _ => 0,
    };
    let mut text = format!("{size:.places$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text + units[unit]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_docker_says_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (100, "About a minute"),
            (150, "2 minutes"),
            (4000, "About an hour"),
            (7200, "2 hours"),
            (3 * 86_400, "3 days"),
            (20 * 86_400, "2 weeks"),
            (90 * 86_400, "3 months"),
            (1000 * 86_400, "2 years"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn sizes_have_three_figures() {
        assert_eq!(decimal(4_262_000), "4.26MB");
        assert_eq!(decimal(999), "999B");
        assert_eq!(decimal(77_800_000), "77.8MB");
        assert_eq!(decimal(1_000_000), "1MB");
        assert_eq!(binary(64 << 20), "64MiB");
        assert_eq!(binary(1536), "1.5KiB");
        assert_eq!(binary(u64::MAX), "16384PiB");
    }
}
