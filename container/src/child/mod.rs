//! The child of the fork: carries the plan out, one operation after the other, and becomes the program.
//!
//! Nothing here allocates, frees or takes a lock (see `sys`).

mod channel;
mod copy_up;
mod init;
mod mounts;
mod process;
mod root;

use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::Errno;

use crate::plan::{Identity, Operation, Plan, Program, Slot};
use crate::sys::{self, Later};
use crate::users::Ids;

pub use channel::{Message, receive, send_go};
pub use process::become_root;

/// What later operations need of earlier ones.
struct State<'a> {
    program: &'a mut Program,
    identity: &'a Identity,
    /// To the parent, if it listens.
    channel: Option<BorrowedFd<'static>>,
    /// Where somebody else starts the program.
    gate: Option<BorrowedFd<'static>>,
    preserved: &'a [RawFd],
    /// By [`Slot`].
    slots: [Option<BorrowedFd<'static>>; 3],
    /// The runtime's root, as long as that is not left for good.
    old_root: Option<BorrowedFd<'static>>,
    ids: Ids,
    /// The program's side of it.
    terminal: Option<BorrowedFd<'static>>,
    masks: mounts::Masks,
    /// Whether nothing was ever written to the container's layer.
    has_new_layer: bool,
    /// How many files of the root are in place.
    placed: usize,
}

impl State<'_> {
    fn channel(&self) -> Result<BorrowedFd<'static>, Errno> {
        self.channel.ok_or(Errno::BADF)
    }

    fn slot(&self, slot: Slot) -> Result<BorrowedFd<'static>, Errno> {
        self.slots[slot as usize].ok_or(Errno::BADF)
    }
}

/// An operation that failed: its place in the plan, and why.
pub type Failure = (usize, Errno);

/// Carries a plan out. Comes back only when that fails, which a parent that listens has been told.
pub fn run(plan: &mut Plan, channel: Option<BorrowedFd<'static>>) -> Failure {
    let (operations, mut state) = begin(plan, channel);
    let failure = carry_out(operations, &mut state).unwrap_or((0, Errno::NOSYS));
    if let Some(channel) = state.channel {
        channel::report_failure(channel, failure);
    }
    failure
}

/// Carries the first part of a plan out, and the rest when that is given. Comes back only when something fails, which the parent
/// has been told.
pub fn run_early(early: &mut Plan, channel: BorrowedFd<'static>, later: &Later<Plan>) {
    let (operations, mut state) = begin(early, Some(channel));
    let failure = carry_out(operations, &mut state).or_else(|| {
        // What lies below them is needed by what comes later, the devices of disks for one.
        let mut kept = operations.iter().enumerate();
        kept.find_map(|(index, operation)| match operation {
            Operation::AttachKept { slot, target } => {
                let slot = &mut state.slots[*slot as usize];
                Some((index, mounts::take_away(slot, target).err()?))
            }
            _ => None,
        })
    });
    if let Some(failure) = failure {
        return channel::report_failure(channel, failure);
    }
    let slots = state.slots;
    let mut kept = slots.iter().flatten();
    let goes_on = kept
        .try_for_each(|slot| channel::report_kept(channel, *slot))
        .and_then(|()| channel::report_ready(channel))
        .and_then(|()| channel::await_go(channel))
        // With all that the parent has opened for it.
        .and_then(|()| sys::unshare(libc::CLONE_FILES));
    let (Ok(()), Some(plan)) = (goes_on, later.take()) else {
        return;
    };
    let (operations, mut state) = begin(plan, Some(channel));
    state.slots = slots;
    let failure = carry_out(operations, &mut state).unwrap_or((0, Errno::NOSYS));
    if let Some(channel) = state.channel {
        channel::report_failure(channel, failure);
    }
}

fn begin<'a>(
    plan: &'a mut Plan,
    channel: Option<BorrowedFd<'static>>,
) -> (&'a [Operation], State<'a>) {
    let state = State {
        program: &mut plan.program,
        identity: &plan.identity,
        channel,
        gate: plan.gate.as_ref().map(sys::of_the_process),
        preserved: &plan.preserved,
        slots: [None; 3],
        old_root: None,
        ids: Ids::default(),
        terminal: None,
        masks: mounts::Masks::default(),
        has_new_layer: false,
        placed: 0,
    };
    (&plan.operations, state)
}

/// Where it failed, if it did.
fn carry_out(operations: &[Operation], state: &mut State) -> Option<Failure> {
    let mut operations = operations.iter().enumerate();
    operations.find_map(|(index, operation)| Some((index, perform(operation, state).err()?)))
}

