//! What of a container's filesystems the configuration itself mounts.

use std::ffi::CString;

use super::{absolute, c_string};
use crate::error::Error;
use crate::plan::{Operation as O, Place, Slot};
use crate::sys::MountAttributes;

/// Which mounts later operations can work below.
#[derive(Debug, Default)]
pub struct Layout {
    pub proc: bool,
    pub sys: bool,
    pub dev: bool,
    /// /dev is not the image's own: a bind mount of somebody's.
    pub foreign_dev: bool,
    /// /dev is made read-only when all is made in it.
    pub late_read_only: Vec<(CString, MountAttributes)>,
}

impl Layout {
    /// The way to an absolute path, by the mounts that are ours.
    pub fn place(&self, field: &str, path: &str) -> Result<Place, Error> {
        let path = absolute(field, path)?;
        let below = |mount: &str| path.strip_prefix(mount).filter(|rest| !rest.is_empty());
        let slots = [
            (self.proc, Slot::Proc, "/proc/"),
            (self.sys, Slot::Sys, "/sys/"),
            (self.dev, Slot::Dev, "/dev/"),
        ];
        for (ours, slot, mount) in slots {
            // Below /dev only what is in it directly: more may be mounted there.
            if let Some(rest) =
                below(mount).filter(|rest| ours && (slot != Slot::Dev || !rest.contains('/')))
            {
                return Ok(Place {
                    slot: Some(slot),
                    path: c_string(field, rest)?,
                });
            }
        }
        Ok(Place {
            slot: None,
            path: c_string(field, &path)?,
        })
    }

    /// What is done when all is made.
    pub fn finish(self, operations: &mut Vec<O>) {
        let change = |(target, attributes)| O::Attributes {
            target,
            attributes,
            flags: 0,
        };
        operations.extend(self.late_read_only.into_iter().map(change));
    }

    /// What is mounted over one of ours hides it.
    pub fn covered_by(&mut self, destination: &str) {
        match destination {
            "/proc" => self.proc = false,
            "/sys" => self.sys = false,
            "/dev" => (self.dev, self.foreign_dev) = (false, false),
            _ => {}
        }
    }
}
