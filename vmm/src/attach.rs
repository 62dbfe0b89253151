//! Makes the devices a configuration asks for and puts them on the buses.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bulkhead_devices::GuestMemory;
use bulkhead_devices::bus::BusDevice;
use bulkhead_devices::legacy::exit_port::{self, ExitPort};
use bulkhead_devices::legacy::exit_signal::ExitSignal;
use bulkhead_devices::legacy::i8042::{self, I8042};
use bulkhead_devices::legacy::serial::{self, Serial};
use bulkhead_devices::rate_limiter::RateLimit;
use bulkhead_devices::virtio::VirtioDevice;
use bulkhead_devices::virtio::balloon::{Balloon, BalloonConfig, BalloonHandle};
use bulkhead_devices::virtio::block::{Block, BlockConfig, BlockError, Engine};
use bulkhead_devices::virtio::console::{Console, ConsoleConfig, ConsoleHandle};
use bulkhead_devices::virtio::fs::{Fs, FsConfig, FsError};
use bulkhead_devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use bulkhead_devices::virtio::net::mac::ParseMacError;
use bulkhead_devices::virtio::net::tap::{Tap, TapError};
use bulkhead_devices::virtio::net::{self, Net};
use bulkhead_devices::virtio::placeholder::Placeholder;
use bulkhead_devices::virtio::rng::Rng;
use bulkhead_devices::virtio::vsock::{Vsock, VsockConfig, VsockError};
use kvm_ioctls::{IoEventAddress, VmFd};

use crate::boot::layout::{SERIAL_IRQ, VIRTIO_IRQS, VIRTIO_MMIO_SIZE, VIRTIO_MMIO_START};
use crate::config::{self, RestoreConfig, VmConfig};
use crate::exit::{ExitSlot, VmExit};
use crate::vcpu::Buses;

