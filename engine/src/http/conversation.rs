//! Several questions on one connection. For a guest each connection is as much work as what is asked on it.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::body::Source;
use super::head::{Framing, Head, read_head};
use super::{Answer, MAX_ANSWER, Upgraded, send};

/// A connection that stays open. Questions may be sent before the last one is answered.
#[derive(Debug)]
pub struct Conversation {
    source: Source<UnixStream>,
}

impl Conversation {
    /// Begins one on a new connection.
    pub fn new(stream: UnixStream) -> Self {
        Conversation {
            source: Source::new(Vec::new(), stream),
        }
    }

    /// Sends a question.
    pub fn send(&mut self, method: &str, target: &str, body: &str) -> io::Result<()> {
        send(&mut self.source.stream, method, target, "", body.as_bytes())
    }

    /// Sends a question, and with it that the connection is to become a stream of frames then.
    pub fn send_with_upgrade(
        &mut self,
        (method, target, body): (&str, &str, &str),
        (upgrade_target, protocol): (&str, &str),
    ) -> io::Result<()> {
        // Together, so that the guest is woken once.
        let mut both = Vec::new();
        send(&mut both, method, target, "", body.as_bytes())?;
        let headers = format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n");
        send(&mut both, "POST", upgrade_target, &headers, b"")?;
        io::Write::write_all(&mut self.source.stream, &both)
    }

    /// Reads the next answer.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let head = self.head()?;
        self.body(&head)
    }

    /// Reads the next answer, which may be that the connection is a stream of frames from now on.
    pub fn upgraded(mut self) -> io::Result<Result<Upgraded, Answer>> {
        let head = self.head()?;
        if head.status != 101 {
            return self.body(&head).map(Err);
        }
        let (received, stream) = self.source.into_parts();
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(Ok(Upgraded {
            stream,
            received,
            exec_id: head.exec_id,
        }))
    }

    fn head(&mut self) -> io::Result<Head> {
        let (head, behind) = read_head(&mut self.source)?;
        self.source.give_back(behind);
        Ok(head)
    }

    fn body(&mut self, head: &Head) -> io::Result<Answer> {
        let length = match head.framing {
            Framing::Length(length) if length <= MAX_ANSWER => length,
            // The next answer would be looked for in it.
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let mut body = Vec::new();
        let read = (&mut self.source).take(length).read_to_end(&mut body)?;
        if (read as u64) < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Answer {
            status: head.status,
            body,
        })
    }
}

/// Readable when an answer begins.
impl AsFd for Conversation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;

    use super::*;

    #[test]
    fn questions_when_sent_at_once_have_answers_in_their_order_and_frames_behind() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let mut talk = Conversation::new(ours);
        talk.send("PUT", "/a", "1").expect("sent");
        talk.send_with_upgrade(("POST", "/b", "22"), ("/c", "frames"))
            .expect("sent");
        theirs
            .write_all(
                b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok\
                  HTTP/1.1 101 Switching Protocols\r\nUpgrade: frames\r\n\r\nframe",
            )
            .expect("answers");
        theirs.shutdown(Shutdown::Write).expect("end");
        assert_eq!(talk.answer().expect("first").status, 204);
        let second = talk.answer().expect("second");
        assert_eq!((second.status, &*second.body), (201, &b"ok"[..]));
        let upgraded = talk.upgraded().expect("third").expect("it streams");
        assert_eq!(upgraded.received, b"frame");
        drop(upgraded);
        let mut asked = String::new();
        theirs.read_to_string(&mut asked).expect("questions");
        let heads: Vec<&str> = asked.lines().filter(|l| l.contains("HTTP/1.1")).collect();
        // The body of a question and the head of the next are on one line.
        assert_eq!(
            heads,
            ["PUT /a HTTP/1.1", "1POST /b HTTP/1.1", "22POST /c HTTP/1.1"]
        );
    }

    #[test]
    fn answer_when_it_ends_too_soon_or_has_no_end_then_refused() {
        for (answers, kind) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
                io::ErrorKind::UnexpectedEof,
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\nwhat follows",
                io::ErrorKind::InvalidData,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
                io::ErrorKind::InvalidData,
            ),
        ] {
            let (ours, mut theirs) = UnixStream::pair().expect("pair");
            theirs.write_all(answers.as_bytes()).expect("answer");
            drop(theirs);
            let error = Conversation::new(ours).answer().expect_err(answers);
            assert_eq!(error.kind(), kind, "{answers}");
        }
    }
}
