//! What a test asks and what the guest answers.

use serde::{Deserialize, Serialize};

/// A request: `{"op":"disk_read","device":"/dev/vdb","bytes":4096}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Writes the stream of `seed` to a disk and syncs it. Reply: `bytes`, `checksum`.
    DiskWrite {
        /// Path of the device.
        device: String,
        /// Where to begin, in bytes.
        #[serde(default)]
        offset: u64,
        /// How much.
        bytes: u64,
        /// Of the stream.
        seed: u64,
    },
    /// Reads from a disk, past the page cache. Reply: `bytes`, `checksum`.
    DiskRead {
        /// Path of the device.
        device: String,
        /// Where to begin, in bytes.
        #[serde(default)]
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// Discards (or with `zero` zeroes) a range of a disk.
    DiskDiscard {
        /// Path of the device.
        device: String,
        /// Where to begin, in bytes.
        #[serde(default)]
        offset: u64,
        /// How much.
        bytes: u64,
        /// Ask for zeroes instead.
        #[serde(default)]
        zero: bool,
    },
    /// Size of a disk. Reply: `bytes`, and in `text` `ro` or `rw`.
    DiskInfo {
        /// Path of the device.
        device: String,
    },
    /// Takes `bytes` bytes that follow the request. Reply: `bytes`, `checksum`.
    VsockSink {
        /// How many follow.
        bytes: u64,
    },
    /// Sends `bytes` bytes of a stream before the reply. Reply: `bytes`, `checksum`.
    VsockSource {
        /// How many.
        bytes: u64,
        /// Of the stream.
        seed: u64,
    },
    /// Sends back whatever follows the request, until the host ends its side. No reply.
    Echo,
    /// Connects to a port of the host, sends a stream, ends its side, and reads until the host ends
    /// the other. Reply: `bytes` and `checksum` of what came back.
    VsockDial {
        /// The host's port.
        port: u32,
        /// How much is sent.
        bytes: u64,
        /// Of the stream.
        seed: u64,
    },
    /// Opens `count` connections to an echoing port of the host, sends `bytes` bytes of the stream
    /// `i` on the `i`th, reads them back, and closes none before the last is done. Reply: `count` of
    /// those that echoed right.
    VsockMany {
        /// The host's port.
        port: u32,
        /// How many connections.
        count: u32,
        /// How much on each; at most 4096.
        bytes: u32,
    },
    /// Gives an interface an address and brings it up.
    NetUp {
        /// Such as `eth0`.
        interface: String,
        /// Such as `10.0.0.2/24`.
        address: String,
    },
    /// Pings an address `count` times. Reply: `count` of the answers.
    Ping {
        /// IPv4.
        address: String,
        /// How often.
        count: u32,
        /// Bytes in each request besides the header.
        #[serde(default)]
        size: u16,
    },
    /// Connects to `ADDRESS:PORT` and reads until it ends. Reply: `bytes`, `checksum`.
    TcpSink {
        /// Where to.
        address: String,
    },
    /// Connects to `ADDRESS:PORT` and sends a stream. Reply: `bytes`, `checksum`.
    TcpSource {
        /// Where to.
        address: String,
        /// How much.
        bytes: u64,
        /// Of the stream.
        seed: u64,
    },
    /// Runs a thread on each processor. Reply: `count` of those that ran where they should.
    Cpus,
    /// Forks processes that add in AVX2 registers, each its own numbers. Reply: `count` of those
    /// that came out right.
    Avx {
        /// How many at a time.
        processes: u32,
        /// Additions each register of each process does.
        iterations: u64,
    },
    /// Uses a processor for some milliseconds. Reply: `count` of loops.
    Spin {
        /// How long.
        millis: u64,
    },
    /// Has each processor wait for one timer after the other, from the first such request on, and look whether a clock
    /// goes back. Reply: `count` of the timers that have come on the slowest of them.
    Timers,
    /// Runs a program of an EROFS disk to its end, with its folder as working directory. Reply: what
    /// it wrote in `text`, its exit code in `count`.
    Program {
        /// Path of the device.
        device: String,
        /// The program's path on the disk, and its arguments.
        command: Vec<String>,
        /// Further environment variables.
        #[serde(default)]
        environment: Vec<(String, String)>,
    },
    /// Touches memory and gives it back. Reply: `bytes` touched.
    Memory {
        /// How much.
        touch_mib: u64,
    },
    /// Reads random bytes from the device (`/dev/hwrng`). Reply: `bytes`, `checksum`, `text` in hex.
    Rng {
        /// At most 4096.
        bytes: u32,
    },
    /// Writes a text to the console.
    ConsoleWrite {
        /// As it is: newlines are the caller's.
        text: String,
    },
    /// Reads a file (of `/proc`, `/sys`...). Reply: `text`.
    ReadFile {
        /// Its path.
        path: String,
    },
    /// Writes a file.
    WriteFile {
        /// Its path.
        path: String,
        /// All of what is written.
        text: String,
    },
    /// Reply: `text` has sysname, nodename, release, version and machine in lines.
    Uname,
    /// Reply: `text` is `/proc/meminfo`.
    Meminfo,
    /// Replies, then powers off as the agent does.
    Poweroff,
    /// Replies, then resets the VM: by the keyboard controller with the kernel parameter `reboot=k`,
    /// by a triple fault with `reboot=t`.
    Reboot,
    /// Replies, then ends PID 1, which is a panic of the kernel.
    Panic,
    /// Replies, then writes a byte to an I/O port (`0xfe` to `0x64` resets the VM, for one).
    WritePort {
        /// Which.
        port: u16,
        /// What.
        value: u8,
    },
}

/// An answer. Which fields mean something depends on the request; the others are 0 and empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reply {
    /// Why it failed; `None` if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Bytes moved.
    pub bytes: u64,
    /// Of the bytes moved.
    pub checksum: u64,
    /// Things counted.
    pub count: u64,
    /// Words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// How long it took in the guest, in nanoseconds.
    pub nanos: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_when_written_by_hand_then_understood() {
        let json = r#"{"op":"disk_read","device":"/dev/vdb","bytes":4096}"#;
        let request: Request = serde_json::from_str(json).expect("request");
        assert_eq!(
            request,
            Request::DiskRead {
                device: "/dev/vdb".into(),
                offset: 0,
                bytes: 4096
            }
        );
        let request: Request = serde_json::from_str(r#"{"op":"cpus"}"#).expect("request");
        assert_eq!(request, Request::Cpus);
    }

    #[test]
    fn request_when_misspelt_then_refused() {
        for json in [
            r#"{"op":"x"}"#,
            r#"{"op":"spin"}"#,
            r#"{"op":"spin","millis":1,"y":2}"#,
        ] {
            assert!(serde_json::from_str::<Request>(json).is_err(), "{json}");
        }
    }
}
