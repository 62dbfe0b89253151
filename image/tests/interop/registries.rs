//! Pulling from and pushing to a real registry, and what others say about it.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bulkhead_image::progress::{Progress, Silent, State};
use bulkhead_image::registry::{Access, Credentials, PullOptions, PushOptions, pull, push};
use bulkhead_image::{Image, Reference, Store};
use serde_json::{Value, json};

use crate::http::{breaking_wire, serve};
use crate::registry::{Auth, Certificates, Registry};
use crate::sample::{Place, check, loaded, name};
use crate::tools::{openssl, podman, run, skopeo};

fn pull_with(access: &Access, store: &Store, title: &str) -> Result<Image, String> {
    let options = PullOptions {
        access: access.clone(),
        platform: None,
    };
    pull(store, &name(title), &options, &Silent).map_err(|e| e.to_string())
}

fn push_with(access: &Access, store: &Store, image: &Image, title: &str) -> Result<(), String> {
    let options = PushOptions {
        access: access.clone(),
        ..PushOptions::default()
    };
    push(store, image, &name(title), &options, &Silent)
        .map(drop)
        .map_err(|e| e.to_string())
}

fn user() -> Access {
    Access {
        credentials: Some(Credentials::Password {
            user: "user".into(),
            password: "secret".into(),
        }),
        ..Access::default()
    }
}

/// Remembers how each blob ended.
#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Progress for Seen {
    fn report(&self, _item: &str, state: State<'_>) {
        let word = match state {
            State::Exists => "exists",
            State::Mounted(_) => "mounted",
            State::Done => "done",
            State::Retrying(_) => "retrying",
            _ => return,
        };
        self.0.lock().expect("lock").push(word.into());
    }

    fn message(&self, _text: &str) {}
}

impl Seen {
    fn count(&self, word: &str) -> usize {
        let seen = self.0.lock().expect("lock");
        seen.iter().filter(|seen| *seen == word).count()
    }
}

#[test]
fn image_when_pushed_is_what_skopeo_and_podman_take() {
    let registry = Registry::start();
    let place = Place::new();
    let image = loaded(&place, "app:1", 3, 100_000);
    let title = registry.name("team/app:1");
    push_with(&Access::default(), &place.store, &image, &title).expect("pushed");

    let seen = run(skopeo()
        .args(["inspect", "--tls-verify=false"])
        .arg(format!("docker://{title}")));
    let seen: Value = serde_json::from_str(&seen).expect("JSON");
    assert_eq!(seen["Digest"], image.manifest.digest.to_string());
    assert_eq!(seen["Layers"].as_array().map(Vec::len), Some(3));

    run(podman(place.folder.path()).args(["pull", "--tls-verify=false", &title]));
    let seen =
        run(podman(place.folder.path()).args(["image", "inspect", "--format={{.Id}}", &title]));
    assert_eq!(seen, image.id.hex());

    let other = Place::new();
    let pulled = pull_with(&Access::default(), &other.store, &title).expect("pulled");
    assert_eq!(
        (pulled.id, pulled.manifest.digest),
        (image.id, image.manifest.digest)
    );
    check(&other.store, &pulled);
    let by_digest = registry.name(&format!("team/app@{}", image.manifest.digest));
    assert_eq!(other.store.find(&by_digest).expect("found").id, image.id);
    pull_with(&Access::default(), &other.store, &by_digest).expect("pulled again");
}

#[test]
fn image_in_dockers_own_format_is_pulled_and_pushed_as_it_is() {
    let registry = Registry::start();
    let place = Place::new();
    loaded(&place, "app:1", 2, 50_000);
    let title = registry.name("docker:1");
    run(skopeo()
        .args(["copy", "--dest-tls-verify=false", "--format", "v2s2"])
        .arg(format!("oci:{}:it", place.path("layout").display()))
        .arg(format!("docker://{title}")));
    let image = pull_with(&Access::default(), &place.store, &title).expect("pulled");
    assert!(image.manifest.media_type.contains("docker"));
    check(&place.store, &image);
    let again = registry.name("again:1");
    push_with(&Access::default(), &place.store, &image, &again).expect("pushed");
    let raw = run(skopeo()
        .args(["inspect", "--raw", "--tls-verify=false"])
        .arg(format!("docker://{again}")));
    assert!(raw.contains("vnd.docker.distribution.manifest.v2"));
}

