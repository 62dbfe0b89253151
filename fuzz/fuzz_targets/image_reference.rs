//! Anything as the name of an image, a platform, or a digest.
#![no_main]

use bulkhead_image::manifest::Platform;
use bulkhead_image::{Digest, Reference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<Reference>() {
        Ok(reference) => {
            for printed in [reference.to_string(), reference.familiar()] {
                assert!(printed.bytes().all(|byte| byte.is_ascii_graphic()));
                assert_eq!(printed.parse().as_ref(), Ok(&reference), "{printed}");
            }
            // It becomes a part of URLs and of folders' names.
            let parts = reference.path().split('/');
            assert!(
                parts
                    .clone()
                    .all(|part| !part.is_empty() && !part.starts_with('.'))
            );
            assert!(!reference.host().contains(['/', '@', '?', '#', '%', '\\']));
        }
        Err(e) => assert!(!e.to_string().contains(char::is_control), "{e}"),
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string(), text);
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
});
