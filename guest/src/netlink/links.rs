//! Interfaces and their addresses.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use bulkhead_protocol::Interface;

use super::Socket;
use super::message::{Attributes, Request, text, u32_at};
use super::prefix::{Prefix, address, bytes, family};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFF_UP: u32 = 1;
/// `struct ifinfomsg` and `struct ifaddrmsg`, bytes.
const LINK: usize = 16;
const ADDRESS: usize = 8;

/// All interfaces, by their indices.
pub fn interfaces(socket: &mut Socket) -> io::Result<Vec<Interface>> {
    let mut found = BTreeMap::new();
    let all = Request::new(RTM_GETLINK, &[0; LINK]);
    socket.dump(all, |kind, content| {
        if kind == RTM_NEWLINK
            && let Some(interface) = interface(content)
        {
            found.insert(interface.index, interface);
        }
    })?;
    for (index, prefix) in addresses(socket)? {
        if let Some(interface) = found.get_mut(&index) {
            interface.addresses.push(prefix.to_string());
        }
    }
    Ok(found.into_values().collect())
}

fn interface(content: &[u8]) -> Option<Interface> {
    let flags = u32_at(content, 8)?;
    let mut interface = Interface {
        name: String::new(),
        index: u32_at(content, 4)?,
        mac: String::new(),
        mtu: 0,
        up: flags & IFF_UP != 0,
        addresses: Vec::new(),
    };
    for (kind, value) in Attributes::behind(content, LINK) {
        match kind {
            IFLA_IFNAME => interface.name = text(value),
            IFLA_MTU => interface.mtu = u32_at(value, 0)?,
            // Loopback's is zeros, and others have none or longer ones.
            IFLA_ADDRESS if value.len() == 6 && value != [0; 6] => {
                let parts: Vec<String> = value.iter().map(|b| format!("{b:02x}")).collect();
                interface.mac = parts.join(":");
            }
            _ => {}
        }
    }
    Some(interface)
}

/// All addresses, with the indices of their interfaces.
fn addresses(socket: &mut Socket) -> io::Result<Vec<(u32, Prefix)>> {
    let mut found = Vec::new();
    let all = Request::new(RTM_GETADDR, &[0; ADDRESS]);
    socket.dump(all, |kind, content| {
        let prefix = || {
            let length = *content.get(1)?;
            let (mut local, mut other) = (None, None);
            for (kind, value) in Attributes::behind(content, ADDRESS) {
                match kind {
                    IFA_LOCAL => local = address(value),
                    IFA_ADDRESS => other = address(value),
                    _ => {}
                }
            }
            // Of a point-to-point link IFA_ADDRESS is the other end.
            let address = local.or(other)?;
            Some((u32_at(content, 4)?, Prefix { address, length }))
        };
        if kind == RTM_NEWADDR {
            found.extend(prefix());
        }
    })?;
    Ok(found)
}

/// Gives an interface these addresses and takes others from it; IPv6's link-local ones, which the kernel
/// has put there, stay.
pub fn set_addresses(socket: &mut Socket, index: u32, wanted: &[Prefix]) -> io::Result<()> {
    let present = addresses(socket)?
        .into_iter()
        .filter(|(of, _)| *of == index);
    let present: Vec<Prefix> = present.map(|(_, prefix)| prefix).collect();
    for prefix in present.iter().filter(|p| !wanted.contains(p)) {
        if !is_link_local(prefix.address) {
            socket.tell(of_address(RTM_DELADDR, index, prefix))?;
        }
    }
    for prefix in wanted.iter().filter(|p| !present.contains(p)) {
        socket.tell(of_address(RTM_NEWADDR, index, prefix).creating())?;
    }
    Ok(())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn of_address(kind: u16, index: u32, prefix: &Prefix) -> Request {
    let mut structure = [0; ADDRESS];
    structure[0] = family(prefix.address);
    structure[1] = prefix.length;
    structure[4..].copy_from_slice(&index.to_ne_bytes());
    let address = bytes(prefix.address);
    Request::new(kind, &structure)
        .attribute(IFA_LOCAL, &address)
        .attribute(IFA_ADDRESS, &address)
}

/// Sets the longest packet of an interface.
pub fn set_mtu(socket: &mut Socket, index: u32, mtu: u32) -> io::Result<()> {
    let mut structure = [0; LINK];
    structure[4..8].copy_from_slice(&index.to_ne_bytes());
    let request = Request::new(RTM_NEWLINK, &structure);
    socket.tell(request.attribute(IFLA_MTU, &mtu.to_ne_bytes()))
}

/// Brings an interface up or takes it down.
pub fn set_up(socket: &mut Socket, index: u32, up: bool) -> io::Result<()> {
    let mut structure = [0; LINK];
    structure[4..8].copy_from_slice(&index.to_ne_bytes());
    let flags = if up { IFF_UP } else { 0 };
    structure[8..12].copy_from_slice(&flags.to_ne_bytes());
    // Only this flag changes.
    structure[12..].copy_from_slice(&IFF_UP.to_ne_bytes());
    socket.tell(Request::new(RTM_NEWLINK, &structure))
}