#[test]
fn layers_that_are_there_are_neither_sent_nor_fetched_again() {
    let registry = Registry::start();
    let place = Place::new();
    let image = loaded(&place, "app:1", 3, 50_000);
    let options = PushOptions::default();
    let first = name(&registry.name("one:1"));
    push(&place.store, &image, &first, &options, &Silent).expect("pushed");

    let seen = Seen::default();
    push(&place.store, &image, &first, &options, &seen).expect("pushed");
    assert_eq!((seen.count("exists"), seen.count("done")), (4, 0));

    // From a repository of the same registry it is taken there.
    place.store.tag(&image, &first).expect("tagged");
    let image = place.store.image(&first).expect("image");
    let seen = Seen::default();
    let second = name(&registry.name("two:1"));
    push(&place.store, &image, &second, &options, &seen).expect("pushed");
    assert_eq!(seen.count("mounted"), 4);

    let seen = Seen::default();
    pull(&place.store, &second, &PullOptions::default(), &seen).expect("pulled");
    assert_eq!(seen.count("exists"), 3);
}

#[test]
fn index_of_several_platforms_gives_the_one_that_is_wanted() {
    let registry = Registry::start();
    let place = Place::new();
    let image = loaded(&place, "app:1", 1, 1000);
    let title = registry.name("multi:1");
    push_with(&Access::default(), &place.store, &image, &title).expect("pushed");
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": image.manifest.media_type,
            "digest": image.manifest.digest,
            "size": image.manifest.size,
            "platform": {"os": "linux", "architecture": "s390x"},
        }],
    });
    // skopeo copies it as it is, from a layout that has it.
    let layout = place.path("layout");
    let bytes = index.to_string();
    let digest = bulkhead_image::Digest::of(bytes.as_bytes());
    fs::write(layout.join("blobs/sha256").join(digest.hex()), &bytes).expect("written");
    let top = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": bytes.len(),
        "annotations": {"org.opencontainers.image.ref.name": "multi"}}]});
    fs::write(layout.join("index.json"), top.to_string()).expect("written");
    run(skopeo()
        .args(["copy", "--all", "--dest-tls-verify=false"])
        .arg(format!("oci:{}:multi", layout.display()))
        .arg(format!("docker://{title}")));

    let mut options = PullOptions {
        platform: Some("linux/s390x".parse().expect("platform")),
        ..PullOptions::default()
    };
    let pulled = pull(&place.store, &name(&title), &options, &Silent).expect("pulled");
    assert_eq!(pulled.manifest.digest, image.manifest.digest);
    assert_eq!(
        pulled.source.and_then(|source| source.digest()),
        Some(digest)
    );
    options.platform = None;
    let error = pull(&place.store, &name(&title), &options, &Silent).expect_err("none");
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

#[test]
fn password_when_right_opens_the_registry() {
    let registry = Registry::with(&Auth::Htpasswd, None);
    let place = Place::new();
    let image = loaded(&place, "app:1", 2, 1000);
    let title = registry.name("private:1");
    let config = place.path("config.json");
    let stored = |auths: Value| {
        fs::write(&config, json!({ "auths": auths }).to_string()).expect("written");
        Access {
            config: Some(config.clone()),
            ..Access::default()
        }
    };

    let nobody = stored(json!({}));
    let error = push_with(&nobody, &place.store, &image, &title).expect_err("refused");
    assert!(error.contains("log in"), "{error}");
    push_with(&user(), &place.store, &image, &title).expect("pushed");
    let host = format!("localhost:{}", registry.port);
    let right = stored(json!({ &host: {"auth": STANDARD.encode("user:secret")} }));
    pull_with(&right, &place.store, &title).expect("pulled");
    let wrong = stored(json!({ &host: {"auth": STANDARD.encode("user:wrong")} }));
    let error = pull_with(&wrong, &place.store, &title).expect_err("refused");
    assert!(!error.contains("wrong") && !error.contains('\n'), "{error}");
}

