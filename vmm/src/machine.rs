//! Builds a VM from its description, and runs it to its end.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use bulkhead_devices::GuestMemory;
use bulkhead_devices::legacy::exit_signal::{ExitSignal, GuestExit};
use bulkhead_devices::legacy::serial::Serial;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use kvm_bindings::{CpuId, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::assist::probe::ProbeError;
use crate::assist::{self, Assist, AssistError, Counters, HostKind, probe};
use crate::attach::{AttachError, Devices, virtio_slot};
use crate::boot::cmdline::{self, Cmdline, CmdlineError};
use crate::boot::initrd::{self, InitrdError};
use crate::boot::kernel::{self, LoadError};
use crate::boot::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::boot::mptable::{self, MpTableError};
use crate::boot::params::{self, ParamsError};
use crate::boot::registers;
use crate::config::{AssistConfig, ConsoleConfig, RestoreConfig, VmConfig};
use crate::control::api::{Origin, VmHandle};
use crate::control::{ControlError, ControlServer};
use crate::cpu::cpuid::{CpuTopology, CpuidError, GuestCpuid};
use crate::cpu::lapic;
use crate::cpu::msrs::{self, MsrError};
use crate::cpu::state::{Inventory, VcpuStateError};
use crate::event_loop::{EventLoop, Signals, watch, watch_source};
use crate::exit::{ExitSlot, VmExit};
use crate::host::{self, HostError};
use crate::memory::{self, Backing, MemoryError};
use crate::snapshot::open::Opened;
use crate::snapshot::{self, SnapshotError};
use crate::timing::{self, StartTimes};
use crate::vcpu::{ExitCounts, RunControl, Vcpu};

/// Why a VM could not be built. Each is one sentence for the person who asked for it.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No usable KVM.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A device.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] LoadError),
    /// The initial RAM disk.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The zero page.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The MP table.
    #[error(transparent)]
    MpTable(#[from] MpTableError),
    /// The boot tables.
    #[error("cannot write the boot tables: {0}")]
    Tables(#[from] vm_memory::GuestMemoryError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The probe.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The assist.
    #[error(transparent)]
    Assist(#[from] AssistError),
    /// The guest's processor.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// The guest's processor.
    #[error(transparent)]
    Msr(#[from] MsrError),
    /// A vCPU's state.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// KVM refused a step.
    #[error("KVM cannot {what}: {source}")]
    Kvm {
        /// The step.
        what: &'static str,
        /// What it said.
        source: kvm_ioctls::Error,
    },
    /// The host refused a step.
    #[error("cannot {what}: {source}")]
    Io {
        /// The step.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

impl MachineError {
    /// Whether another snapshot would do: that it is not for the host, nor for what the VM was to have.
    pub fn is_for_the_snapshot(&self) -> bool {
        match self {
            MachineError::Snapshot(e) => e.is_for_the_snapshot(),
            MachineError::Vcpu(_) => true,
            _ => false,
        }
    }
}

fn kvm_cannot(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { what, source }
}

fn cannot(what: &'static str) -> impl FnOnce(std::io::Error) -> MachineError {
    move |source| MachineError::Io { what, source }
}

/// Each port that the serial driver looks for costs a hundred exits, whether it is there or not.
const SERIAL_PORTS: [&str; 2] = ["8250.nr_uarts=0", "8250.nr_uarts=1"];

/// A VM, ready to run.
pub struct Machine {
    event_loop: EventLoop,
    run: Arc<RunControl>,
    vcpus: Vec<Vcpu>,
    devices: Devices,
    times: StartTimes,
    // Last, so that the VM and its memory outlive everything that uses them.
    _vm: Arc<VmFd>,
    _memory: Arc<GuestMemory>,
}

impl Machine {
    /// Builds the VM that `config` describes, which must be valid. `started` is when the process
    /// started, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn build(config: VmConfig, started: u64) -> Result<Self, MachineError> {
        let mut times = StartTimes {
            process_ns: started,
            ..StartTimes::default()
        };
        let exit = Arc::new(ExitSlot::new().map_err(cannot("make an eventfd"))?);
        // Before any thread: the signal mask is inherited.
        let signals = Signals::new(Arc::clone(&exit)).map_err(cannot("watch signals"))?;

        let kvm = host::open_kvm()?;
        // What is wrong with the files is found before any VM is made.
        let kernel_file = kernel::open(&config.kernel.path)?;
        let initrd_file = config
            .kernel
            .initrd
            .as_deref()
            .map(initrd::open)
            .transpose()?;
        let kind = probe::probe(&kvm)?;
        let assisted = kind == HostKind::SoftwareAssisted && config.assist == AssistConfig::Auto;
        times.host_ns = timing::now();

        let vm = create_vm(&kvm)?;
        if assisted {
            assist::prepare_vm(&vm);
        }
        let backing = match config.shares.is_empty() {
            true => Backing::preferred(),
            false => Backing::Shared,
        };
        let memory = Arc::new(memory::allocate(config.memory_mib, backing)?);
        memory::register(&vm, &memory)?;
        times.memory_ns = timing::now();

        let devices = Devices::open(&config, None, &memory, &exit)?;
        let loaded = kernel::load(&memory, &kernel_file, &config.kernel.path)?;
        let initrd = match (&initrd_file, &config.kernel.initrd) {
            (Some(file), Some(path)) => Some(initrd::load(&memory, file, path, &loaded)?),
            _ => None,
        };
        let cmdline = command_line(&config, &devices, assisted)?;
        params::write(&memory, &loaded, &cmdline, initrd)?;
        let cpus = config.cpus as u8; // at most MAX_CPUS, by the configuration's check
        mptable::write(&memory, cpus, devices.irqs())?;
        registers::write_gdt(&memory)?;
        registers::write_page_tables(&memory)?;
        times.kernel_ns = timing::now();

        let fds = create_vcpus(&kvm, &vm, cpus, kind)?;
        set_boot_registers(&fds[0].0, loaded.entry).map_err(kvm_cannot("set the registers"))?;
        devices.wire(&vm)?;
        let inventory = Inventory::new(&kvm, kind)?;
        Assembly {
            kvm,
            vm,
            kind,
            assisted,
            config,
            added: RestoreConfig::default(),
            origin: None,
            cmdline: cmdline.as_str().to_owned(),
            memory,
            devices,
            fds,
            inventory,
            exit,
            signals,
            times,
        }
        .finish()
    }

    /// Goes on with the VM whose snapshot is in `folder`. `started` is as in [`Self::build`].
    pub fn restore(
        folder: &Path,
        wanted: RestoreConfig,
        started: u64,
    ) -> Result<Self, MachineError> {
        let mut times = StartTimes {
            process_ns: started,
            ..StartTimes::default()
        };
        let exit = Arc::new(ExitSlot::new().map_err(cannot("make an eventfd"))?);
        // Before any thread: the signal mask is inherited.
        let signals = Signals::new(Arc::clone(&exit)).map_err(cannot("watch signals"))?;

        let (made, opened) = thread::scope(|scope| {
            // The kernel takes a while to make a VM, and needs to know nothing of the snapshot for that.
            let maker = thread::Builder::new().spawn_scoped(scope, open_and_create);
            let opened = Opened::of(folder, wanted, &exit, &mut times);
            let made = maker.map(|maker| maker.join().unwrap_or_else(|panic| resume_unwind(panic)));
            (made, opened)
        });
        let Opened {
            state,
            config,
            added,
            kind,
            memory,
            prefetched,
            devices,
        } = opened?;
        let (kvm, vm) = made.unwrap_or_else(|_no_thread| open_and_create())?;
        let kind = match kind {
            Some(kind) => kind,
            None => probe::probe(&kvm)?,
        };
        let assisted = kind == HostKind::SoftwareAssisted && config.assist == AssistConfig::Auto;
        if assisted {
            assist::prepare_vm(&vm);
        }
        memory::register(&vm, &memory)?;

        let cpus = config.cpus as u8; // at most MAX_CPUS, by the configuration's check
        let fds = create_vcpus(&kvm, &vm, cpus, kind)?;
        let inventory = Inventory::new(&kvm, kind)?;
        snapshot::take::restore_vm(&vm, &state.vm)?;
        devices.wire(&vm)?;
        for ((fd, cpuid), saved) in fds.iter().zip(&state.vcpus) {
            state.host.check(kind, saved.cpuid(), cpuid.as_slice())?;
            let refused = saved.restore(fd, &inventory, kind)?;
            if !refused.is_empty() {
                log::info!("KVM refused the MSRs {refused:#x?}; the guest does without");
            }
        }
        // Last, as from here on the guest's time passes.
        let asleep_ns = snapshot::take::restore_clock(&vm, &state.vm)?;
        for device in &devices.virtio {
            device.restart();
        }
        if let Some(serial) = &devices.serial {
            serial.restart();
        }
        Assembly {
            kvm,
            vm,
            kind,
            assisted,
            config,
            added,
            origin: Some(Origin {
                folder: folder.to_owned(),
                asleep_ns,
                prefetched,
            }),
            cmdline: state.cmdline,
            memory,
            devices,
            fds,
            inventory,
            exit,
            signals,
            times,
        }
        .finish()
    }

    /// Runs the VM to its end.
    pub fn run(mut self) -> VmExit {
        self.times.run_ns = timing::now();
        self.times.cpu_ns = timing::process_cpu();
        timing::record(self.times);
        for vcpu in self.vcpus.drain(..) {
            if let Err(e) = self.run.spawn(vcpu) {
                self.run.stop();
                return VmExit::Unsupported(format!("cannot start a vCPU's thread: {e}"));
            }
        }
        let exit = self.event_loop.run();
        self.run.stop();
        // What the guest was told is written must be.
        for device in &self.devices.virtio {
            device.shutdown();
        }
        exit
    }
}

/// The parts of a VM, ready to be set in motion.
struct Assembly {
    kvm: Kvm,
    vm: VmFd,
    kind: HostKind,
    assisted: bool,
    config: VmConfig,
    added: RestoreConfig,
    origin: Option<Origin>,
    cmdline: String,
    memory: Arc<GuestMemory>,
    devices: Devices,
    fds: Vec<(VcpuFd, CpuId)>,
    inventory: Inventory,
    exit: Arc<ExitSlot>,
    signals: Signals,
    times: StartTimes,
}

impl Assembly {
    fn finish(self) -> Result<Machine, MachineError> {
        let Assembly {
            kvm,
            vm,
            kind,
            assisted,
            config,
            added,
            origin,
            cmdline,
            memory,
            devices,
            fds,
            inventory,
            exit,
            signals,
            times,
        } = self;
        let vm = Arc::new(vm);
        let inventory = Arc::new(inventory);

        let run = Arc::new(RunControl::new(false).map_err(cannot("set up the vCPUs' signal"))?);
        let buses = Arc::clone(&devices.buses);
        let assist_counters = Arc::<Counters>::default();
        let mut vcpus = Vec::with_capacity(fds.len());
        for (index, (mut fd, cpuid)) in (0..).zip(fds) {
            let assist = assisted
                .then(|| Assist::new(&kvm, &mut fd, Arc::clone(&assist_counters)))
                .transpose()?;
            vcpus.push(Vcpu {
                index,
                fd,
                buses: Arc::clone(&buses),
                assist,
                memory: Arc::clone(&memory),
                exit: Arc::clone(&exit),
                counts: Arc::<ExitCounts>::default(),
                cpuid,
                inventory: Arc::clone(&inventory),
            });
        }

        let mut event_loop =
            EventLoop::new(Arc::clone(&exit)).map_err(cannot("make an event loop"))?;
        event_loop.add(Box::new(signals));
        event_loop.add(Box::new(GuestExitSource {
            signal: Arc::clone(&devices.guest_exit),
            exit: Arc::clone(&exit),
        }));
        for device in &devices.virtio {
            event_loop.add_device(Arc::clone(device));
        }
        if let Some(serial) = &devices.serial {
            event_loop.add(Box::new(SerialSource(Arc::clone(serial))));
        }
        let control_socket = match origin {
            None => config.control_socket.clone(),
            Some(_) => added.control_socket.clone(),
        };
        if let Some(path) = control_socket {
            let handle = VmHandle {
                config,
                added,
                origin,
                cmdline,
                vm: Arc::clone(&vm),
                memory: Arc::clone(&memory),
                serial: devices.serial.clone(),
                i8042: Arc::clone(&devices.i8042),
                host: kind,
                run: Arc::clone(&run),
                exit,
                devices: devices.virtio.clone(),
                vcpus: vcpus.iter().map(|vcpu| Arc::clone(&vcpu.counts)).collect(),
                console: devices.console.clone(),
                balloon: devices.balloon.clone(),
                assist: assisted.then_some(assist_counters),
            };
            event_loop.add(Box::new(ControlServer::bind(&path, handle)?));
        }
        Ok(Machine {
            event_loop,
            run,
            vcpus,
            devices,
            times,
            _vm: vm,
            _memory: memory,
        })
    }
}

/// Opens KVM and makes a VM.
fn open_and_create() -> Result<(Kvm, VmFd), MachineError> {
    let kvm = host::open_kvm()?;
    let vm = create_vm(&kvm)?;
    Ok((kvm, vm))
}

/// Makes a VM with the interrupt controller and timer of a PC.
fn create_vm(kvm: &Kvm) -> Result<VmFd, MachineError> {
    let vm = loop {
        match kvm.create_vm() {
            Err(e) if e.errno() == libc::EINTR => {}
            result => break result.map_err(kvm_cannot("make a VM"))?,
        }
    };
    // Intel hosts need these pages to run real-mode code, which our guests' other vCPUs start in.
    vm.set_identity_map_address(KVM_IDENTITY_MAP)
        .map_err(kvm_cannot("place the identity map"))?;
    vm.set_tss_address(KVM_TSS as usize)
        .map_err(kvm_cannot("place the TSS"))?;
    vm.create_irq_chip()
        .map_err(kvm_cannot("make an interrupt controller"))?;
    let pit = kvm_pit_config {
        // Port 0x61, so that a guest which calibrates by the timer need not leave KVM for it.
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..kvm_pit_config::default()
    };
    vm.create_pit2(pit).map_err(kvm_cannot("make a timer"))?;
    Ok(vm)
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    cpus: u8,
    kind: HostKind,
) -> Result<Vec<(VcpuFd, CpuId)>, MachineError> {
    let fds = (0..cpus)
        .map(|index| vm.create_vcpu(index.into()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(kvm_cannot("make a vCPU"))?;
    // All vCPUs' clocks tick alike; an old KVM cannot say how fast.
    let tsc_khz = fds.first().and_then(|vcpu| vcpu.get_tsc_khz().ok());
    let cpuid = GuestCpuid::new(kvm, CpuTopology { cpus }, tsc_khz, kind)?;
    let msrs = msrs::boot_msrs(kvm, kind)?;
    let mut refused = Vec::new();
    let mut vcpus = Vec::with_capacity(fds.len());
    for (index, vcpu) in (0..).zip(fds) {
        let cpuid = cpuid.for_vcpu(index)?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm_cannot("set CPUID"))?;
        refused = msrs::set_msrs(&vcpu, &msrs)?;
        lapic::set_pins(&vcpu).map_err(kvm_cannot("set the local APIC"))?;
        vcpus.push((vcpu, cpuid));
    }
    if !refused.is_empty() {
        log::info!("KVM refused the MSRs {refused:#x?}; guests do without");
    }
    Ok(vcpus)
}

/// Has the first vCPU start at the kernel's entry. The others wait for it to start them.
fn set_boot_registers(
    vcpu: &VcpuFd,
    entry: vm_memory::GuestAddress,
) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    registers::boot_sregs(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&registers::boot_regs(entry))?;
    vcpu.set_fpu(&registers::boot_fpu())
}

fn command_line(
    config: &VmConfig,
    devices: &Devices,
    assisted: bool,
) -> Result<Cmdline, CmdlineError> {
    let mut cmdline = Cmdline::new();
    cmdline.push(cmdline::BASE)?;
    if config.console == ConsoleConfig::Stdio {
        cmdline.push("console=hvc0")?;
    } else if config.serial {
        cmdline.push("console=ttyS0")?;
    }
    cmdline.push(SERIAL_PORTS[usize::from(config.serial)])?;
    if assisted {
        cmdline.push(&assist::cmdline::kernel_parameters(
            HostKind::SoftwareAssisted,
        ))?;
    }
    for index in 0..devices.windows() {
        let (address, irq) = virtio_slot(index);
        cmdline.push_virtio_mmio(address, irq)?;
    }
    cmdline.push(&config.kernel.cmdline)?;
    Ok(cmdline)
}

/// Carries what the guest said through a port to where the VM's end is reported.
struct GuestExitSource {
    signal: Arc<ExitSignal>,
    exit: Arc<ExitSlot>,
}

impl MutEventSubscriber for GuestExitSource {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        watch(ops, "exit", Events::new(self.signal.event(), events));
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if let Some(reason) = self.signal.reason() {
            self.exit.report(match reason {
                GuestExit::PowerOff => VmExit::PowerOff,
                GuestExit::Panic => VmExit::Panic,
                GuestExit::Reset => VmExit::Reset,
            });
        }
    }
}

/// The serial port's descriptors.
struct SerialSource(Arc<Serial>);

impl MutEventSubscriber for SerialSource {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for source in self.0.event_sources() {
            watch_source(ops, "serial", &source);
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        self.0.process_event(events.data());
    }
}
