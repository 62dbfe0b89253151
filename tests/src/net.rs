//! Network interfaces for tests, made with the kernel's own calls: no tools needed, and all of it
//! in a network namespace of the test's, so that nothing is left on the machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::panic;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `test` on a thread that has a new, empty network namespace (with `lo` up). Processes the
/// test starts are in it too; it goes when the last of them does.
pub fn in_new_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: NEWNET changes what this thread's later sockets see, and no descriptor table
                // or memory.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                    .expect("make a network namespace (are we root?)");
                set_up("lo").expect("bring lo up");
                test()
            })
            .join()
    });
    result.unwrap_or_else(|payload| panic::resume_unwind(payload))
}

/// A persistent tap interface in the namespace of the thread that made it.
#[derive(Debug)]
pub struct Tap {
    name: String,
}

impl Tap {
    /// Makes the tap `name`, with `address/prefix`, and brings it up.
    pub fn new(name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<Self> {
        let tap = attach(name)?;
        // SAFETY: TUNSETPERSIST takes an integer; the descriptor is open.
        check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST as _, 1) })?;
        set_address(name, address, prefix)?;
        set_up(name)?;
        Ok(Tap {
            name: name.to_owned(),
        })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Ok(tap) = attach(&self.name) {
            // SAFETY: as in `new`. Failure leaves the interface to the namespace's end.
            unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST as _, 0) };
        }
    }
}

/// Attaches to the tap `name`, which is made if it does not exist. While the file is open the tap is
/// taken: nobody else can attach.
pub fn attach(name: &str) -> io::Result<File> {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = request(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
    Ok(tap)
}

/// Whether this thread's namespace has an interface `name`.
pub fn exists(name: &str) -> bool {
    let Ok(name) = std::ffi::CString::new(name) else {
        return false;
    };
    // SAFETY: reads a NUL-terminated string.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

/// Brings the interface `name` up.
pub fn set_up(name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl_interface(libc::SIOCSIFFLAGS as libc::c_ulong, &mut request)
}

/// Sets the MTU of the interface `name`, in bytes.
pub fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    ioctl_interface(libc::SIOCSIFMTU as libc::c_ulong, &mut request)
}

fn set_address(name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let mut with_address = request(name)?;
    with_address.ifr_ifru.ifru_addr = socket_address(address);
    ioctl_interface(libc::SIOCSIFADDR as libc::c_ulong, &mut with_address)?;
    let mut with_mask = request(name)?;
    with_mask.ifr_ifru.ifru_netmask = socket_address(Ipv4Addr::from(mask));
    ioctl_interface(libc::SIOCSIFNETMASK as libc::c_ulong, &mut with_mask)
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} cannot be an interface's name"),
        ));
    }
    // SAFETY: an ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(address).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: sockaddr_in and sockaddr are plain data of the same size, the one a view of the other.
    unsafe { std::mem::transmute(inet) }
}

fn ioctl_interface(what: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // Any socket of the namespace will do to name an interface by.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: the calls used here read and write one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what as _, request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
