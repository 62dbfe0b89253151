//! What is written behind options: sizes, signals, times.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;

/// A size in bytes with an optional unit of 1024s, as bytes: `64m`, `1G`, `512`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: give a number with M or G, like 256M");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// A number of processors, more than none.
pub fn parse_cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if cpus.is_finite() && cpus >= 0.01 => Ok(cpus),
        _ => Err(format!(
            "`{text}` is not a number of processors, like 0.5 or 2"
        )),
    }
}

/// A signal by number or by name, with or without `SIG`.
pub fn parse_signal(text: &str) -> Result<u8, String> {
    let wrong = || format!("there is no signal {text}: signal(7) lists them");
    if let Ok(number) = text.parse::<u8>() {
        return match number {
            1..=64 => Ok(number),
            _ => Err(wrong()),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // Real-time signals are counted from the first or back from the last.
    let realtime = match name.split_at_checked(5) {
        Some(("RTMIN", "")) => Some(34),
        Some(("RTMAX", "")) => Some(64),
        Some(("RTMIN", n)) => n.parse::<u8>().ok().filter(|n| *n <= 30).map(|n| 34 + n),
        Some(("RTMAX", n)) => n
            .parse::<i8>()
            .ok()
            .filter(|n| (-30..0).contains(n))
            .map(|n| 64 - n.unsigned_abs()),
        _ => None,
    };
    if let Some(number) = realtime {
        return Ok(number);
    }
    let signal: Signal = format!("SIG{name}").parse().map_err(|_| wrong())?;
    u8::try_from(signal as i32).map_err(|_| wrong())
}

/// A moment: RFC 3339, seconds since 1970, or how long ago (`10m`, `1h30m`).
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    let wrong =
        || format!("`{text}` is not a time: give 2026-01-31T12:00:00Z, or 10m for ten minutes ago");
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(seconds) = text.parse::<f64>() {
        let since_1970 = SignedDuration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
        return Timestamp::UNIX_EPOCH
            .checked_add(since_1970)
            .map_err(|_| wrong());
    }
    let ago = parse_duration(text).map_err(|_| wrong())?;
    Timestamp::now().checked_sub(ago).map_err(|_| wrong())
}

/// A duration as Go writes it: `90s`, `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration, like 90s or 1h30m");
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number: f64 = rest[..rest.len() - digits.len()]
            .parse()
            .map_err(|_| wrong())?;
        let unit = digits.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        seconds += number
            * match &digits[..digits.len() - unit.len()] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return Err(wrong()),
            };
        rest = unit;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_dockers_units() {
        assert_eq!(parse_bytes("64m"), Ok(64 << 20));
        assert_eq!(parse_bytes("512"), Ok(512));
        for wrong in ["", "m", "1.5g", "-1", "9999999999999t", "1é"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn signals_are_known_by_number_and_name() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("sigterm", 15),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        for wrong in ["0", "65", "NOPE", "", "RTMIN+31", "RTMAX-31", "SIGé"] {
            assert!(parse_signal(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_moments_or_durations_before_now() {
        let second = parse_time("1").expect("since 1970");
        assert_eq!(second.as_second(), 1);
        assert_eq!(parse_time("1970-01-01T00:00:01Z"), Ok(second));
        assert_eq!(
            parse_duration("1h30m5.5s"),
            Ok(Duration::from_millis(5_405_500))
        );
        for wrong in ["", "x", "1y", "h", "1h2", "99999999999999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert!(parse_time("99999999999h").is_err());
    }

    #[test]
    fn processors_are_more_than_none() {
        assert_eq!(parse_cpus("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "nan", "inf", "two"] {
            assert!(parse_cpus(wrong).is_err(), "{wrong}");
        }
    }
}
