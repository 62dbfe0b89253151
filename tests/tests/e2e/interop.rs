//! Images that other programs make, in microVMs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bulkhead_tests::artifacts;
use bulkhead_tests::home::Home;
use bulkhead_tests::lane::Lane;
use serde_json::json;

#[path = "../../../image/tests/interop/tools.rs"]
#[expect(dead_code, reason = "the images' own tests use more of them")]
mod tools;

use tools::{buildah, podman, run, skopeo, umoci};

const POLICY: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;

/// What the images run: says what is in a file and in the environment.
const SCRIPT: &str = "echo \"$(cat /by): $MADE\"";

/// A folder in which other programs make images.
struct Workshop {
    folder: tempfile::TempDir,
}

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::TempDir::with_prefix("bulkhead-test-").expect("make a folder");
        let bin = folder.path().join("root/bin");
        fs::create_dir_all(&bin).expect("make a folder");
        fs::copy(artifacts::busybox(), bin.join("busybox")).expect("copy busybox");
        for name in ["cat", "echo", "sh"] {
            symlink("busybox", bin.join(name)).expect("link");
        }
        fs::write(folder.path().join("policy.json"), POLICY).expect("write the policy");
        Workshop { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Made by buildah, and packed by it as an OCI archive.
    fn buildah(&self) -> PathBuf {
        let buildah = || buildah(self.folder.path());
        let archive = self.path("buildah.tar");
        let container = run(buildah().args(["from", "scratch"]));
        let copy = ["copy", &container];
        run(buildah().args(copy).arg(self.path("root")).arg("/"));
        let command = json!(["sh", "-c", SCRIPT]).to_string();
        let config = ["config", "--cmd", &command, "--env", "MADE=yes"];
        run(buildah().args(config).arg(&container));
        self.sign("buildah");
        let copy = ["copy", &container];
        run(buildah().args(copy).arg(self.path("by")).arg("/by"));
        run(buildah()
            .args(["commit", "--signature-policy"])
            .arg(self.path("policy.json"))
            .args([&container, "localhost/buildah:1"]));
        run(buildah()
            .args(["push", "--signature-policy"])
            .arg(self.path("policy.json"))
            .arg("localhost/buildah:1")
            .arg(format!(
                "oci-archive:{}:localhost/buildah:1",
                archive.display()
            )));
        archive
    }

    /// Saved by podman in Docker's format.
    fn podman(&self, base: &Path) -> PathBuf {
        let podman = || podman(self.folder.path());
        let archive = self.path("podman.tar");
        run(podman()
            .args(["load", "--signature-policy"])
            .arg(self.path("policy.json"))
            .arg("-i")
            .arg(base));
        run(podman().args(["tag", "localhost/buildah:1", "localhost/podman:1"]));
        run(podman()
            .args(["save", "--format", "docker-archive", "-o"])
            .arg(&archive)
            .arg("localhost/podman:1"));
        archive
    }

    /// Copied by skopeo into a layout, its layers packed anew with zstd.
    fn skopeo(&self, base: &Path) -> PathBuf {
        let layout = self.path("skopeo");
        run(skopeo()
            .args(["copy", "--dest-compress", "--dest-compress-format", "zstd"])
            .arg(format!("oci-archive:{}", base.display()))
            .arg(format!("oci:{}:localhost/skopeo:1", layout.display())));
        layout
    }

    /// Made by umoci, a layer for each of its steps.
    fn umoci(&self) -> PathBuf {
        let layout = self.path("umoci");
        let image = format!("{}:localhost/umoci:1", layout.display());
        run(umoci().args(["init", "--layout"]).arg(&layout));
        run(umoci().args(["new", "--image", &image]));
        self.sign("umoci");
        for (from, to) in [("root/bin", "/bin"), ("by", "/by")] {
            let insert = ["insert", "--image", &image];
            run(umoci().args(insert).arg(self.path(from)).arg(to));
        }
        let command = ["sh", "-c", SCRIPT].map(|word| ["--config.cmd".to_owned(), word.to_owned()]);
        let config = ["config", "--image", &image, "--config.env", "MADE=yes"];
        run(umoci().args(config).args(command.concat()));
        layout
    }

    /// Writes the file that says who made the image.
    fn sign(&self, name: &str) {
        fs::write(self.path("by"), format!("made by {name}")).expect("write");
    }
}

#[test]
fn image_when_made_by_another_program_then_it_runs() {
    if Lane::is_not(Lane::Own, "the other programs are not in the outer machine") {
        return;
    }
    let workshop = Workshop::new();
    let home = Home::empty();
    let buildah = workshop.buildah();
    let images = [
        ("podman", workshop.podman(&buildah), "buildah"),
        ("skopeo", workshop.skopeo(&buildah), "buildah"),
        ("umoci", workshop.umoci(), "umoci"),
        ("buildah", buildah, "buildah"),
    ];
    for (name, path, maker) in images {
        home.expect(&["load", "--input", path.to_str().expect("a path")]);
        let image = format!("localhost/{name}:1");
        let said = home.expect(&["run", "--rm", "--pull", "never", &image]);
        assert_eq!(said, format!("made by {maker}: yes\n"), "{name}");
    }
    home.expect_nothing_left();
}
