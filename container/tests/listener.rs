//! Filters that ask somebody else (`SCMP_ACT_NOTIFY`).
#![allow(clippy::unwrap_used)]

mod common;

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use bulkhead_container::spec::{Seccomp, SeccompAction, SeccompRule, Spec};
use bulkhead_container::{Bundle, Container, Create, Error, Pipes, Stdio};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

/// As the kernel has it (`struct seccomp_notif`).
#[repr(C)]
#[derive(Default)]
struct Question {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// As the kernel has it (`struct seccomp_notif_resp`).
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;

/// Takes the next descriptor, and what is said of its process.
fn accept(listener: &UnixListener) -> (Value, OwnedFd) {
    let (socket, _) = listener.accept().unwrap();
    let mut text = [0; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut text)];
    let length = recvmsg(&socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC);
    let length = length.unwrap().bytes;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let fd = fds.last().unwrap();
    (serde_json::from_slice(&text[..length]).unwrap(), fd)
}

/// Answers the next question: there is no medium. Whose it was.
fn refuse(listener: &OwnedFd) -> u32 {
    let mut question = Question::default();
    // SAFETY: the structure is the kernel's, and lives through the call.
    let received = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &mut question) };
    assert_eq!(received, 0, "{}", std::io::Error::last_os_error());
    let answer = Answer {
        id: question.id,
        value: 0,
        error: -libc::ENOMEDIUM,
        flags: 0,
    };
    // SAFETY: likewise.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &answer) };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    question.pid
}

fn asking(command: &str, path: &Path) -> Spec {
    let mut spec = common::spec(command);
    spec.annotations.insert("a".into(), "b".into());
    spec.linux.as_mut().unwrap().seccomp = Some(Seccomp {
        default_action: SeccompAction::Allow,
        default_errno_ret: None,
        architectures: Vec::new(),
        flags: Vec::new(),
        listener_path: Some(path.to_str().unwrap().into()),
        listener_metadata: Some("for whom it may concern".into()),
        syscalls: vec![SeccompRule {
            names: vec!["mkdir".into(), "mkdirat".into()],
            action: SeccompAction::Notify,
            errno_ret: None,
            args: Vec::new(),
        }],
    });
    spec
}

fn create(spec: &Spec, root: &Path) -> Result<(Container, Pipes), Error> {
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let create = Create {
        id: "test",
        spec,
        rootfs: common::overlay(root),
        cgroup: None,
        stdio,
        init: false,
        borrows: false,
        dies_with_parent: false,
        bundle: Some(Bundle {
            path: "/the/bundle".into(),
            warn: |_| {},
        }),
        gate: None,
        spare: None,
        preserved: Vec::new(),
    };
    Ok((Container::create(create)?, pipes))
}

#[test]
fn listener_when_a_call_is_asked_about_then_it_decides_for_every_process() {
    let root = common::rootfs();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("listener");
    let listener = UnixListener::bind(&path).unwrap();
    let agent = thread::spawn(move || {
        let (first, fd) = accept(&listener);
        refuse(&fd);
        let (second, fd) = accept(&listener);
        refuse(&fd);
        (first, second)
    });
    let command = "mkdir /tmp/a 2>&1; read line";
    let (mut container, mut pipes) = create(&asking(command, &path), root.path()).unwrap();
    container.start().unwrap();
    let refusal = |name| format!("mkdir: can't create directory '/tmp/{name}': No medium found");
    assert_eq!(common::read_line(&mut pipes), refusal("a"));
    let (stdio, theirs) = Stdio::pipes().unwrap();
    let process = common::spec("mkdir /tmp/b 2>&1").process.unwrap();
    let exec = container.exec(&process, stdio).unwrap();
    let output = common::finish(exec.pid(), theirs);
    assert_eq!(output.stdout.trim_end(), refusal("b"));
    assert_eq!(common::finish(container.pid(), pipes).exit.code, 1);

    let (first, second) = agent.join().unwrap();
    let pid = container.pid().as_raw_pid();
    for state in [&first, &second] {
        assert_eq!(state["fds"], serde_json::json!(["seccompFd"]));
        assert_eq!(state["metadata"], "for whom it may concern");
        assert_eq!(state["state"]["id"], "test");
        assert_eq!(state["state"]["bundle"], "/the/bundle");
        assert_eq!(state["state"]["annotations"]["a"], "b");
        assert_eq!(state["state"]["pid"], pid);
    }
    assert_eq!(first["pid"], pid);
    assert_eq!(second["pid"], exec.pid().as_raw_pid());
    assert_eq!(first["state"]["status"], "creating");
    assert_eq!(second["state"]["status"], "running");
}

#[test]
fn listener_when_it_is_not_there_then_the_container_is_not_made() {
    let root = common::rootfs();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nobody");
    let error = create(&asking("true", &path), root.path()).err().unwrap();
    let said = error.to_string();
    assert!(
        said.starts_with("cannot tell the seccomp listener at "),
        "{said}"
    );
    // Without a bundle there is nothing to tell.
    let spec = asking("true", &path);
    let error = common::create(&spec, common::overlay(root.path())).err();
    let said = error.unwrap().to_string();
    assert!(said.starts_with("linux.seccomp.listenerPath: "), "{said}");
}
