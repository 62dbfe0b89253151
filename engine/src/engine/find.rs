//! From what people call a container to the container.

use std::fs;
use std::io;

use super::{Engine, Entry, list_folder};
use crate::error::{Error, cannot};
use crate::layout::short;
use crate::record::{Config, Status};

impl Engine {
    /// The container of that name, ID or beginning of an ID.
    pub fn find(&self, name: &str) -> Result<Entry, Error> {
        let id = self.resolve(name)?;
        self.entry(&id)?
            .ok_or_else(|| Error::NoSuchContainer(name.to_owned()))
    }

    /// All containers, the newest first.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for id in list_folder(&self.layout.containers())? {
            // One that went meanwhile is left out.
            entries.extend(self.entry(&id)?);
        }
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.config.created));
        Ok(entries)
    }

    /// What there is of the container `id`, in order. `None` if there is no such container.
    fn entry(&self, id: &str) -> Result<Option<Entry>, Error> {
        let files = self.files(id);
        let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        let failed = |what| format!("read {what} container {} is", short(id));
        let config: Config = match files.read_config() {
            Ok(config) => config,
            Err(e) if gone(&e) => return Ok(None),
            Err(e) => return Err(cannot(failed("what"))(e)),
        };
        let mut state = match files.read_state() {
            Ok(state) => state,
            Err(e) if gone(&e) => return Ok(None),
            Err(e) => return Err(cannot(failed("how"))(e)),
        };
        if state.status == Status::Running && self.repair(id)? {
            match files.read_state() {
                Ok(repaired) => state = repaired,
                Err(e) if gone(&e) => return Ok(None),
                Err(e) => return Err(cannot(failed("how"))(e)),
            }
        }
        if state.status == Status::Running && files.paused().exists() {
            state.status = Status::Paused;
        }
        Ok(Some(Entry {
            config,
            state,
            files,
        }))
    }

    /// The whole ID.
    pub(super) fn resolve(&self, name: &str) -> Result<String, Error> {
        let none = || Error::NoSuchContainer(name.to_owned());
        // What is no name of a file must not become one.
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(none());
        }
        if let Ok(target) = fs::read_link(self.layout.names().join(name)) {
            return target.into_os_string().into_string().map_err(|_| none());
        }
        if !name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(none());
        }
        if name.len() == 64 {
            return Ok(name.to_owned());
        }
        let ids = list_folder(&self.layout.containers())?;
        let mut found = ids.into_iter().filter(|id| id.starts_with(name));
        match (found.next(), found.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(Error::Ambiguous(name.to_owned())),
            _ => Err(none()),
        }
    }
}
