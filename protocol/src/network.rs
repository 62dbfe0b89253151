//! The guest's network interfaces and routes.

use serde::{Deserialize, Serialize};

/// The answer to `GET /v1/interfaces`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interfaces {
    /// By their indices.
    pub interfaces: Vec<Interface>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name, such as `eth0`.
    pub name: String,
    /// The kernel's number for it.
    pub index: u32,
    /// Its hardware address, `02:00:00:00:00:01`; empty if it has none.
    pub mac: String,
    /// The longest packet it carries, bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// `10.0.0.2/24`, `fd00::2/64`.
    pub addresses: Vec<String>,
}

/// The body of `PUT /v1/interfaces/NAME`. What is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SetInterface {
    /// All the addresses it is to have; others are taken from it, but for IPv6's link-local one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<String>>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Up or down; done after everything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up: Option<bool>,
}

/// The answer to `GET /v1/routes`, and the body of `PUT`: all the routes that are to be there
/// besides those that come with the interfaces' addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// In the kernel's order.
    pub routes: Vec<Route>,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `10.1.0.0/16`; `0.0.0.0/0` or `::/0` for what no other route takes.
    pub destination: String,
    /// The next hop, if the destination is not on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The interface's name; found through the gateway if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The lowest wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
}
