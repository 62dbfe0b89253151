//! vCPU threads: they run the guest, answer its exits, and stop when told.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use bulkhead_devices::GuestMemory;
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::assist::{Assist, Unsupported};
use crate::bus::Bus;
use crate::cpu::state::{Inventory, VcpuState, VcpuStateError};
use crate::exit::{ExitSlot, VmExit};

/// `KVM_INTERNAL_ERROR_EMULATION`: KVM met an instruction that its emulator does not know.
const EMULATION_FAILURE: u32 = 1;

/// The two address spaces a vCPU reaches devices through.
#[derive(Default)]
pub struct Buses {
    /// Memory-mapped I/O, by guest-physical address.
    pub mmio: Bus,
    /// Port I/O, by port.
    pub pio: Bus,
}

/// How often a vCPU left the guest, and why.
#[derive(Debug, Default)]
pub struct ExitCounts {
    /// Port I/O that a device answered.
    pub pio: AtomicU64,
    /// MMIO that a device answered. Queue notifications are not here: they do not leave the kernel.
    pub mmio: AtomicU64,
    /// Instructions the assist finished.
    pub assist: AtomicU64,
    /// Kicks and host signals.
    pub interrupted: AtomicU64,
}

impl ExitCounts {
    fn add(counter: &AtomicU64) {
        // Only this vCPU's thread writes, so a load and a store do; no locked instruction.
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// What the vCPUs should be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

struct RunState {
    wanted: Wanted,
    /// vCPUs whose thread has not ended.
    alive: usize,
    /// Those of them that wait for the end of a pause.
    paused: usize,
    /// While their states are asked for: those that were given.
    saved: Option<BTreeMap<u32, Result<VcpuState, VcpuStateError>>>,
}

/// Pauses, resumes and stops all vCPUs of a VM.
pub struct RunControl {
    state: Mutex<RunState>,
    changed: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl RunControl {
    /// With no vCPU yet; they will start paused if `paused`.
    pub fn new(paused: bool) -> io::Result<Self> {
        register_signal_handler(SIGRTMIN(), kicked).map_err(io::Error::from)?;
        Ok(RunControl {
            state: Mutex::new(RunState {
                wanted: if paused { Wanted::Pause } else { Wanted::Run },
                alive: 0,
                paused: 0,
                saved: None,
            }),
            changed: Condvar::new(),
            threads: Mutex::new(Vec::new()),
        })
    }

    /// Starts the thread of `vcpu`.
    pub fn spawn(self: &Arc<Self>, vcpu: Vcpu) -> io::Result<()> {
        let control = Arc::clone(self);
        lock(&self.state).alive += 1;
        let thread = thread::Builder::new()
            .name(format!("vcpu{}", vcpu.index))
            // Exits are shallow; the default of 2 MiB would only be address space, but a bound that
            // is near what is needed finds a mistake sooner.
            .stack_size(256 << 10)
            .spawn(move || {
                vcpu.run(&control);
                lock(&control.state).alive -= 1;
                control.changed.notify_all();
            })?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Stops the guest: returns when no vCPU is in it.
    pub fn pause(&self) {
        let mut state = lock(&self.state);
        if state.wanted != Wanted::Run {
            return;
        }
        state.wanted = Wanted::Pause;
        self.kick();
        while state.paused < state.alive && state.wanted == Wanted::Pause {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The states of all vCPUs, which must be paused; `None` if one of them has ended.
    pub fn save(&self) -> Option<Vec<Result<VcpuState, VcpuStateError>>> {
        let mut state = lock(&self.state);
        let count = lock(&self.threads).len();
        state.saved = Some(BTreeMap::new());
        self.changed.notify_all();
        while state.wanted == Wanted::Pause
            && state.alive == count
            && state
                .saved
                .as_ref()
                .is_some_and(|saved| saved.len() < count)
        {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let saved = state.saved.take()?;
        (saved.len() == count).then(|| saved.into_values().collect())
    }

    /// Lets paused vCPUs go on.
    pub fn resume(&self) {
        let mut state = lock(&self.state);
        if state.wanted == Wanted::Pause {
            state.wanted = Wanted::Run;
            self.changed.notify_all();
        }
    }

    /// Whether the vCPUs are paused.
    pub fn is_paused(&self) -> bool {
        lock(&self.state).wanted == Wanted::Pause
    }

    /// Ends all vCPU threads and waits for them.
    pub fn stop(&self) {
        lock(&self.state).wanted = Wanted::Stop;
        self.changed.notify_all();
        self.kick();
        for thread in lock(&self.threads).drain(..) {
            // A thread that panicked took the process with it; there is no other way to fail.
            let _ = thread.join();
        }
    }

    fn kick(&self) {
        for thread in lock(&self.threads).iter() {
            // An integer to the standard library, a pointer to musl.
            let id = thread.as_pthread_t() as libc::pthread_t;
            // SAFETY: the handle is not joined yet, so the thread's id is valid, and the signal has a
            // handler.
            unsafe { libc::pthread_kill(id, SIGRTMIN()) };
        }
    }

    /// Called by `vcpu` before it enters the guest: waits while paused, and gives its state meanwhile if
    /// that is asked for. `false` to stop.
    fn may_run(&self, vcpu: &mut Vcpu) -> bool {
        let mut state = lock(&self.state);
        if state.wanted == Wanted::Pause {
            state.paused += 1;
            self.changed.notify_all();
            while state.wanted == Wanted::Pause {
                let asked = |state: &RunState| {
                    let saved = state.saved.as_ref();
                    saved.is_some_and(|saved| !saved.contains_key(&vcpu.index))
                };
                if asked(&state) {
                    drop(state);
                    let given = vcpu.save();
                    state = lock(&self.state);
                    if let Some(saved) = &mut state.saved {
                        saved.insert(vcpu.index, given);
                    }
                    self.changed.notify_all();
                    continue;
                }
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.paused -= 1;
            // Its watchdogs are told that the guest stood still. One without kvmclock has nothing to be told by.
            let _ = vcpu.fd.kvmclock_ctrl();
        }
        state.wanted == Wanted::Run
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU this thread runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// The kick's signal handler. Interrupting `KVM_RUN` is not enough: a signal that comes just before it
/// would be lost. So the handler also has the next `KVM_RUN` return at once.
extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: set by `Vcpu::run` to a byte of its mapped `kvm_run`, and cleared before the
        // mapping goes. Volatile because the interrupted code does not know of this write.
        unsafe { flag.write_volatile(1) };
    }
}

/// One virtual processor, ready to run.
pub struct Vcpu {
    /// 0 for the one that boots.
    pub index: u32,
    /// KVM's side of it.
    pub fd: VcpuFd,
    /// The devices it can reach.
    pub buses: Arc<Buses>,
    /// What finishes instructions KVM cannot, on hosts that need it.
    pub assist: Option<Assist>,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// Where to say that the VM is over.
    pub exit: Arc<ExitSlot>,
    /// What to count exits in.
    pub counts: Arc<ExitCounts>,
    /// The CPUID it was given.
    pub cpuid: CpuId,
    /// What to save of it.
    pub inventory: Arc<Inventory>,
}

impl Vcpu {
    fn run(mut self, control: &RunControl) {
        IMMEDIATE_EXIT.set(&raw mut self.fd.get_kvm_run().immediate_exit);
        loop {
            // In this order: a kick after the state was looked at sets the flag again.
            self.fd.set_kvm_immediate_exit(0);
            if !control.may_run(&mut self) {
                break;
            }
            if let Some(exit) = self.run_until_interrupted() {
                self.exit.report(exit);
                break;
            }
        }
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }

    /// Its state, while it is not in the guest.
    fn save(&mut self) -> Result<VcpuState, VcpuStateError> {
        // KVM finishes the last exit (what a device answered, what the assist did) only as the guest is
        // entered again, and then this has it come back at once.
        self.fd.set_kvm_immediate_exit(1);
        if let Some(exit) = self.run_until_interrupted() {
            self.exit.report(exit);
        }
        self.fd.set_kvm_immediate_exit(0);
        VcpuState::save(&self.fd, &self.cpuid, &self.inventory)
    }

    /// Runs the guest until a kick (`None`) or its end.
    fn run_until_interrupted(&mut self) -> Option<VmExit> {
        loop {
            match self.fd.run() {
                Ok(VcpuExit::MmioRead(addr, data)) => {
                    ExitCounts::add(&self.counts.mmio);
                    self.buses.mmio.read(addr, data);
                }
                Ok(VcpuExit::MmioWrite(addr, data)) => {
                    ExitCounts::add(&self.counts.mmio);
                    self.buses.mmio.write(addr, data);
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    ExitCounts::add(&self.counts.pio);
                    self.buses.pio.write(port.into(), data);
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    ExitCounts::add(&self.counts.pio);
                    self.buses.pio.read(port.into(), data);
                }
                Ok(VcpuExit::InternalError) => {
                    if let Err(exit) = self.finish_instruction() {
                        return Some(exit);
                    }
                }
                Ok(VcpuExit::Shutdown) => return Some(VmExit::TripleFault),
                Ok(VcpuExit::SystemEvent(event, _)) => return Some(system_event(event)),
                Ok(VcpuExit::Intr | VcpuExit::Hlt) => {}
                Ok(VcpuExit::FailEntry(reason, cpu)) => {
                    return Some(VmExit::Unsupported(format!(
                        "the host's processor {cpu} refused to enter the guest (reason {reason:#x})"
                    )));
                }
                Ok(other) => {
                    return Some(VmExit::Unsupported(format!(
                        "KVM left the guest in a way this VMM does not know: {other:?}"
                    )));
                }
                // EAGAIN: a vCPU that was kicked while it waited to be started.
                Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
                    ExitCounts::add(&self.counts.interrupted);
                    return None;
                }
                Err(e) => {
                    let what = Unsupported::capture(&mut self.fd, format!("KVM_RUN failed: {e}"));
                    return Some(VmExit::Unsupported(what.to_string()));
                }
            }
        }
    }

    /// KVM gave up inside the guest: have the assist finish the instruction, or say what it was.
    fn finish_instruction(&mut self) -> Result<(), VmExit> {
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which this is the union's live member.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        let unsupported = match &mut self.assist {
            Some(assist) if suberror == EMULATION_FAILURE => {
                match assist.finish(&mut self.fd, &self.memory) {
                    Ok(_) => {
                        ExitCounts::add(&self.counts.assist);
                        return Ok(());
                    }
                    Err(unsupported) => unsupported,
                }
            }
            _ => Unsupported::capture(
                &mut self.fd,
                format!("KVM met an internal error (suberror {suberror})"),
            ),
        };
        Err(VmExit::Unsupported(unsupported.to_string()))
    }
}

/// A paravirtual power event (`KVM_EXIT_SYSTEM_EVENT`).
fn system_event(event: u32) -> VmExit {
    match event {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => VmExit::PowerOff,
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => VmExit::Reset,
        kvm_bindings::KVM_SYSTEM_EVENT_CRASH => VmExit::Panic,
        other => VmExit::Unsupported(format!("KVM reports an unknown system event ({other})")),
    }
}
