//! The packet header and the numbers in it (virtio 1.2 §5.10.6).

use vm_memory::{ByteValued, Le16, Le32, Le64};

use crate::GuestMemory;
use crate::virtio::chain::Buffers;

/// The host's context ID (virtio 1.2 §5.10.4).
pub const HOST_CID: u64 = 2;

/// Bytes in a packet header.
pub const HEADER_SIZE: u32 = 44;

/// The largest payload the device puts in one packet. Linux takes no more than this either.
pub const MAX_PAYLOAD: u32 = 64 * 1024;

/// `type`: a stream socket, the only kind here.
pub const TYPE_STREAM: u16 = 1;

/// What a packet asks for (virtio 1.2 §5.10.6).
pub mod op {
    /// Open a connection.
    pub const REQUEST: u16 = 1;
    /// The connection is open.
    pub const RESPONSE: u16 = 2;
    /// There is no such connection, or not any more.
    pub const RST: u16 = 3;
    /// The sender will not receive, or not send, any more: see [`super::shutdown`].
    pub const SHUTDOWN: u16 = 4;
    /// Payload.
    pub const RW: u16 = 5;
    /// Here is how much room there is.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Tell me how much room there is.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// `flags` of a [`op::SHUTDOWN`] packet (virtio 1.2 §5.10.6.6).
pub mod shutdown {
    /// The sender will not receive any more.
    pub const RECEIVE: u32 = 1;
    /// The sender will not send any more.
    pub const SEND: u32 = 2;
    /// Both.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// The header every packet starts with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context ID of the sender.
    pub src_cid: u64,
    /// Context ID of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload behind the header.
    pub len: u32,
    /// The kind of socket: [`TYPE_STREAM`].
    pub kind: u16,
    /// One of [`op`].
    pub op: u16,
    /// Meaning depends on `op`.
    pub flags: u32,
    /// How much the sender is ready to hold for this connection, in bytes.
    pub buf_alloc: u32,
    /// How much of what it received it has let go of, in bytes, modulo 2^32.
    pub fwd_cnt: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(C, packed)]
struct Wire {
    src_cid: Le64,
    dst_cid: Le64,
    src_port: Le32,
    dst_port: Le32,
    len: Le32,
    kind: Le16,
    op: Le16,
    flags: Le32,
    buf_alloc: Le32,
    fwd_cnt: Le32,
}

const _: () = assert!(size_of::<Wire>() == HEADER_SIZE as usize);

// SAFETY: little-endian integers, packed so that there is no padding, for which every bit pattern is
// valid.
unsafe impl ByteValued for Wire {}

impl Header {
    /// Reads the header a chain starts with; `None` if the chain is too short for one.
    pub fn read(buffers: &Buffers, memory: &GuestMemory) -> Option<Header> {
        let wire: Wire = buffers.read_obj(memory, 0)?;
        Some(Header {
            src_cid: { wire.src_cid }.into(),
            dst_cid: { wire.dst_cid }.into(),
            src_port: { wire.src_port }.into(),
            dst_port: { wire.dst_port }.into(),
            len: { wire.len }.into(),
            kind: { wire.kind }.into(),
            op: { wire.op }.into(),
            flags: { wire.flags }.into(),
            buf_alloc: { wire.buf_alloc }.into(),
            fwd_cnt: { wire.fwd_cnt }.into(),
        })
    }

    /// Writes the header to the start of a chain; `false` if it does not fit.
    #[must_use]
    pub fn write(&self, buffers: &Buffers, memory: &GuestMemory) -> bool {
        let wire = Wire {
            src_cid: self.src_cid.into(),
            dst_cid: self.dst_cid.into(),
            src_port: self.src_port.into(),
            dst_port: self.dst_port.into(),
            len: self.len.into(),
            kind: self.kind.into(),
            op: self.op.into(),
            flags: self.flags.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
        };
        buffers.write_obj(memory, 0, wire)
    }
}

/// What tells a connection from every other: the CIDs are always the host's and the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The port on the host's side.
    pub host: u32,
    /// The port on the guest's side.
    pub guest: u32,
}

impl Ports {
    /// The ports of a packet that came from the guest.
    pub fn from_guest(header: &Header) -> Ports {
        Ports {
            host: header.dst_port,
            guest: header.src_port,
        }
    }
}
