//! The end-to-end tests.

mod kvm;
