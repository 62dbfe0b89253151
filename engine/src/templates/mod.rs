//! Templates: virtual machines that have booted once, of which those of containers are clones. What they are made
//! of is in [`key`], where they are kept in [`store`], how one is made in [`mod@make`]; the monitor restores them.
//! Those that the user makes, under names, are in [`own`].

pub(crate) mod clock;
mod key;
mod make;
pub mod own;
mod store;

use std::env;

use crate::record::{Config, Isolation};
pub(crate) use key::Ingredients;
pub(crate) use make::{Unmade, make};
pub(crate) use store::{Busy, Template};
pub use store::{Listed, Templates};

/// Whether machines are restored where nobody says that they are to boot.
const WARM_BY_DEFAULT: bool = true;
/// Has all machines boot that are started with it in their environment, whatever else they are told.
const COLD_VARIABLE: &str = "BULKHEAD_COLD";

/// Whether the machine of this container is to be restored from a template.
pub fn is_wanted(config: &Config) -> bool {
    config.isolation == Isolation::Vm && WARM_BY_DEFAULT && !config.cold && !are_all_cold()
}

/// Whether the environment has all machines boot.
pub(crate) fn are_all_cold() -> bool {
    env::var_os(COLD_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0")
}
