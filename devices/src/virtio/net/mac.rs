//! Ethernet addresses.

use std::fmt;
use std::io;
use std::str::FromStr;

/// The address of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A random address, of those that anybody may assign to one card.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        // SAFETY: `bytes` is valid for its length, and borrowed for the call.
        let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // As few as 256 bytes always come whole (getrandom(2)).
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        bytes[0] = bytes[0] & !MULTICAST | LOCAL;
        Ok(MacAddress(bytes))
    }
}

/// First byte: the address is of a group.
const MULTICAST: u8 = 1 << 0;
/// First byte: the address was not given out by a maker of cards.
const LOCAL: u8 = 1 << 1;

/// Why a text is not the address of a card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the address of a network card; write it like 02:00:00:00:00:01")]
pub struct ParseMacError(String);

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let error = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(error)?;
            // `from_str_radix` takes a sign as well.
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        let one_card = bytes[0] & MULTICAST == 0 && bytes != [0; 6];
        if parts.next().is_some() || !one_card {
            return Err(error());
        }
        Ok(MacAddress(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn address_when_written_out_reads_back() {
        let mac: MacAddress = "02:0a:bC:00:ff:10".parse().unwrap();
        assert_eq!(mac.0, [2, 0x0a, 0xbc, 0, 0xff, 0x10]);
        assert_eq!(mac.to_string(), "02:0a:bc:00:ff:10");
    }

    #[test]
    fn text_that_is_not_an_address_of_a_card_is_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "02-00-00-00-00-01",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn random_addresses_are_local_to_one_card_and_differ() {
        let (a, b) = (MacAddress::random().unwrap(), MacAddress::random().unwrap());
        assert_eq!(a.0[0] & (LOCAL | MULTICAST), LOCAL);
        assert_ne!(a, b);
    }
}
