//! Containers on the host's kernel of who is not root: `--isolation container` as nobody.
//!
//! Each command has a mount namespace of its own, in which `/etc/subuid` and `/etc/subgid` are as the test wants them; the
//! machine's are not touched.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bulkhead_tests::artifacts;
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::Lane;
use bulkhead_tests::traces::processes_with;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const NOBODY: u32 = 65_534;
/// Why none of this is in the outer machine.
const NEEDS: &str = "there are no users, and no newuidmap to map them";
/// What nobody gets to map: users 1 to 10, and the rest.
const RANGES: &str = "nobody:300000:10\nnobody:200000:65536\n";
const NO_RANGES: &str = "";
/// Who user 1000 of a container is on the host.
const USER_1000: u32 = 200_000 + 1000 - 11;

/// A user who is not root, with a root of its own.
struct User {
    home: Home,
    /// The program, and what is laid over the machine's files.
    place: TempDir,
    /// Done as root before each command.
    before: String,
}

impl User {
    fn with(ranges: &str) -> User {
        let home = Home::empty();
        chown(home.root(), Some(NOBODY), Some(NOBODY)).expect("give the root away");
        let place = tempfile::tempdir().expect("a folder");
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(place.path(), everybody).expect("open the folder");
        // Nobody may not see where the program lies.
        let program = place.path().join("bulkhead");
        fs::copy(artifacts::cli(), &program).expect("copy the program");
        fs::write(place.path().join("ranges"), ranges).expect("write the ranges");
        let user = User {
            home,
            place,
            before: String::new(),
        };
        let archive = user.path("busybox.tar");
        fs::write(&archive, bulkhead_tests::home::busybox_archive()).expect("write the archive");
        let archive = archive.to_str().expect("a path");
        user.expect(&["import", "--change", "CMD [\"sh\"]", archive, "busybox"]);
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// The command as nobody, with these arguments.
    fn command(&self, arguments: &[&str]) -> Command {
        let script = format!(
            "place=$1; shift
            mount --bind $place/ranges /etc/subuid && mount --bind $place/ranges /etc/subgid || exit 99
            {}
            exec ${{in_root:-}} setpriv --reuid nobody --regid nogroup --clear-groups $place/bulkhead \"$@\"",
            self.before
        );
        let mut command = self.home.command_of(Path::new("unshare"));
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
                "sh",
            ])
            .arg(self.place.path())
            .args(arguments)
            .current_dir("/");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments)
            .output()
            .expect("unshare and setpriv")
    }

    fn expect_code(&self, code: i32, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let ended = output.status.code();
        assert_eq!(ended, Some(code), "{arguments:?}: {stdout} {stderr}");
        (stdout, stderr)
    }

    fn expect(&self, arguments: &[&str]) -> String {
        self.expect_code(0, arguments).0
    }

    fn inspect(&self, container: &str, field: &str) -> String {
        let template = format!("{{{{{field}}}}}");
        let text = self.expect(&["inspect", "--format", &template, container]);
        text.trim_end().to_owned()
    }

    /// The folders with images' files.
    fn trees(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home.root().join("images/trees"));
        let entries = entries.into_iter().flatten();
        entries.map(|entry| entry.expect("listed").path()).collect()
    }
}

/// `run --isolation container` with these arguments.
fn run<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--isolation", "container"], arguments].concat()
}

/// Who a process is on the host.
fn uid(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = line.and_then(|line| line.split_ascii_whitespace().next());
    uid.and_then(|uid| uid.parse().ok()).expect("a number")
}

#[test]
fn run_of_a_user_when_the_program_ends_then_its_streams_and_code_are_the_commands() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let user = User::with(RANGES);
    let script = "echo out; echo err >&2; cat; id -un; cat /proc/1/comm; exit 3";
    let arguments = run(&["--rm", "-i", "-u", "user", "busybox", "sh", "-c", script]);
    let mut command = user.command(&arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("unshare");
    let mut stdin = child.stdin.take().expect("stdin");
    std::io::Write::write_all(&mut stdin, b"in\n").expect("type");
    drop(stdin);
    let output = child.wait_with_output().expect("wait");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(stdout, "out\nin\nuser\nsh\n");
    assert_eq!(output.status.code(), Some(3));
    for (code, program) in [(127, "nosuch"), (126, "/etc/passwd")] {
        user.expect_code(code, &run(&["--rm", "busybox", program]));
    }
    // Root is root in there, with others beside it, and the image stays what it is.
    let script = "id -u; echo x > /etc/new; ls -ln /etc/new | grep -c ' 0 *0 '; cat /proc/self/uid_map | wc -l";
    let said = user.expect(&run(&["--rm", "busybox", "sh", "-c", script]));
    assert_eq!(said, "0\n1\n3\n");
    let trees = user.trees();
    assert_eq!(trees.len(), 1, "{trees:?}");
    assert!(trees[0].join("root/etc/passwd").exists());
    assert!(!trees[0].join("root/etc/new").exists());
    user.home.expect_nothing_left();
}

