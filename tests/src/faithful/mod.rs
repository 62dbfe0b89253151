//! The faithful lane: an outer machine, emulated in software by QEMU with AMD's SVM, in which
//! Debian's `kvm-amd` offers a `/dev/kvm` that behaves as on hardware.
//!
//! Build machines may only have a software-assisted KVM, on which an unmodified kernel does not
//! boot. What must be true on users' hardware is therefore shown here: the same test program that
//! runs on the machine's own KVM is carried into the outer machine and run there.
//!
//! Everything travels in the outer machine's initramfs, so there is no disk to make, no file system
//! to share and nothing left behind. The test's output comes back over the serial port as it is
//! written, its exit status through QEMU's `isa-debug-exit` device.

mod modules;
mod programs;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use modules::Modules;

use crate::cpio::Cpio;
use crate::process;

/// Where the plan lies in the outer machine.
pub const PLAN_PATH: &str = "/plan.json";
/// The port of `isa-debug-exit`: a byte `b` written here ends QEMU with status `2 * b + 1`.
pub const EXIT_PORT: u16 = 0xf4;
/// Added to the test's exit status, so that it cannot be taken for QEMU's own failure (status 1).
pub const EXIT_BASE: u8 = 16;
/// The largest exit status that fits in QEMU's; greater ones are reported as this.
pub const EXIT_MAX: u8 = 127 - EXIT_BASE;

/// The modules every test may count on.
const MODULES: [&str; 6] = ["kvm-amd", "tun", "irqbypass", "loop", "erofs", "overlay"];
/// Modules some kernels have and others have built in or do not need.
const OPTIONAL_MODULES: [&str; 1] = ["ccp"];

/// Programs of this machine that Bulkhead calls.
const PROGRAMS: [&str; 2] = ["mkfs.ext4", "virtiofsd"];

/// What the outer machine's PID 1 is to do.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Plan {
    /// Modules to load, in order.
    pub modules: Vec<String>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment variables for it.
    pub environment: Vec<(String, String)>,
}

/// An outer machine to be.
#[derive(Debug)]
pub struct Outer {
    /// A folder with `vmlinuz` and `modules/`, as `scripts/outer-kernel` makes it.
    pub kernel: PathBuf,
    /// The static binary that is its PID 1 (`outer-init`).
    pub init: PathBuf,
    /// Its memory; also holds all that is carried in, and every file a test writes.
    pub memory_mib: u32,
    /// Its processors.
    pub cpus: u32,
    /// After this it is ended, and the run has failed.
    pub timeout: Duration,
}

/// A file to carry in, and the environment variable that tells the test where it is.
#[derive(Clone, Debug)]
pub struct Carried {
    /// The environment variable.
    pub variable: String,
    /// The file on this machine.
    pub file: PathBuf,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The program ended with this status.
    Status(u8),
    /// The outer machine stopped without a status: it crashed, or QEMU did.
    Lost,
    /// The timeout passed.
    TimedOut,
}

impl Outer {
    /// Runs `program` with `arguments` in the outer machine, with the `carried` files and the
    /// `environment`; gives each line it writes to `line`, as it is written.
    pub fn run(
        &self,
        program: &Path,
        arguments: &[String],
        carried: &[Carried],
        environment: &[(String, String)],
        line: impl FnMut(&str),
    ) -> io::Result<Ended> {
        // Without a name, so that nothing is left even if we are killed.
        let initramfs = tempfile::tempfile()?;
        self.pack(&initramfs, program, arguments, carried, environment)?;
        self.boot(initramfs, line)
    }

    fn pack(
        &self,
        initramfs: &File,
        program: &Path,
        arguments: &[String],
        carried: &[Carried],
        environment: &[(String, String)],
    ) -> io::Result<()> {
        let mut plan = Plan {
            command: vec!["/program".to_owned()],
            environment: environment.to_vec(),
            ..Plan::default()
        };
        plan.command.extend_from_slice(arguments);
        let path = ("PATH".to_owned(), programs::PATH.to_owned());
        plan.environment.push(path);

        let mut cpio = Cpio::new(BufWriter::new(initramfs));
        for dir in ["dev", "proc", "sys", "tmp", "run", "modules", "carried"] {
            cpio.dir(dir)?;
        }
        cpio.file("init", &self.init)?;
        cpio.file("program", program)?;
        programs::carry(&mut cpio, &PROGRAMS)?;
        let modules = Modules::scan(&self.kernel.join("modules"))?;
        let mut loaded = Vec::new();
        let optional = OPTIONAL_MODULES.iter().filter(|m| modules.has(m));
        for name in optional.chain(&MODULES) {
            for module in modules.resolve(name, &mut loaded)? {
                let path = format!("modules/{}", plan.modules.len());
                cpio.bytes(&path, &module)?;
                plan.modules.push(format!("/{path}"));
            }
        }
        for (index, carried) in carried.iter().enumerate() {
            // One folder each, so that files keep their names whatever they are called.
            let name = carried.file.file_name().unwrap_or_default();
            let dir = format!("carried/{index}");
            let path = format!("{dir}/{}", name.to_string_lossy());
            cpio.dir(&dir)?;
            cpio.file(&path, &carried.file)?;
            plan.environment
                .push((carried.variable.clone(), format!("/{path}")));
        }
        cpio.bytes(&PLAN_PATH[1..], &serde_json::to_vec(&plan)?)?;
        cpio.finish()?;
        Ok(())
    }

