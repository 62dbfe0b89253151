//! `bulkhead compare`, as people run it, and its page in a browser.

use std::collections::BTreeSet;
use std::fs;

use bulkhead_tests::browser;
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::Lane;
use serde_json::Value;

/// What a browser makes of the charts: for each bar its figure, kind, drawn width, and number, as it is
/// shown and as it is.
const READ_CHARTS: &str =
    "() => [...document.querySelectorAll('.chart .bar[data-kind]')].map(bar => ({
    id: bar.closest('.chart').dataset.id,
    kind: bar.dataset.kind,
    width: bar.querySelector('rect').getBoundingClientRect().width,
    room: bar.querySelector('svg').getBoundingClientRect().width,
    shown: bar.querySelector('.value').textContent,
    value: bar.querySelector('.value').dataset.value,
}))";

/// What figures may have beside each other: a VM, a clone beside one that has booted, and a container.
const SIDES: [&str; 3] = ["vm", "vm_warm", "container"];

/// Runs the command with few and short measurements and returns its JSON and its page.
fn compare(home: &Home, arguments: &[&str]) -> (Value, String) {
    let page = home.root().join("report.html");
    let html = format!("--html={}", page.display());
    let short = [
        "compare",
        "--quiet",
        "--rounds=1",
        "--time=50",
        "--format=json",
    ];
    let density = ["--density-most=1", &html];
    let output = home.expect(&[&short[..], &density, arguments].concat());
    let report = serde_json::from_str(&output).expect("JSON");
    (report, fs::read_to_string(page).expect("read the page"))
}

fn evidence<'a>(report: &'a Value, id: &str, side: &str) -> &'a str {
    let all = report["evidence"].as_array().expect("evidence");
    let found = all.iter().find(|evidence| evidence["id"] == id);
    let found = found.unwrap_or_else(|| panic!("no {id} in {report:#}"));
    found[side].as_str().unwrap_or_else(|| panic!("{found}"))
}

