//! The kernel's keyrings, which no namespace divides.

use super::*;

/// KEYCTL_JOIN_SESSION_KEYRING with no name makes a new one; the key is for its possessors alone.
const OWN: &str = r#"
syscall(250, 1, 0) != -1 or die "join: $!";
my ($type, $name, $data) = ("user\0", "bulkhead-test\0", "secret");
my $key = syscall(248, $type, $name, $data, 6, -3); $key != -1 or die "add: $!";
syscall(250, 5, $key, 0x3f000000) == 0 or die "permissions: $!";
exec @ARGV; die $!;
"#;

/// KEYCTL_SEARCH in the session's keyring.
const SEARCH: &str = r#"
my ($type, $name) = ("user\0", "bulkhead-test\0");
print syscall(250, 10, -3, $type, $name, 0) == -1 ? "none" : "found", "\n";
"#;

const INSIDE: &str = "BULKHEAD_TEST_HAS_KEYS";

/// A session's keys are whoever's its processes are: so the runtime's own must not be the container's.
#[test]
fn keys_when_of_the_runtimes_session_then_not_the_containers() {
    if std::env::var_os(INSIDE).is_none() {
        // Again, as a process whose session has a key.
        let status = std::process::Command::new("/usr/bin/perl")
            .args(["-e", OWN])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "keys::keys_when_of_the_runtimes_session_then_not_the_containers",
            ])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
        return;
    }
    let ours = std::process::Command::new("/usr/bin/perl")
        .args(["-e", SEARCH])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ours.stdout), "found\n");
    assert_eq!(confined_perl(SEARCH, false), "none\n");

    let root = armed_rootfs();
    let (mut container, pipes) = create(&armed("cat"), overlay(root.path())).unwrap();
    container.start().unwrap();
    let mut search = armed("");
    perl(&mut search, SEARCH);
    let output = exec(&container, search.process.as_ref().unwrap()).unwrap();
    assert_eq!(output.stdout, "none\n", "{output:?}");
    finish(container.pid(), pipes);
}