    fn boot(&self, initramfs: File, mut line: impl FnMut(&str)) -> io::Result<Ended> {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt"])
            .args(["-M", "q35", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot"])
            .args(["-serial", "file:/dev/stdout"])
            .args(["-m", &self.memory_mib.to_string()])
            .args(["-smp", &self.cpus.to_string()])
            .arg("-device")
            .arg(format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"))
            .arg("-kernel")
            .arg(self.kernel.join("vmlinuz"))
            // A file without a name can be opened through the descriptor of it.
            .args(["-initrd", "/dev/stdin"])
            .args([
                "-append",
                // On a busy host the machine's clocks drift apart; the kernel would take the TSC for
                // broken, and its next choice is slow to read here. QEMU keeps what it has translated by
                // virtual addresses: a program that lies elsewhere at each start is translated at each
                // start, which no hardware does.
                "console=ttyS0 loglevel=3 panic=-1 oops=panic mitigations=off \
                 tsc=reliable clocksource=tsc norandmaps",
            ])
            .args(extra_arguments())
            .stdin(initramfs)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        process::die_with_parent(&mut command);
        let child = command.spawn().map_err(|e| {
            io::Error::new(e.kind(), format!("cannot start qemu-system-x86_64: {e}"))
        })?;
        let mut qemu = Qemu::new(child);
        let watchdog = qemu.end_after(self.timeout);

        let complaints = qemu.collect_stderr();
        if let Some(output) = qemu.stdout() {
            for bytes in BufReader::new(output).split(b'\n') {
                // Serial output is whatever the machine wrote; it may not be text.
                let bytes = bytes?;
                line(String::from_utf8_lossy(&bytes).trim_end_matches('\r'));
            }
        }
        let status = qemu.wait()?;
        let timed_out = watchdog.load(Ordering::Acquire);
        match status.code() {
            _ if timed_out => Ok(Ended::TimedOut),
            Some(code) if code & 1 == 1 && code / 2 >= i32::from(EXIT_BASE) => {
                Ok(Ended::Status((code / 2) as u8 - EXIT_BASE))
            }
            _ => {
                for complaint in complaints.join().unwrap_or_default() {
                    line(&complaint);
                }
                line(&format!("QEMU ended with {status}"));
                Ok(Ended::Lost)
            }
        }
    }
}

/// What `BULKHEAD_OUTER_QEMU` adds to QEMU's command line, to look into the machine:
/// `-monitor unix:/tmp/monitor,server,nowait`.
fn extra_arguments() -> Vec<String> {
    let extra = std::env::var("BULKHEAD_OUTER_QEMU").unwrap_or_default();
    extra.split_whitespace().map(str::to_owned).collect()
}

/// A QEMU process, killed when dropped.
struct Qemu {
    child: Arc<Mutex<Child>>,
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
    ended: Arc<AtomicBool>,
}

impl Qemu {
    fn new(mut child: Child) -> Self {
        Qemu {
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child: Arc::new(Mutex::new(child)),
            ended: Arc::new(AtomicBool::new(false)),
        }
    }

    fn stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.stdout.take()
    }

    /// Reads stderr to its end in the background: QEMU lists every CPU feature that its emulation
    /// lacks there, which is of interest only when it fails.
    fn collect_stderr(&mut self) -> std::thread::JoinHandle<Vec<String>> {
        let stderr = self.stderr.take();
        std::thread::spawn(move || {
            let lines = stderr.map(|s| BufReader::new(s).lines());
            lines
                .into_iter()
                .flatten()
                .map_while(Result::ok)
                .filter(|line| !line.contains("TCG doesn't support requested feature"))
                .collect()
        })
    }

    /// Kills the process when `timeout` has passed; the flag says whether that happened.
    fn end_after(&self, timeout: Duration) -> Arc<AtomicBool> {
        let child = Arc::clone(&self.child);
        let ended = Arc::clone(&self.ended);
        let fired = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&fired);
        let deadline = Instant::now() + timeout;
        std::thread::spawn(move || {
            while !ended.load(Ordering::Acquire) {
                if Instant::now() >= deadline {
                    flag.store(true, Ordering::Release);
                    if let Ok(mut child) = child.lock() {
                        let _ = child.kill();
                    }
                    return;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        fired
    }

    fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        // Its output has ended, so this takes no time and the lock is not held against the watchdog.
        let status = self
            .child
            .lock()
            .map_err(|_| io::Error::other("a thread that held QEMU's process panicked"))?
            .wait()?;
        self.ended.store(true, Ordering::Release);
        Ok(status)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Ok(mut child) = self.child.lock() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads the plan, in the outer machine.
pub fn read_plan() -> io::Result<Plan> {
    Ok(serde_json::from_slice(&fs::read(PLAN_PATH)?)?)
}

/// Writes `line` to stdout at once, behind a mark that tells the outer machine's lines from ours.
pub fn print_prefixed(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "outer| {line}");
    let _ = out.flush();
}
