//! Archives that others make, and those we make.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread;

use bulkhead_image::archive::{
    Format, ImportOptions, LoadOptions, import, load, load_stream, save,
};
use bulkhead_image::inspect::{history, inspect};
use bulkhead_image::progress::Silent;
use bulkhead_image::store::{RemoveOptions, Removed};
use bulkhead_image::{Digest, Image, Store};

use crate::sample::{Place, check, files, layout, loaded, name};
use crate::tools::{buildah, podman, program, run, skopeo, umoci};

const SIGNATURES: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;

fn load_one(store: &Store, path: &Path) -> Image {
    let mut images = load(store, path, &LoadOptions::default(), &Silent).expect("loaded");
    assert_eq!(images.len(), 1);
    let image = images.remove(0);
    check(store, &image);
    image
}

fn save_to(place: &Place, file: &str, images: &[Image], format: Format) -> std::path::PathBuf {
    let path = place.path(file);
    let mut out = File::create(&path).expect("made");
    save(&place.store, images, &mut out, format, &Silent).expect("saved");
    path
}

/// The words that config.json has for what to run.
fn command(image: &Image) -> Vec<String> {
    let config = image.config.config().clone().expect("config");
    config.cmd().clone().unwrap_or_default()
}

#[test]
fn image_of_buildah_and_podman_loads_in_every_format() {
    let place = Place::new();
    let folder = place.folder.path();
    let policy = place.path("policy.json");
    fs::write(&policy, SIGNATURES).expect("written");
    fs::create_dir(place.path("root")).expect("made");
    fs::write(place.path("root/hello"), "hello\n").expect("written");

    let container = run(buildah(folder).args(["from", "scratch"]));
    run(buildah(folder)
        .args(["copy", &container])
        .arg(place.path("root"))
        .arg("/"));
    run(buildah(folder).args(["config", "--cmd", "[\"/hello\", \"you\"]", &container]));
    run(buildah(folder)
        .args(["commit", "--signature-policy"])
        .arg(&policy)
        .args([&container, "localhost/built:1"]));
    let id =
        run(buildah(folder).args(["inspect", "--format={{.FromImageID}}", "localhost/built:1"]));
    for kind in ["oci-archive", "docker-archive", "oci"] {
        let path = place.path(&format!("buildah-{kind}"));
        run(buildah(folder)
            .args(["push", "--signature-policy"])
            .arg(&policy)
            .arg("localhost/built:1")
            .arg(format!("{kind}:{}:localhost/built:1", path.display())));
        let image = load_one(&place.store, &path);
        assert_eq!(image.id.hex(), id, "{kind}");
        assert_eq!(image.title(), "localhost/built:1");
        assert_eq!(command(&image), ["/hello", "you"]);
    }

    run(podman(folder)
        .args(["load", "--signature-policy"])
        .arg(&policy)
        .arg("-i")
        .arg(place.path("buildah-oci-archive")));
    for kind in ["docker-archive", "oci-archive", "oci-dir"] {
        let path = place.path(&format!("podman-{kind}"));
        run(podman(folder)
            .args(["save", "--format", kind, "-o"])
            .arg(&path)
            .arg("localhost/built:1"));
        let image = load(&place.store, &path, &LoadOptions::default(), &Silent).expect("loaded");
        check(&place.store, &image[0]);
        assert_eq!(image[0].id.hex(), id, "{kind}");
    }
}

#[test]
fn image_of_skopeo_and_umoci_loads_packed_in_any_way() {
    let place = Place::new();
    let layout = layout(place.folder.path(), 3, 20_000);
    let options = LoadOptions {
        name: Some(name("app:1")),
        ..LoadOptions::default()
    };
    let made = load(&place.store, &layout, &options, &Silent)
        .expect("loaded")
        .remove(0);
    check(&place.store, &made);
    assert_eq!(made.title(), "app:1");
    assert_eq!(made.layers.len(), 3);

    for (kind, packing) in [
        ("docker-archive", "gzip"),
        ("oci-archive", "zstd"),
        ("oci", ""),
    ] {
        let path = place.path(&format!("skopeo-{kind}"));
        run(skopeo()
            .arg("copy")
            .arg(format!("oci:{}:it", layout.display()))
            .arg(format!("{kind}:{}:copied:{kind}", path.display())));
        let image = load_one(&place.store, &path);
        assert_eq!(image.id, made.id);
        assert_eq!(image.title(), format!("copied:{kind}"));
        if !packing.is_empty() {
            run(program(packing, packing)
                .args(["-q", "-f", "-k"])
                .arg(&path));
            let ending = if packing == "gzip" { "gz" } else { "zst" };
            load_one(
                &place.store,
                &place.path(&format!("skopeo-{kind}.{ending}")),
            );
        }
    }
    // Layers in zstd.
    let zstd = place.path("zstd");
    run(skopeo()
        .args(["copy", "--dest-compress", "--dest-compress-format", "zstd"])
        .arg(format!("oci:{}:it", layout.display()))
        .arg(format!("oci:{}:packed:zstd", zstd.display())));
    let image = load_one(&place.store, &zstd);
    assert!(image.layers[0].blob.media_type.ends_with("zstd"));
    assert_eq!(image.chain_id(), made.chain_id());
    assert_eq!(files(&place.path("store/disks")).len(), 1);
}