#[test]
fn container_of_a_user_when_it_runs_then_every_command_treats_it_as_any_other() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let user = User::with(RANGES);
    let word = &*format!("16180.{}", std::process::id());
    let script = format!("trap 'echo bye; exit 5' TERM; echo up; sleep {word} & wait");
    user.expect(&run(&[
        "-d", "--name", "box", "-u", "user", "busybox", "sh", "-c", &script,
    ]));
    user.home.wait_until("it is up", || {
        processes_with(word).len() == 1 && user.run(&["logs", "box"]).stdout == b"up\n"
    });
    let listed = user.expect(&["ps", "--format", "{{.Names}} {{.Isolation}} {{.State}}"]);
    assert_eq!(listed, "box container running\n");
    // On the host they are the user's own, and those of its ranges.
    let monitor = user.inspect("box", ".State.MonitorPid");
    assert_eq!(uid(monitor.parse().expect("a number")), NOBODY);
    let sleeps = processes_with(word);
    assert_eq!(
        sleeps.iter().map(|pid| uid(*pid)).collect::<Vec<_>>(),
        [USER_1000]
    );
    assert!(user.expect(&["top", "box"]).contains(word));
    let (_, said) = user.expect_code(125, &["pause", "box"]);
    assert!(said.contains("no control group of its own"), "{said}");
    user.expect_code(7, &["exec", "box", "sh", "-c", "exit 7"]);
    user.expect_code(127, &["exec", "box", "nosuch"]);
    assert_eq!(user.expect(&["exec", "-u", "0", "box", "id", "-u"]), "0\n");
    let interfaces = user.expect(&["exec", "box", "cat", "/proc/net/dev"]);
    assert_eq!(interfaces.lines().count(), 3, "{interfaces}");

    let folder = tempfile::tempdir().expect("a folder");
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("give it away");
    let file = folder.path().join("file");
    fs::write(&file, "there and back").expect("write");
    chown(&file, Some(NOBODY), Some(NOBODY)).expect("give it away");
    let file = file.to_str().expect("a path");
    user.expect(&["cp", file, "box:/tmp/there"]);
    user.expect(&["cp", "box:/tmp/there", &format!("{file}.back")]);
    let back = fs::read_to_string(format!("{file}.back")).expect("read");
    assert_eq!(back, "there and back");

    user.expect(&["stop", "box"]);
    assert_eq!(user.expect(&["wait", "box"]), "5\n");
    assert_eq!(user.expect(&["logs", "box"]), "up\nbye\n");
    user.expect(&["start", "box"]);
    user.expect_code(1, &["exec", "box", "ls", "/tmp/there"]);
    user.expect(&["kill", "box"]);
    assert_eq!(user.inspect("box", ".State.ExitCode"), "137");
    user.expect(&["start", "box"]);
    user.expect(&["rm", "--force", "box"]);
    user.home.expect_nothing_left();
    assert!(processes_with(word).is_empty());

    // The folder of the image's files goes with it, whoever its files belong to.
    assert_eq!(user.trees().len(), 1);
    user.expect(&["rmi", "busybox"]);
    assert_eq!(user.trees(), Vec::<PathBuf>::new());
}

