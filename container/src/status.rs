//! How a process ended, from the status that wait(2) gives.

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its own code, or 128 and the signal's number: what a shell and Docker show.
    pub code: u8,
    /// The signal that ended it.
    pub signal: Option<u8>,
}

impl Exit {
    /// From a raw wait status; none if the process did not end but was stopped or went on.
    pub fn from_wait_status(status: i32) -> Option<Exit> {
        // The kernel keeps 7 bits of a signal and 8 of a code.
        let signal = u8::try_from(status & 0x7f).ok()?;
        match signal {
            0 => {
                let code = u8::try_from(status >> 8 & 0xff).ok()?;
                Some(Exit { code, signal: None })
            }
            0x7f => None,
            signal => Some(Exit {
                code: signal | 0x80,
                signal: Some(signal),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_when_mapped_then_as_a_shell_does() {
        let exit = |code, signal| Some(Exit { code, signal });
        assert_eq!(Exit::from_wait_status(0), exit(0, None));
        assert_eq!(Exit::from_wait_status(255 << 8), exit(255, None));
        assert_eq!(Exit::from_wait_status(libc::SIGKILL), exit(137, Some(9)));
        let dumped_core = libc::SIGSEGV | 0x80;
        assert_eq!(Exit::from_wait_status(dumped_core), exit(139, Some(11)));
    }

    #[test]
    fn status_when_not_of_an_end_then_none() {
        let (stopped, continued) = (libc::SIGSTOP << 8 | 0x7f, 0xffff);
        assert_eq!(Exit::from_wait_status(stopped), None);
        assert_eq!(Exit::from_wait_status(continued), None);
    }

    #[test]
    fn any_status_when_mapped_then_as_the_c_library_does() {
        for status in 0..=0x1_ffff {
            let expected = if libc::WIFEXITED(status) {
                Some(libc::WEXITSTATUS(status))
            } else if libc::WIFSIGNALED(status) {
                Some(128 + libc::WTERMSIG(status))
            } else {
                None
            };
            assert_eq!(
                Exit::from_wait_status(status).map(|e| i32::from(e.code)),
                expected
            );
        }
    }
}
