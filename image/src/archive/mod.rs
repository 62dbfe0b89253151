//! Images as files: what other programs save, and what they load.

mod changes;
mod import;
mod load;
mod save;

pub use import::{ImportOptions, import};
pub use load::{LoadOptions, load, load_stream};
pub use save::{Format, save};

use std::path::Path;

use crate::error::Error;
use crate::manifest::printable;

/// `map_err` for what is wrong with an archive.
fn in_archive(path: &Path) -> impl Fn(String) -> Error {
    let path = path.to_owned();
    move |why| Error::Archive {
        path: path.clone(),
        why: printable(&why),
    }
}
