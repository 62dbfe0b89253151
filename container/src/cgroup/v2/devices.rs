//! Which devices a container may use: a small program that the kernel asks at each use (`BPF_PROG_TYPE_CGROUP_DEVICE`).
//!
//! The last rule that matches decides. A rule that allows matches when it allows all that is asked for, one that denies when
//! it denies any of it. What no rule matches is denied.

use super::super::devices::{MAKE, READ, Rule, WRITE, always_allowed};
use crate::spec::DeviceRule;

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

/// Compiles rules. Those that cannot be read were refused.
pub fn compile(rules: &[DeviceRule]) -> Vec<u64> {
    // The kernel's structure: access and kind in one word, major, minor.
    let mut program = vec![
        instruction(LOAD_WORD, KIND, 1, 0, 0),
        instruction(COPY, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, 1, 4, 0),
        instruction(LOAD_WORD, MINOR, 1, 8, 0),
    ];
    let all = rules.iter().filter_map(Rule::read).chain(always_allowed());
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

    use super::super::super::devices::tests::{expected, rule};
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
}
