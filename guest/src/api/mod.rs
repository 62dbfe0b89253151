//! The API: from a request to its answer. `docs/api.md` is its description.
//!
//! [`route`] knows the paths; the answers are given by their subjects, [`machine`], [`restored`], [`network`],
//! [`containers`], [`execs`] and [`files`](crate::files).

pub mod containers;
pub mod execs;
pub mod machine;
pub mod network;
pub mod restored;
pub mod route;
pub mod stats;

use bulkhead_protocol::ErrorCode;
use serde::de::DeserializeOwned;

use crate::connection::{Answer, Expect, Handler};
use crate::files::Copy;
use crate::guest::Guest;
use crate::http::{self, Head, Query, Response};
use crate::server::slab::Key;
use crate::server::socket::Socket;
use crate::streams::client::Wants;
use route::Route;

/// The longest body of most requests, bytes.
const MAX_BODY: usize = 64 << 10;
/// The longest body with an OCI configuration in it, bytes: many times what seccomp profiles and
/// environments take.
const MAX_CONFIGURATION: usize = 512 << 10;

/// Where a connection goes that has had its last answer in HTTP.
#[derive(Debug)]
pub enum Destination {
    /// To a program.
    Program {
        /// Which.
        program: Key,
        /// What the client wants of it.
        wants: Wants,
        /// The program was executed for this client, and under this number.
        exec_id: Option<u64>,
    },
    /// To those that are told what happens.
    Events,
    /// To a copy of files.
    Copy(Copy),
}

/// What a request's answer is, or the response that says why there is none.
pub type Outcome = Result<Answer<Destination>, Response>;

/// A guest that is asked something by a client.
pub struct Asked<'a> {
    /// Who is asked.
    pub guest: &'a mut Guest,
    /// Who asks.
    pub client: Key,
}

impl Handler for Asked<'_> {
    type Destination = Destination;

    fn expect(&mut self, head: &Head) -> Expect<Destination> {
        match (Route::of(&head.path), head.method.as_str()) {
            (Some(Route::Files(id)), "PUT") => match self.guest.put_files(id, &head.query) {
                Ok(copy) => Expect::Leave(Destination::Copy(copy)),
                Err(response) => Expect::Refuse(response),
            },
            (Some(Route::Containers | Route::Exec(_)), "POST") | (Some(Route::Spare), "PUT") => {
                Expect::Body(MAX_CONFIGURATION)
            }
            _ => Expect::Body(MAX_BODY),
        }
    }

    fn handle(&mut self, head: &Head, body: &[u8]) -> Answer<Destination> {
        self.route(head, body).unwrap_or_else(Answer::Now)
    }
}

impl Asked<'_> {
    fn route(&mut self, head: &Head, body: &[u8]) -> Outcome {
        let Some(route) = Route::of(&head.path) else {
            let message = format!("There is no {}.", head.path);
            return Err(Response::not_found(&message));
        };
        let method = head.method.as_str();
        if !route.takes(method) {
            return Err(not_allowed(route.methods()));
        }
        let query = Query(&head.query);
        let guest = &mut *self.guest;
        if !guest.owns_machine && route.is_of_machine(method) {
            return Err(Response::conflict(
                "This sandbox shares the host's kernel, and clock, random numbers and interfaces are the \
                 host's.",
            ));
        }
        match route {
            Route::Health => guest.health(),
            Route::Info => guest.info(),
            Route::Shutdown => guest.post_shutdown(body),
            Route::Clock if method == "PUT" => guest.set_clock(body),
            Route::Clock => guest.clock(),
            Route::Entropy => guest.add_entropy(body),
            Route::Restored => guest.restored(body),
            Route::Spare => guest.put_spare(body),
            Route::Events => guest.events(),
            Route::Interfaces => network::interfaces(),
            Route::Interface(name) if method == "PUT" => network::set_interface(name, body),
            Route::Interface(name) => network::interface(name),
            Route::Routes if method == "PUT" => network::set_routes(body),
            Route::Routes => network::routes(),
            Route::Containers if method == "POST" => guest.create_container(body),
            Route::Containers => guest.list_containers(),
            Route::Container(id) if method == "DELETE" => {
                guest.delete_container(id, query, self.client)
            }
            Route::Container(id) => guest.container_state(id),
            Route::Start(id) => guest.start_container(id),
            Route::Pause(id) => guest.pause_container(id),
            Route::Resume(id) => guest.resume_container(id),
            Route::Kill(id) => guest.kill_container(id, body),
            Route::Wait(id) => guest.wait_container(id, self.client),
            Route::Resize(id) => guest.resize_container(id, body),
            Route::Stats(id) => guest.container_stats(id),
            Route::Processes(id) => guest.container_processes(id),
            Route::Attach(id) => guest.attach_container(id, query, head.wants_upgrade),
            Route::Files(id) => {
                let copy = guest.get_files(id, &head.query)?;
                Ok(Answer::Leave(Destination::Copy(copy)))
            }
            Route::Exec(id) => guest.exec(id, body, head.wants_upgrade),
            Route::ExecState(id, exec) => guest.exec_state(id, exec),
            Route::ExecWait(id, exec) => guest.wait_exec(id, exec, self.client),
            Route::ExecKill(id, exec) => guest.kill_exec(id, exec, body),
            Route::ExecResize(id, exec) => guest.resize_exec(id, exec, body),
        }
    }
}