/// Why a device could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// A disk.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A network card's tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A network card's address.
    #[error("cannot set up the network card on {tap}: {source}")]
    Mac {
        /// Its tap.
        tap: String,
        /// What is wrong.
        source: ParseMacError,
    },
    /// A share.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// Another device, for want of something on the host.
    #[error("cannot set up the {device} device: {source}")]
    Host {
        /// Which.
        device: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// KVM would not wire a device's eventfds.
    #[error("KVM cannot wire {device}: {source}")]
    Wire {
        /// Which.
        device: String,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// The devices of a VM.
pub struct Devices {
    /// The two buses, with everything on them.
    pub buses: Arc<Buses>,
    /// The virtio devices, in the order of their windows.
    pub virtio: Vec<Arc<MmioTransport>>,
    /// Windows behind theirs that are empty.
    pub spare: usize,
    /// The serial port, if there is one.
    pub serial: Option<Arc<Serial>>,
    /// The keyboard controller, by which a PC is reset.
    pub i8042: Arc<I8042>,
    /// How the guest says that it is over.
    pub guest_exit: Arc<ExitSignal>,
    /// The console's window.
    pub console: Option<ConsoleHandle>,
    /// The balloon's size.
    pub balloon: Option<BalloonHandle>,
}

/// Where virtio device `index` is: the start of its window and its interrupt.
pub fn virtio_slot(index: usize) -> (u64, u32) {
    // The configuration bounds the number of devices by the interrupts there are.
    (
        VIRTIO_MMIO_START + index as u64 * VIRTIO_MMIO_SIZE,
        VIRTIO_IRQS[index],
    )
}

impl Devices {
    /// Opens everything that `config` names. Nothing is wired to a VM yet, so that a disk that is not
    /// there costs no VM. A device that is lost later says so in `exit`. `added` are devices for spare
    /// windows, no more than there are.
    pub fn open(
        config: &VmConfig,
        added: Option<&RestoreConfig>,
        memory: &Arc<GuestMemory>,
        exit: &Arc<ExitSlot>,
    ) -> Result<Self, AttachError> {
        let guest_exit = Arc::new(ExitSignal::new().map_err(host("exit"))?);
        let mut buses = Buses::default();
        let mut devices = Devices {
            buses: Arc::default(),
            virtio: Vec::with_capacity(config.virtio_devices() + config.spare_slots),
            spare: config.spare_slots,
            serial: None,
            i8042: Arc::new(I8042::new(Arc::clone(&guest_exit))),
            guest_exit: Arc::clone(&guest_exit),
            console: None,
            balloon: None,
        };
        let mut make = Make {
            memory,
            exit,
            buses: &mut buses,
            devices: &mut devices,
        };
        make.disks(&config.disks, 0)?;
        make.nets(&config.nets, 0)?;
        make.shares(&config.shares, 0)?;
        if let Some(vsock) = &config.vsock {
            let vsock = Vsock::new(VsockConfig {
                name: "vsock".to_owned(),
                guest_cid: vsock.cid,
                uds_path: vsock.path.clone(),
                direct: vsock.ports.iter().map(Into::into).collect(),
            })?;
            make.add(Box::new(vsock))?;
        }
        let console_has_input = config.console == config::ConsoleConfig::Stdio;
        if console_has_input {
            let console = Console::new(ConsoleConfig {
                name: "console".to_owned(),
                input: Some(duplicate(io::stdin().as_fd(), "console")?),
                output: duplicate(io::stdout().as_fd(), "console")?,
                size: config.console_size.map(Into::into).unwrap_or_default(),
            })
            .map_err(host("console"))?;
            make.devices.console = Some(console.handle());
            make.add(Box::new(console))?;
        }
        if config.rng {
            let rng = Rng::new("rng".to_owned(), &RateLimit::default()).map_err(host("rng"))?;
            make.add(Box::new(rng))?;
        }
        if let Some(balloon) = &config.balloon {
            let balloon = Balloon::new(BalloonConfig {
                name: "balloon".to_owned(),
                target: u64::from(balloon.size_mib) << 20,
                deflate_on_oom: balloon.deflate_on_oom,
                free_page_reporting: balloon.free_page_reporting,
                statistics: false,
            })
            .map_err(host("balloon"))?;
            make.devices.balloon = Some(balloon.handle());
            make.add(Box::new(balloon))?;
        }
        if let Some(added) = added {
            make.devices.spare = config.spare_slots.saturating_sub(added.virtio_devices());
            make.disks(&added.disks, config.disks.len())?;
            make.nets(&added.nets, config.nets.len())?;
            make.shares(&added.shares, config.shares.len())?;
        }
        make.placeholders();

        let pio = &mut buses.pio;
        let i8042 = devices.i8042.clone();
        pio.insert(i8042::PORT, i8042::WINDOW_SIZE, i8042);
        let exit_port = Arc::new(ExitPort::new(guest_exit));
        pio.insert(exit_port::PORT, exit_port::WINDOW_SIZE, exit_port);
        if config.serial {
            // What is typed goes to one of the two; the virtio console comes first.
            let input = (!console_has_input)
                .then(|| duplicate(io::stdin().as_fd(), "serial"))
                .transpose()?;
            let output = duplicate(io::stdout().as_fd(), "serial")?;
            let serial = Arc::new(Serial::new(input, output).map_err(host("serial"))?);
            pio.insert(serial::PORT, serial::WINDOW_SIZE, serial.clone());
            devices.serial = Some(serial);
        }
        devices.buses = Arc::new(buses);
        Ok(devices)
    }

    /// Interrupts that are wired, for the MP table.
    pub fn irqs(&self) -> Vec<u32> {
        let virtio = (0..self.windows()).map(|index| virtio_slot(index).1);
        let serial = self.serial.iter().map(|_| SERIAL_IRQ);
        virtio.chain(serial).collect()
    }

    /// Binds notifications and interrupts to the VM.
    pub fn wire(&self, vm: &VmFd) -> Result<(), AttachError> {
        for (index, transport) in self.virtio.iter().enumerate() {
            let failed = |source| AttachError::Wire {
                device: transport.name().to_owned(),
                source,
            };
            let (address, irq) = virtio_slot(index);
            let notify = IoEventAddress::Mmio(address + QUEUE_NOTIFY);
            for (queue, notifier) in (0u32..).zip(transport.notifiers()) {
                vm.register_ioevent(notifier, &notify, queue)
                    .map_err(failed)?;
            }
            vm.register_irqfd(transport.interrupt().line(), irq)
                .map_err(failed)?;
        }
        if let Some(serial) = &self.serial {
            vm.register_irqfd(serial.interrupt(), SERIAL_IRQ)
                .map_err(|source| AttachError::Wire {
                    device: "serial".to_owned(),
                    source,
                })?;
        }
        Ok(())
    }

    /// Windows of virtio devices, whether there is one or not.
    pub fn windows(&self) -> usize {
        self.virtio.len() + self.spare
    }
}

/// Devices on their way into windows.
struct Make<'a> {
    memory: &'a Arc<GuestMemory>,
    exit: &'a Arc<ExitSlot>,
    buses: &'a mut Buses,
    devices: &'a mut Devices,
}

impl Make<'_> {
    /// Each is named by its number, from `first`.
    fn disks(&mut self, disks: &[config::DiskConfig], first: usize) -> Result<(), AttachError> {
        for (index, disk) in (first..).zip(disks) {
            let block = Block::open(BlockConfig {
                path: disk.path.clone(),
                read_only: disk.read_only,
                serial: disk.serial.clone(),
                rate_limit: disk.rate_limit,
                name: format!("block{index}"),
                engine: Engine::Auto,
            })?;
            self.add(Box::new(block))?;
        }
        Ok(())
    }

    fn nets(&mut self, nets: &[config::NetConfig], first: usize) -> Result<(), AttachError> {
        for (index, net) in (first..).zip(nets) {
            let net = open_net(net, format!("net{index}"))?;
            self.add(Box::new(net))?;
        }
        Ok(())
    }

    fn shares(&mut self, shares: &[config::ShareConfig], first: usize) -> Result<(), AttachError> {
        for (index, share) in (first..).zip(shares) {
            let exit = Arc::clone(self.exit);
            let fs = Fs::connect(FsConfig {
                name: format!("fs{index}"),
                tag: share.tag.clone(),
                socket: share.socket.clone(),
                lost: Box::new(move |why| exit.report(VmExit::DeviceLost(why))),
            })?;
            self.add(Box::new(fs))?;
        }
        Ok(())
    }

    fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), AttachError> {
        let transport =
            MmioTransport::new(device, Arc::clone(self.memory)).map_err(host("virtio"))?;
        let transport = Arc::new(transport);
        let (address, _) = virtio_slot(self.devices.virtio.len());
        let on_bus: Arc<dyn BusDevice> = transport.clone();
        self.buses.mmio.insert(address, VIRTIO_MMIO_SIZE, on_bus);
        self.devices.virtio.push(transport);
        Ok(())
    }

    fn placeholders(&mut self) {
        for index in self.devices.virtio.len()..self.devices.windows() {
            let (address, _) = virtio_slot(index);
            let empty = Arc::new(Placeholder);
            self.buses.mmio.insert(address, VIRTIO_MMIO_SIZE, empty);
        }
    }
}

fn open_net(config: &config::NetConfig, name: String) -> Result<Net, AttachError> {
    let mac = config.mac.as_deref().map(str::parse).transpose();
    let mac = mac.map_err(|source| AttachError::Mac {
        tap: config.tap.clone(),
        source,
    })?;
    let limit = config.rate_limit.unwrap_or_default();
    let tap = Tap::open(&config.tap, config.mtu)?;
    let config = net::NetConfig {
        name,
        mac,
        mtu: config.mtu,
        receive_limit: limit,
        transmit_limit: limit,
    };
    Net::new(config, Box::new(tap)).map_err(host("net"))
}

fn host(device: &'static str) -> impl FnOnce(io::Error) -> AttachError {
    move |source| AttachError::Host { device, source }
}

fn duplicate(fd: BorrowedFd<'_>, device: &'static str) -> Result<OwnedFd, AttachError> {
    fd.try_clone_to_owned().map_err(host(device))
}
