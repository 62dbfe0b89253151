//! Which devices a container may use: rules, in the kernel's terms.

use crate::spec::{DeviceKind, DeviceRule};

pub const MAKE: u32 = 1;
pub const READ: u32 = 2;
pub const WRITE: u32 = 4;
pub const BLOCK: u32 = 1;
pub const CHARACTER: u32 = 2;

/// What every container may use, and make, whatever its rules say: the default devices, terminals, and device files of all
/// kinds, which are harmless until they are opened.
const ALWAYS: [(u32, Option<u32>, Option<u32>, u32); 11] = [
    (CHARACTER, None, None, MAKE),
    (BLOCK, None, None, MAKE),
    (CHARACTER, Some(1), Some(3), MAKE | READ | WRITE),
    (CHARACTER, Some(1), Some(5), MAKE | READ | WRITE),
    (CHARACTER, Some(1), Some(7), MAKE | READ | WRITE),
    (CHARACTER, Some(1), Some(8), MAKE | READ | WRITE),
    (CHARACTER, Some(1), Some(9), MAKE | READ | WRITE),
    (CHARACTER, Some(5), Some(0), MAKE | READ | WRITE),
    (CHARACTER, Some(5), Some(1), MAKE | READ | WRITE),
    (CHARACTER, Some(5), Some(2), MAKE | READ | WRITE),
    (CHARACTER, Some(136), None, MAKE | READ | WRITE),
];

/// A rule in the kernel's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    /// None: both kinds.
    pub kind: Option<u32>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: u32,
}

impl Rule {
    pub fn matches_all(&self) -> bool {
        let numbers = [self.kind, self.major, self.minor];
        numbers == [None; 3] && self.access == READ | WRITE | MAKE
    }

    /// None: there is no such rule.
    pub fn read(rule: &DeviceRule) -> Option<Rule> {
        let kind = match rule.kind {
            DeviceKind::All => None,
            DeviceKind::Block => Some(BLOCK),
            DeviceKind::Character | DeviceKind::Unbuffered => Some(CHARACTER),
            DeviceKind::Fifo => return None,
        };
        let number = |value: Option<i64>| match value {
            None | Some(-1) => Some(None),
            Some(value) => u32::try_from(value).ok().map(Some),
        };
        let mut access = 0;
        for letter in rule
            .access
            .as_deref()
            .filter(|a| !a.is_empty())
            .unwrap_or("rwm")
            .chars()
        {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MAKE,
                _ => return None,
            };
        }
        // Of `a` the numbers and the access are not looked at: it is all devices, for everything.
        match kind {
            None => Some(Rule {
                allow: rule.allow,
                kind,
                major: None,
                minor: None,
                access: READ | WRITE | MAKE,
            }),
            kind => Some(Rule {
                allow: rule.allow,
                kind,
                major: number(rule.major)?,
                minor: number(rule.minor)?,
                access,
            }),
        }
    }
}

/// Devices that every container may use.
pub fn always_allowed() -> impl Iterator<Item = Rule> {
    let allow = |(kind, major, minor, access)| Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    };
    ALWAYS.into_iter().map(allow)
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What rules say of an access: the last that matches.
    pub fn expected(rules: &[DeviceRule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let all: Vec<Rule> = rules
            .iter()
            .filter_map(Rule::read)
            .chain(always_allowed())
            .collect();
        let matching = all.into_iter().rev().find(|rule| {
            let is = |wanted: Option<u32>, value| wanted.is_none_or(|wanted| wanted == value);
            let access = match rule.allow {
                true => access & !rule.access == 0,
                false => access & rule.access != 0,
            };
            is(rule.kind, kind) && is(rule.major, major) && is(rule.minor, minor) && access
        });
        matching.is_some_and(|rule| rule.allow)
    }

    pub fn rule() -> impl Strategy<Value = DeviceRule> {
        let kind = prop_oneof![
            Just(DeviceKind::All),
            Just(DeviceKind::Block),
            Just(DeviceKind::Character)
        ];
        let number = || prop_oneof![Just(None), Just(Some(-1)), (0..4i64).prop_map(Some)];
        let access = prop_oneof![Just(None), "[rwm]{0,3}".prop_map(Some)];
        (any::<bool>(), kind, number(), number(), access).prop_map(
            |(allow, kind, major, minor, access)| DeviceRule {
                allow,
                kind,
                major,
                minor,
                access,
            },
        )
    }

    #[test]
    fn rules_when_they_cannot_be_read_then_none() {
        let rule = |access: &str, major| DeviceRule {
            kind: DeviceKind::Block,
            access: Some(access.into()),
            major: Some(major),
            ..DeviceRule::default()
        };
        assert!(Rule::read(&rule("rw", -1)).is_some());
        for bad in [rule("rx", 1), rule("r", -2), rule("r", 1 << 40)] {
            assert_eq!(Rule::read(&bad), None);
        }
    }
}
