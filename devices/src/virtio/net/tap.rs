//! A tap of the host: a network interface whose other end is a file descriptor.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::HEADER_LEN;
use super::backend::{Backend, Offloads};

const DEVICE: &str = "/dev/net/tun";

/// Why a tap could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error(
        "{0:?} cannot be the name of a tap: give 1 to 15 characters without '/', ':' or blanks"
    )]
    Name(String),
    /// The host has no taps.
    #[error("cannot open {DEVICE}: {0}; load the kernel's module tun")]
    NoDevice(io::Error),
    /// There is such a tap, and somebody has it.
    #[error("tap {0} is in use by another process; give another name")]
    Busy(String),
    /// The name belongs to something else.
    #[error("{0} is a network interface, but not a tap with one queue; give another name")]
    NotATap(String),
    /// The tap belongs to somebody else, or is not there and may not be made.
    #[error(
        "not permitted to use tap {0}: run as root, or have it made for you with \
         `ip tuntap add {0} mode tap user USER`"
    )]
    NotPermitted(String),
    /// Something else.
    #[error("cannot {what} tap {name}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// On which tap.
        name: String,
        /// What the host said.
        source: io::Error,
    },
}

/// An open tap. One that was not there before goes away when this is dropped.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Takes the tap `name` of the current network namespace.
    ///
    /// If there is none, one is made and brought up, with this MTU; one that is there keeps what
    /// whoever made it has set.
    pub fn open(name: &str, mtu: Option<u16>) -> Result<Self, TapError> {
        let c_name = interface_name(name).ok_or_else(|| TapError::Name(name.to_owned()))?;
        // SAFETY: `c_name` is a C string, borrowed for the call.
        let existed = unsafe { libc::if_nametoindex(c_name.as_ptr()) } != 0;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(TapError::NoDevice)?;
        let tap = Tap {
            file,
            name: name.to_owned(),
        };

        let mut request = request(&c_name);
        // The union's flags are 16 bits, in which these fit.
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: TUNSETIFF takes an ifreq, borrowed for the call.
        let result =
            unsafe { libc::ioctl(tap.file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        if result != 0 {
            let source = io::Error::last_os_error();
            let name = tap.name;
            return Err(match source.raw_os_error() {
                Some(libc::EBUSY) => TapError::Busy(name),
                Some(libc::EINVAL) => TapError::NotATap(name),
                Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted(name),
                _ => TapError::Host {
                    what: "attach to",
                    name,
                    source,
                },
            });
        }

        let header_len = HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ takes an int, borrowed for the call.
        let result = unsafe {
            libc::ioctl(
                tap.file.as_raw_fd(),
                libc::TUNSETVNETHDRSZ as _,
                &raw const header_len,
            )
        };
        tap.check("set the header size of", result)?;
        // What an earlier user of a lasting tap left behind, this guest has not agreed to.
        tap.offload(Offloads::default())
            .map_err(|source| tap.error("set the offloads of", source))?;
        if !existed {
            tap.bring_up(&c_name, mtu)?;
        }
        Ok(tap)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn bring_up(&self, name: &CString, mtu: Option<u16>) -> Result<(), TapError> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        self.check("configure", fd.min(0))?;
        // SAFETY: `fd` was just opened and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut request = request(name);
        if let Some(mtu) = mtu {
            request.ifr_ifru.ifru_mtu = mtu.into();
            // SAFETY: SIOCSIFMTU takes an ifreq, borrowed for the call.
            let result =
                unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU as _, &raw mut request) };
            self.check("set the MTU of", result)?;
        }
        // A fresh interface has no other flag that could be set and that this would clear.
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        // SAFETY: SIOCSIFFLAGS takes an ifreq, borrowed for the call.
        let result = unsafe {
            libc::ioctl(
                socket.as_raw_fd(),
                libc::SIOCSIFFLAGS as _,
                &raw mut request,
            )
        };
        self.check("bring up", result)
    }

    fn offload(&self, offloads: Offloads) -> io::Result<()> {
        let mut flags = 0;
        // The rest means nothing without checksums (virtio 1.2 §5.1.3.1), and the tap refuses it.
        if offloads.checksum {
            flags |= libc::TUN_F_CSUM;
            for (on, flag) in [
                (offloads.tso4, libc::TUN_F_TSO4),
                (offloads.tso6, libc::TUN_F_TSO6),
            ] {
                if on {
                    flags |= flag;
                }
            }
            if offloads.ecn && (offloads.tso4 || offloads.tso6) {
                flags |= libc::TUN_F_TSO_ECN;
            }
        }
        // SAFETY: TUNSETOFFLOAD takes a number.
        let result = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::TUNSETOFFLOAD as _,
                libc::c_ulong::from(flags),
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn check(&self, what: &'static str, result: libc::c_int) -> Result<(), TapError> {
        if result == 0 {
            return Ok(());
        }
        Err(self.error(what, io::Error::last_os_error()))
    }

    fn error(&self, what: &'static str, source: io::Error) -> TapError {
        TapError::Host {
            what,
            name: self.name.clone(),
            source,
        }
    }
}

