//! The kernel command line: the VMM's own parameters first, then the user's, which so have the last
//! word.
//!
//! Every parameter costs the guest a walk through all it knows, so the VMM's own are few.

use bulkhead_devices::GuestMemory;
use vm_memory::{Bytes, GuestMemoryError};

use super::layout::{CMDLINE, CMDLINE_MAX_SIZE, VIRTIO_MMIO_SIZE};

/// Parameters for this machine, whatever the kernel. `quiet`, because each line printed costs time;
/// `reboot=k`, because the keyboard controller's reset line is how a guest without ACPI ends;
/// `panic=-1`, so that a panic ends it at once; `noreplace-smp`, because taking the `lock` prefixes out
/// of a kernel with one processor writes to most of its pages, which it otherwise has in common with
/// other VMs, and costs more time than a short life makes up for. The last two are for our own kernel and agent, and nothing
/// to others: no `dummy0` in every network namespace, and the port to report the end at.
pub const BASE: &str =
    "quiet reboot=k panic=-1 noreplace-smp dummy.numdummies=0 bulkhead.exit_port=0x501";

/// Why a text cannot go on the command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// It would not fit, or the kernel takes less.
    #[error(
        "the kernel command line would be {len} bytes long, and the kernel takes {max}: shorten it \
         or attach fewer devices"
    )]
    TooLong {
        /// Bytes it would have, without the NUL.
        len: usize,
        /// Bytes it may have.
        max: usize,
    },
    /// A character that cannot be part of it.
    #[error(
        "the kernel command line must be printable ASCII on one line: it contains {character:?} at \
         byte {position}"
    )]
    BadCharacter {
        /// The character.
        character: char,
        /// Where it is in the text that was to be added, in bytes.
        position: usize,
    },
}

/// A kernel command line in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline {
    text: String,
}

impl Cmdline {
    /// Bytes a command line can have at most, without its NUL.
    pub const MAX_LEN: usize = CMDLINE_MAX_SIZE - 1;

    /// An empty command line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends parameters, after a space if need be. On error nothing is appended.
    pub fn push(&mut self, parameters: &str) -> Result<(), CmdlineError> {
        let unprintable = |&(_, character): &(usize, char)| !(' '..='~').contains(&character);
        if let Some((position, character)) = parameters.char_indices().find(unprintable) {
            return Err(CmdlineError::BadCharacter {
                character,
                position,
            });
        }
        let parameters = parameters.trim();
        if parameters.is_empty() {
            return Ok(());
        }
        let separator = if self.text.is_empty() { "" } else { " " };
        let len = self.text.len() + separator.len() + parameters.len();
        if len > Self::MAX_LEN {
            return Err(CmdlineError::TooLong {
                len,
                max: Self::MAX_LEN,
            });
        }
        self.text.push_str(separator);
        self.text.push_str(parameters);
        Ok(())
    }

    /// Tells the guest of the virtio-mmio window at `address`, whose device interrupts by `irq`.
    pub fn push_virtio_mmio(&mut self, address: u64, irq: u32) -> Result<(), CmdlineError> {
        let kib = VIRTIO_MMIO_SIZE >> 10;
        self.push(&format!("virtio_mmio.device={kib}K@{address:#x}:{irq}"))
    }

    /// The text so far.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Puts it, with its NUL, where [`params::write`](super::params::write) says it is.
    pub fn write(&self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        let mut bytes = Vec::with_capacity(self.text.len() + 1);
        bytes.extend_from_slice(self.text.as_bytes());
        bytes.push(0);
        memory.write_slice(&bytes, CMDLINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn push_when_called_again_separates_by_one_space() {
        let mut cmdline = Cmdline::new();
        cmdline.push("reboot=k panic=-1").expect("base");
        cmdline.push_virtio_mmio(0xd000_1000, 6).expect("device");
        cmdline.push("  ").expect("blank");
        cmdline.push(" root=/dev/vda ro ").expect("user's");
        assert_eq!(
            cmdline.as_str(),
            "reboot=k panic=-1 virtio_mmio.device=4K@0xd0001000:6 root=/dev/vda ro"
        );
    }

    #[test]
    fn push_when_too_long_says_by_how_much_and_keeps_what_was() {
        let mut cmdline = Cmdline::new();
        cmdline.push(&"a".repeat(2000)).expect("fits");
        assert_eq!(
            cmdline.push(&"b".repeat(47)),
            Err(CmdlineError::TooLong {
                len: 2048,
                max: 2047
            })
        );
        assert_eq!(cmdline.as_str().len(), 2000);
        cmdline.push(&"b".repeat(46)).expect("just fits");
        assert_eq!(cmdline.as_str().len(), 2047);
    }

    #[test]
    fn push_when_not_printable_ascii_names_the_character() {
        for (text, position) in [("a\0b", 1), ("quiet\ninit=/x", 5), ("\ta", 0), ("ro é", 3)] {
            let error = Cmdline::new().push(text).expect_err(text);
            assert!(
                matches!(error, CmdlineError::BadCharacter { position: p, .. } if p == position),
                "{error}"
            );
        }
        let error = Cmdline::new().push("a\nb").expect_err("newline");
        assert!(error.to_string().contains(r"'\n' at byte 1"), "{error}");
    }

    #[test]
    fn write_when_done_ends_with_nul() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        memory
            .write_slice(&[0xff; 16], CMDLINE)
            .expect("something old");
        let mut cmdline = Cmdline::new();
        cmdline.push("quiet").expect("push");
        cmdline.write(&memory).expect("write");
        let mut bytes = [0; 7];
        memory.read_slice(&mut bytes, CMDLINE).expect("read");
        assert_eq!(&bytes, b"quiet\0\xff");
    }
}
