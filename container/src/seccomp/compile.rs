//! From a filter's rules to a program of classic BPF.
//!
//! The kernel runs the program at each system call, and when it is loaded once for every system call there is, to remember
//! those that are always allowed; before that it checks and translates it. Where the kernel's own instructions are slow, that is
//! the dearest thing of a container's start. So the program is short: runs of numbers with the same answer are the leaves of
//! a tree, and there is one instruction for all of them that give it. Arguments are looked at only where rules ask for it.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::syscalls;
use crate::error::Error;
use crate::spec::{Seccomp, SeccompAction, SeccompArgument, SeccompOperator, SeccompRule};
use crate::sys::Instruction;

/// A program, and how to load it.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub program: Arc<[Instruction]>,
    /// `SECCOMP_FILTER_FLAG_*`
    pub flags: u32,
}

impl Filter {
    /// Whether who loads it gets a descriptor for who decides.
    pub fn has_listener(&self) -> bool {
        self.flags & NEW_LISTENER != 0
    }
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`
const NEW_LISTENER: u32 = 8;
/// `BPF_MAXINSNS`
const MAX_INSTRUCTIONS: usize = 4096;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// Where the kernel's structure has the number, the instruction set, and the arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_I386: u32 = 0x4000_0003;
/// Of the x32 instruction set; what is above is none of ours.
const X32: u32 = 0x4000_0000;

const KILL_PROCESS: u32 = 0x8000_0000;
const NO_SUCH_CALL: u32 = ERRNO | libc::ENOSYS as u32;
const ERRNO: u32 = 0x0005_0000;

/// What a call gets: the answers of rules that look at its arguments, the first that holds, or else the last answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    conditional: Vec<(Vec<SeccompArgument>, u32)>,
    otherwise: u32,
}

/// The instruction sets that can be named, of which X86 is the only one with programs of its own here: of x32 there are only
/// calls that do not exist.
pub(crate) const ARCHITECTURES: [&str; 4] = [
    "SCMP_ARCH_NATIVE",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
];

/// Flags by name. There is one thread when a filter is loaded, so that they need not be synchronised.
pub(crate) const FLAGS: [(&str, u32); 3] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 0),
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 4),
];

/// Whether this kernel runs 32-bit programs. Where it does not, none of their system calls comes as far as a filter.
fn has_32_bit_programs() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    // It is about those programs, and there whenever they are. Whoever cannot see is not told that they are not.
    let setting = c"/proc/sys/abi/vsyscall32";
    *HAS.get_or_init(|| access(setting, Access::EXISTS) != Err(Errno::NOENT))
}

/// Compiles a filter for this kernel.
pub(crate) fn compile(seccomp: &Seccomp) -> Result<Filter, Error> {
    compile_for(seccomp, has_32_bit_programs())
}

fn compile_for(seccomp: &Seccomp, has_32_bit_programs: bool) -> Result<Filter, Error> {
    let listens = has_listener(seccomp)?;
    let default = answer(seccomp.default_action, seccomp.default_errno_ret)
        .map_err(|problem| Error::invalid("linux.seccomp.defaultAction", problem))?;
    let mut rules: HashMap<&str, Vec<(&SeccompRule, u32)>> = HashMap::new();
    for (i, rule) in seccomp.syscalls.iter().enumerate() {
        let answer = read_rule(rule)
            .map_err(|problem| Error::invalid(format!("linux.seccomp.syscalls[{i}]"), problem))?;
        for name in &rule.names {
            rules.entry(name).or_default().push((rule, answer));
        }
    }
    let mut others = false;
    for (i, architecture) in seccomp.architectures.iter().enumerate() {
        match architecture.as_str() {
            "SCMP_ARCH_X86" => others = has_32_bit_programs,
            known if ARCHITECTURES.contains(&known) => {}
            other => {
                let problem = format!("programs for {other} cannot be run here");
                return Err(Error::invalid(
                    format!("linux.seccomp.architectures[{i}]"),
                    problem,
                ));
            }
        }
    }
    let program = Program::default().of(&rules, default, others);
    if program.len() > MAX_INSTRUCTIONS {
        let problem = format!(
            "it makes a program of {} instructions, and the kernel takes 4096",
            program.len()
        );
        return Err(Error::invalid("linux.seccomp.syscalls", problem));
    }
    Ok(Filter {
        program: program.into(),
        flags: flags(&seccomp.flags)? | if listens { NEW_LISTENER } else { 0 },
    })
}

/// Whether somebody else decides about some calls.
fn has_listener(seccomp: &Seccomp) -> Result<bool, Error> {
    let asks = |rule: &SeccompRule| rule.action == SeccompAction::Notify;
    if seccomp.default_action == SeccompAction::Notify {
        let problem = "who listens would be asked about the call that tells where to listen";
        return Err(Error::invalid("linux.seccomp.defaultAction", problem));
    }
    for (i, rule) in seccomp.syscalls.iter().enumerate() {
        if asks(rule) && rule.names.iter().any(|name| name == "sendmsg") {
            let problem =
                "sendmsg cannot be asked about: who listens is told by it where to listen";
            return Err(Error::invalid(
                format!("linux.seccomp.syscalls[{i}]"),
                problem,
            ));
        }
    }
    let is_asked = seccomp.syscalls.iter().any(asks);
    let path = seccomp.listener_path.as_deref().unwrap_or_default();
    if is_asked && path.is_empty() {
        let problem = "there is none, and SCMP_ACT_NOTIFY is used: nobody could decide";
        return Err(Error::invalid("linux.seccomp.listenerPath", problem));
    }
    Ok(is_asked)
}

fn flags(names: &[String]) -> Result<u32, Error> {
    let mut flags = 0;
    for (i, name) in names.iter().enumerate() {
        let known = FLAGS.into_iter().find(|(known, _)| known == name);
        let (_, flag) = known.ok_or_else(|| {
            let problem = format!("flag {name:?} is not supported");
            Error::invalid(format!("linux.seccomp.flags[{i}]"), problem)
        })?;
        flags |= flag;
    }
    Ok(flags)
}

fn read_rule(rule: &SeccompRule) -> Result<u32, String> {
    if rule.names.is_empty() {
        return Err("it names no system call".into());
    }
    if rule.args.len() > 64 || rule.args.iter().any(|arg| arg.index > 5) {
        return Err("a system call has arguments 0 to 5".into());
    }
    answer(rule.action, rule.errno_ret)
}

/// What the kernel is told.
fn answer(action: SeccompAction, data: Option<u32>) -> Result<u32, String> {
    let data = data.unwrap_or(libc::EPERM as u32);
    if data > 4095 {
        return Err(format!("{data} is no error number"));
    }
    Ok(match action {
        SeccompAction::KillThread => 0,
        SeccompAction::KillProcess => KILL_PROCESS,
        SeccompAction::Trap => 0x0003_0000,
        SeccompAction::Errno => ERRNO | data,
        SeccompAction::Trace => 0x7ff0_0000 | data,
        SeccompAction::Log => 0x7ffc_0000,
        SeccompAction::Allow => 0x7fff_0000,
        SeccompAction::Notify => 0x7fc0_0000,
    })
}

type Rules<'a> = HashMap<&'a str, Vec<(&'a SeccompRule, u32)>>;

/// Runs of consecutive numbers with the same answer: the first number of each, and its answer.
fn runs_of(
    table: &'static [(u32, &'static str)],
    rules: &Rules,
    default: u32,
) -> Vec<(u32, Rc<Answer>)> {
    let answers = syscalls::each(table).map(|(number, name)| {
        let found = rules.get(name).map_or(&[][..], Vec::as_slice);
        (number, Rc::new(answer_of(found, default)))
    });
    // Numbers without a name are as unknown as those after the last: newer than this.
    let unknown = Rc::new(Answer {
        conditional: Vec::new(),
        otherwise: unknown(default),
    });
    let mut runs: Vec<(u32, Rc<Answer>)> = Vec::new();
    let mut add = |number, answer: Rc<Answer>| {
        if runs.last().is_none_or(|(_, last)| *last != answer) {
            runs.push((number, answer));
        }
    };
    let mut next = 0;
    for (number, answer) in answers {
        if number > next {
            add(next, unknown.clone());
        }
        add(number, answer);
        next = number + 1;
    }
    add(next, unknown);
    add(
        X32,
        Rc::new(Answer {
            conditional: Vec::new(),
            otherwise: NO_SUCH_CALL,
        }),
    );
    runs
}

/// Programs try new system calls and fall back when there is no such call; any other error they take at its word.
fn unknown(default: u32) -> u32 {
    let allows = default & 0x7ff0_0000 == 0x7ff0_0000;
    if allows { default } else { NO_SUCH_CALL }
}

fn answer_of(rules: &[(&SeccompRule, u32)], default: u32) -> Answer {
    let mut answer = Answer {
        conditional: Vec::new(),
        otherwise: default,
    };
    let mut decided = false;
    for (rule, value) in rules {
        let count_of = |index| rule.args.iter().filter(|arg| arg.index == index).count();
        let repeated = (0..6).any(|index| count_of(index) > 1);
        if rule.args.is_empty() {
            if !decided {
                (answer.otherwise, decided) = (*value, true);
            }
        } else if repeated {
            // As runc has it: tests of the same argument are alternatives, and then all tests are.
            answer
                .conditional
                .extend(rule.args.iter().map(|arg| (vec![*arg], *value)));
        } else {
            answer.conditional.push((rule.args.clone(), *value));
        }
    }
    answer
        .conditional
        .retain(|(_, value)| *value != answer.otherwise || !decided);
    answer
}

/// A place in a [`Program`]: how many instructions come after the one that is there.
type Label = usize;

/// A program in the making. Every jump leads forward, so it is made from its end: wherever an instruction leads, that is
/// there already.
#[derive(Default)]
struct Program {
    reversed: Vec<Instruction>,
    /// The nearest place of each answer that looks at no arguments.
    returns: Vec<(u32, Label)>,
    /// And of those that do.
    tested: Vec<(Rc<Answer>, Label)>,
}

impl Program {
    /// The program for what the rules say, and whether it is for the 32-bit instruction set too.
    fn of(mut self, rules: &Rules, default: u32, others: bool) -> Vec<Instruction> {
        let mut otherwise = self.answer_with(KILL_PROCESS);
        let i386 = others.then(|| self.architecture(syscalls::I386, rules, default));
        let x86_64 = self.architecture(syscalls::X86_64, rules, default);
        if let Some(i386) = i386 {
            otherwise = self.branch(JUMP_EQUAL, AUDIT_I386, i386, otherwise);
        }
        let first = self.branch(JUMP_EQUAL, AUDIT_X86_64, x86_64, otherwise);
        self.before(plain(LOAD, ARCHITECTURE), first);
        self.reversed.reverse();
        self.reversed
    }

    /// The part for one instruction set.
    fn architecture(
        &mut self,
        table: &'static [(u32, &'static str)],
        rules: &Rules,
        default: u32,
    ) -> Label {
        let first = self.tree(&runs_of(table, rules, default));
        self.before(plain(LOAD, NUMBER), first)
    }

    /// Finds the run that a number is in and answers. The kernel asks for each number once as it loads the program, so the
    /// longer a run, the nearer it is.
    fn tree(&mut self, runs: &[(u32, Rc<Answer>)]) -> Label {
        match runs {
            [] => self.answer_with(KILL_PROCESS),
            [(_, answer)] => self.answer(answer),
            [(first, _), .., (last, _)] => {
                // What comes after the last call there is, and x32's, counts as one: nobody asks for it.
                let end = runs.iter().rfind(|(number, _)| *number < X32);
                let end = end.map_or(*last, |(number, _)| number.saturating_add(1));
                let middle = first.midpoint(end.min(*last));
                let off = |&(_, (number, _)): &(usize, &(u32, _))| number.abs_diff(middle);
                let second = runs.iter().enumerate().skip(1).min_by_key(off);
                let (at, number) = second.map_or((1, *last), |(at, (number, _))| (at, *number));
                let (low, high) = runs.split_at(at);
                let high = self.tree(high);
                let low = self.tree(low);
                self.branch(JUMP_GREATER_OR_EQUAL, number, high, low)
            }
        }
    }

    fn answer(&mut self, answer: &Rc<Answer>) -> Label {
        if let Some((_, label)) = self.tested.iter().rev().find(|(known, _)| known == answer) {
            return *label;
        }
        let mut next = self.answer_with(answer.otherwise);
        for (arguments, value) in answer.conditional.iter().rev() {
            let mut pass = self.answer_with(*value);
            for argument in arguments.iter().rev() {
                pass = self.test(argument, pass, next);
            }
            next = pass;
        }
        if !answer.conditional.is_empty() {
            self.tested.push((answer.clone(), next));
        }
        next
    }

    fn answer_with(&mut self, value: u32) -> Label {
        match self.returns.iter().rev().find(|(known, _)| *known == value) {
            Some((_, label)) => *label,
            None => self.push(plain(RETURN, value)),
        }
    }

    /// Compares an argument's 64 bits in two halves, the high one first.
    fn test(&mut self, argument: &SeccompArgument, pass: Label, fail: Label) -> Label {
        use SeccompOperator as Op;
        let offset = ARGUMENTS + 8 * argument.index;
        let (load_low, load_high) = (plain(LOAD, offset), plain(LOAD, offset + 4));
        let halves = |value: u64| (value as u32, (value >> 32) as u32);
        let (low, high) = halves(argument.value);
        let (wanted_low, wanted_high) = halves(argument.value_two);
        // The last comparison, and where an unequal high half leads: if it is greater, and if it is less.
        let ((code, value, yes, no), greater, less) = match argument.op {
            Op::Equal => ((JUMP_EQUAL, low, pass, fail), fail, fail),
            Op::NotEqual => ((JUMP_EQUAL, low, fail, pass), pass, pass),
            Op::GreaterOrEqual => ((JUMP_GREATER_OR_EQUAL, low, pass, fail), pass, fail),
            Op::Greater => ((JUMP_GREATER, low, pass, fail), pass, fail),
            Op::Less => ((JUMP_GREATER_OR_EQUAL, low, fail, pass), fail, pass),
            Op::LessOrEqual => ((JUMP_GREATER, low, fail, pass), fail, pass),
            Op::MaskedEqual => ((JUMP_EQUAL, wanted_low, pass, fail), fail, fail),
        };
        let mut next = self.branch(code, value, yes, no);
        if argument.op == Op::MaskedEqual {
            next = self.before(plain(AND, low), next);
        }
        next = self.before(load_low, next);
        if argument.op == Op::MaskedEqual {
            if (high, wanted_high) == (0, 0) {
                return next;
            }
            next = self.branch(JUMP_EQUAL, wanted_high, next, fail);
            next = self.before(plain(AND, high), next);
        } else {
            next = self.branch(JUMP_EQUAL, high, next, less);
            if greater != less {
                next = self.branch(JUMP_GREATER, high, greater, next);
            }
        }
        self.before(load_high, next)
    }

    fn push(&mut self, instruction: Instruction) -> Label {
        let label = self.reversed.len();
        self.reversed.push(instruction);
        if instruction.code == RETURN {
            self.returns.push((instruction.value, label));
        }
        label
    }

    /// How many instructions the next one would jump over to get to a place.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - 1 - label
    }

    /// An instruction that leads to what comes after it, which this makes the one at `next`.
    fn before(&mut self, instruction: Instruction, next: Label) -> Label {
        if self.distance(next) > 0 {
            self.nearer(next);
        }
        self.push(instruction)
    }

    fn branch(&mut self, code: u16, value: u32, mut yes: Label, mut no: Label) -> Label {
        loop {
            match (
                u8::try_from(self.distance(yes)),
                u8::try_from(self.distance(no)),
            ) {
                (Ok(jump_true), Ok(jump_false)) => {
                    return self.push(jump(code, value, jump_true, jump_false));
                }
                (Err(_), _) => yes = self.nearer(yes),
                (_, Err(_)) => no = self.nearer(no),
            }
        }
    }

    /// A place near to what comes next that does the same as one far away.
    fn nearer(&mut self, label: Label) -> Label {
        let far = self.reversed[label];
        match far.code {
            RETURN => self.push(far),
            _ => self.push(plain(JUMP, self.distance(label) as u32)),
        }
    }
}

fn plain(code: u16, value: u32) -> Instruction {
    jump(code, value, 0, 0)
}

fn jump(code: u16, value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        value,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a program as the kernel does, on its structure's 16 words.
    fn run(program: &[Instruction], words: &[u32; 16]) -> u32 {
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let i = program[at];
            at += 1;
            let mut branch =
                |taken| at += usize::from(if taken { i.jump_true } else { i.jump_false });
            match i.code {
                LOAD => accumulator = words[i.value as usize / 4],
                AND => accumulator &= i.value,
                RETURN => return i.value,
                JUMP_EQUAL => branch(accumulator == i.value),
                JUMP_GREATER => branch(accumulator > i.value),
                JUMP_GREATER_OR_EQUAL => branch(accumulator >= i.value),
                JUMP => at += i.value as usize,
                code => panic!("code {code:#x}"),
            }
        }
    }

    fn call(architecture: u32, number: u32, arguments: [u64; 6]) -> [u32; 16] {
        let mut words = [0; 16];
        (words[0], words[1]) = (number, architecture);
        for (i, argument) in arguments.into_iter().enumerate() {
            words[4 + 2 * i] = argument as u32;
            words[5 + 2 * i] = (argument >> 32) as u32;
        }
        words
    }

    fn holds(test: &SeccompArgument, arguments: [u64; 6]) -> bool {
        let value = arguments[test.index as usize];
        match test.op {
            SeccompOperator::NotEqual => value != test.value,
            SeccompOperator::Less => value < test.value,
            SeccompOperator::LessOrEqual => value <= test.value,
            SeccompOperator::Equal => value == test.value,
            SeccompOperator::GreaterOrEqual => value >= test.value,
            SeccompOperator::Greater => value > test.value,
            SeccompOperator::MaskedEqual => value & test.value == test.value_two,
        }
    }

    /// What the rules say of a call, read as they are written.
    fn expected(seccomp: &Seccomp, name: &str, arguments: [u64; 6]) -> u32 {
        let of_call: Vec<&SeccompRule> = seccomp
            .syscalls
            .iter()
            .filter(|rule| rule.names.iter().any(|n| n == name))
            .collect();
        let matches = |rule: &&&SeccompRule| {
            let mut indices: Vec<u32> = rule.args.iter().map(|arg| arg.index).collect();
            indices.sort_unstable();
            let repeated = indices.windows(2).any(|pair| pair[0] == pair[1]);
            let mut tests = rule.args.iter();
            match repeated {
                true => tests.any(|test| holds(test, arguments)),
                false => !rule.args.is_empty() && tests.all(|test| holds(test, arguments)),
            }
        };
        let plain = of_call.iter().find(|rule| rule.args.is_empty());
        // A rule with tests that says what the plain one says has nothing to say.
        let plain_answer = plain.map(|rule| answer(rule.action, rule.errno_ret).unwrap());
        let conditional = of_call
            .iter()
            .filter(matches)
            .map(|rule| answer(rule.action, rule.errno_ret).unwrap());
        let default = answer(seccomp.default_action, seccomp.default_errno_ret).unwrap();
        conditional
            .into_iter()
            .find(|value| Some(*value) != plain_answer)
            .or(plain_answer)
            .unwrap_or(default)
    }

    fn action() -> impl Strategy<Value = SeccompAction> {
        use SeccompAction as A;
        prop_oneof![
            Just(A::Allow),
            Just(A::Errno),
            Just(A::Trap),
            Just(A::KillProcess),
            Just(A::Log)
        ]
    }

    fn value() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..4u64,
            Just(1 << 32),
            Just(u64::MAX),
            (0..4u64).prop_map(|n| n << 32 | n),
            any::<u64>()
        ]
    }

    fn argument() -> impl Strategy<Value = SeccompArgument> {
        use SeccompOperator as Op;
        let op = prop_oneof![
            Just(Op::NotEqual),
            Just(Op::Less),
            Just(Op::LessOrEqual),
            Just(Op::Equal),
            Just(Op::GreaterOrEqual),
            Just(Op::Greater),
            Just(Op::MaskedEqual)
        ];
        (0..6u32, value(), value(), op).prop_map(|(index, value, value_two, op)| SeccompArgument {
            index,
            value,
            value_two,
            op,
        })
    }

    const CALLS: [&str; 6] = ["read", "write", "clone", "socket", "pidfd_open", "mseal"];

    fn filter() -> impl Strategy<Value = Seccomp> {
        let names = proptest::collection::vec(
            proptest::sample::select(&CALLS[..]).prop_map(str::to_owned),
            1..4,
        );
        let args = proptest::collection::vec(argument(), 0..4);
        let rule = (names, action(), proptest::option::of(0..200u32), args).prop_map(
            |(names, action, errno_ret, args)| SeccompRule {
                names,
                action,
                errno_ret,
                args,
            },
        );
        (action(), proptest::collection::vec(rule, 0..8)).prop_map(|(default_action, syscalls)| {
            Seccomp {
                default_action,
                default_errno_ret: None,
                architectures: vec!["SCMP_ARCH_X86".into()],
                flags: Vec::new(),
                listener_path: None,
                listener_metadata: None,
                syscalls,
            }
        })
    }

    proptest! {
        #[test]
        fn program_when_run_then_as_the_rules_say(
            seccomp in filter(),
            name in proptest::sample::select(&CALLS[..]),
            arguments in [value(), value(), value(), value(), value(), value()],
        ) {
            let program = compile_for(&seccomp, true).unwrap().program;
            for (code, table) in [(AUDIT_X86_64, syscalls::X86_64), (AUDIT_I386, syscalls::I386)] {
                let (number, _) = syscalls::each(table).find(|&(_, known)| known == name).unwrap();
                prop_assert_eq!(run(&program, &call(code, number, arguments)), expected(&seccomp, name, arguments));
            }
        }
    }

    #[test]
    fn program_when_there_are_no_32_bit_programs_then_without_their_calls() {
        let seccomp = super::super::docker_default().filter(&[]);
        let [both, one] = [true, false].map(|has| compile_for(&seccomp, has).unwrap().program);
        assert!(
            one.len() < 2 * both.len() / 3,
            "{} {}",
            one.len(),
            both.len()
        );
        for number in [0, 400] {
            assert_eq!(run(&one, &call(AUDIT_I386, number, [0; 6])), KILL_PROCESS);
        }
        for number in 0..500 {
            let call = call(AUDIT_X86_64, number, [0; 6]);
            assert_eq!(run(&one, &call), run(&both, &call));
        }
    }

    #[test]
    fn program_when_longer_than_a_jump_then_still_as_the_rules_say() {
        // Each call has tests of its own, so that nothing can be shared.
        let names: Vec<&str> = syscalls::each(syscalls::X86_64)
            .map(|(_, name)| name)
            .collect();
        let rule = |(i, name): (usize, &&str)| SeccompRule {
            names: vec![(*name).to_owned()],
            action: SeccompAction::Allow,
            errno_ret: None,
            args: vec![SeccompArgument {
                index: 5,
                value: i as u64,
                value_two: 0,
                op: SeccompOperator::Equal,
            }],
        };
        let seccomp = Seccomp {
            default_action: SeccompAction::Errno,
            default_errno_ret: None,
            architectures: Vec::new(),
            flags: Vec::new(),
            listener_path: None,
            listener_metadata: None,
            syscalls: names.iter().enumerate().map(rule).collect(),
        };
        let program = compile(&seccomp).unwrap().program;
        assert!(program.len() > 3 * 256);
        for (number, name) in syscalls::each(syscalls::X86_64) {
            let at = names.iter().position(|known| *known == name).unwrap() as u64;
            for value in [at, at + 1] {
                let arguments = [0, 0, 0, 0, 0, value];
                let got = run(&program, &call(AUDIT_X86_64, number, arguments));
                assert_eq!(got, expected(&seccomp, name, arguments), "{name}");
            }
        }
    }

    #[test]
    fn call_when_unknown_or_of_x32_then_there_is_no_such_call() {
        let seccomp = super::super::docker_default().filter(&[]);
        let program = compile(&seccomp).unwrap().program;
        for number in [0x4000_0000, 0x4000_0001, 0xffff_ffff, 5000, 400] {
            assert_eq!(
                run(&program, &call(AUDIT_X86_64, number, [0; 6])),
                NO_SUCH_CALL,
                "{number:#x}"
            );
        }
        assert_eq!(run(&program, &call(0xc000_00b7, 0, [0; 6])), KILL_PROCESS);
    }

    #[test]
    fn filter_when_it_cannot_be_compiled_then_the_member_is_named() {
        let seccomp = super::super::docker_default().filter(&[]);
        let error = |change: fn(&mut Seccomp)| {
            let mut seccomp = seccomp.clone();
            change(&mut seccomp);
            compile(&seccomp).unwrap_err().to_string()
        };
        let notify = |s: &mut Seccomp| s.syscalls[1].action = SeccompAction::Notify;
        assert!(error(notify).starts_with("linux.seccomp.listenerPath: "));
        let early = error(|s| {
            s.syscalls[1].action = SeccompAction::Notify;
            s.syscalls[1].names = vec!["sendmsg".into()];
        });
        assert!(early.starts_with("linux.seccomp.syscalls[1]: "), "{early}");
        assert!(error(|s| s.default_action = SeccompAction::Notify).contains("defaultAction"));
        assert!(error(|s| s.syscalls[1].args[0].index = 6).contains("0 to 5"));
        assert!(
            error(|s| s.architectures.push("SCMP_ARCH_ARM".into())).contains("architectures[3]")
        );
        assert!(error(|s| s.flags.push("X".into())).contains("flags[0]"));
    }
}
