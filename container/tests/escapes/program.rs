//! CVE-2019-5736: a container that writes to the program of the runtime that runs it.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use bulkhead_container::self_exe;

use super::*;

/// What is to be kept from the runtime in the test's process, which is executed as one.
const WALL: &str = "BULKHEAD_TEST_RUNTIME";
const NAME: &str = "program::program_of_the_runtime_when_a_container_has_it_then_not_written";

/// Opens the program of every process that is not its own kind, and writes to it once nobody executes it any more.
const WRITER: &str = r#"
$| = 1; print "ready\n";
my $program;
until ($program) {
    for my $exe (glob "/proc/[0-9]*/exe") {
        my $to = readlink($exe) // next;
        last if $to !~ /perl/ && open($program, "<", $exe);
    }
}
print "opened\n";
open(my $told, ">", "/tmp/opened");
my $path = "/proc/self/fd/" . fileno($program);
while (1) {
    if (open(my $f, ">>", $path)) { syswrite($f, "OVERWRITTEN"); print "written\n"; last }
    if (!$!{ETXTBSY}) { print "$!\n"; last }
    select(undef, undef, undef, 0.001);
}
"#;

/// The image's program is a script, whose interpreter is whoever executes it: the runtime, which comes to be in the container
/// as a program that anybody may look into.
fn image() -> tempfile::TempDir {
    let root = armed_rootfs();
    let script = root.path().join("bin/evil");
    fs::write(&script, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    root
}

/// The runtime: starts a container, executes the image's program in it, and ends.
fn be_the_runtime(root: &Path) {
    let mut spec = armed("");
    confine(&mut spec);
    perl(&mut spec, WRITER);
    let create = bulkhead_container::Create {
        id: "victim",
        spec: &spec,
        rootfs: overlay(root),
        cgroup: None,
        stdio: Stdio::Inherit,
        init: false,
        borrows: false,
        dies_with_parent: false,
        bundle: None,
        gate: None,
        spare: None,
        preserved: Vec::new(),
    };
    let mut container = Container::create(create).unwrap();
    container.start().unwrap();
    let mut evil = spec.process.clone().unwrap();
    evil.args = ["/bin/evil", "--exact", NAME].map(str::to_owned).to_vec();
    evil.env.push(format!("{WALL}=inside"));
    container.exec(&evil, Stdio::Null).unwrap();
    std::process::exit(0);
}

/// What a container does to a copy of this program that is its runtime.
fn attack(wall: bool) -> (String, bool) {
    let place = tempfile::tempdir().unwrap();
    let runtime = place.path().join("runtime");
    fs::copy(std::env::current_exe().unwrap(), &runtime).unwrap();
    let size = fs::metadata(&runtime).unwrap().len();
    let root = image();
    let output = Command::new(&runtime)
        .args(["--exact", NAME, "--nocapture"])
        .env(WALL, if wall { "wall" } else { "none" })
        .env("BULKHEAD_TEST_ROOT", root.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let written = fs::metadata(&runtime).unwrap().len() != size;
    (text, written)
}

#[test]
fn program_of_the_runtime_when_a_container_has_it_then_not_written() {
    match std::env::var(WALL).as_deref() {
        Ok("wall") => {
            // As the engine executes itself before it creates containers.
            let program = self_exe::read_only().unwrap();
            rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty()).unwrap();
            let path = format!("/proc/self/fd/{}", program.as_raw_fd());
            let error = Command::new(path)
                .args(["--exact", NAME, "--nocapture"])
                .env(WALL, "none")
                .exec();
            panic!("{error}");
        }
        // The runtime's program as the image's, until somebody has it open.
        Ok("inside") => return wait_for(|| Path::new("/tmp/opened").exists()),
        Ok(_) => {
            std::io::stdout().flush().unwrap();
            be_the_runtime(Path::new(&std::env::var_os("BULKHEAD_TEST_ROOT").unwrap()));
        }
        Err(_) => {}
    }
    let (text, written) = attack(false);
    assert!(text.contains("opened\nwritten\n") && written, "{text}");
    let (text, written) = attack(true);
    assert!(text.contains("opened\nRead-only file system\n"), "{text}");
    assert!(!written, "{text}");
}
