//! The paths of the API. What stands in place of an id must not need escaping, and ids do not.

/// `GET`: [`super::Health`].
pub const HEALTH: &str = "/v1/health";
/// `GET`: [`super::Info`].
pub const INFO: &str = "/v1/info";
/// `POST` [`super::Shutdown`]: stops every process and powers the guest off.
pub const SHUTDOWN: &str = "/v1/shutdown";
/// `GET`, `PUT` [`super::Clock`].
pub const CLOCK: &str = "/v1/clock";
/// `POST` [`super::Entropy`].
pub const ENTROPY: &str = "/v1/entropy";
/// `PUT` [`super::Restored`]: the guest goes on from a snapshot.
pub const RESTORED: &str = "/v1/restored";
/// `PUT` [`super::SpareProcess`].
pub const SPARE: &str = "/v1/spare";
/// `GET`: lines of [`super::Event`], until the client leaves.
pub const EVENTS: &str = "/v1/events";
/// `GET`: [`super::Interface`]s. `PUT` [`super::SetInterface`] on `/v1/interfaces/NAME`.
pub const INTERFACES: &str = "/v1/interfaces";
/// `GET`, `PUT`: [`super::Route`]s.
pub const ROUTES: &str = "/v1/routes";
/// `GET`: [`super::ContainerState`]s. `POST`: [`super::CreateContainer`].
pub const CONTAINERS: &str = "/v1/containers";

/// `GET`: [`super::ContainerState`]. `DELETE`, with `?force=true` even if it runs.
pub fn container(id: &str) -> String {
    format!("{CONTAINERS}/{id}")
}

/// Something of a container: `start`, `pause`, `resume`, `kill`, `wait`, `stats`, `processes`,
/// `attach`, `resize`, `exec`, `execs`, `files`.
pub fn of_container(id: &str, what: &str) -> String {
    format!("{CONTAINERS}/{id}/{what}")
}

/// `GET`: [`super::ExecState`].
pub fn exec(id: &str, exec: &str) -> String {
    format!("{CONTAINERS}/{id}/execs/{exec}")
}

/// Something of a program in a container: `wait`, `kill`, `resize`.
pub fn of_exec(id: &str, exec: &str, what: &str) -> String {
    format!("{CONTAINERS}/{id}/execs/{exec}/{what}")
}

/// The files at `path` in a container: `GET` takes them out, `PUT` puts them into the folder
/// `path`, both as a tar archive.
pub fn files(id: &str, path: &str) -> String {
    format!("{CONTAINERS}/{id}/files?path={}", encode(path))
}

/// Percent-encodes a query's value (RFC 3986 §2.1).
pub fn encode(value: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            _ => {
                encoded.push('%');
                encoded.push(char::from(HEX[usize::from(byte >> 4)]));
                encoded.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_when_encoded_then_nothing_in_it_means_anything_to_a_query() {
        assert_eq!(encode("/a b&c=%é"), "/a%20b%26c%3D%25%C3%A9");
        assert_eq!(files("x", "/etc"), "/v1/containers/x/files?path=/etc");
    }
}
