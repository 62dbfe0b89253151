//! An image of 500 MB in 12 layers with 60,000 files becomes a disk, and beside it, in the same run,
//! `umoci unpack` unpacks the same image. Both read the layers from the page cache and check their
//! digests; neither syncs. `TMPDIR` says on which file system.
//!
//!     cargo bench -p bulkhead-image --bench unpack

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bulkhead_image::layers::{DiskOptions, Layer, build_disk};
use sha2::{Digest, Sha256};

const LAYERS: usize = 12;
const FILES: usize = 60_000;
const BYTES: u64 = 500_000_000;
const RUNS: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, layout, disk] = &arguments[..]
        && word == "disk"
    {
        return make_disk(Path::new(layout), Path::new(disk));
    }

    let place = std::env::var_os("TMPDIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    let folder = tempfile::Builder::new()
        .prefix("unpack")
        .tempdir_in(place)
        .expect("a folder on the disk");
    let layout = folder.path().join("layout");
    let (bytes, entries) = make_image(&layout);
    println!(
        "{LAYERS} layers, {entries} entries, {:.0} MB of tar",
        bytes as f64 / 1e6
    );

    let disk = folder.path().join("disk.erofs");
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..RUNS {
        rustix::fs::sync();
        let start = Instant::now();
        let output = Command::new(&arguments[0])
            .arg("disk")
            .args([&layout, &disk])
            .output()
            .expect("this program runs again");
        ours.push((
            start.elapsed(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ));
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );

        let bundle = folder.path().join("bundle");
        rustix::fs::sync();
        let start = Instant::now();
        let mut umoci = Command::new("umoci");
        umoci
            .arg("unpack")
            .arg("--image")
            .arg(format!("{}:bench", layout.display()));
        if !rustix::process::geteuid().is_root() {
            umoci.arg("--rootless");
        }
        let output = umoci.arg(&bundle).output().expect("umoci is installed");
        theirs.push(start.elapsed());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::remove_dir_all(&bundle).expect("the bundle can go");
    }

    ours.sort();
    theirs.sort();
    let (our_time, said) = &ours[RUNS / 2];
    let rate = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
    println!(
        "bulkhead      {our_time:8.2?}  {:6.0} MB/s  {said}",
        rate(*our_time)
    );
    println!(
        "umoci unpack  {:8.2?}  {:6.0} MB/s",
        theirs[RUNS / 2],
        rate(theirs[RUNS / 2])
    );
    let times = theirs[RUNS / 2].as_secs_f64() / our_time.as_secs_f64();
    println!("medians of {RUNS}; bulkhead is {times:.1} times faster");
}

/// Makes the disk in a process of its own, so that its memory is all that is counted.
fn make_disk(layout: &Path, disk: &Path) {
    let list = fs::read_to_string(layout.join("layers")).expect("the list of layers");
    let layers = list.lines().rev().map(|digest| {
        let file = File::open(layout.join("blobs/sha256").join(digest))?;
        let digest = digest.to_owned();
        let tar = Verified {
            file,
            hasher: Sha256::new(),
            digest: digest.clone(),
        };
        Ok::<_, io::Error>(Layer {
            name: digest,
            tar: Box::new(tar),
        })
    });
    let disk = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(disk)
        .expect("a file for the disk");
    let summary = build_disk(layers, &disk, &DiskOptions::default()).expect("a disk");
    let status = fs::read_to_string("/proc/self/status").expect("proc");
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap_or_default();
    print!(
        "peak memory {}, disk {:.0} MB",
        peak.trim(),
        summary.disk_bytes as f64 / 1e6
    );
}

/// A layer whose digest is checked at its end.
struct Verified {
    file: File,
    hasher: Sha256,
    digest: String,
}

