//! The guest as a machine.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use bulkhead_protocol::{API_VERSION, Clock, Entropy, Health, HealthStatus, Shutdown};
use serde_json::json;

use super::{Outcome, done, json, read};
use crate::connection::Answer;
use crate::guest::Guest;
use crate::http::Response;
use crate::{base64, clock, info};

impl Guest {
    pub(super) fn health(&self) -> Outcome {
        let status = match self.shutdown() {
            None => HealthStatus::Ok,
            Some(_) => HealthStatus::ShuttingDown,
        };
        let api = API_VERSION;
        json(200, &Health { status, api })
    }

    pub(super) fn info(&self) -> Outcome {
        json(200, &info::info(self.timings))
    }

    pub(super) fn post_shutdown(&mut self, body: &[u8]) -> Outcome {
        let shutdown = if body.is_empty() {
            Shutdown::default()
        } else {
            read(body, "a Shutdown")?
        };
        self.begin_shutdown(shutdown);
        Ok(Answer::Now(Response {
            // So that the agent can see the answer received before it powers off.
            last: true,
            ..Response::json(202, &json!({}))
        }))
    }

    pub(super) fn clock(&self) -> Outcome {
        let unix_ns = clock::unix_ns();
        json(200, &Clock { unix_ns })
    }

    pub(super) fn set_clock(&self, body: &[u8]) -> Outcome {
        let clock: Clock = read(body, "a Clock")?;
        clock::set_unix_ns(clock.unix_ns).map_err(|e| {
            let message = format!("Cannot set the clock to {}: {e}.", clock.unix_ns);
            Response::internal(&message)
        })?;
        done()
    }

    pub(super) fn add_entropy(&self, body: &[u8]) -> Outcome {
        let entropy: Entropy<'_> = read(body, "an Entropy")?;
        let bytes = base64::decode(&entropy.base64)
            .filter(|bytes| !bytes.is_empty() && bytes.len() <= Entropy::MAX_BYTES)
            .ok_or_else(|| {
                let max = Entropy::MAX_BYTES;
                let message = format!("base64 has 1 to {max} bytes in it, with padding.");
                Response::unprocessable(&message)
            })?;
        trust_entropy(&bytes).map_err(|e| {
            let message = format!("Cannot add to the kernel's random numbers: {e}.");
            Response::internal(&message)
        })?;
        done()
    }
}

/// `struct rand_pool_info` of random(4), with room for the most bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    size: libc::c_int,
    bytes: [u8; Entropy::MAX_BYTES],
}

const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Adds bytes to the kernel's random numbers, believes them to be random through and through, and has
/// what is handed out from now on depend on them.
pub(super) fn trust_entropy(bytes: &[u8]) -> io::Result<()> {
    let mut pool = RandPoolInfo {
        // Both at most 8 * MAX_BYTES.
        entropy_count: (bytes.len() * 8) as libc::c_int,
        size: bytes.len() as libc::c_int,
        bytes: [0; Entropy::MAX_BYTES],
    };
    let to = pool.bytes.get_mut(..bytes.len());
    to.ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(bytes);
    let random = File::options().write(true).open("/dev/random")?;
    // SAFETY: RNDADDENTROPY reads the structure's two integers and `size` bytes behind them, which are
    // all there and live through the call.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: RNDRESEEDCRNG takes no argument.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
