//! The options of `bulkhead boot`, and the VM they describe.

use std::path::{Path, PathBuf};

use bulkhead_engine::artifacts::{Artifact, Missing};
use bulkhead_protocol::API_PORT;
use bulkhead_vmm::config::{
    AssistConfig, BalloonConfig, ConsoleConfig, DiskConfig, KernelConfig, NetConfig, PortConfig,
    VmConfig, VsockConfig, WindowConfig,
};
use clap::{Args, ValueEnum};

use crate::terminal::window_size;
use crate::values::parse_bytes;

/// Start a microVM: Bulkhead's own guest, or your kernel and disks.
///
/// Without --disk and --initrd the guest is Bulkhead's own: its kernel, and its agent as the only
/// program. With them it is yours: the first disk is the root, unless --cmdline says otherwise.
///
/// The terminal is the guest's console. Ctrl-A x stops the VM; Ctrl-A Ctrl-A types one Ctrl-A.
#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 the guest powered off or was stopped, 10 it asked for a reset, 11 its kernel panicked,
12 triple fault, 13 KVM could not go on, 125 it could not be started.

Examples:
  bulkhead boot --timing
  bulkhead boot --disk root.ext4 --net tap=tap0 --cpus 2 --memory 512M
  bulkhead boot --kernel bzImage --initrd initrd.img --serial --cmdline 'console=ttyS0'")]
pub struct BootArgs {
    /// Kernel: an ELF vmlinux or a bzImage [default: Bulkhead's own]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Raw disk image or block device, `:ro` to protect it; repeat for more
    #[arg(long = "disk", value_name = "FILE[:ro]", value_parser = parse_disk)]
    pub disks: Vec<DiskConfig>,
    /// Network card on a tap; repeat for more
    #[arg(long = "net", value_name = "tap=NAME[,mac=MAC][,mtu=BYTES]", value_parser = parse_net)]
    pub nets: Vec<NetConfig>,
    /// Directory for the VM's sockets: api.sock (to the agent), vsock.sock (to any port of the
    /// guest) and control.sock
    #[arg(long, value_name = "DIR")]
    pub vsock: Option<PathBuf>,
    /// The guest's vsock address
    #[arg(long, value_name = "CID", default_value_t = 3)]
    pub cid: u64,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Memory, in bytes or with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = parse_memory)]
    pub memory: u64,
    /// Added to the kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub cmdline: String,
    /// Give the guest a 16550 serial port instead of the virtio console
    #[arg(long)]
    pub serial: bool,
    /// Give the guest a memory balloon and take back what it frees
    #[arg(long)]
    pub balloon: bool,
    /// Boot, print where the time went, and stop
    #[arg(long)]
    pub timing: bool,
    /// How --timing prints
    #[arg(long, value_enum, default_value_t = Format::Table, requires = "timing")]
    pub format: Format,
}

/// How a table is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

impl BootArgs {
    /// Whether the guest is Bulkhead's own, whose agent reports when it is ready.
    pub fn has_agent(&self) -> bool {
        self.disks.is_empty() && self.initrd.is_none()
    }

