//! Registries and archives that mean harm.

use std::fs;
use std::sync::Arc;
use std::sync::Mutex;

use bulkhead_image::archive::{LoadOptions, load};
use bulkhead_image::progress::Silent;
use bulkhead_image::registry::{Access, Credentials, PullOptions, pull};
use bulkhead_image::{Digest, Store};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::http::{Answer, Asked, serve};
use crate::sample::{Place, files, name};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn config(diff_ids: &[Digest]) -> Vec<u8> {
    json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()})
}

fn manifest(config: &[u8], layers: &[Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, config), "layers": layers})
        .to_string()
        .into_bytes()
}

fn ok(body: &[u8]) -> Answer {
    (200, Vec::new(), body.to_vec())
}

/// Pulls from a server that answers so, which has to fail in a sentence and to leave nothing.
fn refused(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> String {
    let port = serve(answer);
    let place = Place::new();
    let reference = name(&format!("127.0.0.1:{port}/evil:1"));
    let error = pull(&place.store, &reference, &PullOptions::default(), &Silent)
        .expect_err("refused")
        .to_string();
    assert!(!error.contains('\n') && error.len() < 600, "{error}");
    place
        .store
        .collect_garbage(&|| Ok(Vec::new()))
        .expect("collected");
    assert_eq!(files(&place.path("store/blobs/sha256")), [""; 0]);
    assert!(place.store.images().expect("images").is_empty());
    error
}

#[test]
fn registry_when_it_sends_something_else_is_refused() {
    let layer = b"layer".to_vec();
    let sound = config(&[Digest::of(&layer)]);
    let whole = manifest(&sound, &[descriptor(LAYER, &layer)]);

    // A layer of the right length, with other bytes; one that is too long; one too short.
    for (wrong, says) in [
        (&b"lAyer"[..], "digest"),
        (b"layers", "bytes"),
        (b"", "bytes"),
    ] {
        let (sound, whole, wrong) = (sound.clone(), whole.clone(), wrong.to_vec());
        let error = refused(move |asked| match asked.target.as_str() {
            target if target.contains("/manifests/") => ok(&whole),
            target if target.contains(&Digest::of(&sound).to_string()) => ok(&sound),
            _ => ok(&wrong),
        });
        assert!(error.contains(says), "{error}");
    }
    // A configuration that is not the manifest's.
    let (other, again) = (config(&[]), whole.clone());
    let error = refused(move |asked| match asked.target.as_str() {
        target if target.contains("/manifests/") => ok(&again),
        _ => ok(&other),
    });
    assert!(error.contains("digest"), "{error}");
    // One whose layers are not the manifest's.
    let other = config(&[]);
    let lying = manifest(&other, &[descriptor(LAYER, &layer)]);
    let error = refused(move |asked| match asked.target.as_str() {
        target if target.contains("/manifests/") => ok(&lying),
        _ => ok(&other),
    });
    assert!(error.contains("layers"), "{error}");
}

#[test]
fn registry_when_its_manifest_is_unreasonable_is_refused() {
    for body in [
        Vec::new(),
        b"<html>".to_vec(),
        vec![b'['; 1 << 20],
        vec![b' '; 5 << 20],
        br#"{"schemaVersion": 1, "fsLayers": []}"#.to_vec(),
        json!({"schemaVersion": 2, "manifests": []})
            .to_string()
            .into_bytes(),
        manifest(
            b"",
            &[json!({"mediaType": LAYER, "digest": "sha256:..", "size": 1})],
        ),
        manifest(
            b"",
            &[json!({"mediaType": "evil\n\u{1b}[2J", "digest": Digest::of(b""), "size": 1})],
        ),
    ] {
        refused(move |asked| match asked.target.as_str() {
            target if target.contains("/manifests/") => ok(&body),
            _ => (404, Vec::new(), Vec::new()),
        });
    }
}

#[test]
fn registry_when_it_redirects_in_circles_is_refused() {
    let error = refused(|asked| match asked.target.as_str() {
        "/v2/" => ok(b""),
        target => (307, vec![("Location", format!("{target}x"))], Vec::new()),
    });
    assert!(error.contains("circles"), "{error}");
    let error = refused(|asked| match asked.target.as_str() {
        "/v2/" => ok(b""),
        _ => (
            307,
            vec![("Location", "file:///etc/passwd".into())],
            Vec::new(),
        ),
    });
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn error_when_a_registry_gives_one_is_told_on_one_line() {
    let error = refused(|asked| match asked.target.as_str() {
        "/v2/" => ok(b""),
        _ => (
            418,
            Vec::new(),
            br#"{"errors": [{"code": "X", "message": "a\n\u001b[31mteapot"}]}"#.to_vec(),
        ),
    });
    assert!(
        error.contains("teapot") && !error.contains('\u{1b}'),
        "{error}"
    );
}

#[test]
fn password_when_redirected_elsewhere_stays_here() {
    let layer = b"layer".to_vec();
    let config = config(&[Digest::of(&layer)]);
    let whole = manifest(&config, &[descriptor(LAYER, &layer)]);
    let heard: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let listening = Arc::clone(&heard);
    let blobs = [config, layer];
    let storage = serve(move |asked| {
        listening.lock().expect("lock").push(asked.clone());
        let wanted = |blob: &&Vec<u8>| asked.target.ends_with(&Digest::of(blob).to_string());
        match blobs.iter().find(wanted) {
            Some(blob) => ok(blob),
            None => (404, Vec::new(), Vec::new()),
        }
    });
    let port = serve(move |asked| {
        if asked.header("authorization").is_none() {
            let challenge = "Basic realm=\"x\"".to_owned();
            return (401, vec![("WWW-Authenticate", challenge)], Vec::new());
        }
        match asked.target.rsplit_once("/blobs/") {
            Some((_, blob)) => {
                let elsewhere = format!("http://127.0.0.1:{storage}/{blob}");
                (307, vec![("Location", elsewhere)], Vec::new())
            }
            None => ok(&whole),
        }
    });
    let place = Place::new();
    let options = PullOptions {
        access: Access {
            credentials: Some(Credentials::Password {
                user: "user".into(),
                password: "secret".into(),
            }),
            ..Access::default()
        },
        platform: None,
    };
    let reference = name(&format!("127.0.0.1:{port}/redirected:1"));
    pull(&place.store, &reference, &options, &Silent).expect("pulled");
    let heard = heard.lock().expect("lock");
    assert_eq!(heard.len(), 2);
    assert!(
        heard
            .iter()
            .all(|asked| asked.header("authorization").is_none()),
        "{heard:?}"
    );
}

#[test]
fn archive_when_it_is_none_is_refused() {
    let place = Place::new();
    let file = place.path("archive");
    for bytes in [
        Vec::new(),
        b"hello".to_vec(),
        vec![0; 2048],
        vec![0xff; 2048],
        b"\x1f\x8b\x08rubbish".to_vec(),
        b"\x28\xb5\x2f\xfdrubbish".to_vec(),
        b"\xfd7zXZ\0....".to_vec(),
    ] {
        fs::write(&file, &bytes).expect("written");
        let error = load(&place.store, &file, &LoadOptions::default(), &Silent)
            .expect_err("refused")
            .to_string();
        assert!(!error.contains('\n'), "{error}");
    }
}

/// A directory that says it is a layout, with these files.
fn folder(place: &Place, files: &[(&str, Vec<u8>)]) -> std::path::PathBuf {
    let folder = place.path("evil");
    let _ = fs::remove_dir_all(&folder);
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("folder")).expect("made");
        fs::write(path, bytes).expect("written");
    }
    folder
}