#[test]
fn folders_of_a_user_when_shared_then_both_sides_see_them_and_disks_are_refused() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let user = User::with(RANGES);
    let folder = tempfile::tempdir().expect("a folder");
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("give it away");
    let path = folder.path().display();
    let (writable, readable) = (format!("{path}:/w"), format!("{path}:/r:ro"));
    let script = "echo in > /w/file; cat /r/file; echo x > /r/file";
    let arguments = run(&["--rm", "-v", &writable, "-v", &readable, "busybox"]);
    let (out, err) = user.expect_code(1, &[&arguments[..], &["sh", "-c", script]].concat());
    assert_eq!(out, "in\n");
    assert!(err.contains("Read-only file system"), "{err}");
    let written = folder.path().join("file");
    assert_eq!(fs::read_to_string(&written).expect("written"), "in\n");
    assert_eq!(fs::metadata(&written).expect("there").uid(), NOBODY);
    for (script, said) in [("echo kept > /v/a", ""), ("cat /v/a", "kept\n")] {
        let arguments = run(&["--rm", "-v", "vol:/v", "busybox", "sh", "-c", script]);
        assert_eq!(user.expect(&arguments), said);
    }

    let disk = user.home.root().join("volumes/old");
    fs::create_dir_all(&disk).expect("a folder");
    fs::write(disk.join("disk.ext4"), "").expect("a disk");
    for (arguments, why) in [
        (
            &["--storage", "8M"],
            "--storage is a disk, which only root can mount",
        ),
        (
            &["-v", "old:/v"],
            "the volume old is a disk, which only root can mount",
        ),
    ] {
        let arguments = run(&[&["--rm"][..], arguments, &["busybox", "true"]].concat());
        let (_, said) = user.expect_code(125, &arguments);
        assert!(said.contains(why), "{said}");
    }
    user.home.expect_nothing_left();
}

#[test]
fn user_when_without_ranges_then_root_is_the_only_one_and_others_are_refused() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let user = User::with(NO_RANGES);
    let script = "id -u; wc -l < /proc/self/uid_map; ls -ln /bin | grep -c ' 0 *0 ' | head -c 1";
    let said = user.expect(&run(&["--rm", "busybox", "sh", "-c", script]));
    assert!(said.starts_with("0\n1\n"), "{said}");
    let (_, said) = user.expect_code(125, &run(&["--rm", "-u", "user", "busybox", "true"]));
    assert!(
        said.contains("have ranges for yourself in /etc/subuid"),
        "{said}"
    );
    user.home.expect_nothing_left();
}

#[test]
fn limits_of_a_user_when_no_group_was_given_then_refused_in_a_sentence() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let user = User::with(RANGES);
    let (_, said) = user.expect_code(125, &run(&["--rm", "--memory", "64M", "busybox", "true"]));
    assert!(said.contains("limits need a control group"), "{said}");
    user.home.expect_nothing_left();
}

/// Removes a control group with all that is in it.
struct Group(String);

impl Drop for Group {
    fn drop(&mut self) {
        let script = format!(
            "umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || exit
            find /sys/fs/cgroup/{} -depth -type d -exec rmdir {{}} ';'",
            self.0
        );
        let arguments = ["--mount", "--propagation", "private", "sh", "-c", &script];
        let _ = Command::new("unshare")
            .args(arguments)
            .current_dir("/")
            .status();
    }
}