impl Guest {
    /// Takes over a connection, of which some has been read already.
    pub fn receive(&mut self, (socket, input): (Socket, Vec<u8>), to: Destination, head: &Head) {
        match to {
            Destination::Program {
                program,
                wants,
                exec_id,
            } => {
                let hello = http::start_upgraded(exec_id);
                self.attach((socket, input), program, wants, &hello);
            }
            Destination::Events => self.subscribe(socket),
            Destination::Copy(copy) => {
                self.poll.remove(&socket);
                self.copies.start(copy, socket, input, head);
            }
        }
    }

    fn events(&mut self) -> Outcome {
        self.need_room_for_a_stream()?;
        Ok(Answer::Leave(Destination::Events))
    }

    /// Refuses one stream too many.
    pub fn need_room_for_a_stream(&self) -> Result<(), Response> {
        if self.has_room_for_a_stream() {
            return Ok(());
        }
        Err(Response::unavailable(
            "There are too many streams already; end some first.",
        ))
    }
}

/// An answer that can be given at once.
pub fn json(status: u16, value: &impl serde::Serialize) -> Outcome {
    Ok(Answer::Now(Response::json(status, value)))
}

/// The answer that it is done.
pub fn done() -> Outcome {
    Ok(Answer::Now(Response::done()))
}

/// Reads a body.
pub fn read<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, Response> {
    serde_json::from_slice(body).map_err(|e| {
        let message = format!("The body is not {what}: {e}.");
        Response::bad_request(&message)
    })
}

