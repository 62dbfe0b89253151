//! With the real file server, `virtiofsd` of Debian's package of that name or, in Debian 12,
//! qemu-system-common. Needs root.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use tempfile::TempDir;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vm_memory::FileOffset;

use super::*;
use crate::virtio::driver::TestDriver;

const RUST_VIRTIOFSD: &str = "/usr/libexec/virtiofsd";
const QEMU_VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
const TAG: &str = "test";
const REQUESTS: usize = 1;
const MEMORY: usize = 1 << 21;
const IN: u64 = 0x8_0000;
const OUT: u64 = 0x9_0000;

const FUSE_LOOKUP: u32 = 1;
const FUSE_INIT: u32 = 26;

struct Bench {
    driver: TestDriver,
    server: Child,
    lost: Receiver<String>,
    _dir: TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn shared_memory() -> Arc<GuestMemory> {
    // SAFETY: the name is a C string; the result is checked, and then a descriptor of ours.
    let file = unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    };
    file.set_len(MEMORY as u64).unwrap();
    let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
    Arc::new(GuestMemory::from_ranges_with_files([range]).unwrap())
}

/// A device and a server of a folder with the file `there`.
fn bench() -> Bench {
    bench_with(shared_memory())
}

fn bench_with(memory: Arc<GuestMemory>) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("there"), "content").unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut server = if Path::new(RUST_VIRTIOFSD).exists() {
        let mut command = Command::new(RUST_VIRTIOFSD);
        command
            .args(["--fd=0", "--sandbox=chroot", "--log-level=error"])
            .arg(format!("--shared-dir={}", folder.display()));
        command
    } else {
        let mut command = Command::new(QEMU_VIRTIOFSD);
        command
            .args(["--fd=0", "-f", "-o", "sandbox=chroot,log_level=err", "-o"])
            .arg(format!("source={}", folder.display()));
        command
    };
    let server = server
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .expect("virtiofsd, of the package virtiofsd or qemu-system-common");
    let (sender, lost) = channel();
    let fs = Fs::connect(FsConfig {
        name: "fs0".into(),
        tag: TAG.into(),
        socket,
        lost: Box::new(move |why| sender.send(why).unwrap()),
    })
    .unwrap();
    Bench {
        driver: TestDriver::with_memory(Box::new(fs), memory),
        server,
        lost,
        _dir: dir,
    }
}

impl Bench {
    fn start(&mut self) {
        // The driver here does not say which of its buffers it wants to hear of.
        let features = !(1 << VIRTIO_RING_F_EVENT_IDX);
        assert_eq!(self.driver.start(features, 64), 0xf);
    }

    /// Sends a request and waits for the interrupt: the error, or the length of the answer.
    fn ask(&mut self, opcode: u32, body: &[u8]) -> Result<u32, i32> {
        let mut header = [0; 40];
        header[..4].copy_from_slice(&(40 + body.len() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&opcode.to_le_bytes());
        header[8..16].copy_from_slice(&7u64.to_le_bytes());
        header[16..24].copy_from_slice(&1u64.to_le_bytes());
        self.driver.put(IN, &header);
        self.driver.put(IN + 64, body);
        let readable = [(IN, 40), (IN + 64, body.len() as u32)];
        self.driver
            .add_chain(REQUESTS, &readable, &[(OUT, 16), (OUT + 64, 128)]);
        self.driver.write(0x50, REQUESTS as u32);
        let mut line = libc::pollfd {
            fd: self.driver.transport.interrupt().line().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        while self.driver.used(REQUESTS).is_none() {
            // SAFETY: one pollfd, borrowed for the call.
            let ready = unsafe { libc::poll(&mut line, 1, 60_000) };
            assert_eq!(ready, 1, "no interrupt");
            self.driver.transport.interrupt().line().read().unwrap();
            assert_eq!(self.driver.read(0x60) & 1, 1);
            self.driver.write(0x64, 1);
        }
        assert_eq!(self.driver.get::<8>(OUT + 8), 7u64.to_le_bytes());
        match i32::from_le_bytes(self.driver.get(OUT + 4)) {
            0 => Ok(u32::from_le_bytes(self.driver.get(OUT))),
            error => Err(error),
        }
    }

    fn init(&mut self) {
        let body: Vec<u8> = [7u32, 31, 4096, 0]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        assert!(self.ask(FUSE_INIT, &body).unwrap() > 16);
    }
}

#[test]
fn requests_are_answered_past_this_process_and_again_after_a_reset() {
    let mut b = bench();
    for _ in 0..2 {
        b.start();
        b.init();
        assert!(b.ask(FUSE_LOOKUP, b"there\0").unwrap() > 16);
        assert_eq!(b.ask(FUSE_LOOKUP, b"elsewhere\0"), Err(-libc::ENOENT));
        b.driver.transport.shutdown();
    }
    assert!(b.lost.try_recv().is_err());
}

#[test]
fn configuration_is_the_tag_and_one_queue_of_requests() {
    let b = bench();
    let mut config = [0; 44];
    crate::bus::BusDevice::read(&b.driver.transport, 0x100, &mut config);
    assert_eq!(&config[..5], b"test\0");
    assert_eq!(config[36..40], [1, 0, 0, 0]);
    assert_eq!(config[40..], [0; 4]);
    assert!(b.driver.transport.is_served_elsewhere());
}

#[test]
fn server_that_ends_is_missed_once_and_nothing_waits_for_it() {
    let mut b = bench();
    b.start();
    b.init();
    b.server.kill().unwrap();
    assert!(b.driver.pump(60_000));
    let why = b.lost.recv().unwrap();
    assert!(why.contains("`test` has ended"), "{why}");
    b.driver.pump(0);
    b.driver.transport.shutdown();
    assert!(b.lost.try_recv().is_err());
}

#[test]
fn memory_that_cannot_be_shared_stops_the_device_and_not_the_process() {
    let private = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let mut b = bench_with(Arc::new(private));
    let needs_reset = VIRTIO_CONFIG_S_NEEDS_RESET;
    assert_eq!(b.driver.start(u64::MAX, 64) & needs_reset, needs_reset);
}

#[test]
fn server_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let connect = || {
        Fs::connect(FsConfig {
            name: "fs0".into(),
            tag: TAG.into(),
            socket: socket.clone(),
            lost: Box::new(|_| {}),
        })
    };
    assert!(matches!(connect().err(), Some(FsError::Connect { .. })));
    let listener = UnixListener::bind(&socket).unwrap();
    let other = std::thread::spawn(move || drop(listener.accept().unwrap()));
    assert!(matches!(connect().err(), Some(FsError::Server { .. })));
    other.join().unwrap();
}

#[test]
fn device_cannot_be_saved_and_says_so() {
    let b = bench();
    let error = b.driver.transport.save().unwrap_err();
    assert!(matches!(error, StateError::NotSupported { .. }), "{error}");
}
