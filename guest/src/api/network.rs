//! The guest's interfaces and routes.

use std::io;

use bulkhead_protocol as api;
use bulkhead_protocol::{Interface, Interfaces, Routes, SetInterface};

use super::{Outcome, json, read};
use crate::http::Response;
use crate::netlink::prefix::Prefix;
use crate::netlink::routes::{self, Route};
use crate::netlink::{Socket, links};

/// All interfaces.
pub fn interfaces() -> Outcome {
    let interfaces = all(&mut open()?)?;
    json(200, &Interfaces { interfaces })
}

/// One interface.
pub fn interface(name: &str) -> Outcome {
    json(200, &find(&mut open()?, name)?)
}

/// Changes an interface; answers what it then is.
pub fn set_interface(name: &str, body: &[u8]) -> Outcome {
    let wanted: SetInterface = read(body, "a SetInterface")?;
    let addresses = match &wanted.addresses {
        Some(texts) => Some(prefixes(texts)?),
        None => None,
    };
    let socket = &mut open()?;
    let index = find(socket, name)?.index;
    let failed = |what: &'static str| move |e: io::Error| refused(what, name, &e);
    if let Some(mtu) = wanted.mtu {
        links::set_mtu(socket, index, mtu).map_err(failed("the mtu"))?;
    }
    if let Some(addresses) = addresses {
        links::set_addresses(socket, index, &addresses).map_err(failed("the addresses"))?;
    }
    if let Some(up) = wanted.up {
        links::set_up(socket, index, up).map_err(failed("up"))?;
    }
    json(200, &find(socket, name)?)
}

/// The routes that somebody has set.
pub fn routes() -> Outcome {
    let socket = &mut open()?;
    let names = all(socket)?;
    let routes = routes::routes(socket).map_err(|e| cannot("list the routes", &e))?;
    let routes = routes.iter().map(|route| shown(route, &names)).collect();
    json(200, &Routes { routes })
}

/// Makes the routes that are set those of the body; answers what they then are.
pub fn set_routes(body: &[u8]) -> Outcome {
    let wanted: Routes = read(body, "a Routes")?;
    let socket = &mut open()?;
    let names = all(socket)?;
    let parsed = wanted.routes.iter().map(|route| parsed(route, &names));
    let mut parsed: Vec<Route> = parsed.collect::<Result<_, _>>()?;
    let present = routes::routes(socket).map_err(|e| cannot("list the routes", &e))?;
    for route in &present {
        if !parsed.iter().any(|wanted| routes::is(route, wanted)) {
            let to = route.destination.to_string();
            routes::remove(socket, route).map_err(|e| refused("the removal", &to, &e))?;
        }
    }
    // A gateway can be used once there is a way to it.
    parsed.sort_by_key(|route| route.gateway.is_some());
    for wanted in &parsed {
        if !present.iter().any(|route| routes::is(route, wanted)) {
            let to = wanted.destination.to_string();
            routes::add(socket, wanted).map_err(|e| refused("the route", &to, &e))?;
        }
    }
    routes()
}

fn prefixes(texts: &[String]) -> Result<Vec<Prefix>, Response> {
    let parsed = texts.iter().map(|text| text.parse::<Prefix>());
    let parsed: Result<Vec<Prefix>, String> = parsed.collect();
    parsed.map_err(|e| Response::unprocessable(&format!("addresses: {e}.")))
}

fn parsed(route: &api::Route, names: &[Interface]) -> Result<Route, Response> {
    let bad = |message: String| Response::unprocessable(&message);
    let destination: Prefix = route
        .destination
        .parse()
        .map_err(|e| bad(format!("destination: {e}.")))?;
    let gateway = match &route.gateway {
        Some(text) => Some(
            text.parse()
                .map_err(|_| bad(format!("gateway: {text:?} is not an address.")))?,
        ),
        None => None,
    };
    let interface = match &route.interface {
        Some(name) => {
            let found = names.iter().find(|i| i.name == *name);
            let found = found.ok_or_else(|| bad(format!("interface: there is no {name}.")))?;
            Some(found.index)
        }
        None if gateway.is_none() => {
            let message = format!("The route to {destination} needs a gateway or an interface.");
            return Err(bad(message));
        }
        None => None,
    };
    Ok(Route {
        destination,
        gateway,
        interface,
        metric: route.metric,
    })
}

fn shown(route: &Route, names: &[Interface]) -> api::Route {
    let name = |index| {
        names
            .iter()
            .find(|i| i.index == index)
            .map(|i| i.name.clone())
    };
    api::Route {
        destination: route.destination.to_string(),
        gateway: route.gateway.map(|g| g.to_string()),
        interface: route.interface.and_then(name),
        metric: route.metric,
    }
}

fn open() -> Result<Socket, Response> {
    Socket::open().map_err(|e| cannot("open a routing socket", &e))
}

fn all(socket: &mut Socket) -> Result<Vec<Interface>, Response> {
    links::interfaces(socket).map_err(|e| cannot("list the interfaces", &e))
}

fn find(socket: &mut Socket, name: &str) -> Result<Interface, Response> {
    let found = all(socket)?.into_iter().find(|i| i.name == name);
    found.ok_or_else(|| Response::not_found(&format!("There is no interface {name}.")))
}

fn cannot(what: &str, error: &io::Error) -> Response {
    Response::internal(&format!("Cannot {what}: {error}."))
}

/// What the kernel does not want is the request's fault.
fn refused(what: &str, of: &str, error: &io::Error) -> Response {
    Response::unprocessable(&format!("The kernel refuses {what} of {of}: {error}."))
}
