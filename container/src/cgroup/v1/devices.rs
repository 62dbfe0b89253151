//! Which devices a container may use: what is written to `devices.deny` and `devices.allow`.
//!
//! The kernel keeps what holds in general, and the exceptions from it. There are none from exceptions: rules that would need
//! them are refused.

use super::super::devices::{BLOCK, CHARACTER, MAKE, READ, Rule, WRITE, always_allowed};
use crate::error::Error;
use crate::spec::DeviceRule;

/// What is written to one of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub file: &'static str,
    pub value: String,
}

/// What holds, as far as it was read.
struct Holding {
    /// In general.
    allowed: bool,
    /// Rules that say the contrary.
    exceptions: Vec<Rule>,
}

/// Makes rules into what is written, in this order.
pub fn compile(rules: &[DeviceRule]) -> Result<Vec<Write>, Error> {
    let mut holding = Holding {
        allowed: false,
        exceptions: Vec::new(),
    };
    for (i, rule) in rules.iter().enumerate() {
        let known = Rule::read(rule);
        if !known.is_some_and(|rule| holding.add(rule)) {
            let problem = "cgroup v1 cannot make an exception from the rules before it";
            return Err(Error::invalid(
                format!("linux.resources.devices[{i}]"),
                problem,
            ));
        }
    }
    for rule in always_allowed() {
        if !holding.add(rule) {
            let problem =
                "a rule denies what every container may use, which cgroup v1 cannot take back";
            return Err(Error::invalid("linux.resources.devices", problem));
        }
    }
    let file = |allow| {
        if allow {
            "devices.allow"
        } else {
            "devices.deny"
        }
    };
    let all = Write {
        file: file(holding.allowed),
        value: "a".into(),
    };
    let exception = |rule: Rule| Write {
        file: file(rule.allow),
        value: text(rule),
    };
    let exceptions = holding.exceptions.into_iter().map(exception);
    Ok([all].into_iter().chain(exceptions).collect())
}

impl Holding {
    /// Whether this rule can hold from now on.
    fn add(&mut self, rule: Rule) -> bool {
        if rule.matches_all() {
            self.allowed = rule.allow;
            self.exceptions.clear();
            return true;
        }
        if rule.allow != self.allowed {
            // The kernel adds the accesses of equal devices up.
            match self.exceptions.iter_mut().find(|e| same(e, &rule)) {
                Some(exception) => exception.access |= rule.access,
                None => self.exceptions.push(rule),
            }
            return true;
        }
        // It holds again in general, of what was excepted.
        let shared = |e: &Rule| overlap(e, &rule) && e.access & rule.access != 0;
        let covered = |e: &Rule| covers(&rule, e);
        if self.exceptions.iter().any(|e| shared(e) && !covered(e)) {
            return false;
        }
        for exception in self.exceptions.iter_mut().filter(|e| covered(e)) {
            exception.access &= !rule.access;
        }
        self.exceptions.retain(|e| e.access != 0);
        true
    }
}

fn same(a: &Rule, b: &Rule) -> bool {
    (a.kind, a.major, a.minor) == (b.kind, b.major, b.minor)
}

fn overlap(a: &Rule, b: &Rule) -> bool {
    let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
    meet(a.kind, b.kind) && meet(a.major, b.major) && meet(a.minor, b.minor)
}

/// Whether all devices of `b` are devices of `a`.
fn covers(a: &Rule, b: &Rule) -> bool {
    let within = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
    within(a.kind, b.kind) && within(a.major, b.major) && within(a.minor, b.minor)
}

fn text(rule: Rule) -> String {
    let kind = match rule.kind {
        Some(BLOCK) => 'b',
        Some(CHARACTER) => 'c',
        _ => 'a',
    };
    let number = |number: Option<u32>| number.map_or("*".into(), |number| number.to_string());
    let mut text = format!("{kind} {}:{} ", number(rule.major), number(rule.minor));
    let letters = [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')];
    text.extend(
        letters
            .iter()
            .filter(|(bit, _)| rule.access & bit != 0)
            .map(|(_, l)| l),
    );
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::devices::tests::{expected, rule};
    use super::*;
    use crate::spec::DeviceKind;

    /// What the kernel makes of it (security/device_cgroup.c).
    fn allowed(writes: &[Write], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let in_general = writes[0].file == "devices.allow";
        assert_eq!(writes[0].value, "a");
        let letter = if kind == BLOCK { "b" } else { "c" };
        let of = |write: &Write| {
            let mut parts = write.value.split([' ', ':']);
            let mut is = |value: &str| {
                parts
                    .next()
                    .is_some_and(|part| part == "*" || part == value)
            };
            let matches = is(letter) && is(&major.to_string()) && is(&minor.to_string());
            let accesses = parts.next().expect("access");
            let bit = |(bit, letter)| if accesses.contains(letter) { bit } else { 0 };
            let bits: u32 = [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')]
                .map(bit)
                .iter()
                .sum();
            (matches, bits)
        };
        let exceptions = writes[1..].iter().map(of).filter(|(matches, _)| *matches);
        let mut bits = exceptions.map(|(_, bits)| bits);
        match in_general {
            // Any one that denies a part denies it, and one alone must allow all.
            true => !bits.any(|bits| bits & access != 0),
            false => bits.any(|bits| access & !bits == 0),
        }
    }

    proptest! {
        #[test]
        fn writes_when_made_then_as_the_rules_say(
            rules in proptest::collection::vec(rule(), 0..6),
            (kind, major, minor) in (1..3u32, 0..6u32, 0..6u32),
            access in prop_oneof![Just(MAKE), Just(READ), Just(WRITE)],
        ) {
            if let Ok(writes) = compile(&rules) {
                let (allowed, expected) = (
                    allowed(&writes, kind, access, major, minor),
                    expected(&rules, kind, access, major, minor),
                );
                prop_assert_eq!(allowed, expected, "{:?}", writes);
            }
        }
    }

    fn device(allow: bool, kind: DeviceKind, major: i64, access: &str) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major: Some(major),
            minor: None,
            access: Some(access.into()),
        }
    }

    #[test]
    fn rules_when_as_dockers_then_all_is_denied_but_what_they_name() {
        let rules = [
            device(false, DeviceKind::All, -1, "rwm"),
            device(true, DeviceKind::Block, 7, "rw"),
        ];
        let writes = compile(&rules).expect("can be written");
        let lines: Vec<_> = writes
            .iter()
            .map(|w| format!("{} {}", w.file, w.value))
            .collect();
        assert_eq!(
            lines[..4],
            [
                "devices.deny a",
                "devices.allow b 7:* rw",
                "devices.allow c *:* m",
                "devices.allow b *:* m"
            ]
        );
        assert_eq!(lines.len(), 13);
    }

    #[test]
    fn exception_when_of_an_exception_then_refused() {
        let narrow = DeviceRule {
            minor: Some(3),
            ..device(false, DeviceKind::Block, 7, "w")
        };
        let rules = [device(true, DeviceKind::Block, 7, "rw"), narrow];
        let error = compile(&rules).expect_err("an exception").to_string();
        assert!(error.starts_with("linux.resources.devices[1]: "), "{error}");
    }
}
