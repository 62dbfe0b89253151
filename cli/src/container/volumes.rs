//! `--volume`, `--mount` and `--tmpfs`: what is mounted in a container, as Docker has it said.

use std::path::{Path, PathBuf};

use bulkhead_container::spec::Mount;
use bulkhead_engine::volumes::{Source, VolumeMount};

use crate::values::parse_bytes;

/// What one of the options asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// Memory.
    Memory(Mount),
    /// Something of the host.
    Volume(VolumeMount),
}

/// Reads a `--volume`.
pub fn parse_volume(text: &str) -> Result<VolumeMount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [source, destination] => (source, destination, ""),
        [source, destination, options] => (source, destination, options),
        [_] => {
            return Err(format!(
                "--volume {text} has no source: write SOURCE:{text}, with a folder or a volume's name"
            ));
        }
        _ => {
            return Err(format!(
                "--volume {text} has too many colons: --mount takes paths with colons"
            ));
        }
    };
    let mut read_only = false;
    let mut fill = true;
    for option in options.split(',') {
        match option {
            "ro" => read_only = true,
            "nocopy" => fill = false,
            // What always holds: nothing is labelled here, and mounts stay on their side.
            "" | "rw" | "z" | "Z" | "private" | "rprivate" => {}
            _ => {
                return Err(format!(
                    "--volume {text}: `{option}` is none of ro, rw, nocopy"
                ));
            }
        }
    }
    let source = match is_path(source) {
        true => Source::Path {
            path: absolute(source)?,
            make: true,
        },
        false => Source::Volume {
            name: source.to_owned(),
            fill,
        },
    };
    checked(source, destination, read_only)
}

/// Reads a `--mount`.
pub fn parse_mount(text: &str) -> Result<Wanted, String> {
    let mut kind = "volume";
    let mut source = None;
    let mut target = None;
    let mut read_only = false;
    let mut fill = true;
    let mut memory = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match (key, value) {
            ("type", value) => kind = value,
            ("source" | "src", value) => source = Some(value),
            ("target" | "destination" | "dst", value) => target = Some(value),
            ("readonly" | "ro", value) => read_only = is_true(part, value)?,
            ("volume-nocopy", value) => fill = !is_true(part, value)?,
            ("bind-propagation", "private" | "rprivate") => {}
            ("tmpfs-size", value) => memory.push(format!("size={}", parse_bytes(value)?)),
            ("tmpfs-mode", value) => memory.push(format!("mode={value}")),
            _ => return Err(format!("--mount does not know `{part}`")),
        }
    }
    let target = target.ok_or_else(|| format!("--mount {text} needs a target=PATH"))?;
    if kind != "tmpfs" && !memory.is_empty() {
        return Err(format!(
            "--mount {text}: only type=tmpfs has a size and mode"
        ));
    }
    let source = match (kind, source) {
        ("tmpfs", None) => {
            if read_only {
                memory.push("ro".to_owned());
            }
            return tmpfs_mount(target, &memory.join(",")).map(Wanted::Memory);
        }
        ("tmpfs", Some(_)) => return Err(format!("--mount {text}: a tmpfs has no source")),
        ("bind", Some(path)) => Source::Path {
            path: absolute(path)?,
            make: false,
        },
        ("volume", Some(name)) => Source::Volume {
            name: name.to_owned(),
            fill,
        },
        ("bind" | "volume", None) => {
            return Err(format!("--mount {text} needs a source=..."));
        }
        (kind, _) => {
            return Err(format!(
                "--mount type={kind} is none of bind, volume and tmpfs"
            ));
        }
    };
    checked(source, target, read_only).map(Wanted::Volume)
}

