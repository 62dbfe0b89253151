//! Waiting for descriptors.

use std::time::Instant;

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;

/// Waits until something has happened to one of `fds`. `false` if nothing has at `until`.
pub fn poll_until(fds: &mut [PollFd<'_>], until: Option<Instant>) -> Result<bool, Errno> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // What is too long for the kernel is as good as for ever.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, left.as_ref()) {
            Ok(n) => return Ok(n > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::PollFlags;

    #[test]
    fn wait_when_nothing_happens_ends_in_time_and_otherwise_at_once() {
        let (reader, writer) = std::io::pipe().expect("pipe");
        let wait = |until| poll_until(&mut [PollFd::new(&reader, PollFlags::IN)], until);
        assert_eq!(wait(Some(Instant::now())), Ok(false));
        drop(writer);
        assert_eq!(wait(Some(Instant::now())), Ok(true));
        assert_eq!(wait(None), Ok(true));
    }
}
