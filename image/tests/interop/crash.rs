//! Processes that are killed at any moment.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_image::Store;
use bulkhead_image::progress::Silent;
use bulkhead_image::registry::{PullOptions, PushOptions, pull, push};
use bulkhead_image::store::Held;

use crate::http::slow_wire;
use crate::registry::Registry;
use crate::sample::{Place, check, files, loaded, name, noise};

const STORE: &str = "BULKHEAD_TEST_CHILD_STORE";
const IMAGE: &str = "BULKHEAD_TEST_CHILD_IMAGE";

const KILLS: usize = 50;

/// This program once more, to pull an image into a store and make its disk.
pub fn child(store: &Path, image: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("program"));
    command
        .args(["--exact", "crash::child_pulls", "--nocapture"])
        .env(STORE, store)
        .env(IMAGE, image)
        .stdout(Stdio::null());
    command
}

/// What that one does. As a test of its own it does nothing.
#[test]
fn child_pulls() {
    let (Some(store), Ok(image)) = (env::var_os(STORE), env::var(IMAGE)) else {
        return;
    };
    let store = Store::open(Path::new(&store)).expect("store");
    let options = PullOptions::default();
    let image = pull(&store, &name(&image), &options, &Silent).expect("pulled");
    store.disk(&image, &Silent).expect("disk");
}

#[test]
fn pull_when_killed_at_any_moment_is_gone_on_with() {
    let registry = Registry::start();
    let source = Place::new();
    let image = loaded(&source, "app:1", 4, 4_000_000);
    let title = registry.name("killed:1");
    let options = PushOptions::default();
    push(&source.store, &image, &name(&title), &options, &Silent).expect("pushed");
    let title = format!("localhost:{}/killed:1", slow_wire(registry.port));

    // How long it takes undisturbed tells when to kill.
    let place = Place::new();
    let begin = Instant::now();
    let mut whole = child(&place.path("whole"), &title);
    assert!(whole.status().expect("run").success());
    let whole = begin.elapsed();

    let mut resumed = 0;
    let random = noise(begin.elapsed().as_nanos() as u64, KILLS);
    for (round, random) in random.iter().enumerate() {
        let folder = place.path(&format!("round{}", round / 5));
        let mut killed = child(&folder, &title)
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        thread::sleep(whole.mul_f64(f64::from(*random) / 256.0));
        let _ = killed.kill();
        killed.wait().expect("ended");

        let store = Store::open(&folder).expect("the store is sound");
        let ingest = folder.join("ingest");
        let half = files(&ingest)
            .iter()
            .filter(|name| {
                ingest
                    .join(name)
                    .metadata()
                    .is_ok_and(|file| file.len() > 0)
            })
            .count();
        resumed += usize::from(half > 0);
        // Whatever has a name is right, and the collector takes the rest but what can be gone on with.
        store
            .collect_garbage(&|| Ok(Vec::new()))
            .expect("collected");
        for image in store.images().expect("images") {
            check(&store, &image);
        }
        if round % 5 == 4 {
            let pulled = pull(&store, &name(&title), &PullOptions::default(), &Silent);
            let pulled = pulled.expect("pulled");
            assert_eq!(pulled.id, image.id);
            check(&store, &pulled);
            store
                .collect_garbage(&|| Ok(Vec::new()))
                .expect("collected");
            assert_eq!(files(&folder.join("ingest")), [""; 0]);
            assert_eq!(files(&folder.join("leases")), [""; 0]);
            assert_eq!(files(&folder.join("disks")).len(), 1);
            assert_eq!(files(&folder.join("blobs/sha256")).len(), 6);
        }
    }
    println!("{resumed} of {KILLS} kills left half a blob; undisturbed it takes {whole:?}");
}

#[test]
fn garbage_when_collected_all_the_time_is_never_what_a_pull_uses() {
    let registry = Registry::start();
    let source = Place::new();
    let image = loaded(&source, "app:1", 3, 500_000);
    let title = registry.name("busy:1");
    let options = PushOptions::default();
    push(&source.store, &image, &name(&title), &options, &Silent).expect("pushed");

    let place = Place::new();
    let store = &place.store;
    let end = Instant::now() + Duration::from_secs(3);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while Instant::now() < end {
                    let options = PullOptions::default();
                    let lease = store.lease().expect("lease");
                    lease
                        .hold(Held::Image(image.manifest.digest))
                        .expect("held");
                    let image = pull(store, &name(&title), &options, &Silent).expect("pulled");
                    store.disk(&image, &Silent).expect("disk");
                }
            });
        }
        scope.spawn(|| {
            while Instant::now() < end {
                store
                    .collect_garbage(&|| Ok(Vec::new()))
                    .expect("collected");
                let _ = store.remove(&title, Default::default(), &|| Ok(Vec::new()));
            }
        });
    });
}