fn not_allowed(methods: &'static str) -> Response {
    let message = format!("This path takes {methods}.");
    Response {
        allow: Some(methods),
        ..Response::error(405, ErrorCode::MethodNotAllowed, &message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_protocol::{ApiError, BootTimings, Health, HealthStatus, Info};

    use crate::containers::Containers;
    use crate::http::Framing;

    fn guest() -> Guest {
        let timings = BootTimings {
            init_start_ns: 5,
            ready_ns: 7,
        };
        Guest::new(timings, Containers::without_limits()).expect("epoll")
    }

    fn ask(guest: &mut Guest, method: &str, path: &str, body: &[u8]) -> Response {
        let client = Key {
            slot: 0,
            generation: 0,
        };
        let head = Head {
            method: method.into(),
            path: path.into(),
            query: String::new(),
            framing: Framing::Length(body.len() as u64),
            keep_alive: true,
            wants_continue: false,
            wants_upgrade: false,
        };
        match (Asked { guest, client }).handle(&head, body) {
            Answer::Now(response) => response,
            _ => panic!("{method} {path} is not answered at once"),
        }
    }

    fn code(response: &Response) -> ErrorCode {
        let error: ApiError<'_> = serde_json::from_slice(&response.body).expect("ApiError");
        error.code
    }

    #[test]
    fn info_when_asked_then_has_the_boot_timings() {
        let response = ask(&mut guest(), "GET", "/v1/info", b"");
        let info: Info<'_> = serde_json::from_slice(&response.body).expect("Info");
        assert_eq!((response.status, info.timings.ready_ns), (200, 7));
    }

    #[test]
    fn paths_and_methods_when_wrong_then_404_and_405() {
        let guest = &mut guest();
        for path in ["/", "/v1", "/v1/health/", "/v2/health", "*"] {
            let response = ask(guest, "GET", path, b"");
            assert_eq!(
                (response.status, code(&response)),
                (404, ErrorCode::NotFound)
            );
        }
        for (method, path, allow) in [
            ("POST", "/v1/health", "GET, HEAD"),
            ("get", "/v1/info", "GET, HEAD"),
            ("GET", "/v1/shutdown", "POST"),
            ("POST", "/v1/restored", "PUT"),
            ("GET", "/v1/spare", "PUT"),
        ] {
            let response = ask(guest, method, path, b"");
            assert_eq!((response.status, response.allow), (405, Some(allow)));
            assert_eq!(code(&response), ErrorCode::MethodNotAllowed);
        }
    }

    #[test]
    fn shutdown_when_asked_twice_then_the_first_counts_and_health_says_so() {
        let guest = &mut guest();
        assert_eq!(
            ask(guest, "POST", "/v1/shutdown", b"{\"grace_ms\":3}").status,
            202
        );
        assert_eq!(ask(guest, "POST", "/v1/shutdown", b"").status, 202);
        assert_eq!(guest.shutdown().map(|s| s.grace_ms()), Some(3));
        let health = ask(guest, "GET", "/v1/health", b"");
        let health: Health = serde_json::from_slice(&health.body).expect("Health");
        assert_eq!(health.status, HealthStatus::ShuttingDown);
    }

    #[test]
    fn shutdown_when_its_body_is_wrong_then_400_and_nothing_happens() {
        let guest = &mut guest();
        for body in [
            &b"nonsense"[..],
            b"{\"grace_ms\":-1}",
            b"[1",
            b"\xff",
            b"[[[[",
        ] {
            let response = ask(guest, "POST", "/v1/shutdown", body);
            assert_eq!(
                (response.status, code(&response)),
                (400, ErrorCode::BadRequest)
            );
        }
        assert_eq!(guest.shutdown(), None);
    }

    #[test]
    fn restored_when_it_is_not_for_this_guest_or_none_then_refused_and_nothing_happens() {
        let guest = &mut guest();
        for (body, status) in [
            (&b"{}"[..], 400),
            (b"[", 400),
            (br#"{"asleep_ns": -1, "entropy": ""}"#, 400),
            (br#"{"asleep_ns": 1, "entropy": "AA=="}"#, 422),
        ] {
            assert_eq!(ask(guest, "PUT", "/v1/restored", body).status, status);
        }
        assert_eq!(guest.restored, None);
        guest.owns_machine = false;
        let response = ask(guest, "PUT", "/v1/restored", b"{}");
        assert_eq!(
            (response.status, code(&response)),
            (409, ErrorCode::Conflict)
        );
    }

    #[test]
    fn restored_when_told_the_same_again_then_nothing_is_done_twice() {
        let guest = &mut guest();
        guest.restored = Some(bulkhead_protocol::Restored {
            asleep_ns: u64::MAX,
            entropy: "AA==".into(),
            windows: vec![1],
        });
        let again = serde_json::to_vec(&guest.restored).expect("JSON");
        assert_eq!(ask(guest, "PUT", "/v1/restored", &again).status, 200);
    }

    #[test]
    fn container_when_there_is_none_then_404_whatever_is_asked() {
        let guest = &mut guest();
        for (method, what) in [
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/start"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("GET", "/wait"),
            ("GET", "/stats"),
            ("GET", "/processes"),
            ("POST", "/attach"),
            ("GET", "/files"),
            ("GET", "/execs/1"),
            ("GET", "/execs/1/wait"),
        ] {
            let response = ask(guest, method, &format!("/v1/containers/x{what}"), b"");
            assert_eq!(response.status, 404, "{method} {what}");
        }
        for (what, body) in [
            ("/kill", r#"{"signal":9}"#),
            ("/resize", r#"{"rows":1,"columns":1}"#),
            ("/exec", r#"{"process":{"args":["true"],"cwd":"/"}}"#),
            ("/execs/1/kill", r#"{"signal":9}"#),
            ("/execs/1/resize", r#"{"rows":1,"columns":1}"#),
        ] {
            let path = format!("/v1/containers/x{what}");
            assert_eq!(
                ask(guest, "POST", &path, body.as_bytes()).status,
                404,
                "{what}"
            );
            assert_eq!(ask(guest, "POST", &path, b"[").status, 400, "{what}");
        }
    }
}
