//! Whatever is killed at whichever moment, the next command works and nothing is left.

use std::fs;
use std::path::Path;

use bulkhead_tests::crash::{Life, Random, Surroundings, Tally, Victim};
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::{Lane, note};

use super::alone;

/// Ends in order when it is asked to.
const SERVICE: &str = "trap 'exit 0' TERM; echo up; sleep 100000 & wait";

const WITH_EXEC_AND_STOP: Life<'static> = Life(&[
    &["run", "-d", "--name", "box", "busybox", "sh", "-c", SERVICE],
    &["exec", "box", "echo", "hello"],
    &["stop", "--time", "1", "box"],
    &["rm", "box"],
]);
const ATTACHED: Life<'static> =
    Life(&[&["run", "--rm", "--name", "box", "busybox", "echo", "hello"]]);
const STARTED_TWICE: Life<'static> = Life(&[
    &[
        "create",
        "--name",
        "box",
        "--storage",
        "8M",
        "busybox",
        "sh",
        "-c",
        SERVICE,
    ],
    &["start", "box"],
    &["pause", "box"],
    &["unpause", "box"],
    &["kill", "box"],
    &["start", "box"],
    &["stop", "--time", "1", "box"],
    &["rm", "box"],
]);

#[test]
fn anything_when_killed_at_any_moment_then_the_next_command_works_and_nothing_is_left() {
    let _alone = alone();
    let home = Home::with_busybox();
    let host = tempfile::tempdir().expect("make a folder");
    let folder = format!("{}:/host", host.path().display());
    let write = "echo hello >/host/file";
    let with_a_folder: &[&[&str]] = &[
        &[
            "run", "-d", "--name", "box", "-v", &folder, "busybox", "sh", "-c", SERVICE,
        ],
        &["exec", "box", "sh", "-c", write],
        &["stop", "--time", "1", "box"],
        &["rm", "box"],
    ];
    // The first one makes the template, which takes longer than all of a life.
    home.expect(&["run", "--rm", "busybox", "true"]);
    let before = Surroundings::now();
    let all = [
        WITH_EXEC_AND_STOP,
        Life(with_a_folder),
        ATTACHED,
        STARTED_TWICE,
    ];
    let lives = Lane::pick(&all[..1], &all);
    let lives: Vec<_> = lives
        .iter()
        .map(|life| (life, life.measure(&home)))
        .collect();
    let mut random = Random::new("anything_when_killed_at_any_moment");
    let mut tally = Tally::default();
    let kills = Lane::pick(6, 50);
    while tally.kills() < kills {
        // The shorter ones more often.
        let some = random.below(lives.len()) + 1;
        let (life, whole) = lives[random.below(some)];
        let mut victims = vec![Victim::Command, Victim::Monitor, Victim::Machine];
        if life.0[0].contains(&"-v") {
            victims.push(Victim::Files);
        }
        let victim = victims[random.below(victims.len())];
        let after = random.part_of(whole);
        let step = life.live(&home, Some((victim, after)));
        tally.count(victim, *life, step);
        home.expect(&["ps", "--all"]);
        home.expect(&["rm", "--force", "box"]);
        home.expect_nothing_left();
    }
    note(&format!("killed: {tally}"));
    lives[0].0.measure(&home);
    before.expect_nothing_new();
    home.expect(&["system", "prune", "--all", "--force"]);
    expect_empty_store(&home);
}

#[test]
fn making_of_an_image_when_killed_at_any_moment_then_it_can_be_made_and_nothing_is_left() {
    let _alone = alone();
    let home = Home::empty();
    let file = |name: &str| home.root().join(name).display().to_string();
    let (archive, saved) = (file("files.tar"), file("saved.tar"));
    fs::write(&archive, archive_of_many_files()).expect("write the archive");
    let life = Life(&[
        &["import", &archive, "first"],
        &[
            "create",
            "--pull",
            "never",
            "--name",
            "box",
            "--storage",
            "8M",
            "first",
            "sh",
        ],
        &["save", "--output", &saved, "first"],
        &["rm", "box"],
        &["rmi", "first"],
        &["load", "--input", &saved],
        &["tag", "first", "second"],
        &["create", "--pull", "never", "--name", "box", "second", "sh"],
        &["rm", "box"],
        &["rmi", "second"],
        &["rmi", "first"],
    ]);
    let whole = life.measure(&home);
    let before = Surroundings::now();
    let mut random = Random::new("making_of_an_image_when_killed");
    let mut tally = Tally::default();
    while tally.kills() < Lane::pick(50, 10) {
        let after = random.part_of(whole);
        let step = life.live(&home, Some((Victim::Command, after)));
        tally.count(Victim::Command, life, step);
        home.expect(&["images"]);
        home.expect(&["rm", "--force", "box"]);
        home.expect_nothing_left();
        // Most often the next one finds what the one before has left.
        if random.below(5) == 0 {
            home.expect(&["import", &archive, "first"]);
            home.expect(&["create", "--pull", "never", "--name", "box", "first", "sh"]);
            home.expect(&["rm", "box"]);
            home.expect(&["system", "prune", "--all", "--force"]);
            expect_empty_store(&home);
        }
    }
    note(&format!("killed: {tally}"));
    before.expect_nothing_new();
    let left = names_in(home.root());
    let ours = [
        "containers",
        "files.tar",
        "images",
        "lock",
        "names",
        "saved.tar",
        "unfinished",
    ];
    assert_eq!(left, ours);
}

/// Enough of them to make reading and writing them take a while.
fn archive_of_many_files() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for n in 0..200u32 {
        let data: Vec<u8> = (0..40_000u32)
            .map(|at| ((at ^ n).wrapping_mul(2_654_435_761) >> 19) as u8)
            .collect();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        archive
            .append_data(&mut header, format!("folder{}/file{n}", n % 7), &data[..])
            .expect("file");
    }
    archive.into_inner().expect("archive")
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("list");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("entry").file_name().display().to_string())
        .collect();
    names.sort();
    names
}

/// Once nothing is used and the collector has been.
fn expect_empty_store(home: &Home) {
    for folder in ["blobs/sha256", "disks", "ingest", "leases"] {
        let names = names_in(&home.root().join("images").join(folder));
        assert!(names.is_empty(), "{folder}: {names:?}");
    }
}
