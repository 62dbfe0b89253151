//! A guest that goes on from a snapshot: others go on from the same one, and none of them may be taken for
//! another.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use bulkhead_protocol::{Entropy, Restored};

use super::machine::trust_entropy;
use super::{Outcome, done, read};
use crate::guest::Guest;
use crate::http::Response;
use crate::{base64, clock};

/// Where the kernel is told to have a driver look at a device again. The driver has let go of windows that were
/// empty at the boot.
const BIND: &str = "/sys/bus/platform/drivers/virtio-mmio/bind";

impl Guest {
    pub(super) fn restored(&mut self, body: &[u8]) -> Outcome {
        let restored: Restored<'static> = read(body, "a Restored")?;
        // A client that has lost the answer asks again, and the clock is to be moved once.
        if self.restored.as_ref() == Some(&restored) {
            return done();
        }
        let entropy = check(&restored)?;
        let failed = |what: &str, e: io::Error| Response::internal(&format!("Cannot {what}: {e}."));
        // Before anything else: whatever is random from here on is this guest's alone.
        trust_entropy(&entropy).map_err(|e| failed("add to the kernel's random numbers", e))?;
        clock::advance(restored.asleep_ns).map_err(|e| failed("move the clock forward", e))?;
        bind(Path::new(BIND), &restored.windows)?;
        self.restored = Some(restored);
        done()
    }
}

/// Checks all that can be before anything is done, and returns the random bytes.
fn check(restored: &Restored<'_>) -> Result<Vec<u8>, Response> {
    let (min, max) = (Restored::MIN_ENTROPY, Entropy::MAX_BYTES);
    if restored.windows.len() > Restored::MAX_WINDOWS {
        let max = Restored::MAX_WINDOWS;
        let message = format!("windows: at most {max} of them.");
        return Err(Response::unprocessable(&message));
    }
    base64::decode(&restored.entropy)
        .filter(|bytes| (min..=max).contains(&bytes.len()))
        .ok_or_else(|| {
            let message =
                format!("entropy: base64, with padding, that has {min} to {max} bytes in it.");
            Response::unprocessable(&message)
        })
}

/// Has the driver take what is in the windows. When this returns, disks have their device nodes: the kernel
/// finds out about them before the write ends.
fn bind(file: &Path, windows: &[u32]) -> Result<(), Response> {
    if windows.is_empty() {
        return Ok(());
    }
    let mut driver = File::options().write(true).open(file).map_err(|e| {
        let message = format!("Cannot look for new devices in {}: {e}.", file.display());
        Response::internal(&message)
    })?;
    for window in windows {
        // The kernel numbers the devices of its command line from 0. A name to a write.
        driver
            .write_all(format!("virtio-mmio.{window}").as_bytes())
            .map_err(|e| {
                let message =
                    format!("Cannot use the device in the virtio-mmio window {window}: {e}.");
                Response::internal(&message)
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(bytes: usize, windows: usize) -> Restored<'static> {
        Restored {
            asleep_ns: 0,
            // Four digits of it are three bytes.
            entropy: "AAAA".repeat(bytes / 3).into(),
            windows: vec![0; windows],
        }
    }

    #[test]
    fn document_when_it_has_too_few_or_too_many_of_anything_then_refused() {
        assert_eq!(check(&restored(33, 64)).map(|b| b.len()).ok(), Some(33));
        for (wrong, field) in [
            (restored(30, 0), "entropy"),
            (restored(4098, 0), "entropy"),
            (restored(33, 65), "windows"),
            (
                Restored {
                    entropy: "A".repeat(45).into(),
                    ..restored(0, 0)
                },
                "entropy",
            ),
        ] {
            let response = check(&wrong).expect_err(field);
            assert_eq!(response.status, 422);
            let body = String::from_utf8_lossy(&response.body);
            assert!(body.contains(field), "{body}");
        }
    }

    #[test]
    fn windows_when_bound_then_by_the_kernels_names_and_what_fails_is_named() {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("bind");
        bind(&file, &[]).expect("nothing to do");
        let response = bind(&file, &[4]).expect_err("no such file");
        assert_eq!(response.status, 500);
        std::fs::write(&file, "").expect("file");
        bind(&file, &[4, 11]).expect("bound");
        let written = std::fs::read_to_string(&file).expect("read");
        assert_eq!(written, "virtio-mmio.4virtio-mmio.11");
        let response = bind(Path::new("/dev/full"), &[7]).expect_err("full");
        let body = String::from_utf8_lossy(&response.body);
        assert!(body.contains("window 7"), "{body}");
    }
}