#[test]
fn compare_when_both_kinds_run_then_measures_them_and_shows_what_each_keeps_apart() {
    // What it takes to make the template is measured only where there is none.
    let home = Home::empty().with_own_templates();
    let (report, page) = compare(&home, &["--prove-blast-radius"]);
    assert_eq!(report["errors"]["vm"], Value::Array(vec![]), "{report:#}");
    assert_eq!(
        report["errors"]["container"],
        Value::Array(vec![]),
        "{report:#}"
    );

    let figures = report["figures"].as_array().expect("figures");
    let ids: BTreeSet<&str> = figures.iter().filter_map(|f| f["id"].as_str()).collect();
    for id in [
        "start_cold",
        "template",
        "stop",
        "image_read",
        "memory",
        "density",
        "integer",
        "avx",
        "memory_copy",
        "memory_read",
        "system_call",
        "spawn",
        "first_touch",
        "file_write",
        "file_read",
        "file_random_read",
        "file_random_write",
        "file_metadata",
    ] {
        assert!(ids.contains(id), "{id} is not in {ids:?}");
    }
    for figure in figures {
        let id = figure["id"].as_str().expect("a name");
        // What is about a start is measured of a VM that boots and of a clone.
        let depends_on_start = matches!(
            id,
            "start_cold" | "stop" | "image_read" | "memory" | "memory_own" | "memory_guest"
        );
        if depends_on_start {
            assert_eq!(figure["vm_start"], "cold", "{figure}");
        } else {
            assert_eq!(figure["vm_start"], "warm", "{figure}");
            assert_eq!(figure["vm_warm"], Value::Null, "{figure}");
        }
        for side in SIDES {
            let is_there = match side {
                "vm_warm" => depends_on_start,
                "container" => id != "template",
                _ => true,
            };
            // The kernel's memory for a container is told by some hosts, and for containers only.
            let optional = matches!(id, "memory_kernel" | "memory_guest" | "avx");
            let median = figure[side]["median"].as_f64();
            assert!(
                optional || !is_there || median.is_some_and(|m| m > 0.0),
                "{side} of {figure}"
            );
        }
    }
    assert!(
        report["notes"]
            .to_string()
            .contains("Making the template took")
    );

    let host = evidence(&report, "boot_id", "host");
    assert_eq!(
        evidence(&report, "boot_id", "container"),
        format!("{host} (the host's)")
    );
    assert!(!evidence(&report, "boot_id", "vm").contains(host));
    assert!(evidence(&report, "processes", "host").contains("the host's among them"));
    for side in ["vm", "container"] {
        assert!(evidence(&report, "processes", side).contains("none of the host's"));
    }
    assert!(evidence(&report, "proc", "vm").contains(": none the host's"));
    assert!(evidence(&report, "proc", "container").contains("the host's by inode"));
    let calls = |side| {
        let text = evidence(&report, "host_calls_work", side).replace(',', "");
        text.parse::<u64>().expect("a number")
    };
    assert!(calls("container") >= 10_000, "{}", calls("container"));
    assert!(calls("vm") < calls("container"), "{}", calls("vm"));
    // Of a VM that boots they are counted if there is time.
    assert!(evidence(&report, "host_calls_life_warm", "vm").contains(" kinds in all"));
    let booted = evidence(&report, "host_calls_life", "container");
    assert!(booted.contains(" kinds in all"), "{booted}");

    let blast = &report["blast_radius"];
    assert_eq!(blast["panicked"], true, "{blast:#}");
    assert!(blast["host"].as_str().expect("host").starts_with("goes on"));
    for side in ["vm", "container"] {
        assert_eq!(
            blast["neighbours"][side], "goes on, and answers",
            "{blast:#}"
        );
    }
    home.expect_nothing_left();

    if Lane::is_not(Lane::Own, "there is no browser in the outer machine") {
        return;
    }
    let path = home.root().join("report.html");
    let shown = browser::show(&path);
    assert_eq!(shown.console, Vec::<String>::new());
    assert!(shown.dom.contains("Two walls around"), "{}", shown.dom);
    let bars = browser::ask(&page, READ_CHARTS);
    let bars = bars.as_array().expect("bars");
    let mut drawn = 0;
    for figure in figures {
        for side in SIDES {
            let Some(median) = figure[side]["median"].as_f64() else {
                continue;
            };
            let of_this = |bar: &&Value| bar["id"] == figure["id"] && bar["kind"] == side;
            let bar = bars
                .iter()
                .find(of_this)
                .unwrap_or_else(|| panic!("{figure}"));
            let width = bar["width"].as_f64().expect("width");
            let room = bar["room"].as_f64().expect("room");
            assert!(width > 0.0 && width <= room + 0.5, "{bar}");
            let exact: f64 = bar["value"]
                .as_str()
                .expect("value")
                .parse()
                .expect("number");
            assert_eq!(exact, median, "{bar}");
            let text = bar["shown"].as_str().expect("shown").replace(',', "");
            let decimals = text.split_once('.').map_or(0, |(_, after)| after.len());
            let last_digit = 10_f64.powi(-i32::try_from(decimals).expect("few"));
            let shown: f64 = text.parse().expect("number");
            assert!((shown - median).abs() <= last_digit * 0.500_001, "{bar}");
            drawn += 1;
        }
    }
    assert_eq!(drawn, bars.len());
}

#[test]
fn compare_when_one_kind_cannot_run_says_so_and_measures_the_other() {
    let home = Home::with_busybox();
    let page = home.root().join("report.html");
    // The root as an option of the command, which all that it runs must be told.
    let root = home.root().to_str().expect("a path");
    let mut command = home.command(&["--root", root, "compare", "--quiet"]);
    command
        .env_remove("BULKHEAD_ROOT")
        .args(["--rounds=1", "--time=20"])
        .args(["--density-most=1", "--format=json", "--html"])
        .arg(&page)
        .args(["busybox", "--", "sh", "-c", "exit 3"])
        .env("BULKHEAD_KERNEL", "/no/such/kernel");
    let output = command.output().expect("run bulkhead");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    let error = report["errors"]["vm"][0].as_str().expect("an error");
    assert!(error.contains("/no/such/kernel"), "{error}");
    let figures = report["figures"].as_array().expect("figures");
    for figure in figures {
        assert_eq!(figure["vm"], Value::Null, "{figure}");
        assert_eq!(figure["vm_warm"], Value::Null, "{figure}");
    }
    let command = figures
        .iter()
        .find(|f| f["id"] == "command")
        .expect("command");
    assert!(
        command["container"]["median"]
            .as_f64()
            .is_some_and(|ms| ms > 0.0)
    );
    let notes = report["notes"].to_string();
    assert!(!notes.contains("were not counted"), "{notes}");
    assert!(
        notes.contains("exit code - in the VM and 3 in the container"),
        "{notes}"
    );
    assert!(
        fs::read_to_string(page)
            .expect("page")
            .contains("not measured")
    );
    // The image that was made for this is gone again.
    let images = home.expect(&["images", "--format", "{{.Repository}}"]);
    assert!(!images.contains("bulkhead-compare"), "{images}");
    home.expect_nothing_left();
}