#[test]
fn tls_with_a_test_ca_is_believed_when_told_to() {
    let folder = tempfile::tempdir().expect("folder");
    let certificates = Certificates::new(folder.path());
    let registry = Registry::with(&Auth::Htpasswd, Some(&certificates));
    let place = Place::new();
    let image = loaded(&place, "app:1", 2, 1000);
    let title = registry.name("secure:1");

    let error = push_with(&user(), &place.store, &image, &title).expect_err("unknown CA");
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let mut access = user();
    access.ca.push(certificates.ca.clone());
    push_with(&access, &place.store, &image, &title).expect("pushed");
    run(skopeo()
        .args(["inspect", "--creds", "user:secret"])
        .arg(format!(
            "--cert-dir={}",
            folder_with_ca(folder.path(), &certificates)
        ))
        .arg(format!("docker://{title}")));
    pull_with(&access, &place.store, &title).expect("pulled");
    let insecure = Access {
        insecure: true,
        ..user()
    };
    pull_with(&insecure, &place.store, &title).expect("pulled");
}

fn folder_with_ca(folder: &Path, certificates: &Certificates) -> String {
    let folder = folder.join("certs");
    fs::create_dir(&folder).expect("made");
    fs::copy(&certificates.ca, folder.join("ca.crt")).expect("copied");
    folder.display().to_string()
}

/// A token server like a registry's: whoever has the password gets what he asks for, others may pull.
fn token_server(certificates: &Certificates) -> u16 {
    let der = run(openssl()
        .args(["x509", "-in"])
        .arg(&certificates.certificate));
    let x5c: String = der
        .lines()
        .filter(|line| !line.starts_with("---"))
        .collect();
    let key = certificates.key.clone();
    serve(move |asked| {
        let (_, query) = asked.target.split_once('?').unwrap_or_default();
        let known = asked.header("authorization").map(str::to_owned)
            == Some(format!("Basic {}", STANDARD.encode("user:secret")));
        let access: Vec<Value> = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("scope="))
            .map(|scope| {
                scope
                    .replace("%3A", ":")
                    .replace("%2C", ",")
                    .replace("%2F", "/")
            })
            .filter_map(|scope| {
                let mut parts = scope.split(':');
                let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
                let actions = actions
                    .split(',')
                    .filter(|action| known || *action == "pull");
                Some(json!({"type": kind, "name": name, "actions": actions.collect::<Vec<_>>()}))
            })
            .collect();
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!(
            "{}.{}",
            encode(&json!({"typ": "JWT", "alg": "RS256", "x5c": [x5c]})),
            encode(
                &json!({"iss": "test", "aud": "test", "sub": "user", "jti": "1", "iat": 1,
                "nbf": 1, "exp": 4_000_000_000u64, "access": access})
            )
        );
        let file = tempfile::NamedTempFile::new().expect("file");
        fs::write(file.path(), &signed).expect("written");
        let output = openssl()
            .args(["dgst", "-sha256", "-binary", "-sign"])
            .arg(&key)
            .arg(file.path())
            .output()
            .expect("openssl");
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(output.stdout));
        (
            200,
            Vec::new(),
            json!({"token": token}).to_string().into_bytes(),
        )
    })
}

