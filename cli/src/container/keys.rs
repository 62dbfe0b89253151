//! The keys that leave a container alone: `--detach-keys`.

use std::str::FromStr;

/// Keys to be typed one after the other, as the bytes that a terminal makes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys(Vec<u8>);

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` are no keys: give letters and ctrl-LETTER, with commas between them")
        };
        let byte = |key: &str| match (key.strip_prefix("ctrl-").unwrap_or(key).as_bytes(), key) {
            ([letter @ (b'a'..=b'z' | b'@' | b'['..=b'_')], key) if key.len() > 1 => {
                Ok(letter & 0x1f)
            }
            ([letter], key) if key.len() == 1 && letter.is_ascii() => Ok(*letter),
            _ => Err(wrong()),
        };
        text.split(',')
            .map(byte)
            .collect::<Result<_, _>>()
            .map(Keys)
    }
}

/// Finds the keys in what is typed. What may be the first of them is kept back until the next.
#[derive(Debug)]
pub struct Finder {
    keys: Vec<u8>,
    typed: usize,
}

impl Finder {
    /// Finds `keys`.
    pub fn new(keys: &Keys) -> Self {
        Finder {
            keys: keys.0.clone(),
            typed: 0,
        }
    }

    /// Looks through the next bytes typed, and adds those that are meant for the program to `passed`.
    /// `true` if the last of the keys is among them; what follows it is lost.
    pub fn look(&mut self, bytes: &[u8], passed: &mut Vec<u8>) -> bool {
        for &byte in bytes {
            if byte != self.keys[self.typed] {
                passed.extend(&self.keys[..self.typed]);
                self.typed = 0;
            }
            if byte != self.keys[self.typed] {
                passed.push(byte);
                continue;
            }
            self.typed += 1;
            if self.typed == self.keys.len() {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Keys {
        text.parse().expect("keys")
    }

    #[test]
    fn keys_are_read_as_docker_writes_them() {
        assert_eq!(keys("ctrl-p,ctrl-q"), Keys(vec![0x10, 0x11]));
        assert_eq!(
            keys("ctrl-@,ctrl-[,ctrl-_,a,-"),
            Keys(b"\0\x1b\x1fa-".to_vec())
        );
        for wrong in ["", "ctrl-", "ctrl-P", "ctrl-1", "ab", "a,", "é"] {
            assert!(wrong.parse::<Keys>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_when_typed_one_after_the_other_are_found_and_all_else_is_passed_on() {
        let mut finder = Finder::new(&keys("ctrl-p,ctrl-q"));
        let mut passed = Vec::new();
        assert!(!finder.look(b"ls\x10", &mut passed));
        assert_eq!(passed, b"ls");
        assert!(finder.look(b"\x11lost", &mut passed));
        assert_eq!(passed, b"ls");

        let mut finder = Finder::new(&keys("ctrl-p,ctrl-q"));
        let mut passed = Vec::new();
        assert!(!finder.look(b"\x10a\x11\x10\x10", &mut passed));
        assert_eq!(passed, b"\x10a\x11\x10");
        assert!(finder.look(b"\x11", &mut passed));
        assert!(Finder::new(&keys("x")).look(b"x", &mut passed));
    }
}
