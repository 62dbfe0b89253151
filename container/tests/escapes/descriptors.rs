//! What of the runtime a container could get hold of while a process of the runtime is in it: descriptors, directories, memory.

use bulkhead_container::{Container, Create};

use super::*;

/// Looks into every process but itself for what is the runtime's, again and again until it is told to end, and says what it has
/// found. Its first argument is a directory of the host.
const SPY: &str = r#"
use POSIX ":sys_wait_h";
my ($mark, $rounds) = @ARGV;
my %found;
sub look {
    my $p = shift;
    my $exe = readlink("/proc/$p/exe") // "";
    $found{"its program"} = 1 if $exe =~ /escapes/;
    $found{"the host's root"} = 1 if -e "/proc/$p/root$mark";
    $found{"the host's directory"} = 1 if -e "/proc/$p/cwd/tests/escapes";
    if (opendir(my $fds, "/proc/$p/fd")) {
        for (grep { /\d/ } readdir $fds) {
            my $to = readlink("/proc/$p/fd/$_") // next;
            $found{"a descriptor of $to"} = 1 if $to !~ m{^(pipe:|/dev/null|/proc|/tmp/stop)};
        }
    }
    for my $file ("environ", "maps") {
        open(my $f, "<", "/proc/$p/$file") or next;
        local $/; my $text = <$f> // "";
        $found{"its $file"} = 1 if $text =~ /escapes|CARGO/;
    }
    if ($exe !~ /perl/ && syscall(101, 0x4206, $p + 0, 0, 0) == 0) {
        $found{"its registers"} = 1 if (readlink("/proc/$p/exe") // "") =~ /escapes/;
    }
}
$| = 1;
print "ready\n";
until (-e "/tmp/stop" || defined $rounds && $rounds-- == 0) {
    opendir(my $proc, "/proc") or die $!;
    look($_) for grep { /^\d+$/ && $_ != $$ } readdir $proc;
    1 while waitpid(-1, WNOHANG | 0x40000000) > 0;
}
print "found $_\n" for sort keys %found;
"#;

fn spy(spec: &mut Spec, arguments: &[&str]) {
    perl(spec, SPY);
    let more = arguments.iter().map(|&a| a.to_owned());
    process(spec).args.extend(more);
}

fn stop(container: &Container) {
    let mut stop = spec("").process.unwrap();
    stop.args = ["/bin/touch", "/tmp/stop"].map(str::to_owned).to_vec();
    exec(container, &stop).unwrap();
}

/// Executes programs in a container in which somebody watches.
fn watched_execs(spec: &Spec) -> String {
    let root = armed_rootfs();
    let (mut container, mut pipes) = create(spec, overlay(root.path())).unwrap();
    container.start().unwrap();
    assert_eq!(read_line(&mut pipes), "ready");
    let mut program = crate::spec("").process.unwrap();
    program.args = vec!["/bin/true".into()];
    for round in 0..300 {
        // A directory to enter takes it longer to get there.
        program.cwd = if round % 2 == 0 { "/" } else { "/usr/share" }.into();
        assert_eq!(exec(&container, &program).unwrap().exit.code, 0);
    }
    stop(&container);
    finish(container.pid(), pipes).stdout
}

#[test]
fn executed_process_when_watched_from_inside_then_it_shows_nothing_of_the_runtime() {
    let mark = tempfile::tempdir().unwrap();
    let mut spec = armed("");
    confine(&mut spec);
    spec.linux.as_mut().unwrap().seccomp = None;
    spy(&mut spec, &[mark.path().to_str().unwrap()]);
    assert_eq!(watched_execs(&spec), "");
}

#[test]
fn first_process_when_it_waits_then_it_shows_nothing_of_the_runtime() {
    let mark = tempfile::tempdir().unwrap();
    let root = armed_rootfs();
    let (mut container, pipes) = create(&armed("true"), overlay(root.path())).unwrap();
    let mut attacker = armed("");
    confine(&mut attacker);
    spy(&mut attacker, &[mark.path().to_str().unwrap(), "1"]);
    let output = exec(&container, attacker.process.as_ref().unwrap()).unwrap();
    assert_eq!(output.stdout, "ready\n", "{output:?}");
    // The same look by who may look into all sees it.
    process(&mut attacker).capabilities = None;
    give(&mut attacker, &["CAP_SYS_PTRACE"]);
    let output = exec(&container, attacker.process.as_ref().unwrap()).unwrap();
    assert!(output.stdout.contains("found its program"), "{output:?}");
    container.start().unwrap();
    finish(container.pid(), pipes);
}

/// With an init of ours, process 1 is the runtime's program for as long as the container lives.
#[test]
fn init_when_looked_into_from_its_first_moment_then_it_shows_nothing() {
    let mark = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        let root = armed_rootfs();
        let mut spec = armed("");
        confine(&mut spec);
        spec.linux.as_mut().unwrap().seccomp = None;
        spy(&mut spec, &[mark.path().to_str().unwrap(), "2"]);
        let (stdio, pipes) = Stdio::pipes().unwrap();
        let mut container = Container::create(Create {
            id: "init",
            spec: &spec,
            rootfs: overlay(root.path()),
            cgroup: None,
            stdio,
            init: true,
            borrows: false,
            dies_with_parent: false,
            bundle: None,
            gate: None,
            spare: None,
            preserved: Vec::new(),
        })
        .unwrap();
        container.start().unwrap();
        assert_eq!(finish(container.pid(), pipes).stdout, "ready\n");
    }
}

