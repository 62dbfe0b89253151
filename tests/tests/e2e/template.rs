//! Templates of the user's own: machines that containers begin in.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::artifacts;
use bulkhead_tests::crash::Random;
use bulkhead_tests::home::{Home, busybox_archive};
use bulkhead_tests::lane::{Lane, note};
use rustix::process::{Pid, Signal, kill_process};

use crate::warm::{templates, vm};

/// What the template of the tests is prepared with, and what is said of it.
const SETTING: &str = "/proc/sys/vm/max_map_count";
const PREPARED: &str = "262144\n";
/// The least memory, so that there is less to write.
const SMALL: [&str; 2] = ["--memory", "64M"];

/// The size of the file that the image `other` has more than `busybox`.
const OTHER_BYTES: usize = 1 << 20;

/// Makes the image `other`.
fn import_other(home: &Home) {
    let mut archive = busybox_archive();
    // Its end.
    archive.truncate(archive.len() - 1024);
    let mut archive = tar::Builder::new(archive);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(OTHER_BYTES as u64);
    archive
        .append_data(&mut header, "other", &[b'x'; OTHER_BYTES][..])
        .expect("file");
    let path = home.root().join("other.tar");
    fs::write(&path, archive.into_inner().expect("archive")).expect("write");
    home.expect(&["import", path.to_str().expect("a path"), "other"]);
}

/// Makes a template that nothing has prepared.
fn make_plain(home: &Home, name: &str) {
    home.expect(&[&["template", "create"], &SMALL[..], &[name]].concat());
}

/// The templates there are, and what else lies beside them but locks.
fn kept(home: &Home) -> (String, Vec<String>) {
    let listed = home.expect(&["template", "ls", "--format", "{{.Name}}"]);
    let entries = fs::read_dir(home.root().join("own-templates"));
    let names = entries.into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| !name.ends_with(".lock")).collect();
    names.sort();
    (listed, names)
}

/// Asserts that a container runs in a clone of the template `name`.
fn expect_clone(home: &Home, container: &str, name: &str) {
    let restored = &vm(home, container)["restored"]["asleep_ns"];
    assert!(restored.is_u64(), "{container} has booted: {restored}");
    assert_eq!(home.inspect(container, ".Sandbox.Template"), name);
    // What it has not written is the template's memory, which all of them have.
    let maps = format!("/proc/{}/maps", home.inspect(container, ".State.Pid"));
    let maps = fs::read_to_string(&maps).expect("read");
    let memory = format!("own-templates/{name}/memory");
    assert!(maps.contains(&memory), "{maps}");
}

/// Asserts that a command is refused with these words.
fn expect_refused(home: &Home, arguments: &[&str], words: &str) {
    let (_, said) = home.expect_code(125, arguments);
    assert!(said.contains(words), "{arguments:?}: {said}");
    note(said.trim_end());
}

#[test]
fn containers_when_they_begin_in_a_template_then_it_is_as_it_was_prepared_in_each() {
    let home = Home::with_busybox().with_own_templates();
    let begin = Instant::now();
    let script = format!("echo 262144 >{SETTING}; echo mine >/left; sleep 1000 & cat {SETTING}");
    let create = ["template", "create"];
    let prepare = ["mine", "busybox", "sh", "-c", &script];
    let said = home.expect(&[&create, &SMALL[..], &prepare].concat());
    note(&format!("a template of one's own: {:?}", begin.elapsed()));
    assert_eq!(said, format!("{PREPARED}mine\n"));
    home.expect_nothing_left();
    let (listed, names) = kept(&home);
    assert_eq!((&*listed, &names[..]), ("mine\n", &["mine".to_owned()][..]));
    let made = home.expect(&["template", "inspect", "--format", "{{.made.image}}", "mine"]);
    assert_eq!(made, "busybox\n");

    import_other(&home);
    let start = |name: &str, image: &str, options: &[&str]| {
        let run = ["run", "-d", "--name", name, "--template", "mine"];
        let program = [image, "sleep", "100000"];
        home.expect(&[&run, options, &program[..]].concat());
    };
    let exec = |name: &str, script: &str| home.expect(&["exec", name, "sh", "-c", script]);
    start("first", "busybox", &[]);
    start("second", "other", &["--memory", "32M", "--storage", "16M"]);
    for name in ["first", "second"] {
        expect_clone(&home, name, "mine");
        assert_eq!(exec(name, &format!("cat {SETTING}")), PREPARED);
        // Nothing else is left of the program.
        assert_eq!(exec(name, "ls /left 2>/dev/null; echo done"), "done\n");
        exec(name, "echo kept >/kept");
    }
    // Nor of the image that was in the drive.
    let said = exec(
        "second",
        "tail -c 2 /other; wc -c </other; grep -c y /other || true",
    );
    assert_eq!(said, format!("xx{OTHER_BYTES}\n0\n"));
    let limit = exec("second", "cat /sys/fs/cgroup/memory.max");
    assert_eq!(limit, format!("{}\n", 32 << 20));
    for file in ["boot_id", "uuid"] {
        let read = |name: &&str| exec(name, &format!("cat /proc/sys/kernel/random/{file}"));
        let values: BTreeSet<String> = ["first", "second"].iter().map(read).collect();
        assert_eq!(values.len(), 2, "{file}: {values:?}");
    }

    // It begins there each time it starts.
    home.expect(&["stop", "--time", "1", "second"]);
    home.expect(&["start", "second"]);
    expect_clone(&home, "second", "mine");
    assert_eq!(
        exec("second", &format!("cat {SETTING} /kept")),
        "262144\nkept\n"
    );

    // Nothing but its own command removes it, and not what has begun in it.
    home.expect(&["rm", "--force", "second"]);
    home.expect(&[
        "create",
        "--name",
        "later",
        "--template",
        "mine",
        "busybox",
        "true",
    ]);
    let pruned = home.expect(&["system", "df", "--format", "{{.Type}} {{.TotalCount}}"]);
    assert!(pruned.contains("Templates 1\n"), "{pruned}");
    assert_eq!(home.expect(&["template", "rm", "mine"]), "mine\n");
    assert_eq!(exec("first", &format!("cat {SETTING}")), PREPARED);
    let gone = "there is no template mine (`bulkhead template ls` lists them)";
    expect_refused(&home, &["start", "later"], gone);
    assert_eq!(kept(&home), (String::new(), vec![]));
    // None was made that nobody has asked for.
    assert_eq!(templates(&home), (vec![], vec![]));
    home.expect(&["rm", "--force", "first", "later"]);
    home.expect_nothing_left();
}