impl Read for Verified {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(buf)?;
        self.hasher.update(&buf[..len]);
        if len == 0 && hex(&self.hasher.finalize_reset()) != self.digest {
            return Err(io::Error::other("wrong digest"));
        }
        Ok(len)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Writes an OCI layout with uncompressed layers, and tells the bytes and entries of the layers.
fn make_image(layout: &Path) -> (u64, usize) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a folder");
    let mut random = Random(1);
    let (mut bytes, mut entries) = (0, 0);
    let mut digests = Vec::new();
    let mut descriptors = Vec::new();
    let mut noise = vec![0; 1 << 20];
    noise
        .iter_mut()
        .for_each(|byte| *byte = random.next() as u8);
    for layer in 0..LAYERS {
        let path = blobs.join("new");
        let mut tar = Tar {
            file: Hashed::new(&path),
            entries: 0,
        };
        tar.layer(layer, &mut random, &noise);
        let (digest, len) = tar.file.end();
        fs::rename(path, blobs.join(&digest)).expect("a rename");
        bytes += len;
        entries += tar.entries;
        descriptors.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{digest}","size":{len}}}"#
        ));
        digests.push(digest);
    }
    let diff_ids: Vec<String> = digests.iter().map(|d| format!("\"sha256:{d}\"")).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let blob = |text: &str| {
        let digest = hex(&Sha256::digest(text));
        fs::write(blobs.join(&digest), text).expect("a blob");
        format!(r#""digest":"sha256:{digest}","size":{}"#, text.len())
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{}}},"layers":[{}]}}"#,
        blob(&config),
        descriptors.join(",")
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",{},"annotations":{{"org.opencontainers.image.ref.name":"bench"}}}}]}}"#,
        blob(&manifest)
    );
    fs::write(layout.join("index.json"), index).expect("the index");
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("the version");
    fs::write(layout.join("layers"), digests.join("\n")).expect("our own list");
    (bytes, entries)
}

struct Tar {
    file: Hashed,
    entries: usize,
}

impl Tar {
    /// A layer of many small files and a few large ones, in folders of ten. Each layer but the first
    /// replaces and removes some files of the one below.
    fn layer(&mut self, layer: usize, random: &mut Random, noise: &[u8]) {
        let files = FILES / LAYERS;
        for index in 0..files {
            let folder = format!("usr/share/layer-{layer}/package-{}", index / 10);
            if index % 10 == 0 {
                self.entry(&folder, b'5', &[]);
            }
            let size = match random.next() % 20 {
                0..11 => random.next() % 4096,
                11..19 => random.next() % (16 << 10),
                _ => random.next() % (160 << 10),
            };
            let size = (size * BYTES / 500_000_000) as usize;
            let start = random.next() as usize % (noise.len() - size);
            self.entry(
                &format!("{folder}/file-{index}"),
                b'0',
                &noise[start..start + size],
            );
        }
        if layer > 0 {
            for index in (0..files).step_by(50) {
                let folder = format!("usr/share/layer-{}/package-{}", layer - 1, index / 10);
                self.entry(&format!("{folder}/file-{index}"), b'0', &noise[..5000]);
                self.entry(&format!("{folder}/.wh.file-{}", index + 1), b'0', &[]);
            }
        }
        self.file.write(&[0; 1024]);
    }

    fn entry(&mut self, path: &str, kind: u8, data: &[u8]) {
        let mut block = [0; 512];
        let mut put = |at: usize, text: &str| {
            block[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, path);
        put(100, if kind == b'5' { "0000755" } else { "0000644" });
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", data.len()));
        put(136, &format!("{:011o}", 1_700_000_000 + self.entries));
        put(148, "        ");
        put(257, "ustar\x0000");
        block[156] = kind;
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.file.write(&block);
        self.file.write(data);
        self.file
            .write(&[0; 512][..data.len().next_multiple_of(512) - data.len()]);
        self.entries += 1;
    }
}

struct Hashed {
    file: BufWriter<File>,
    hasher: Sha256,
    len: u64,
}

impl Hashed {
    fn new(path: &Path) -> Self {
        let file = BufWriter::new(File::create(path).expect("a file"));
        Self {
            file,
            hasher: Sha256::new(),
            len: 0,
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).expect("room on the disk");
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }

    fn end(&mut self) -> (String, u64) {
        self.file.flush().expect("room on the disk");
        (hex(&self.hasher.finalize_reset()), self.len)
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}