#[test]
fn token_when_the_registry_wants_one_is_fetched_and_shown() {
    let folder = tempfile::tempdir().expect("folder");
    let certificates = Certificates::new(folder.path());
    let realm = format!("http://127.0.0.1:{}/token", token_server(&certificates));
    let registry = Registry::with(
        &Auth::Token {
            realm,
            certificate: &certificates.ca,
        },
        None,
    );
    let place = Place::new();
    let image = loaded(&place, "app:1", 3, 1000);
    let title = registry.name("tokens/app:1");
    let nobody = Access {
        config: Some(place.path("no-config.json")),
        ..Access::default()
    };
    push_with(&user(), &place.store, &image, &title).expect("pushed");
    // Pulling is free for all, pushing is not.
    pull_with(&nobody, &place.store, &title).expect("pulled");
    let other = registry.name("tokens/other:1");
    let error = push_with(&nobody, &place.store, &image, &other).expect_err("refused");
    assert!(error.contains("log in"), "{error}");
    // Mounting needs a token for two repositories.
    let image = place.store.image(&name(&title)).expect("image");
    push_with(&user(), &place.store, &image, &other).expect("mounted");
}

#[test]
fn connection_when_it_breaks_is_gone_on_with() {
    let registry = Registry::start();
    let place = Place::new();
    let image = loaded(&place, "app:1", 3, 3_000_000);
    let title = registry.name("big:1");
    let (wire, cuts) = breaking_wire(registry.port, 4, 700_000);
    let broken: Reference = name(&format!("localhost:{wire}/big:1"));
    let options = PushOptions {
        chunk: 1 << 20,
        ..PushOptions::default()
    };
    push(&place.store, &image, &broken, &options, &Silent).expect("pushed");
    assert_eq!(cuts.load(Ordering::SeqCst), 4);

    let (wire, cuts) = breaking_wire(registry.port, 6, 500_000);
    let broken: Reference = name(&format!("localhost:{wire}/big:1"));
    let other = Place::new();
    let seen = Seen::default();
    let pulled = pull(&other.store, &broken, &PullOptions::default(), &seen).expect("pulled");
    assert_eq!(cuts.load(Ordering::SeqCst), 6);
    assert!(seen.count("retrying") >= 6);
    check(&other.store, &pulled);
    pull_with(&Access::default(), &other.store, &title).expect("pulled");
}

#[test]
fn blob_when_sent_in_pieces_arrives_whole() {
    let registry = Registry::start();
    let place = Place::new();
    let image = loaded(&place, "app:1", 2, 1_000_000);
    let title = name(&registry.name("pieces:1"));
    let options = PushOptions {
        chunk: 100_000,
        ..PushOptions::default()
    };
    push(&place.store, &image, &title, &options, &Silent).expect("pushed");
    let other = Place::new();
    let pulled = pull(&other.store, &title, &PullOptions::default(), &Silent).expect("pulled");
    check(&other.store, &pulled);
}

#[test]
fn helper_when_configured_is_asked_for_the_password() {
    use std::os::unix::fs::PermissionsExt;
    let registry = Registry::with(&Auth::Htpasswd, None);
    let place = Place::new();
    let image = loaded(&place, "app:1", 1, 1000);
    let title = registry.name("helped:1");
    // Helpers are found in PATH, which is this process's: the test runs itself with another.
    let bin = place.path("bin");
    fs::create_dir(&bin).expect("made");
    let helper = bin.join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread host\n[ \"$1 $host\" = \"get localhost:{}\" ] || {{ echo credentials not found; exit 1; }}\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"user\",\"Secret\":\"secret\"}}'\n",
        registry.port
    );
    fs::write(&helper, script).expect("written");
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("mode");
    push_with(&user(), &place.store, &image, &title).expect("pushed");
    let config = place.path("docker");
    fs::create_dir(&config).expect("made");
    fs::write(config.join("config.json"), r#"{"credsStore": "test"}"#).expect("written");
    let other = place.path("other");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = crate::crash::child(&other, &title);
    child
        .env("DOCKER_CONFIG", &config)
        .env("PATH", format!("{}:{path}", bin.display()));
    run(&mut child);
    let store = Store::open(&other).expect("store");
    assert_eq!(store.image(&name(&title)).expect("pulled").id, image.id);
}
