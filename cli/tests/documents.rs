//! What the command writes of itself: manual pages and completions. And what is written about it: where pages lead to.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn bulkhead(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that `bulkhead ARGUMENTS help` lists, and those under them.
fn commands(above: &[&str]) -> Vec<Vec<String>> {
    let help = bulkhead(&[above, &["--help"]].concat());
    let mut lines = help.lines().skip_while(|line| *line != "Commands:");
    lines.next();
    let mut found = Vec::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        // The next lines of a long description have no name in front.
        let Some(name) = line
            .strip_prefix("  ")
            .filter(|l| !l.starts_with(' '))
            .and_then(|line| line.split(' ').next())
        else {
            continue;
        };
        if name == "help" {
            continue;
        }
        let path = [above, &[name]].concat();
        found.push(path.iter().map(|&word| word.to_owned()).collect());
        found.extend(commands(&path));
    }
    found
}

#[test]
fn manual_when_written_has_a_page_for_every_command_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("man1");
    bulkhead(&["man", man.to_str().unwrap()]);
    let pages: BTreeSet<String> = std::fs::read_dir(&man)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let commands = commands(&[]);
    assert!(commands.len() > 30, "{commands:?}");
    let mut expected: BTreeSet<String> = commands
        .iter()
        .map(|path| format!("bulkhead-{}.1", path.join("-")))
        .collect();
    expected.insert("bulkhead.1".to_owned());
    assert_eq!(pages, expected);

    let page = |name: &str| std::fs::read_to_string(man.join(name)).unwrap();
    let run = page("bulkhead-run.1");
    for words in [".TH bulkhead-run 1", "\\-\\-pids\\-limit", "Exit codes"] {
        assert!(run.contains(words), "{words}: {run}");
    }
    for name in pages {
        let text = page(&name);
        assert!(
            text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"),
            "{name}"
        );
    }
}

#[test]
fn completion_when_written_knows_every_command_and_its_options() {
    let commands = commands(&[]);
    for shell in ["bash", "zsh", "fish"] {
        let script = bulkhead(&["completion", shell]);
        for name in commands.iter().flatten() {
            assert!(
                script.contains(name.as_str()),
                "{shell} does not know {name}"
            );
        }
        for option in ["pids-limit", "sig-proxy", "detach-keys"] {
            assert!(script.contains(option), "{shell} does not know --{option}");
        }
        assert!(
            !script.contains("keep-terminal"),
            "{shell} tells of what is hidden"
        );
    }
}

#[test]
fn completion_when_bash_has_it_completes_commands_and_options() {
    let script = bulkhead(&["completion", "bash"]);
    let complete = |words: &[&str]| {
        let asked = format!(
            "{script}\nCOMP_WORDS=({}); COMP_CWORD={}; _bulkhead bulkhead '{}' '{}'; echo \"${{COMPREPLY[*]}}\"\n",
            words.join(" "),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let mut bash = Command::new("bash")
            .args(["--norc", "-s"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        bash.stdin
            .take()
            .unwrap()
            .write_all(asked.as_bytes())
            .unwrap();
        let output = bash.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    };
    assert_eq!(complete(&["bulkhead", "una"]), "");
    assert_eq!(complete(&["bulkhead", "unp"]), "unpause");
    assert_eq!(complete(&["bulkhead", "run", "--pids"]), "--pids-limit");
    assert_eq!(complete(&["bulkhead", "system", "pr"]), "prune");
}

/// The targets of a page's links that are files of this repository, without the place within.
fn linked(text: &str) -> Vec<&str> {
    let links = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', ' ']).next());
    links
        .filter(|link| !link.contains("://"))
        .filter_map(|link| link.split('#').next())
        .filter(|path| !path.is_empty())
        .collect()
}

#[test]
fn page_when_it_names_a_file_then_the_file_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let in_docs = std::fs::read_dir(root.join("docs")).unwrap();
    let pages = in_docs.map(|entry| entry.unwrap().path());
    let mut seen = 0;
    for page in pages.chain([root.join("README.md")]) {
        if page.extension().is_none_or(|kind| kind != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        for path in linked(&text) {
            let target = page.parent().unwrap().join(path);
            assert!(target.exists(), "{} leads to {path}", page.display());
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} links");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    assert!(linked(&readme).contains(&"docs/virtualization.md"));
}