#[test]
fn program_when_executed_or_with_an_init_then_it_has_three_descriptors() {
    // Leaked on purpose, as another thread might.
    let leak = std::fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let root = rootfs();
    // The fourth is the directory that is listed.
    let list = "ls /proc/self/fd; ls /proc/1/fd";
    for init in [false, true] {
        let (stdio, pipes) = Stdio::pipes().unwrap();
        let mut container = Container::create(Create {
            id: "descriptors",
            spec: &spec(&format!("{list}; cat")),
            rootfs: overlay(root.path()),
            cgroup: None,
            stdio,
            init,
            borrows: false,
            dies_with_parent: false,
            bundle: None,
            gate: None,
            spare: None,
            preserved: Vec::new(),
        })
        .unwrap();
        container.start().unwrap();
        let program = spec(list).process.unwrap();
        let executed = exec(&container, &program).unwrap();
        let first = finish(container.pid(), pipes);
        let ones = if init { "" } else { "0\n1\n2\n" };
        let expected = format!("0\n1\n2\n3\n{ones}");
        assert_eq!(
            (first.stdout, executed.stdout),
            (expected.clone(), expected)
        );
    }
}

/// CVE-2024-21626: a working directory that is a descriptor of the runtime.
#[test]
fn directory_of_an_exec_when_it_leads_through_a_descriptor_then_refused() {
    let root = rootfs();
    let (mut container, pipes) = create(&spec("cat"), overlay(root.path())).unwrap();
    container.start().unwrap();
    // One that is a directory of the host, as the runtime has many.
    let host = std::fs::File::open("/").unwrap();
    let mut program = spec("ls").process.unwrap();
    for number in (0..40).chain([std::os::fd::AsRawFd::as_raw_fd(&host)]) {
        for path in [
            format!("/proc/self/fd/{number}"),
            format!("/proc/self/fd/{number}/../.."),
            format!("/proc/thread-self/fd/{number}/etc"),
            format!("/tmp/link-{number}"),
        ] {
            let link = format!("ln -sf /proc/self/fd/{number} /tmp/link-{number}");
            exec(&container, &spec(&link).process.unwrap()).unwrap();
            program.cwd = path.clone();
            let result = exec(&container, &program);
            // Its own second part is cut off before anything is opened.
            let stays_inside = path.ends_with("../..");
            assert_eq!(result.is_ok(), stays_inside, "{path}: {result:?}");
        }
    }
    finish(container.pid(), pipes);
}