#[test]
fn container_of_a_user_when_a_group_was_given_then_it_is_in_there_and_can_be_held() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let mut user = User::with(RANGES);
    let group = Group(format!("bulkhead-test-{}", std::process::id()));
    // A host with version 2 alone, which has given a group to nobody.
    user.before = format!(
        "umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || exit 99
        given=/sys/fs/cgroup/{}
        mkdir -p $given/own && chown nobody $given $given/* $given/cgroup.* $given/own/cgroup.* || exit 99
        echo $$ >$given/own/cgroup.procs || exit 99",
        group.0
    );
    user.expect(&run(&["-d", "--name", "box", "busybox", "sleep", "100000"]));
    let pid: u32 = user.inspect("box", ".State.Pid").parse().expect("a number");
    let within = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its group");
    let id = user.inspect("box", ".Id");
    let expected = format!("/{}/bulkhead/{}", group.0, &id[..12]);
    assert!(within.contains(&expected), "{within}");
    user.expect(&["pause", "box"]);
    user.expect_code(125, &["exec", "box", "true"]);
    user.expect(&["unpause", "box"]);
    assert!(user.expect(&["top", "box"]).contains("sleep 100000"));
    user.expect(&["rm", "--force", "box"]);
    user.home.expect_nothing_left();
}

#[test]
fn namespaces_when_forbidden_then_refused_in_a_sentence_and_nothing_is_left() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let mut user = User::with(RANGES);
    // Whoever has another root than its mount namespace may make no user namespace.
    fs::create_dir(user.path("root")).expect("a folder");
    user.before = "mount --rbind / $place/root && in_root=\"chroot $place/root\" || exit 99".into();
    let (_, said) = user.expect_code(125, &run(&["--rm", "busybox", "true"]));
    assert!(said.contains("cannot make a user namespace"), "{said}");
    assert!(said.contains("user.max_user_namespaces"), "{said}");
    assert_eq!(user.trees(), Vec::<PathBuf>::new());
    user.home.expect_nothing_left();
}

#[test]
fn monitor_of_a_user_when_killed_then_its_container_goes_and_the_next_command_cleans_up() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let user = User::with(RANGES);
    let word = &*format!("14142.{}", std::process::id());
    user.expect(&run(&[
        "-d", "--name", "box", "-u", "user", "busybox", "sleep", word,
    ]));
    assert_eq!(processes_with(word).len(), 1);
    let monitor = user.inspect("box", ".State.MonitorPid");
    let monitor = monitor.parse().ok().and_then(Pid::from_raw).expect("pid");
    kill_process(monitor, Signal::KILL).expect("kill");
    user.home.wait_until("the container has ended", || {
        processes_with(word).is_empty()
    });
    assert_eq!(user.inspect("box", ".State.ExitCode"), "255");
    user.expect(&["rm", "box"]);
    user.home.expect_nothing_left();
}

#[test]
fn container_when_its_users_ranges_have_changed_then_it_gets_files_that_belong_to_the_new_ones() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let user = User::with(RANGES);
    let arguments = ["--name", "box", "-u", "user", "busybox", "id", "-un"];
    assert_eq!(user.expect(&run(&arguments)), "user\n");
    fs::write(user.path("ranges"), "nobody:400000:65536\n").expect("write the ranges");
    assert_eq!(user.expect(&["start", "--attach", "box"]), "user\n");
    assert_eq!(user.trees().len(), 2);
    user.expect(&["rm", "box"]);
    user.expect(&["rmi", "busybox"]);
    assert_eq!(user.trees(), Vec::<PathBuf>::new());
    user.home.expect_nothing_left();
}

#[test]
fn program_when_it_is_the_users_own_then_a_container_cannot_write_to_it() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let user = User::with(RANGES);
    let program = user.path("bulkhead");
    chown(&program, Some(NOBODY), Some(NOBODY)).expect("give it away");
    let before = fs::read(&program).expect("read");
    // The monitor's own executable, from its first child.
    user.expect(&run(&["-d", "--name", "box", "busybox", "sleep", "100000"]));
    let monitor = user.inspect("box", ".State.MonitorPid");
    let executed = fs::read_link(format!("/proc/{monitor}/exe")).expect("its program");
    let executed = executed.display().to_string();
    assert!(executed.starts_with("/memfd:"), "{executed}");
    user.expect(&["rm", "--force", "box"]);
    assert!(fs::read(&program).expect("read") == before);
    user.home.expect_nothing_left();
}

/// The last resort, for root too.
#[test]
fn image_when_the_kernel_can_mount_it_in_no_way_then_it_is_extracted_to_a_folder() {
    if Lane::is_not(Lane::Own, NEEDS) {
        return;
    }
    let home = Home::with_busybox();
    let place = tempfile::tempdir().expect("a folder");
    // A file in a file system stacked on others is not mounted, and there are no loop devices.
    let script = "mount -t tmpfs none $1 && mkdir $1/lower $1/upper $1/work $1/root || exit 99
        cp -a $BULKHEAD_ROOT/. $1/lower && mount --bind /dev/null /dev/loop-control || exit 99
        mount -t overlay -o lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work none $1/root || exit 99
        export BULKHEAD_ROOT=$1/root
        $2 run --rm --isolation container -u user busybox sh -c 'id -un; echo x > /tmp/x; cat /tmp/x' || exit
        ls $1/root/images/trees | wc -l";
    let output = home
        .command_of(Path::new("unshare"))
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(place.path())
        .arg(artifacts::cli())
        .current_dir("/")
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "user\nx\n1\n", "{output:?}");
    home.expect_nothing_left();
}