#[test]
fn template_when_it_cannot_be_used_then_nothing_boots_and_a_sentence_says_why() {
    let home = Home::with_busybox().with_own_templates();
    make_plain(&home, "mine");
    let run = |options: &[&'static str]| {
        let begin = ["run", "--rm", "--template"];
        [&begin, options, &["busybox", "true"][..]].concat()
    };
    let refused = |options: &[&'static str], words: &str| {
        expect_refused(&home, &run(options), words);
    };
    refused(&["none"], "there is no template none");
    refused(&["../mine"], "cannot be a template's name");
    refused(&["mine", "--cold"], "cannot be used with");
    refused(
        &["mine", "--isolation", "container"],
        "--isolation container has none",
    );
    refused(
        &["mine", "--cpus", "1.5"],
        "--cpus takes a machine with 2 processors",
    );
    refused(
        &["mine", "--memory", "65M"],
        "--memory takes a machine with 130 MiB",
    );
    expect_refused(
        &home,
        &["template", "create", "mine"],
        "there is a template mine already",
    );

    // What is only seen when it starts.
    let failing = |variable: &str, value: &str, words: &str| {
        let output = home.command(&run(&["mine"])).env(variable, value).output();
        let output = output.expect("run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains(words), "{said}");
        note(said.trim_end());
    };
    failing("BULKHEAD_COLD", "1", "BULKHEAD_COLD is set");
    let agent = home.root().join("another-agent");
    fs::copy(artifacts::agent_image(), &agent).expect("copy");
    let agent = agent.to_str().expect("a path");
    failing("BULKHEAD_AGENT_IMAGE", agent, "with another agent");

    home.expect(&run(&["mine"]));
    let state = home.root().join("own-templates/mine/state.json");
    let file = OpenOptions::new().write(true).open(state).expect("open");
    file.set_len(1000).expect("truncate");
    let (_, said) = home.expect_code(125, &run(&["mine"]));
    note(said.trim_end());
    let words = "cannot be restored from the template mine: ";
    assert!(
        said.contains(words) && said.contains("state.json is not"),
        "{said}"
    );
    // It is not for us to remove it, nor to do without.
    assert_eq!(kept(&home).0, "mine\n");
    assert_eq!(templates(&home), (vec![], vec![]));
    home.expect_nothing_left();
}

#[test]
fn template_when_its_program_fails_then_is_not_made() {
    let home = Home::with_busybox();
    let create = [&["template", "create"], &SMALL[..], &["mine", "busybox"]].concat();
    for (program, words) in [
        (&["sh", "-c", "exit 3"][..], "has ended with exit code 3"),
        (&["nowhere"], "nowhere"),
    ] {
        expect_refused(&home, &[&create, program].concat(), words);
        assert_eq!(kept(&home), (String::new(), vec![]));
    }
    home.expect_nothing_left();
}

/// Starts to make a template, up to where a machine is there for it.
fn begin(home: &Home) -> Child {
    let script = "echo 1 >/proc/sys/vm/overcommit_memory";
    let prepare = ["mine", "busybox", "sh", "-c", script];
    let create = [&["template", "create"], &SMALL[..], &prepare].concat();
    home.spawn(&create, |command| {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    })
}

#[test]
fn maker_of_a_template_when_killed_or_raced_then_the_name_is_whole_or_free() {
    let mut random = Random::new("maker_of_a_template_when_killed");
    let home = Home::with_busybox();
    for signal in [Signal::KILL, Signal::INT] {
        let mut maker = begin(&home);
        home.wait_until("a machine is being made", || home.processes().len() > 1);
        let most = Lane::pick(Duration::from_secs(20), Duration::from_secs(8));
        std::thread::sleep(random.part_of(most));
        let pid = i32::try_from(maker.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process"), signal).expect("kill");
        let ended = maker.wait().expect("wait");
        let (listed, names) = kept(&home);
        note(&format!("{signal:?}: {ended:?}, kept {listed:?}"));
        match ended.success() {
            true => home.expect(&["template", "rm", "mine"]),
            // It may have been killed when all but its own end was done.
            false if listed == "mine\n" => home.expect(&["template", "rm", "mine"]),
            false => {
                assert_eq!(names, [""; 0]);
                String::new()
            }
        };
        home.expect_nothing_left();
    }
    let makers = [begin(&home), begin(&home)];
    let made = makers.map(|mut maker| maker.wait().expect("wait").success());
    assert!(made[0] != made[1], "{made:?}");
    let run = ["run", "--rm", "--template", "mine", "busybox"];
    let read = ["cat", "/proc/sys/vm/overcommit_memory"];
    assert_eq!(home.expect(&[&run[..], &read].concat()), "1\n");
    home.expect_nothing_left();
}