#[test]
fn image_without_layers_is_an_empty_disk() {
    let place = Place::new();
    let image = load_one(&place.store, &layout(place.folder.path(), 0, 0));
    assert_eq!((image.layers.len(), image.name), (0, None));
}

#[test]
fn image_when_saved_is_what_others_load() {
    let place = Place::new();
    let folder = place.folder.path();
    let image = loaded(&place, "localhost/app:1", 2, 20_000);
    let docker = save_to(
        &place,
        "saved.docker",
        std::slice::from_ref(&image),
        Format::Docker,
    );
    let oci = save_to(
        &place,
        "saved.oci",
        std::slice::from_ref(&image),
        Format::Oci,
    );
    let policy = place.path("policy.json");
    fs::write(&policy, SIGNATURES).expect("written");

    // The store itself is a layout that others read.
    let store = format!("oci:{}:localhost/app:1", place.path("store").display());
    assert!(run(skopeo().args(["inspect", &store])).contains(&image.manifest.digest.to_string()));
    for archive in [
        format!("docker-archive:{}", docker.display()),
        format!("oci-archive:{}", oci.display()),
    ] {
        let output = skopeo()
            .args(["inspect", "--config", "--raw", &archive])
            .output()
            .expect("started");
        assert_eq!(Digest::of(&output.stdout), image.id, "{archive}");
    }
    for archive in [&docker, &oci] {
        run(podman(folder)
            .args(["load", "--signature-policy"])
            .arg(&policy)
            .arg("-i")
            .arg(archive));
    }
    let id = run(podman(folder).args(["image", "inspect", "--format={{.Id}}", "localhost/app:1"]));
    assert_eq!(id, image.id.hex());
    let from = format!("docker-archive:{}", docker.display());
    run(buildah(folder)
        .args(["from", "--signature-policy"])
        .arg(&policy)
        .arg(&from));
    let unpacked = place.path("unpacked");
    fs::create_dir(&unpacked).expect("made");
    run(program("tar", "tar")
        .arg("-xf")
        .arg(&oci)
        .arg("-C")
        .arg(&unpacked));
    run(umoci()
        .args([
            "unpack",
            "--rootless",
            "--image",
            &format!("{}:1", unpacked.display()),
        ])
        .arg(place.path("bundle")));
    assert!(place.path("bundle/rootfs/file1").exists());

    let other = Place::new();
    for archive in [&docker, &oci] {
        let image = load_one(&other.store, archive);
        assert_eq!(image.title(), "localhost/app:1");
    }
    assert_eq!(other.store.images().expect("images").len(), 1);
}

#[test]
fn archive_through_a_pipe_loads_too() {
    let place = Place::new();
    let image = loaded(&place, "app:1", 2, 20_000);
    place.store.tag(&image, &name("app:2")).expect("tagged");
    let images = place.store.images().expect("images");
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let other = Place::new();
    let loaded = thread::scope(|scope| {
        scope.spawn(move || {
            save(&place.store, &images, &mut writer, Format::Docker, &Silent).expect("saved")
        });
        load_stream(
            &other.store,
            reader,
            Path::new("-"),
            &LoadOptions::default(),
            &Silent,
        )
    });
    let names: Vec<_> = loaded.expect("loaded").iter().map(Image::title).collect();
    assert_eq!(names, ["app:1", "app:2"]);
}

