//! What the tests share: archives made byte by byte, disks mounted by the kernel, trees compared.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod archive;
pub mod disk;
pub mod tree;
