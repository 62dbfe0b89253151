//! The types of the vsock API.
