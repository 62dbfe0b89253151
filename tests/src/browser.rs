//! A page in a headless browser: Debian's Chromium, with nobody's profile and without a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// What a page turned out to be.
#[derive(Debug)]
pub struct Shown {
    /// The document after its scripts have run.
    pub dom: String,
    /// What the browser's console said of it.
    pub console: Vec<String>,
}

/// Shows the page at `path` to a browser.
pub fn show(path: &Path) -> Shown {
    let profile = TempDir::with_prefix("bulkhead-test-").expect("make a folder");
    let output = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args(["--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", path.display()))
        // Whatever it wants to keep is kept in the folder that goes.
        .env("HOME", profile.path())
        .stdin(Stdio::null())
        .output()
        .expect("start chromium: `make setup` installs it");
    assert!(output.status.success(), "chromium: {:?}", output.status);
    let log = String::from_utf8_lossy(&output.stderr);
    let console = log.lines().filter(|line| line.contains("CONSOLE"));
    Shown {
        dom: String::from_utf8_lossy(&output.stdout).into_owned(),
        console: console.map(str::to_owned).collect(),
    }
}

/// Shows a copy of the page in which `script` may run, and returns the JSON that it makes. The page itself
/// forbids scripts.
pub fn ask(page: &str, script: &str) -> Value {
    const ANSWER: &str = "data-answer=\"";
    let folder = TempDir::with_prefix("bulkhead-test-").expect("make a folder");
    let path: PathBuf = folder.path().join("page.html");
    let copy = page.replace("Content-Security-Policy", "nothing").replace(
        "</body>",
        &format!(
            "<script>document.body.dataset.answer = encodeURIComponent(JSON.stringify(({script})()))</script></body>"
        ),
    );
    fs::write(&path, copy).expect("write the page");
    let dom = show(&path).dom;
    let (_, rest) = dom.split_once(ANSWER).expect("an answer");
    let (answer, _) = rest.split_once('"').expect("its end");
    serde_json::from_slice(&decoded(answer)).expect("JSON")
}

/// What `encodeURIComponent` has encoded.
fn decoded(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).expect("two digits"));
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_when_decoded_is_what_was_encoded() {
        assert_eq!(decoded("a%22b%C3%A9%25"), "a\"bé%".as_bytes());
    }
}
