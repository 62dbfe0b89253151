//! The same workload behind a hypervisor and behind namespaces: what each costs, and what each buys.
//!
//! [`compare`] starts containers of one image of both kinds in turn, as people do, by the command line;
//! has the program in them ([`bulkhead-bench`](../../bench)) measure what it gets and look around; looks
//! at the host meanwhile; and puts all of it into a [`Report`], which can be printed as rows, as JSON, and
//! as a page.
//!
//! Nothing in a report is known beforehand: what could not be measured is left out, and says why.

mod bench;
mod blast;
mod density;
mod evidence;
mod host;
mod image;
mod instance;
mod memory;
mod page_cache;
pub mod report;
mod run;
mod trace;

pub use image::{built_in, with_bench};
pub use instance::Setup;
pub use report::Report;
pub use run::{Options, compare};
pub use trace::{COMMAND as TRACED_COMMAND, become_traced};
