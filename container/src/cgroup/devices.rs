//! Which devices a container may use: a small program that the kernel asks at each use (`BPF_PROG_TYPE_CGROUP_DEVICE`).
//!
//! The last rule that matches decides. A rule that allows matches when it allows all that is asked for, one that denies when
//! it denies any of it. What no rule matches is denied.

use crate::error::Error;
use crate::spec::{DeviceKind, DeviceRule};

const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

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
#[derive(Debug, Clone, Copy)]
struct Rule {
    allow: bool,
    /// None: both kinds.
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    fn matches_all(&self) -> bool {
        let numbers = [self.kind, self.major, self.minor];
        numbers == [None; 3] && self.access == READ | WRITE | MAKE
    }
}

/// Checks rules before they are used.
pub(super) fn check(rules: &[DeviceRule]) -> Result<(), Error> {
    if rules.len() > 1000 {
        return Err(Error::invalid(
            "linux.resources.devices",
            "they are more than 1000",
        ));
    }
    for (i, rule) in rules.iter().enumerate() {
        if read(rule).is_none() {
            let problem =
                "a rule has the type a, b or c, numbers from -1 on, and an access of r, w and m";
            return Err(Error::invalid(
                format!("linux.resources.devices[{i}]"),
                problem,
            ));
        }
    }
    Ok(())
}

fn read(rule: &DeviceRule) -> Option<Rule> {
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

const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// One instruction of eBPF: operation, destination, source, offset, immediate.
fn instruction(operation: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> u64 {
    u64::from(operation)
        | u64::from(destination | source << 4) << 8
        | u64::from(offset as u16) << 16
        | u64::from(immediate) << 32
}

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const JUMP_UNEQUAL: u8 = 0x55;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

/// Devices that every container may use.
fn always_allowed() -> impl Iterator<Item = Rule> {
    let allow = |(kind, major, minor, access)| Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    };
    ALWAYS.into_iter().map(allow)
}

/// Compiles rules. Those that cannot be read were refused by [`check`].
pub(super) fn compile(rules: &[DeviceRule]) -> Vec<u64> {
    // The kernel's structure: access and kind in one word, major, minor.
    let mut program = vec![
        instruction(LOAD_WORD, KIND, 1, 0, 0),
        instruction(COPY, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, 1, 4, 0),
        instruction(LOAD_WORD, MINOR, 1, 8, 0),
    ];
    let all = rules.iter().filter_map(read).chain(always_allowed());
    for rule in all.collect::<Vec<_>>().into_iter().rev() {
        program.extend(compile_rule(rule));
        if rule.matches_all() {
            // What follows would never be reached, and such programs the kernel refuses.
            return program;
        }
    }
    program.extend([instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

/// Answers if the rule matches, and runs on into what follows if not.
fn compile_rule(rule: Rule) -> Vec<u64> {
    // Jumps are counted from the end, which is known only then.
    let mut tests: Vec<(u8, u8, u32)> = Vec::new();
    let mut code = Vec::new();
    for (register, value) in [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(value) = value {
            tests.push((JUMP_UNEQUAL, register, value));
        }
    }
    let everything = READ | WRITE | MAKE;
    let access = (rule.access != everything).then_some(match rule.allow {
        // Nothing that is not allowed is asked for.
        true => (!rule.access & everything, JUMP_UNEQUAL),
        // Something that is denied is.
        false => (rule.access, JUMP_EQUAL),
    });
    let after_tests = if access.is_some() { 5 } else { 2 };
    let length = tests.len() + after_tests;
    for (i, (operation, register, value)) in tests.into_iter().enumerate() {
        code.push(instruction(
            operation,
            register,
            0,
            (length - i - 1) as i16,
            value,
        ));
    }
    if let Some((mask, jump)) = access {
        code.push(instruction(COPY, SCRATCH, ACCESS, 0, 0));
        code.push(instruction(AND, SCRATCH, 0, 0, mask));
        code.push(instruction(jump, SCRATCH, 0, 2, 0));
    }
    code.push(instruction(SET, 0, 0, 0, u32::from(rule.allow)));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a program as the kernel does.
    fn run(program: &[u64], context: [u32; 3]) -> u64 {
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let i = program[at];
            at += 1;
            let (operation, to, from) = (i as u8, (i >> 8 & 15) as usize, (i >> 12 & 15) as usize);
            let (offset, immediate) = ((i >> 16) as i16, i >> 32);
            match operation {
                LOAD_WORD => registers[to] = u64::from(context[offset as usize / 4]),
                COPY => registers[to] = registers[from],
                SET => registers[to] = immediate,
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_UNEQUAL if registers[to] != immediate => at += offset as usize,
                JUMP_EQUAL if registers[to] == immediate => at += offset as usize,
                JUMP_UNEQUAL | JUMP_EQUAL => {}
                EXIT => return registers[0],
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn expected(rules: &[DeviceRule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let all: Vec<Rule> = rules
            .iter()
            .filter_map(read)
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

    fn rule() -> impl Strategy<Value = DeviceRule> {
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

    proptest! {
        #[test]
        fn program_when_run_then_as_the_rules_say(
            rules in proptest::collection::vec(rule(), 0..6),
            (kind, access, major, minor) in (1..3u32, 1..8u32, 0..6u32, 0..6u32),
        ) {
            let allowed = run(&compile(&rules), [access << 16 | kind, major, minor]) == 1;
            prop_assert_eq!(allowed, expected(&rules, kind, access, major, minor));
        }
    }

    #[test]
    fn rules_when_they_cannot_be_read_then_refused() {
        let rule = |access: &str, major| DeviceRule {
            kind: DeviceKind::Block,
            access: Some(access.into()),
            major: Some(major),
            ..DeviceRule::default()
        };
        assert!(check(&[rule("rw", -1)]).is_ok());
        for bad in [rule("rx", 1), rule("r", -2), rule("r", 1 << 40)] {
            assert!(check(&[bad]).is_err());
        }
    }
}
