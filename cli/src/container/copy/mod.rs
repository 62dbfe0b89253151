//! `cp`: files between a container and this machine, as tar archives on the way.

mod unpack;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::thread;

use bulkhead_engine::{Engine, Entry};
use clap::Args;

use crate::Outcome;
use unpack::{Naming, unpack};

/// Copy files between a container and this machine; `-` is a tar archive on standard input or output.
#[derive(Args)]
#[command(after_help = "\
What is copied to a folder that is there lands in it, with its name; otherwise it gets the target's
name. The contents of a folder alone are copied with `FOLDER/.`.

Examples:
  bulkhead cp web:/etc/nginx ./nginx
  bulkhead cp site/. web:/srv
  bulkhead cp web:/var/log - | tar tv")]
pub struct CpArgs {
    /// Keep owners
    #[arg(short, long)]
    archive: bool,
    /// CONTAINER:PATH, PATH or -
    source: String,
    /// CONTAINER:PATH, PATH or -
    target: String,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Here(&'a str),
    In(&'a str, &'a str),
}

/// Copies.
pub fn copy(engine: &Engine, args: &CpArgs) -> Outcome {
    match (parse(&args.source), parse(&args.target)) {
        (End::In(container, path), End::Here(target)) => {
            let entry = engine.running(container)?;
            take_out(&entry, path, target, args.archive)
        }
        (End::Here(source), End::In(container, path)) => {
            let entry = engine.running(container)?;
            put_in(&entry, source, path)
        }
        (End::In(..), End::In(..)) => {
            Err("files cannot be copied from one container to another: copy them here first".into())
        }
        (End::Here(_), End::Here(_)) => {
            Err("neither is in a container: write one as CONTAINER:PATH".into())
        }
    }
}

/// A path begins with `/` or `.` or has no colon; all else is a container and a path in it.
fn parse(text: &str) -> End<'_> {
    match text.split_once(':') {
        Some((container, path)) if !container.is_empty() && !text.starts_with(['/', '.']) => {
            End::In(container, path)
        }
        _ => End::Here(text),
    }
}

fn take_out(entry: &Entry, path: &str, target: &str, owners: bool) -> Outcome {
    let mut tar = entry
        .agent()
        .files(entry.config.guest_id(), &absolute(path))?;
    if target == "-" {
        io::copy(&mut tar, &mut io::stdout().lock())?;
        return Ok(0);
    }
    let target_path = Path::new(target);
    let naming = if target_path.is_dir() {
        match contents_only(path) {
            true => Naming::Contents(target_path.to_owned()),
            false => Naming::Into(target_path.to_owned()),
        }
    } else if target.ends_with('/') {
        return Err(format!("there is no folder {target}").into());
    } else {
        Naming::As(target_path.to_owned())
    };
    unpack(&mut tar, &naming, owners)
        .map_err(|e| format!("cannot copy {path} to {target}: {e}"))?;
    Ok(0)
}

fn put_in(entry: &Entry, source: &str, path: &str) -> Outcome {
    let (agent, id) = (entry.agent(), entry.config.guest_id());
    let path = absolute(path);
    if source == "-" {
        agent.put_files(id, &path, &mut io::stdin().lock())?;
        return Ok(0);
    }
    let failed = |e: io::Error| format!("cannot copy {source}: {e}");
    let metadata = fs::symlink_metadata(source).map_err(failed)?;
    let there = kind_of(entry, &path);
    let (folder, name) = match there {
        Some(tar::EntryType::Directory) if contents_only(source) => (path.clone(), None),
        Some(tar::EntryType::Directory) => (path.clone(), Some(own_name(source)?)),
        Some(_) if metadata.is_dir() => {
            return Err(format!("{path} is no folder, and {source} is one").into());
        }
        None if path.ends_with('/') => return Err(format!("there is no folder {path}").into()),
        _ => {
            let (folder, name) = path
                .trim_end_matches('/')
                .rsplit_once('/')
                .unwrap_or_default();
            let folder = if folder.is_empty() { "/" } else { folder };
            (folder.to_owned(), Some(OsString::from(name)))
        }
    };
    let (mut reader, writer) = io::pipe()?;
    let source = PathBuf::from(source);
    let packing = thread::spawn({
        let source = source.clone();
        move || pack(&source, name.as_ref().map(Path::new), writer)
    });
    let sent = agent.put_files(id, &folder, &mut reader);
    drop(reader);
    let packed = packing.join().unwrap_or(Err(io::ErrorKind::Other.into()));
    match (sent, packed) {
        // When the guest stops reading the other side breaks: its reason is the one that counts.
        (Err(e), _) => Err(e.into()),
        (Ok(()), Err(e)) => Err(format!("cannot copy {}: {e}", source.display()).into()),
        (Ok(()), Ok(())) => Ok(0),
    }
}

/// Writes what is at `source` as an archive; under `name`, or the contents of the folder that it is.
fn pack(source: &Path, name: Option<&Path>, writer: impl Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(writer);
    builder.follow_symlinks(false);
    builder.sparse(false);
    let metadata = fs::symlink_metadata(source)?;
    match name {
        None => builder.append_dir_all(".", source)?,
        Some(name) if metadata.is_dir() => builder.append_dir_all(name, source)?,
        Some(name) => builder.append_path_with_name(source, name)?,
    }
    builder.into_inner()?.flush()
}

/// What is at `path` in the container: the first entry of its archive says so.
fn kind_of(entry: &Entry, path: &str) -> Option<tar::EntryType> {
    let body = entry.agent().files(entry.config.guest_id(), path).ok()?;
    let mut archive = tar::Archive::new(body.take(1 << 20));
    let first = archive.entries().ok()?.next()?.ok()?;
    Some(first.header().entry_type())
}

/// Whether the path says that its contents are meant, and not itself.
fn contents_only(path: &str) -> bool {
    path.ends_with("/.") || path == "."
}

/// The name that a source has where it is.
fn own_name(source: &str) -> Result<OsString, String> {
    let path = fs::canonicalize(source).ok();
    let own = Path::new(source).components().next_back();
    match (own, path.as_deref().and_then(Path::file_name)) {
        (Some(Component::Normal(name)), _) => Ok(name.to_owned()),
        (_, Some(name)) => Ok(name.to_owned()),
        _ => Err(format!(
            "{source} has no name of its own: give the target one"
        )),
    }
}

fn absolute(path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_as_docker_does() {
        assert_eq!(parse("web:/etc"), End::In("web", "/etc"));
        assert_eq!(parse("./web:x"), End::Here("./web:x"));
        assert_eq!(parse("/a:b"), End::Here("/a:b"));
        assert_eq!(parse("-"), End::Here("-"));
    }

    #[test]
    fn folder_when_packed_and_unpacked_is_the_same() {
        let from = tempfile::tempdir().expect("folder");
        fs::create_dir(from.path().join("d")).expect("d");
        fs::write(from.path().join("d/f"), "hello").expect("f");
        std::os::unix::fs::symlink("f", from.path().join("d/l")).expect("l");
        let mut tar = Vec::new();
        pack(&from.path().join("d"), Some(Path::new("d")), &mut tar).expect("pack");
        let to = tempfile::tempdir().expect("folder");
        let naming = Naming::As(to.path().join("e"));
        unpack(&mut &tar[..], &naming, false).expect("unpack");
        assert_eq!(fs::read(to.path().join("e/l")).expect("read"), b"hello");
        let naming = Naming::Contents(to.path().to_owned());
        unpack(&mut &tar[..], &naming, false).expect("unpack again");
        assert_eq!(fs::read(to.path().join("f")).expect("read"), b"hello");
    }
}