#[test]
fn layout_when_it_lies_is_refused() {
    let place = Place::new();
    let config = config(&[]);
    let sound = manifest(&config, &[]);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let index = |bytes: &[u8]| {
        json!({"schemaVersion": 2, "manifests": [descriptor(MANIFEST, bytes)]})
            .to_string()
            .into_bytes()
    };
    let saved = |config: &str, layer: &str| {
        json!([{"Config": config, "RepoTags": ["evil:1"], "Layers": [layer]}])
            .to_string()
            .into_bytes()
    };
    fs::write(place.path("secret"), b"secret").expect("written");
    let cases: Vec<Vec<(&str, Vec<u8>)>> = vec![
        vec![("index.json", index(&sound))],
        vec![("index.json", vec![b'['; 100_000])],
        vec![("index.json", vec![b' '; 5 << 20])],
        vec![("manifest.json", saved("../secret", "../secret"))],
        vec![("manifest.json", saved("/etc/passwd", "/etc/passwd"))],
        vec![("manifest.json", b"[]".to_vec())],
    ];
    for case in &cases {
        let folder = folder(&place, case);
        let error = load(&place.store, &folder, &LoadOptions::default(), &Silent)
            .expect_err("refused")
            .to_string();
        assert!(!error.contains('\n') && !error.contains("root:"), "{error}");
    }
    // A blob whose bytes are not what its name says.
    let (name, top) = (blob(&sound), index(&sound));
    let mut damaged = sound.clone();
    damaged[20] ^= 1;
    let folder = folder(&place, &[("index.json", top), (&name, damaged)]);
    let error = load(&place.store, &folder, &LoadOptions::default(), &Silent).expect_err("refused");
    assert!(error.to_string().contains("digest"), "{error}");
    assert!(place.store.images().expect("images").is_empty());
}

#[test]
fn layout_when_a_file_of_it_is_a_pipe_is_refused_and_not_waited_for() {
    let place = Place::new();
    for name in ["index.json", "manifest.json"] {
        let folder = folder(&place, &[("oci-layout", b"{}".to_vec())]);
        mknodat(
            CWD,
            folder.join(name),
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .expect("made");
        let error = load(&place.store, &folder, &LoadOptions::default(), &Silent);
        let error = error.expect_err("refused").to_string();
        assert!(error.contains("is no file"), "{error}");
    }
}

#[test]
fn store_when_its_index_is_damaged_deletes_nothing() {
    let place = Place::new();
    let lease = place.store.lease().expect("lease");
    place
        .store
        .add_blob(&lease, "text/plain", b"precious")
        .expect("added");
    drop(lease);
    fs::write(place.path("store/index.json"), b"{").expect("written");
    let store = Store::open(&place.path("store")).expect("store");
    assert!(store.collect_garbage(&|| Ok(Vec::new())).is_err());
    assert_eq!(files(&place.path("store/blobs/sha256")).len(), 1);
}
