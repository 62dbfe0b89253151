//! PID 1 of the outer machine of the faithful lane: mounts, loads modules, runs the program of the
//! plan, and hands its exit status to QEMU.

use std::arch::asm;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use bulkhead_tests::faithful::{EXIT_BASE, EXIT_MAX, EXIT_PORT, read_plan};
use bulkhead_tests::net;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{WaitOptions, wait};

fn main() {
    if std::process::id() != 1 {
        eprintln!("outer-init: this is PID 1 of the faithful lane's outer machine, not a command");
        std::process::exit(125);
    }
    let status = match run() {
        Ok(status) => status,
        Err(e) => {
            println!("outer-init: {e}");
            EXIT_MAX
        }
    };
    leave(status);
}

fn run() -> io::Result<u8> {
    leave_initramfs()?;
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
    ] {
        fs::create_dir_all(at)?;
        // The default of half the memory is too little for disks and guests both.
        let options = if kind == "tmpfs" { c"size=90%" } else { c"" };
        mount(kind, at, kind, MountFlags::empty(), options)
            .map_err(|e| io::Error::other(format!("cannot mount {kind} on {at}: {e}")))?;
    }
    let plan = read_plan()?;
    for module in &plan.modules {
        rustix::system::finit_module(File::open(module)?, c"", 0)
            .map_err(|e| io::Error::other(format!("cannot load {module}: {e}")))?;
    }
    net::set_up("lo")?;
    leave_processor_0()?;
    let _idle = IdleVms::new()?;
    println!("outer-init: {} is ready", release());

    let (program, arguments) = plan
        .command
        .split_first()
        .ok_or_else(|| io::Error::other("the plan has no command"))?;
    let child = Command::new(program)
        .args(arguments)
        .envs(plan.environment)
        .current_dir("/tmp")
        .spawn()
        .map_err(|e| io::Error::other(format!("cannot run {program}: {e}")))?;
    // Orphans come to PID 1; reap them all, and end with the one that was asked for.
    let wanted = i32::try_from(child.id()).map_err(io::Error::other)?;
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty())? else {
            continue;
        };
        if pid.as_raw_nonzero().get() == wanted {
            return Ok(code(ExitStatus::from_raw(status.as_raw())));
        }
    }
}

/// Makes the root a mount like others: containers pivot from it, and nobody can from the first one that a kernel has.
fn leave_initramfs() -> io::Result<()> {
    let root = "/root-of-all";
    fs::create_dir_all(root)?;
    mount_bind("/", root)?;
    std::env::set_current_dir(root)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}

/// VMs that never run, kept for as long as there are others.
///
/// KVM rewrites code of the kernel, in the scheduler too, when its first VM is made, when its last one
/// is gone, and as processors with a disabled local APIC, or without one, come and go. QEMU's threads
/// may keep running the breakpoints that stand in such places meanwhile (a translation made while the
/// code changes is not thrown away), and then a processor hits one over and over, for ever. With these
/// VMs, nothing has to be rewritten.
struct IdleVms {
    _vms: [(VmFd, VcpuFd); 2],
}

impl IdleVms {
    fn new() -> io::Result<Self> {
        let kvm = Kvm::new()?;
        let with_apic = kvm.create_vm()?;
        with_apic.create_irq_chip()?;
        let disabled = with_apic.create_vcpu(0)?;
        let without_apic = kvm.create_vm()?;
        let none = without_apic.create_vcpu(0)?;
        Ok(IdleVms {
            _vms: [(with_apic, disabled), (without_apic, none)],
        })
    }
}

/// Keeps this process, and so every process of the machine, off processor 0, if there are others.
///
/// QEMU (7.2 to 10.0 at least) emulates the chipset's reaction to FXRSTOR, on whichever processor, by
/// changing flags of processor 0, not atomically; among these flags are the ones that say whether it
/// runs a guest, and in what paging mode. A guest on processor 0 so dies of a triple fault, or takes
/// the state of its host for its own, after some 10^5 entries.
fn leave_processor_0() -> io::Result<()> {
    let mut allowed = rustix::thread::sched_getaffinity(None)?;
    if allowed.count() > 1 {
        allowed.unset(0);
        rustix::thread::sched_setaffinity(None, &allowed)?;
    }
    Ok(())
}

/// A program killed by a signal has failed with a status that no test runner uses.
fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(EXIT_MAX).min(EXIT_MAX),
        (None, signal) => {
            println!("outer-init: the program was killed by signal {signal:?}");
            EXIT_MAX
        }
    }
}

fn release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// Ends the machine with `status`.
fn leave(status: u8) -> ! {
    // The serial port must have sent everything before the machine is gone.
    let _ = rustix::termios::tcdrain(io::stdout());
    // SAFETY: grants this process one I/O port; no memory is involved.
    if unsafe { libc::ioperm(EXIT_PORT.into(), 1, 1) } == 0 {
        // SAFETY: the port was granted above and belongs to isa-debug-exit, which ends QEMU.
        unsafe {
            asm!("out dx, al", in("dx") EXIT_PORT, in("al") EXIT_BASE + status.min(EXIT_MAX));
        }
    }
    // PID 1 must not return, or the kernel panics; with -no-reboot a restart ends QEMU, and the
    // lane reports that no status came.
    println!("outer-init: no exit device");
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    loop {
        std::thread::park();
    }
}