#[test]
fn root_of_busybox_when_imported_is_an_image() {
    let place = Place::new();
    let root = place.path("root");
    fs::create_dir_all(root.join("bin")).expect("made");
    let busybox = Path::new("/bin/busybox");
    assert!(
        busybox.exists(),
        "busybox is missing: install the Debian package busybox-static"
    );
    fs::copy(busybox, root.join("bin/busybox")).expect("copied");
    for packing in ["", "-z", "--zstd"] {
        let archive = place.path("root.tar");
        let mut tar: Command = program("tar", "tar");
        tar.arg("-C").arg(&root).arg("-cf").arg(&archive);
        if !packing.is_empty() {
            tar.arg(packing);
        }
        run(tar.arg("."));
        let options = ImportOptions {
            name: Some(name("busybox")),
            changes: vec![r#"CMD ["/bin/busybox", "sh"]"#.into(), "ENV A=b".into()],
            ..ImportOptions::default()
        };
        let stream = File::open(&archive).expect("open");
        let image = import(&place.store, stream, &archive, &options, &Silent).expect("imported");
        check(&place.store, &image);
        assert_eq!(command(&image), ["/bin/busybox", "sh"]);
        let seen = inspect(&place.store, &image).expect("inspected");
        assert_eq!(seen["RepoTags"][0], "busybox:latest");
        assert_eq!(seen["Config"]["Env"][0], "A=b");
        assert_eq!(seen["Id"], image.id.to_string());
        assert_eq!(history(&image).len(), 1);
    }
    // The same contents, packed in three ways, under one name: one image with it and two without.
    let images = place.store.images().expect("images");
    assert_eq!(
        images.iter().filter(|image| image.name.is_some()).count(),
        1
    );
    assert_eq!(images.len(), 3);
    assert_eq!(files(&place.path("store/disks")).len(), 1);
    place
        .store
        .prune(false, &|| Ok(Vec::new()))
        .expect("pruned");
    assert_eq!(place.store.images().expect("images").len(), 1);
}

#[test]
fn import_of_what_is_no_archive_is_refused() {
    let place = Place::new();
    let options = ImportOptions::default();
    for bytes in [
        &b""[..],
        b"hello",
        &[0xff; 1024],
        &[0; 1024],
        b"\x1f\x8b\x08",
    ] {
        let error =
            import(&place.store, bytes, Path::new("-"), &options, &Silent).expect_err("refused");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    assert!(place.store.images().expect("images").is_empty());
}

#[test]
fn image_when_removed_goes_with_its_last_name() {
    let place = Place::new();
    let store = &place.store;
    let image = loaded(&place, "app:1", 2, 1000);
    store.disk(&image, &Silent).expect("disk");
    store.tag(&image, &name("app:2")).expect("tagged");
    let nobody = || Ok(Vec::new());
    let options = RemoveOptions::default();

    let error = store
        .remove(&image.id.short(), options, &nobody)
        .expect_err("two names");
    assert!(error.to_string().contains("app:1, app:2"), "{error}");
    assert_eq!(
        store.remove("app:1", options, &nobody).expect("removed"),
        [Removed::Untagged(name("app:1"))]
    );
    let used = || Ok(vec![image.manifest.digest]);
    let error = store.remove("app:2", options, &used).expect_err("in use");
    assert!(error.to_string().contains("used by a container"), "{error}");
    // By force it goes, but the container keeps what it needs.
    let forced = store
        .remove("app:2", RemoveOptions { force: true }, &used)
        .expect("removed");
    assert_eq!(
        forced,
        [Removed::Untagged(name("app:2")), Removed::Deleted(image.id)]
    );
    assert_eq!(files(&place.path("store/disks")).len(), 1);
    check(store, &image);
    let garbage = store.collect_garbage(&nobody).expect("collected");
    assert_eq!(garbage.files, 5);
    for folder in ["disks", "blobs/sha256", "ingest", "leases"] {
        assert_eq!(
            files(&place.path("store").join(folder)),
            [""; 0],
            "{folder}"
        );
    }
    assert!(store.find("app:2").is_err());
}

#[test]
fn disk_when_many_want_it_is_made_once() {
    let place = Place::new();
    let image = loaded(&place, "app:1", 3, 200_000);
    let paths: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| place.store.disk(&image, &Silent).expect("disk")))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("thread"))
            .collect()
    });
    assert!(paths.iter().all(|path| *path == paths[0]));
    assert_eq!(files(&place.path("store/disks")).len(), 1);
}
