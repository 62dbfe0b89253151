//! Programs of this machine that the tests' subject calls: carried into the outer machine with the
//! libraries they are linked with, each at the path it has here.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Cpio;

/// Where programs are looked for, here and there.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Where programs lie that only others call.
const PRIVATE: [&str; 2] = ["/usr/libexec", "/usr/lib/qemu"];

/// Adds these programs to the archive.
pub fn carry<W: Write>(cpio: &mut Cpio<W>, programs: &[&str]) -> io::Result<()> {
    let mut files = BTreeSet::new();
    for name in programs {
        let program = find(name)?;
        files.extend(libraries(&program)?);
        files.insert(program);
    }
    let mut folders = BTreeSet::new();
    for file in &files {
        let parents: Vec<&Path> = file.ancestors().skip(1).collect();
        for folder in parents.into_iter().rev() {
            let name = relative(folder);
            if !name.is_empty() && folders.insert(folder.to_owned()) {
                cpio.dir(&name)?;
            }
        }
        cpio.file(&relative(file), file)?;
    }
    Ok(())
}

fn find(name: &str) -> io::Result<PathBuf> {
    PATH.split(':')
        .chain(PRIVATE)
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let message = format!("there is no {name} in {PATH}; `make setup` installs it");
            io::Error::new(io::ErrorKind::NotFound, message)
        })
}

fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!(
            "ldd {}: {}",
            program.display(),
            said.trim()
        )));
    }
    Ok(paths(&String::from_utf8_lossy(&output.stdout)))
}

/// The files in what ldd(1) prints: `name => /path (0x1)`, or `/path (0x1)` for the loader.
fn paths(listing: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let word = line.split("=>").last()?.split_whitespace().next()?;
        word.starts_with('/').then(|| PathBuf::from(word))
    };
    listing.lines().filter_map(path).collect()
}

fn relative(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_when_ldd_lists_them_then_the_files_and_not_the_kernels() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            paths(listing),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }

    #[test]
    fn programs_when_carried_then_their_libraries_and_folders_are_too() {
        let mut cpio = Cpio::new(Vec::new());
        carry(&mut cpio, &["sh"]).expect("carry");
        let archive = cpio.finish().expect("finish");
        let archive = String::from_utf8_lossy(&archive);
        for name in ["bin/sh\0", "libc.so.6\0", "usr\0"] {
            assert!(archive.contains(name), "{name:?}");
        }
        assert!(carry(&mut Cpio::new(Vec::new()), &["no such program"]).is_err());
    }
}
