//! The command line: options before the command, the command, its own options, and the rest.

/// An option that a command has.
pub struct Opt {
    /// Without the dashes.
    pub name: &'static str,
    /// As one letter; `\0`: it has none.
    pub short: char,
    /// It is followed by a value.
    pub takes_value: bool,
}

/// One with a value.
pub const fn value(name: &'static str, short: char) -> Opt {
    Opt {
        name,
        short,
        takes_value: true,
    }
}

/// One without.
pub const fn flag(name: &'static str, short: char) -> Opt {
    Opt {
        name,
        short,
        takes_value: false,
    }
}

/// Options that were given, and the words that are none.
#[derive(Debug, Default)]
pub struct Arguments {
    given: Vec<(&'static str, String)>,
    /// In their order.
    pub words: Vec<String>,
}

impl Arguments {
    /// Reads words up to the end, or up to so many that are no options: from the last of these on everything is a word.
    pub fn read(
        words: &mut dyn Iterator<Item = String>,
        known: &[Opt],
        most: usize,
    ) -> Result<Arguments, String> {
        let mut read = Arguments::default();
        while let Some(word) = words.next() {
            if word == "--" {
                break;
            }
            let Some(text) = word.strip_prefix('-').filter(|text| !text.is_empty()) else {
                read.words.push(word);
                if read.words.len() == most {
                    break;
                }
                continue;
            };
            match text.strip_prefix('-') {
                Some(long) => read.long(long, known, words)?,
                None => read.short(text, known, words)?,
            }
        }
        read.words.extend(words);
        Ok(read)
    }

    fn long(
        &mut self,
        text: &str,
        known: &[Opt],
        words: &mut dyn Iterator<Item = String>,
    ) -> Result<(), String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let option = known.iter().find(|option| option.name == name);
        let option = option.ok_or_else(|| format!("there is no option --{name}"))?;
        let value = match (option.takes_value, value) {
            (true, Some(value)) => value,
            (true, None) => words
                .next()
                .ok_or_else(|| format!("--{name} needs a value"))?,
            (false, None) => "true".into(),
            (false, Some(value)) => match value.as_str() {
                "true" | "1" => value,
                "false" | "0" => return Ok(()),
                _ => return Err(format!("--{name} is true or false, not {value:?}")),
            },
        };
        self.given.push((option.name, value));
        Ok(())
    }

    /// `-it`, `-b DIR`, `-bDIR`.
    fn short(
        &mut self,
        text: &str,
        known: &[Opt],
        words: &mut dyn Iterator<Item = String>,
    ) -> Result<(), String> {
        for (at, letter) in text.char_indices() {
            let option = known.iter().find(|option| option.short == letter);
            let option = option.ok_or_else(|| format!("there is no option -{letter}"))?;
            if !option.takes_value {
                self.given.push((option.name, "true".into()));
                continue;
            }
            let rest = text.get(at + letter.len_utf8()..).unwrap_or_default();
            let value = match rest {
                "" => words
                    .next()
                    .ok_or_else(|| format!("-{letter} needs a value"))?,
                rest => rest.strip_prefix('=').unwrap_or(rest).to_owned(),
            };
            self.given.push((option.name, value));
            break;
        }
        Ok(())
    }

    /// Whether an option was given.
    pub fn has(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == name)
    }

    /// The value of an option, the last one that was given.
    pub fn value(&self, name: &str) -> Option<&str> {
        let given = self.given.iter().rev();
        let mut found = given.filter(|(given, _)| *given == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// All values of an option, in their order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let given = self.given.iter();
        given.filter_map(move |(given, value)| (*given == name).then_some(value.as_str()))
    }

    /// The value of an option that is a number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let read = |text: &str| {
            text.parse()
                .map_err(|_| format!("--{name} is a number, not {text:?}"))
        };
        self.value(name).map(read).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [Opt; 3] = [value("bundle", 'b'), flag("tty", 't'), flag("detach", 'd')];

    fn read(line: &str, most: usize) -> Result<Arguments, String> {
        Arguments::read(
            &mut line.split_whitespace().map(str::to_owned),
            &KNOWN,
            most,
        )
    }

    #[test]
    fn options_when_written_in_any_way_then_read() {
        for line in [
            "--bundle /x -td a b",
            "-b /x --tty a --detach=true b",
            "-tdb/x a b",
            "-t -d --bundle=/y --bundle=/x -- a b",
        ] {
            let read = read(line, usize::MAX).unwrap_or_else(|e| panic!("{line}: {e}"));
            assert_eq!(read.value("bundle"), Some("/x"), "{line}");
            assert!(read.has("tty") && read.has("detach"), "{line}");
            assert_eq!(read.words, ["a", "b"], "{line}");
        }
        assert!(!read("--tty=false", 9).expect("valid").has("tty"));
    }

    #[test]
    fn words_when_enough_were_read_then_what_follows_is_no_option() {
        let read = read("-t id sh --tty -x", 1).expect("valid");
        assert_eq!(read.words, ["id", "sh", "--tty", "-x"]);
    }

    #[test]
    fn option_when_unknown_or_without_its_value_then_said() {
        for (line, message) in [
            ("--nothing", "no option --nothing"),
            ("-x", "no option -x"),
            ("--bundle", "needs a value"),
            ("--tty=perhaps", "true or false"),
        ] {
            let error = read(line, 9).expect_err(line);
            assert!(error.contains(message), "{line}: {error}");
        }
    }
}
