//! Images that other programs make and take, and registries as they are: skopeo, umoci, buildah, podman
//! and docker-registry from Debian's packages, on the loopback device.

mod archives;
mod crash;
mod hostile;
mod http;
mod registries;
mod registry;
mod sample;
mod tools;