impl Backend for Tap {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.offload(offloads)
    }
}

/// `name` as the kernel takes it, or `None` where it would be refused, or stand for a pattern.
fn interface_name(name: &str) -> Option<CString> {
    let plain = |c: u8| c.is_ascii_graphic() && !matches!(c, b'/' | b':' | b'%');
    let fits = (1..libc::IFNAMSIZ).contains(&name.len());
    let valid = fits && name.bytes().all(plain) && name != "." && name != "..";
    valid.then(|| CString::new(name).ok()).flatten()
}

fn request(name: &CString) -> libc::ifreq {
    // SAFETY: all zeros is a valid ifreq: integers and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The name was checked to leave room for the zero at its end.
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = *from as libc::c_char;
    }
    request
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// Runs `test` in a network namespace of its own, on a thread of its own, where there may be one.
    pub(in crate::virtio::net) fn in_namespace(test: fn()) {
        let thread = std::thread::spawn(move || {
            // SAFETY: takes no pointers; concerns this thread only.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
                test();
            } else {
                eprintln!("skipped: {}", io::Error::last_os_error());
            }
        });
        thread.join().unwrap();
    }

    fn exists(name: &str) -> bool {
        let name = interface_name(name).unwrap();
        // SAFETY: a C string, borrowed for the call.
        unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
    }

    #[test]
    fn name_that_no_interface_can_have_is_refused() {
        for name in [
            "",
            "sixteencharacter",
            "a/b",
            "a b",
            "tap%d",
            "..",
            "a:1",
            "é",
        ] {
            let error = Tap::open(name, None).unwrap_err();
            assert!(matches!(error, TapError::Name(_)), "{name}: {error}");
        }
    }

    #[test]
    fn tap_when_absent_is_made_and_goes_with_us() {
        in_namespace(|| {
            let mut tap = Tap::open("fifteen-letters", Some(9000)).unwrap();
            assert_eq!(tap.name(), "fifteen-letters");
            assert!(exists("fifteen-letters"));
            let all = Offloads {
                checksum: true,
                tso4: true,
                tso6: true,
                ecn: true,
            };
            tap.set_offloads(all).unwrap();
            tap.set_offloads(Offloads {
                checksum: false,
                ..all
            })
            .unwrap();
            drop(tap);
            assert!(!exists("fifteen-letters"));
        });
    }

    #[test]
    fn tap_when_taken_or_not_a_tap_is_refused_with_a_reason() {
        in_namespace(|| {
            let _tap = Tap::open("tap0", None).unwrap();
            let error = Tap::open("tap0", None).unwrap_err();
            assert!(matches!(&error, TapError::Busy(name) if name == "tap0"));
            assert!(error.to_string().contains("in use"));
            let error = Tap::open("lo", None).unwrap_err();
            assert!(matches!(error, TapError::NotATap(_)), "{error}");
        });
    }
}
