//! Where things are: what stays under the root, what lives as long as a sandbox under the run folder.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The longest path of a Unix socket, in bytes (`sun_path` without its terminator).
const MAX_SOCKET_PATH: usize = 107;
/// The longest path of a socket in a sandbox's folder: of the machine that becomes its template, for any port that the
/// guest can connect to.
const LONGEST_SOCKET: &str = "template/vsock.sock_4294967295";

/// Names the folder of templates, where that is not the root's.
const TEMPLATES_VARIABLE: &str = "BULKHEAD_TEMPLATES";

/// The folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    run: PathBuf,
}

impl Layout {
    /// Everything under `root`, what is running included: two roots know nothing of each other.
    pub fn under(root: &Path) -> io::Result<Self> {
        let root = std::path::absolute(root)?;
        Ok(Layout {
            run: root.join("run"),
            root,
        })
    }

    /// The system's folders for root, the user's otherwise.
    pub fn of_user() -> Self {
        if rustix::process::geteuid().is_root() {
            return Layout {
                root: "/var/lib/bulkhead".into(),
                run: "/run/bulkhead".into(),
            };
        }
        let var = |name| {
            env::var_os(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        let data = var("XDG_DATA_HOME")
            .or_else(|| var("HOME").map(|home| home.join(".local/share")))
            .unwrap_or_else(env::temp_dir);
        let run = var("XDG_RUNTIME_DIR").unwrap_or_else(|| data.clone());
        Layout {
            root: data.join("bulkhead"),
            run: run.join("bulkhead"),
        }
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// All containers.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// One container: its configuration, state, log and, if it has one, its disk.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// A symbolic link for each name, to the ID it stands for.
    pub fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    /// The volumes, by their names.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The virtual machines that others are restored from. Several roots can share them by a variable of the
    /// environment.
    pub fn templates(&self) -> PathBuf {
        env::var_os(TEMPLATES_VARIABLE)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .unwrap_or_else(|| self.root.join("templates"))
    }

    /// The templates that the user has made, by their names. No other root has them.
    pub fn own_templates(&self) -> PathBuf {
        self.root.join("own-templates")
    }

    /// The snapshots that the user has taken, by their names.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// What is being made or removed. What lies here while nobody holds the [lock](Self::lock) is the
    /// remains of a killed process.
    pub fn unfinished(&self) -> PathBuf {
        self.root.join("unfinished")
    }

    /// Held while containers come, go or change their name.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The sandboxes that are up.
    pub fn sandboxes(&self) -> PathBuf {
        self.run.join("sandboxes")
    }

    /// Whose turn it is to start a machine.
    pub fn turns(&self) -> PathBuf {
        self.run.join("turns")
    }

    /// One sandbox that is up: its sockets and the numbers of its processes. It has the short ID for a
    /// name, as a socket's path must be short.
    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(short(id))
    }

    /// Fails if sockets in a sandbox's folder have paths that are too long.
    pub(crate) fn check_room_for_sockets(&self) -> Result<(), Error> {
        let longest = self.sandbox(&"0".repeat(64)).join(LONGEST_SOCKET);
        match longest.as_os_str().len() <= MAX_SOCKET_PATH {
            true => Ok(()),
            false => Err(Error::Invalid(format!(
                "the path of {} is too long for sockets in it: choose a root with a shorter one",
                self.root.display()
            ))),
        }
    }
}

/// The first twelve digits of an ID, which is how people see it.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_fit_under_the_systems_root_and_a_temporary_folder_but_not_everywhere() {
        let fits = |root: &str| {
            let layout = Layout::under(Path::new(root)).expect("layout");
            layout.check_room_for_sockets().is_ok()
        };
        assert!(fits("/tmp/bulkhead-test-a1B2c3"));
        assert!(!fits(&format!("/{}", "x".repeat(90))));
    }
}
