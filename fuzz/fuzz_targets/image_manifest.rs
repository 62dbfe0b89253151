//! Anything as a manifest, an index or a configuration, as registries and archives may send.
#![no_main]

use bulkhead_image::manifest::{Document, MAX_LAYERS, Manifest, Platform, parse_config};
use libfuzzer_sys::fuzz_target;

/// What is refused is refused in one line that a terminal can bear.
fn check(error: impl ToString) {
    let error = error.to_string();
    assert!(!error.contains(char::is_control), "{error:?}");
    assert!(error.len() < 8192, "{}", error.len());
}

fuzz_target!(|data: &[u8]| {
    match Document::parse(data) {
        Ok(Document::Manifest(manifest)) => {
            let written = serde_json::to_vec(&manifest).expect("JSON");
            assert_eq!(
                Document::parse(&written),
                Ok(Document::Manifest(manifest.clone()))
            );
            match manifest.check_image() {
                Ok(()) => {
                    assert!(manifest.layers.len() <= MAX_LAYERS);
                    assert_eq!(Manifest::parse(data).as_ref(), Ok(&manifest));
                }
                Err(e) => check(e),
            }
            if let Err(e) = manifest.parse_config(data) {
                check(e);
            }
        }
        Ok(Document::Index(index)) => {
            let written = serde_json::to_vec(&index).expect("JSON");
            assert_eq!(
                Document::parse(&written),
                Ok(Document::Index(index.clone()))
            );
            match index.choose(&Platform::host()) {
                Ok(chosen) => assert!(index.manifests.contains(chosen)),
                Err(e) => check(e),
            }
        }
        Err(e) => check(e),
    }
    match parse_config(data) {
        Ok((_, diff_ids)) => assert!(diff_ids.len() <= MAX_LAYERS),
        Err(e) => check(e),
    }
});
