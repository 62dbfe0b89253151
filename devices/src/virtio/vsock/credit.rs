//! How much each side may send before the other has made room (virtio 1.2 §5.10.6.3).
//!
//! Both directions count bytes modulo 2^32; every packet carries its sender's `buf_alloc` and
//! `fwd_cnt`.

/// The counters of one connection.
#[derive(Debug, Clone)]
pub struct Credit {
    /// The room we promised the guest.
    buf_alloc: u32,
    /// Bytes received from the guest.
    received: u32,
    /// Of these, bytes that have left our buffer.
    forwarded: u32,
    /// What of `forwarded` the guest has been told.
    told: u32,
    /// Bytes sent to the guest.
    sent: u32,
    /// The room the guest promised us.
    peer_buf_alloc: u32,
    /// Bytes sent that have left the guest's buffer.
    peer_forwarded: u32,
}

/// The guest broke the rules of the accounting.
#[derive(Debug, PartialEq, Eq)]
pub struct CreditViolation;

impl Credit {
    /// Nothing sent yet; `buf_alloc` bytes are promised to the guest, nothing is promised to us.
    pub fn new(buf_alloc: u32) -> Self {
        Credit {
            buf_alloc,
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_buf_alloc: 0,
            peer_forwarded: 0,
        }
    }

    /// Takes what a packet of the guest says about the room on its side.
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), CreditViolation> {
        // The guest cannot have let go of what it was not sent.
        if (fwd_cnt.wrapping_sub(self.sent) as i32) > 0 {
            return Err(CreditViolation);
        }
        // A guest with several CPUs fills in a header before it queues the packet, so that packets
        // can overtake each other: older news than what we know is no error.
        if (fwd_cnt.wrapping_sub(self.peer_forwarded) as i32) < 0 {
            return Ok(());
        }
        self.peer_buf_alloc = buf_alloc;
        self.peer_forwarded = fwd_cnt;
        Ok(())
    }

    /// Bytes that may be sent to the guest now.
    pub fn to_guest(&self) -> u32 {
        self.peer_buf_alloc
            .saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// `bytes` went to the guest, no more than [`Self::to_guest`].
    pub fn add_sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// `bytes` came from the guest; an error if that is more than it was promised room for.
    pub fn add_received(&mut self, bytes: u32) -> Result<(), CreditViolation> {
        let held = self.received.wrapping_sub(self.forwarded);
        if bytes > self.buf_alloc.saturating_sub(held) {
            return Err(CreditViolation);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// `bytes` of what was received have left our buffer.
    pub fn add_forwarded(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// What to put in a packet to the guest: `buf_alloc` and `fwd_cnt`. Counts as telling it.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.buf_alloc, self.forwarded)
    }

    /// Whether the guest should hear of new room. Not for every byte: a packet costs both sides
    /// more than the guest gains by it as long as it believes to have half of the room left.
    pub fn update_due(&self) -> bool {
        let room_it_knows = self
            .buf_alloc
            .saturating_sub(self.received.wrapping_sub(self.told));
        self.forwarded != self.told && room_it_knows < self.buf_alloc / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn room_when_promised_is_used_up_and_comes_back() {
        let mut c = Credit::new(100);
        assert_eq!(c.to_guest(), 0);
        c.update(50, 0).expect("valid");
        c.add_sent(50);
        assert_eq!(c.to_guest(), 0);
        c.update(50, 20).expect("valid");
        assert_eq!(c.to_guest(), 20);
        // The guest may promise less than before; what is under way is not taken back.
        c.update(10, 20).expect("valid");
        assert_eq!(c.to_guest(), 0);
    }

    #[test]
    fn fwd_cnt_when_ahead_of_what_was_sent_is_a_violation() {
        let mut c = Credit::new(100);
        c.update(1000, 0).expect("valid");
        c.add_sent(10);
        assert_eq!(c.update(1000, 11), Err(CreditViolation));
        assert_eq!(c.update(1000, 0x7000_0000), Err(CreditViolation));
        assert_eq!(c.to_guest(), 990);
    }

    #[test]
    fn fwd_cnt_when_older_than_what_is_known_is_ignored() {
        let mut c = Credit::new(100);
        c.update(1000, 0).expect("valid");
        c.add_sent(500);
        c.update(1000, 400).expect("valid");
        c.update(1, 300).expect("stale, not wrong");
        assert_eq!(c.to_guest(), 900);
    }

    #[test]
    fn bytes_beyond_the_promise_are_a_violation() {
        let mut c = Credit::new(100);
        c.add_received(100).expect("fits");
        assert_eq!(c.add_received(1), Err(CreditViolation));
        c.add_forwarded(60);
        c.add_received(60).expect("fits again");
        assert_eq!(c.add_received(u32::MAX), Err(CreditViolation));
    }

    #[test]
    fn update_is_due_when_the_guest_knows_of_less_than_half() {
        let mut c = Credit::new(100);
        c.add_received(50).expect("fits");
        c.add_forwarded(50);
        assert!(!c.update_due());
        c.add_received(1).expect("fits");
        assert!(c.update_due());
        assert_eq!(c.tell(), (100, 50));
        assert!(!c.update_due());
        c.add_received(99).expect("fits");
        assert!(!c.update_due(), "nothing new to tell");
    }

    proptest! {
        // Both ends of a stream that never breaks the rules, far enough to wrap around 2^32.
        #[test]
        fn stream_that_keeps_the_rules_never_stalls_or_violates(
            steps in proptest::collection::vec((1u32..=0x1000_0000, 1u32..=0x1000_0000), 1..200)
        ) {
            const ROOM: u32 = 0x1000_0000;
            let mut sender = Credit::new(0);
            let mut receiver = Credit::new(ROOM);
            sender.update(ROOM, 0).expect("valid");
            let mut held = 0;
            for (send, take) in steps {
                let n = send.min(sender.to_guest());
                sender.add_sent(n);
                prop_assert_eq!(receiver.add_received(n), Ok(()));
                held += n;
                prop_assert!(held <= ROOM);
                let n = take.min(held);
                receiver.add_forwarded(n);
                held -= n;
                if receiver.update_due() {
                    let (buf_alloc, fwd_cnt) = receiver.tell();
                    prop_assert_eq!(sender.update(buf_alloc, fwd_cnt), Ok(()));
                }
                prop_assert!(sender.to_guest() > 0 || held > 0);
            }
        }
    }
}