fn perform(operation: &Operation, state: &mut State) -> Result<(), Errno> {
    use Operation as O;
    match operation {
        O::AwaitParent => channel::await_go(state.channel()?),
        O::Undumpable => sys::set_undumpable(),
        // 0 is whoever writes it.
        O::EnterGroups { tasks } => tasks
            .iter()
            .try_for_each(|tasks| rustix::io::write(tasks, b"0").map(drop)),
        O::Join {
            namespace, flags, ..
        } => process::join(namespace, *flags),
        O::Unshare { flags, .. } => sys::unshare(*flags),
        O::BecomeRoot => process::become_root(),
        O::Loopback => process::bring_loopback_up(),
        O::Write {
            path,
            data,
            may_be_refused,
        } => match mounts::write(rustix::fs::CWD, path, data) {
            Err(Errno::ACCESS | Errno::PERM) if *may_be_refused => Ok(()),
            written => written,
        },
        O::PrivateMounts => root::make_private(),
        O::EnterTree { tree, target, .. } => root::enter_tree(tree, target),
        O::EnterMount {
            source,
            kind,
            flags,
            data,
        } => root::enter_mount(source, kind, *flags, data),
        O::Lower {
            source,
            kind,
            flags,
            has_layers,
        } => {
            state.has_new_layer = *has_layers || root::make_layers()?;
            root::lower(source, kind, *flags, state.has_new_layer)
        }
        O::PlaceFile {
            lower,
            upper,
            path,
            data,
            number,
        } => {
            // Once one was not placed none is, so that a number says it of all.
            let is_next = state.has_new_layer && state.placed == *number;
            if is_next && root::place_file((lower, upper), path, data)? {
                state.placed += 1;
            }
            Ok(())
        }
        O::Overlay { layers, devices } => root::overlay(layers, *devices),
        O::MakeLayers { mount_points } => {
            root::make_layers()?;
            let mut mount_points = mount_points.iter();
            mount_points.try_for_each(|name| root::make_here(name).map(drop))
        }
        O::ChangeRoot => root::change_root(state),
        O::AwaitHooks => channel::await_hooks(state.channel()?),
        O::ChangeRootBack => root::change_root_back(state),
        O::Pivot => root::pivot(),
        O::NewFile { number, .. } if *number < state.placed => Ok(()),
        O::NewFile { path, data, .. } => root::new_file(path, data),
        O::Propagate { flags, target } => rustix::mount::mount_change(target, *flags),
        O::Mount(mount) => mounts::mount(mount),
        O::Open(mount) => mounts::open(mount, state),
        O::AttachKept { slot, target } => mounts::attach_kept(state.slot(*slot)?, target),
        O::Attach {
            tree,
            target,
            missing,
            copy_up,
            ..
        } => mounts::attach(tree, target, *missing, *copy_up),
        O::ShowGroups { groups, .. } => mounts::show_groups(groups),
        O::MakeDirectory { place } => mounts::make_directory(place, state),
        O::Device {
            place,
            mode,
            device,
            owner,
            asked_for,
        } => mounts::make_device(place, state, (*mode, *device), *owner, *asked_for),
        O::Link { place, target } => mounts::link(place, target, state),
        O::Attributes {
            target,
            attributes,
            flags,
        } => sys::mount_setattr(rustix::fs::CWD, target, *flags, attributes),
        O::Sysctl { place, value } => mounts::sysctl(place, value, state),
        O::Hostname(name) => rustix::system::sethostname(name),
        O::Domainname(name) => rustix::system::setdomainname(name),
        O::Mask { place } => mounts::mask(place, state),
        O::ReadOnly { place } => mounts::read_only(place, state),
        O::Terminal {
            rows,
            columns,
            console,
        } => process::open_terminal(state, *rows, *columns, *console),
        O::WorkingDirectory { path } => mounts::working_directory(path),
        O::Stdio { files } => process::connect(files.as_ref(), state),
        O::Signals { ignored } => sys::default_signals(*ignored),
        O::CloseOthers => process::close_others(state),
        O::Session { terminal } => process::start_session(*terminal),
        O::Rlimit {
            resource, limit, ..
        } => rustix::process::setrlimit(*resource, *limit),
        O::Scheduler { attributes, .. } => sys::set_scheduler(attributes),
        O::IoPriority { value, .. } => sys::set_io_priority(*value),
        O::MemoryPolicy { mode, nodes, .. } => sys::set_memory_policy(*mode, nodes),
        O::Affinity { processors, .. } => sys::set_affinity(processors),
        O::Personality(domain) => sys::set_personality(*domain),
        O::Umask(mask) => {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(*mask));
            Ok(())
        }
        O::Keyring => process::new_keyring(),
        O::LookUpUser => process::look_up_user(state),
        O::Locate => {
            process::locate(state.program);
            Ok(())
        }
        O::FindProgram => process::find_program(state.program),
        O::BoundingSet { dropped } => process::limit_bounding_set(*dropped),
        O::BecomeUser { keep_capabilities } => process::become_user(state, *keep_capabilities),
        O::DieWithParent => {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        }
        O::Ready { gate } => process::report_ready(state, *gate),
        O::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
        O::Seccomp { program, flags } => match sys::load_seccomp(program, *flags)? {
            Some(listener) => channel::report_listener(state.channel()?, &listener),
            None => Ok(()),
        },
        O::Capabilities(sets) => process::set_capability_sets(sets),
        O::Init => init::fork(),
        O::Execute => Err(process::execute(state.program)),
    }
}
