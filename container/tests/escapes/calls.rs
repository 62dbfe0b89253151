//! System calls that have let programs out before: the filter refuses them by default.

use super::*;

/// Calls by number, with arguments that are wrong, so that nothing happens where they are allowed.
const CALLS: &str = r#"
$| = 1;
my %calls = (
    acct => [163, -1], add_key => [248, 0, 0, 0, 0, 0], bpf => [321, 99, 0, 0], delete_module => [176, 0, 0],
    fanotify_init => [300, -1, -1], finit_module => [313, -1, 0, 0], fsopen => [430, 0, 0], init_module => [175, 0, 0, 0],
    io_uring_setup => [425, 0, 0], kcmp => [312, 0, 0, 99, 0, 0], kexec_load => [246, 0, 99, 0, 0], keyctl => [250, 999],
    mount => [165, 0, 0, 0, 0, 0], mount_setattr => [442, -1, 0, 0, 0, 0], move_mount => [429, -1, 0, -1, 0, 0],
    open_by_handle_at => [304, -1, 0, 0], open_tree => [428, -1, 0, 0], perf_event_open => [298, 0, 0, 0, 0, 0],
    pivot_root => [155, 0, 0], quotactl => [179, 0, 0, 0, 0], reboot => [169, 0, 0, 0, 0], request_key => [249, 0, 0, 0, 0],
    setns => [308, -1, 0], swapon => [167, 0, 0], umount2 => [166, 0, 0], unshare_user => [272, 0x10000000],
    unshare_mount => [272, 0x20000], userfaultfd => [323, -1], clone_user => [56, 0x10000000, 0, 0, 0, 0],
    clone3 => [435, 0, 0], socket_vsock => [41, 40, 1, 0], socket_alg => [41, 38, 5, 0]);
for (sort keys %calls) {
    my ($number, @arguments) = @{$calls{$_}};
    my $result = syscall($number, @arguments);
    exit if $number == 56 && $result == 0;
    print "$_ ", $result == -1 ? 0 + $! : "done", "\n";
}
"#;

fn answers(text: &str) -> Vec<(&str, &str)> {
    text.lines().map(|l| l.split_once(' ').unwrap()).collect()
}

#[test]
fn calls_when_dangerous_then_refused_whatever_their_arguments() {
    let refused = confined_perl(CALLS, true);
    let free = free_perl(CALLS);
    assert_eq!(answers(&refused).len(), answers(&free).len());
    for ((name, refused), (_, free)) in answers(&refused).into_iter().zip(answers(&free)) {
        // Programs fall back to older calls where the filter cannot look into the arguments.
        let expected = if name == "clone3" {
            libc::ENOSYS
        } else {
            libc::EPERM
        };
        assert_eq!(refused, expected.to_string(), "{name}");
        assert_ne!(free, expected.to_string(), "{name} without a filter");
    }
}

/// The way of "shocker": a file of the host by its number, from any descriptor of its filesystem.
#[test]
fn file_when_asked_for_by_its_handle_then_not_given() {
    // Of a filesystem that has handles.
    let host = tempfile::tempdir_in("/dev/shm").unwrap();
    std::fs::create_dir(host.path().join("given")).unwrap();
    std::fs::write(host.path().join("secret"), "the host's").unwrap();
    std::fs::write(host.path().join("given/file"), "").unwrap();
    let handle = host_perl(&format!(
        r#"my $h = pack("Ll", 128, 0) . "\0" x 128; my $m = pack("l", 0); my $p = "{}/secret\0";
        syscall(303, -100, $p, $h, $m, 0) == 0 or die $!; print unpack("H*", $h);"#,
        host.path().display()
    ));
    let attack = format!(
        r#"open(my $given, "<", "/given/file") or die $!; my $h = pack("H*", "{handle}");
        my $fd = syscall(304, fileno($given), $h, 0);
        if ($fd == -1) {{ print 0 + $!; exit }} open(my $f, "<&=", $fd); print <$f>;"#
    );
    let root = armed_rootfs();
    let mut spec = armed("");
    spec.mounts
        .push(bind(&host.path().join("given"), "/given", "bind,ro"));
    perl(&mut spec, &attack);
    give(&mut spec, &["CAP_DAC_READ_SEARCH"]);
    assert_eq!(succeed(&spec, overlay(root.path())), "the host's");
    confine(&mut spec);
    for filtered in [true, false] {
        if !filtered {
            spec.linux.as_mut().unwrap().seccomp = None;
        }
        let answer = succeed(&spec, overlay(root.path()));
        assert_eq!(answer, libc::EPERM.to_string(), "filtered: {filtered}");
    }
}

fn host_perl(script: &str) -> String {
    let output = std::process::Command::new("/usr/bin/perl")
        .args(["-e", script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Packets of others: a container sees those of its own network namespace only, and none without the capability.
#[test]
fn packets_when_listened_to_then_only_the_containers_own() {
    let links = "print join(' ', sort map { /^\\s*(\\w+):/ } do { open(my $f, '<', '/proc/net/dev'); <$f> });";
    let listen = r#"print syscall(41, 17, 3, 0) == -1 ? 0 + $! : "listens";"#;
    assert_eq!(confined_perl(links, true), "lo");
    assert_eq!(confined_perl(listen, true), "listens");
    let root = armed_rootfs();
    let mut spec = armed("");
    confine(&mut spec);
    perl(&mut spec, listen);
    give(&mut spec, &["CAP_CHOWN"]);
    let answer = succeed(&spec, overlay(root.path()));
    assert_eq!(answer, libc::EPERM.to_string());
}
