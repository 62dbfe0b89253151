//! EROFS: the read-only file system that an image becomes.