/// A tmpfs with Docker's defaults, unless `options` say otherwise.
pub fn tmpfs_mount(path: &str, options: &str) -> Result<Mount, String> {
    if !path.starts_with('/') {
        return Err(format!(
            "`{path}` is not absolute: begin the path of a tmpfs with /"
        ));
    }
    let mut all: Vec<String> = ["nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        // The opposite of a default stands in its place.
        all.retain(|default| default.strip_prefix("no") != Some(option));
        all.push(option.to_owned());
    }
    Ok(Mount {
        destination: path.to_owned(),
        kind: Some("tmpfs".to_owned()),
        source: Some("tmpfs".to_owned()),
        options: all,
        ..Mount::default()
    })
}

fn checked(source: Source, destination: &str, read_only: bool) -> Result<VolumeMount, String> {
    let mount = VolumeMount {
        source,
        destination: destination.to_owned(),
        read_only,
    };
    mount.check().map_err(|e| e.to_string())
}

/// What has a slash, or is `.` or `..`, is a path; anything else is a name.
fn is_path(source: &str) -> bool {
    source.contains('/') || source == "." || source == ".."
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(Path::new(path))
        .map_err(|e| format!("cannot use `{path}` as a source: {e}"))
}

fn is_true(part: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("--mount: `{part}` is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs_has_dockers_defaults_unless_told_otherwise() {
        let mount = tmpfs_mount("/run", "exec,size=1m").expect("mount");
        assert_eq!(mount.options, ["nosuid", "nodev", "exec", "size=1m"]);
        assert!(tmpfs_mount("run", "").is_err());
        let same = parse_mount("type=tmpfs,target=/run,tmpfs-size=1m").expect("mount");
        let Wanted::Memory(same) = same else {
            panic!("{same:?}");
        };
        assert_eq!(
            same.options.last().map(String::as_str),
            Some("size=1048576")
        );
    }

    #[test]
    fn volume_is_a_folder_or_a_name_as_docker_tells_them_apart() {
        let path = |path: &str| Source::Path {
            path: path.into(),
            make: true,
        };
        let name = |fill| Source::Volume {
            name: "data".to_owned(),
            fill,
        };
        let here = std::env::current_dir().expect("folder").join("here");
        let here = here.to_str().expect("text");
        for (text, source, read_only) in [
            ("/a:/b", path("/a"), false),
            ("/a:/b:ro", path("/a"), true),
            ("./here:/b:rw,Z", path(here), false),
            ("data:/b", name(true), false),
            ("data:/b:ro,nocopy", name(false), true),
        ] {
            let volume = parse_volume(text).expect(text);
            assert_eq!((volume.source, volume.read_only), (source, read_only));
            assert_eq!(volume.destination, "/b");
        }
        for wrong in ["/a", "", "/a:b", "/a:/", "a:/b:x", "/a:/b:ro:x"] {
            assert!(parse_volume(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn mount_says_what_it_is_and_makes_no_folder() {
        let volume = |source, read_only| {
            Wanted::Volume(VolumeMount {
                source,
                destination: "/b".to_owned(),
                read_only,
            })
        };
        let path = Source::Path {
            path: "/a".into(),
            make: false,
        };
        let name = Source::Volume {
            name: "data".to_owned(),
            fill: false,
        };
        for (text, wanted) in [
            ("type=bind,source=/a,target=/b", volume(path.clone(), false)),
            ("type=bind,src=/a,dst=/b,readonly", volume(path, true)),
            (
                "src=data,destination=/b,volume-nocopy=true,ro=false",
                volume(name, false),
            ),
        ] {
            assert_eq!(parse_mount(text).expect(text), wanted);
        }
        for wrong in [
            "type=tmpfs",
            "type=tmpfs,src=/a,dst=/b",
            "type=bind,dst=/b",
            "type=npipe,src=a,dst=/b",
            "type=tmpfs,dst=/x,y=1",
            "type=bind,src=/a,dst=/b,tmpfs-size=1m",
            "type=bind,src=/a,dst=/b,ro=maybe",
        ] {
            assert!(parse_mount(wrong).is_err(), "{wrong}");
        }
    }
}
