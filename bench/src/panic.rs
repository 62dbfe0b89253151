//! Bringing down the kernel that this program runs on, to see what goes with it. Only a kernel of the
//! program's own may be brought down, which `compare` sees to.

use std::ffi::CStr;
use std::fs;
use std::hint::black_box;
use std::io;
use std::ptr;

const PLACE: &CStr = c"/bulkhead-bench.proc";
const SWITCH: &str = "/bulkhead-bench.proc/sys/vm/panic_on_oom";
/// Memory taken at a time.
const STEP: usize = 1 << 20;

/// Has the kernel panic when a program has no memory any more, even if only a control group has none, and
/// then takes memory without end. Returns why that did not work, if it did not.
///
/// A container cannot write to its own `/proc/sys`, but whoever may mount can mount another.
pub fn bring_down() -> String {
    let failed = |what: &str, e: io::Error| format!("cannot {what}: {e}");
    let place = PLACE.to_string_lossy();
    if let Err(e) = fs::create_dir_all(&*place) {
        return failed("make a folder", e);
    }
    let kind = c"proc".as_ptr();
    // SAFETY: three strings that end in zero and live as long as the call, and no data.
    let mounted = unsafe { libc::mount(kind, PLACE.as_ptr(), kind, 0, ptr::null()) };
    if mounted != 0 {
        return failed("mount /proc", io::Error::last_os_error());
    }
    // 2: whatever the reason (Documentation/admin-guide/sysctl/vm.rst).
    if let Err(e) = fs::write(SWITCH, "2") {
        return failed("set vm.panic_on_oom", e);
    }
    println!("{{\"going\":true}}");
    let mut taken: Vec<Vec<u8>> = Vec::new();
    // More than any container gets that is started for this.
    while taken.len() < 4096 {
        let mut bytes = vec![0_u8; STEP];
        for page in bytes.chunks_mut(4096) {
            page[0] = 1;
        }
        taken.push(black_box(bytes));
    }
    "the kernel has more memory than this takes".to_owned()
}
