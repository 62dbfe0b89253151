//! Programs that are not this one: test programs of the crates that run in guests.

use std::fs::create_dir_all;
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::about;
use crate::Reply;

/// Where their disk is mounted.
const DISK: &str = "/run/programs";

pub fn run(
    device: &str,
    command: &[String],
    environment: Vec<(String, String)>,
) -> io::Result<Reply> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| io::Error::other("there is no command"))?;
    create_dir_all(DISK).map_err(about(DISK))?;
    match mount(device, DISK, c"erofs", MountFlags::RDONLY, None) {
        Ok(()) | Err(Errno::BUSY) => {}
        Err(e) => return Err(about(device)(e.into())),
    }
    let output = Command::new(Path::new(DISK).join(program))
        .args(arguments)
        .envs(environment)
        .current_dir(DISK)
        .output()
        .map_err(about(program))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    let code = output
        .status
        .code()
        .ok_or_else(|| io::Error::other(format!("{program}: {}: {text}", output.status)))?;
    Ok(Reply {
        count: code.unsigned_abs().into(),
        text,
        ..Reply::default()
    })
}
