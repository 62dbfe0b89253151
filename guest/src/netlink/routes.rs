//! Routes of the main table that somebody has set, rather than the kernel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Socket;
use super::message::{Attributes, Request, u32_at};
use super::prefix::{Prefix, address, bytes, family};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u32 = 254;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTPROT_STATIC: u8 = 4;
/// Of redirects, the kernel's own, and of router advertisements.
const NOT_SET: [u8; 3] = [1, 2, 9];
/// `struct rtmsg`, bytes.
const ROUTE: usize = 12;

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Prefix,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The index of the interface.
    pub interface: Option<u32>,
    /// The lowest wins.
    pub metric: Option<u32>,
}

/// All routes.
pub fn routes(socket: &mut Socket) -> io::Result<Vec<Route>> {
    let mut found = Vec::new();
    let all = Request::new(RTM_GETROUTE, &[0; ROUTE]);
    socket.dump(all, |kind, content| {
        if kind == RTM_NEWROUTE {
            found.extend(route(content));
        }
    })?;
    Ok(found)
}

fn route(content: &[u8]) -> Option<Route> {
    let [of, length, _, _, table, protocol, _, kind, ..] = *content else {
        return None;
    };
    let nowhere: IpAddr = match i32::from(of) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut table = u32::from(table);
    let mut route = Route {
        destination: Prefix {
            address: nowhere,
            length,
        },
        gateway: None,
        interface: None,
        metric: None,
    };
    for (kind, value) in Attributes::behind(content, ROUTE) {
        match kind {
            RTA_DST => route.destination.address = address(value)?,
            RTA_GATEWAY => route.gateway = address(value),
            RTA_OIF => route.interface = u32_at(value, 0),
            RTA_PRIORITY => route.metric = u32_at(value, 0),
            RTA_TABLE => table = u32_at(value, 0)?,
            _ => {}
        }
    }
    let is_set = kind == RTN_UNICAST && !NOT_SET.contains(&protocol);
    (is_set && table == RT_TABLE_MAIN).then_some(route)
}

/// Whether the kernel's route is the one that was asked for, where what was left open was filled in.
pub fn is(present: &Route, wanted: &Route) -> bool {
    let fits = |present: Option<u32>, wanted: Option<u32>| wanted.is_none() || present == wanted;
    present.destination == wanted.destination.network()
        && present.gateway == wanted.gateway
        && fits(present.interface, wanted.interface)
        && fits(present.metric, wanted.metric)
}

/// Adds a route.
pub fn add(socket: &mut Socket, route: &Route) -> io::Result<()> {
    socket.tell(of_route(RTM_NEWROUTE, route).creating())
}

/// Removes a route.
pub fn remove(socket: &mut Socket, route: &Route) -> io::Result<()> {
    socket.tell(of_route(RTM_DELROUTE, route))
}

fn of_route(kind: u16, route: &Route) -> Request {
    let destination = route.destination.network();
    let mut structure = [0; ROUTE];
    structure[0] = family(destination.address);
    structure[1] = destination.length;
    // 254 fits.
    structure[4] = RT_TABLE_MAIN as u8;
    if kind == RTM_NEWROUTE {
        structure[5] = RTPROT_STATIC;
        structure[6] = match route.gateway {
            Some(_) => RT_SCOPE_UNIVERSE,
            None if destination.address.is_ipv4() => RT_SCOPE_LINK,
            None => RT_SCOPE_UNIVERSE,
        };
        structure[7] = RTN_UNICAST;
    } else {
        // Of any scope.
        structure[6] = u8::MAX;
    }
    let mut request = Request::new(kind, &structure);
    request = request.attribute(RTA_DST, &bytes(destination.address));
    if let Some(gateway) = route.gateway {
        request = request.attribute(RTA_GATEWAY, &bytes(gateway));
    }
    for (kind, value) in [(RTA_OIF, route.interface), (RTA_PRIORITY, route.metric)] {
        if let Some(value) = value {
            request = request.attribute(kind, &value.to_ne_bytes());
        }
    }
    request
}
