//! A program that prepares a machine before it becomes a template: a container with all rights there.

use std::path::PathBuf;

use bulkhead_container::spec::{NamespaceKind, Spec};
use bulkhead_protocol::{CreateContainer, Lower, Rootfs, Upper};
use oci_spec::image::ImageConfiguration;

use super::Attendant;
use crate::agent::{Agent, Attach};
use crate::error::Error;
use crate::spec::{self, Options, SystemCalls};
use crate::vm::IMAGE_SERIAL;

/// What the agent calls it.
const ID: &str = "preparation";
/// What of it is its own: what it changes of all else it changes of the machine. Its processes are, so that none stays.
const NAMESPACES: [NamespaceKind; 3] =
    [NamespaceKind::Mount, NamespaceKind::Pid, NamespaceKind::Uts];

/// A program of an image.
#[derive(Debug, Clone)]
pub struct Preparation {
    /// The image, as it is called.
    pub image: String,
    /// The image as one EROFS file.
    pub disk: PathBuf,
    spec: Spec,
}

impl Preparation {
    /// The image's own program, or `command`.
    pub fn new(
        image: &str,
        disk: PathBuf,
        config: &ImageConfiguration,
        command: Vec<String>,
    ) -> Result<Self, Error> {
        let options = Options {
            command,
            user: Some("0:0".to_owned()),
            cap_add: vec!["ALL".to_owned()],
            system_calls: SystemCalls::Any,
            ..Options::default()
        };
        let mut spec = spec::build(ID, config, &options)?;
        spec::sort_mounts(&mut spec.mounts);
        for mount in &mut spec.mounts {
            mount.options.retain(|option| option != "ro");
        }
        if let Some(linux) = &mut spec.linux {
            linux
                .namespaces
                .retain(|namespace| NAMESPACES.contains(&namespace.kind));
            linux.masked_paths.clear();
            linux.readonly_paths.clear();
        }
        Ok(Preparation {
            image: image.to_owned(),
            disk,
            spec,
        })
    }

    /// The program and its arguments.
    pub fn command(&self) -> Vec<String> {
        let process = self.spec.process.as_ref();
        process
            .map(|process| process.args.clone())
            .unwrap_or_default()
    }

    /// Runs it, and takes away all of it but what it has changed of the machine.
    pub(super) fn run(&self, agent: &Agent, attendant: &dyn Attendant) -> Result<(), Error> {
        agent.create(&CreateContainer {
            id: ID.to_owned(),
            rootfs: Rootfs {
                lower: Lower::Serial(IMAGE_SERIAL.to_owned()),
                upper: Upper::Tmpfs { size_bytes: None },
                files: spec::files(&self.spec),
            },
            spec: self.spec.clone(),
            volumes: Vec::new(),
            stdin: false,
            terminal: None,
            init: false,
        })?;
        let stream = agent.attach(ID, Attach::KEEPER)?;
        agent.start(ID)?;
        let exit = attendant.follow(stream)?;
        // Also its mounts: only then can its image be taken out.
        agent.delete(ID)?;
        match (exit.code, exit.error) {
            (0, _) => Ok(()),
            (_, Some(why)) => Err(Error::Invalid(why)),
            (code, None) => Err(Error::Invalid(format!(
                "the program that prepares it has ended with exit code {code}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_may_change_all_of_the_machine_but_leaves_no_process_and_no_mount() {
        let image = ImageConfiguration::default();
        let command = vec!["sysctl".to_owned(), "-w".to_owned()];
        let made = Preparation::new("tools", "/disk".into(), &image, command.clone());
        let made = made.expect("preparation");
        assert_eq!(made.command(), command);
        let linux = made.spec.linux.as_ref().expect("linux");
        assert_eq!(linux.namespaces.len(), NAMESPACES.len());
        assert!(linux.masked_paths.is_empty() && linux.readonly_paths.is_empty());
        assert_eq!(linux.seccomp, None);
        let mut options = made.spec.mounts.iter().flat_map(|mount| &mount.options);
        assert!(!options.any(|option| option == "ro"));
        Preparation::new("tools", "/disk".into(), &image, Vec::new()).expect_err("no program");
    }
}