    /// The VM, with its sockets in `directory`.
    pub fn to_config(&self, directory: &Path) -> Result<VmConfig, Missing> {
        let mut disks = self.disks.clone();
        let mut cmdline = Vec::new();
        if self.has_agent() {
            // The type, so that the kernel does not try others; the name, because it is ours.
            cmdline.push("rootfstype=erofs init=/init");
            disks.push(DiskConfig {
                path: Some(Artifact::AgentImage.find()?),
                read_only: true,
                serial: None,
                rate_limit: None,
            });
        }
        // The user's own words come last, so that they win.
        if self.initrd.is_none() {
            let read_only = disks.first().is_some_and(|disk| disk.read_only);
            cmdline.push(if read_only {
                "root=/dev/vda ro"
            } else {
                "root=/dev/vda rw"
            });
        }
        cmdline.push(&self.cmdline);
        Ok(VmConfig {
            cpus: self.cpus,
            memory_mib: self.memory,
            kernel: KernelConfig {
                path: match &self.kernel {
                    Some(path) => path.clone(),
                    None => Artifact::Kernel.find()?,
                },
                initrd: self.initrd.clone(),
                cmdline: cmdline.join(" ").trim().to_owned(),
            },
            disks,
            nets: self.nets.clone(),
            shares: Vec::new(),
            vsock: Some(VsockConfig {
                cid: self.cid,
                path: directory.join("vsock.sock"),
                ports: vec![PortConfig {
                    port: API_PORT,
                    path: directory.join("api.sock"),
                }],
            }),
            console: if self.serial {
                ConsoleConfig::None
            } else {
                ConsoleConfig::Stdio
            },
            console_size: window_size().map(|(columns, rows)| WindowConfig { columns, rows }),
            serial: self.serial,
            rng: true,
            balloon: self.balloon.then_some(BalloonConfig {
                size_mib: 0,
                free_page_reporting: true,
                deflate_on_oom: true,
            }),
            spare_slots: 0,
            control_socket: Some(directory.join("control.sock")),
            assist: AssistConfig::Auto,
        })
    }
}

fn parse_disk(text: &str) -> Result<DiskConfig, String> {
    let (path, read_only) = match text.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (text.strip_suffix(":rw").unwrap_or(text), false),
    };
    if path.is_empty() {
        return Err("a disk needs a file".to_owned());
    }
    Ok(DiskConfig {
        path: Some(path.into()),
        read_only,
        serial: None,
        rate_limit: None,
    })
}

fn parse_net(text: &str) -> Result<NetConfig, String> {
    let mut net = NetConfig {
        tap: String::new(),
        mac: None,
        mtu: None,
        rate_limit: None,
    };
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("tap", name)) => net.tap = name.to_owned(),
            Some(("mac", mac)) => net.mac = Some(mac.to_owned()),
            Some(("mtu", bytes)) => {
                let mtu = bytes
                    .parse()
                    .map_err(|_| format!("`{bytes}` is not an MTU in bytes"))?;
                net.mtu = Some(mtu);
            }
            _ => return Err(format!("`{part}` is none of tap=NAME, mac=MAC, mtu=BYTES")),
        }
    }
    if net.tap.is_empty() {
        return Err("a network card needs tap=NAME".to_owned());
    }
    Ok(net)
}

/// A size in bytes with an optional unit of 1024s, as whole MiB.
fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes % (1 << 20) != 0 {
        return Err(format!("`{text}` is not a whole number of MiB"));
    }
    Ok(bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_dockers_units() {
        assert_eq!(parse_memory("256M"), Ok(256));
        assert_eq!(parse_memory("1g"), Ok(1024));
        assert_eq!(parse_memory("134217728"), Ok(128));
        assert_eq!(parse_memory("10T"), Ok(10 << 20));
        for wrong in ["", "M", "1.5G", "-1M", "100", "1X", "99999999999T"] {
            assert!(parse_memory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn disk_suffix_decides_who_may_write() {
        assert!(parse_disk("a:b.img:ro").expect("ro").read_only);
        let disk = parse_disk("a:b.img").expect("rw");
        assert_eq!((disk.path, disk.read_only), (Some("a:b.img".into()), false));
        assert!(parse_disk(":ro").is_err());
    }

    #[test]
    fn net_needs_a_tap_and_takes_no_unknown_part() {
        let net = parse_net("tap=t0,mtu=1400,mac=02:00:00:00:00:01").expect("net");
        assert_eq!((net.tap.as_str(), net.mtu), ("t0", Some(1400)));
        for wrong in ["", "mtu=1400", "tap=t0,speed=9", "tap=t0,mtu=x"] {
            assert!(parse_net(wrong).is_err(), "{wrong}");
        }
    }
}
