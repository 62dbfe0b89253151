//! Signals by name, and passing them on.

use std::str::FromStr;

use nix::sys::signal::Signal;

/// By number, or by name with or without SIG; realtime signals as `RTMIN+1`.
pub fn parse(text: &str) -> Result<i32, String> {
    let unknown = || format!("there is no signal {text}");
    if let Ok(number) = text.parse() {
        return match number {
            0..=64 => Ok(number),
            _ => Err(unknown()),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = realtime(name) {
        return Ok(number);
    }
    Signal::from_str(&format!("SIG{name}"))
        .map(|signal| signal as i32)
        .map_err(|_| unknown())
}

/// As the C library counts them, which keeps the first two to itself.
fn realtime(name: &str) -> Option<i32> {
    let (first, last) = (34, 64);
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => first,
        (_, Some("")) => last,
        (Some(more), _) => more
            .strip_prefix('+')?
            .parse::<i32>()
            .ok()?
            .checked_add(first)?,
        (_, Some(less)) => last - less.strip_prefix('-')?.parse::<i32>().ok()?,
        _ => return None,
    };
    (first..=last).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_when_named_in_any_way_then_its_number() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("0", 0),
            ("64", 64),
            ("RTMIN+1", 35),
            ("SIGRTMAX-2", 62),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in [
            "", "65", "-1", "NONE", "SIG", "RTMIN-1", "RTMAX+1", "RTMIN+40",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
