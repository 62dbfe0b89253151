//! The API: from a request to its answer. `docs/api.md` is its description.

use bulkhead_protocol::{
    API_VERSION, BootTimings, ErrorCode, Health, HealthStatus, Shutdown, path,
};
use serde_json::json;

use crate::http::{Request, Response};
use crate::info::info;

/// What the API knows between requests.
pub struct Api {
    timings: BootTimings,
    shutdown: Option<Shutdown>,
}

impl Api {
    /// An API of a guest that booted like this.
    pub fn new(timings: BootTimings) -> Self {
        Api {
            timings,
            shutdown: None,
        }
    }

    /// The shutdown that was asked for, if one was.
    pub fn shutdown(&self) -> Option<Shutdown> {
        self.shutdown
    }

    /// From now on the guest is on its way down, whoever asked for it.
    pub fn begin_shutdown(&mut self, shutdown: Shutdown) {
        self.shutdown.get_or_insert(shutdown);
    }

    /// Answers a request.
    pub fn handle(&mut self, request: &Request<'_>) -> Response {
        match (request.path, request.method) {
            (path::HEALTH, "GET" | "HEAD") => Response::json(
                200,
                &Health {
                    status: match self.shutdown {
                        None => HealthStatus::Ok,
                        Some(_) => HealthStatus::ShuttingDown,
                    },
                    api: API_VERSION,
                },
            ),
            (path::INFO, "GET" | "HEAD") => Response::json(200, &info(self.timings)),
            (path::SHUTDOWN, "POST") => self.post_shutdown(request.body),
            (path::HEALTH | path::INFO, _) => not_allowed("GET, HEAD"),
            (path::SHUTDOWN, _) => not_allowed("POST"),
            (path, _) => {
                let message = format!("There is no {path}.");
                Response::error(404, ErrorCode::NotFound, &message)
            }
        }
    }

    fn post_shutdown(&mut self, body: &[u8]) -> Response {
        let asked = if body.is_empty() {
            Ok(Shutdown::default())
        } else {
            serde_json::from_slice(body)
        };
        match asked {
            Ok(shutdown) => {
                self.begin_shutdown(shutdown);
                Response {
                    // So that the agent can see the answer received before it powers off.
                    last: true,
                    ..Response::json(202, &json!({}))
                }
            }
            Err(e) => {
                let message = format!("The body is not a Shutdown: {e}.");
                Response::error(400, ErrorCode::BadRequest, &message)
            }
        }
    }
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
    use bulkhead_protocol::{ApiError, Info};

    fn api() -> Api {
        Api::new(BootTimings {
            init_start_ns: 5,
            ready_ns: 7,
        })
    }

    fn ask(api: &mut Api, method: &str, path: &str, body: &[u8]) -> Response {
        api.handle(&Request {
            method,
            path,
            body,
            keep_alive: true,
        })
    }

    fn code(response: &Response) -> ErrorCode {
        let error: ApiError<'_> = serde_json::from_slice(&response.body).expect("ApiError");
        error.code
    }

    #[test]
    fn info_when_asked_then_has_the_boot_timings() {
        let response = ask(&mut api(), "GET", "/v1/info", b"");
        let info: Info<'_> = serde_json::from_slice(&response.body).expect("Info");
        assert_eq!((response.status, info.timings.ready_ns), (200, 7));
    }

    #[test]
    fn paths_and_methods_when_wrong_then_404_and_405() {
        let api = &mut api();
        for path in ["/", "/v1", "/v1/health/", "/v2/health", "*"] {
            let response = ask(api, "GET", path, b"");
            assert_eq!(
                (response.status, code(&response)),
                (404, ErrorCode::NotFound)
            );
        }
        for (method, path, allow) in [
            ("POST", "/v1/health", "GET, HEAD"),
            ("get", "/v1/info", "GET, HEAD"),
            ("GET", "/v1/shutdown", "POST"),
        ] {
            let response = ask(api, method, path, b"");
            assert_eq!((response.status, response.allow), (405, Some(allow)));
            assert_eq!(code(&response), ErrorCode::MethodNotAllowed);
        }
    }

    #[test]
    fn shutdown_when_asked_twice_then_the_first_counts_and_health_says_so() {
        let api = &mut api();
        assert_eq!(
            ask(api, "POST", "/v1/shutdown", b"{\"grace_ms\":3}").status,
            202
        );
        assert_eq!(ask(api, "POST", "/v1/shutdown", b"").status, 202);
        assert_eq!(api.shutdown().map(|s| s.grace_ms()), Some(3));
        let health = ask(api, "GET", "/v1/health", b"");
        let health: Health = serde_json::from_slice(&health.body).expect("Health");
        assert_eq!(health.status, HealthStatus::ShuttingDown);
    }

    #[test]
    fn shutdown_when_its_body_is_wrong_then_400_and_nothing_happens() {
        let api = &mut api();
        for body in [
            &b"nonsense"[..],
            b"{\"grace_ms\":-1}",
            b"[1",
            b"\xff",
            b"[[[[",
        ] {
            let response = ask(api, "POST", "/v1/shutdown", body);
            assert_eq!(
                (response.status, code(&response)),
                (400, ErrorCode::BadRequest)
            );
        }
        assert_eq!(api.shutdown(), None);
    }
}
