//! The agent's life: start, ready, serve, stop.

use std::io;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use bulkhead_protocol::{API_PORT, BootTimings, Shutdown};

use crate::containers::Containers;
use crate::guest::Guest;
use crate::server::{Server, Wake};
use crate::signals::{Asked, Signals};
use crate::{clock, kmsg, mounts, net, power, ready, reaper, settings, vsock};

/// How long processes may take to end after SIGKILL; one that hangs in the kernel never does.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// How long whoever asked for the shutdown may take to receive the answer.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// PID 1 of a guest.
pub fn run_as_init(init_start_ns: u64) -> ! {
    let listener = vsock::listener(API_PORT);
    let (timings, told) = ready::announce(init_start_ns);

    // The host is not waiting for any of this; a request that comes meanwhile waits in the backlog.
    std::panic::set_hook(Box::new(|panic| kmsg::error(format_args!("{panic}"))));
    mounts::mount_all();
    settings::apply();
    if let Err(e) = net::loopback_up() {
        kmsg::error(format_args!("cannot bring the loopback interface up: {e}"));
    }
    if let Err(e) = told
        && !ready::is_nobody(&e)
    {
        kmsg::error(format_args!(
            "cannot tell the host that the guest is ready: {e}"
        ));
    }
    let listener = match listener {
        Ok(listener) => Some(listener),
        Err(e) => {
            kmsg::error(format_args!(
                "no API, cannot listen on vsock port {API_PORT}: {e}"
            ));
            None
        }
    };
    let served = Guest::new(timings, Containers::of_a_guest())
        .and_then(|guest| Server::new(listener, guest))
        .and_then(|mut server| serve(&mut server, &Signals::new()?));
    if let Err(e) = served {
        // Without its loop the guest is of no use to anybody, and nobody could even stop it.
        kmsg::error(format_args!("cannot go on: {e}"));
        power::signal_everyone(libc::SIGKILL);
    }
    power::off()
}

/// Serves until the guest is to stop and every other process has ended.
pub fn serve(server: &mut Server, signals: &Signals) -> io::Result<()> {
    server.watch_signals(signals)?;
    let mut stopping: Option<Stopping> = None;
    loop {
        let deadline = stopping.as_ref().map(|s| s.deadline);
        let wake = server.run(deadline)?;
        if wake == Wake::Signals {
            while let Some(asked) = signals.next() {
                if asked == Asked::Stop {
                    server.guest.begin_shutdown(Shutdown::default());
                }
            }
        }
        // Whom nobody misses, nobody is told: orphans come here too.
        let children = reaper::reap(|pid, status| server.guest.child_ended(pid, status));
        let Some(shutdown) = server.guest.shutdown() else {
            continue;
        };
        // Whoever is left is, or once its parents end becomes, a child of PID 1: no children, no
        // processes.
        let over = match &mut stopping {
            _ if !children => true,
            None => {
                server.guest.wake_containers();
                stopping = Some(Stopping::terminate(&mut server.guest, shutdown));
                false
            }
            Some(s) => s.is_due() && !s.escalate(&mut server.guest),
        };
        if over {
            server.finish(Instant::now() + LAST_ANSWERS);
            return Ok(());
        }
    }
}

/// Sends a signal to all processes of the guest, or, where the agent is one of many, of its containers.
fn signal_everyone(guest: &mut Guest, signal: libc::c_int) {
    if std::process::id() == 1 {
        power::signal_everyone(signal);
    } else {
        guest.signal_containers(signal);
    }
}

/// The guest's processes on their way out.
struct Stopping {
    deadline: Instant,
    killed: bool,
}

impl Stopping {
    fn terminate(guest: &mut Guest, shutdown: Shutdown) -> Self {
        signal_everyone(guest, libc::SIGTERM);
        Stopping {
            deadline: Instant::now() + Duration::from_millis(shutdown.grace_ms()),
            killed: false,
        }
    }

    /// The next harder measure; `false` if there is none.
    fn escalate(&mut self, guest: &mut Guest) -> bool {
        if self.killed {
            return false;
        }
        signal_everyone(guest, libc::SIGKILL);
        self.deadline = Instant::now() + KILL_GRACE;
        self.killed = true;
        true
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

/// Serves the API on a Unix socket until a shutdown is asked for, as an ordinary process: what is
/// tested is the API, and nothing of the machine is touched.
pub fn run_for_tests(path: &str, init_start_ns: u64) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    let timings = BootTimings {
        init_start_ns,
        ready_ns: clock::boot_ns(),
    };
    let guest = Guest::new(timings, Containers::without_limits())?;
    let mut server = Server::new(Some(listener.into()), guest)?;
    serve(&mut server, &Signals::new()?)?;
    std::fs::remove_file(path)
}
