//! What commands print: tables, JSON, and what a template makes of it.

mod progress;
mod table;
mod template;
pub mod time;

pub use progress::progress;
pub use table::Table;
pub use template::{Format, print_rows, print_values};
