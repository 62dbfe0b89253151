//! What a path is.

use bulkhead_protocol::path;

/// A path of the API. The texts are ids and names, which need not be of anything there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Route<'a> {
    Health,
    Info,
    Shutdown,
    Clock,
    Entropy,
    Restored,
    Spare,
    Events,
    Interfaces,
    Interface(&'a str),
    Routes,
    Containers,
    Container(&'a str),
    Start(&'a str),
    Pause(&'a str),
    Resume(&'a str),
    Kill(&'a str),
    Wait(&'a str),
    Resize(&'a str),
    Stats(&'a str),
    Processes(&'a str),
    Attach(&'a str),
    Files(&'a str),
    Exec(&'a str),
    ExecState(&'a str, &'a str),
    ExecWait(&'a str, &'a str),
    ExecKill(&'a str, &'a str),
    ExecResize(&'a str, &'a str),
}

impl<'a> Route<'a> {
    /// What `path` is, if it is one.
    pub fn of(path: &'a str) -> Option<Self> {
        Some(match path {
            path::HEALTH => Route::Health,
            path::INFO => Route::Info,
            path::SHUTDOWN => Route::Shutdown,
            path::CLOCK => Route::Clock,
            path::ENTROPY => Route::Entropy,
            path::RESTORED => Route::Restored,
            path::SPARE => Route::Spare,
            path::EVENTS => Route::Events,
            path::INTERFACES => Route::Interfaces,
            path::ROUTES => Route::Routes,
            path::CONTAINERS => Route::Containers,
            _ => {
                if let Some(rest) = below(path, path::INTERFACES) {
                    return (!rest.is_empty() && !rest.contains('/'))
                        .then_some(Route::Interface(rest));
                }
                return Self::of_container(below(path, path::CONTAINERS)?);
            }
        })
    }

    /// What `rest` is, of a path below the containers'.
    fn of_container(rest: &'a str) -> Option<Self> {
        let mut parts = rest.split('/');
        let id = parts.next().filter(|id| !id.is_empty())?;
        let route = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => Route::Container(id),
            (Some(what), None, _) => match what {
                "start" => Route::Start(id),
                "pause" => Route::Pause(id),
                "resume" => Route::Resume(id),
                "kill" => Route::Kill(id),
                "wait" => Route::Wait(id),
                "resize" => Route::Resize(id),
                "stats" => Route::Stats(id),
                "processes" => Route::Processes(id),
                "attach" => Route::Attach(id),
                "files" => Route::Files(id),
                "exec" => Route::Exec(id),
                _ => return None,
            },
            (Some("execs"), Some(""), _) => return None,
            (Some("execs"), Some(exec), None) => Route::ExecState(id, exec),
            (Some("execs"), Some(exec), Some(what)) => match what {
                "wait" => Route::ExecWait(id, exec),
                "kill" => Route::ExecKill(id, exec),
                "resize" => Route::ExecResize(id, exec),
                _ => return None,
            },
            _ => return None,
        };
        parts.next().is_none().then_some(route)
    }

    /// Whether a request changes the machine rather than a container, or asks for what only a machine
    /// has to itself.
    pub fn is_of_machine(self, method: &str) -> bool {
        match self {
            Route::Entropy
            | Route::Restored
            | Route::Spare
            | Route::Interfaces
            | Route::Interface(_)
            | Route::Routes => true,
            Route::Clock => method == "PUT",
            _ => false,
        }
    }

    /// The methods it takes, as `Allow` lists them.
    pub fn methods(self) -> &'static str {
        match self {
            Route::Health
            | Route::Info
            | Route::Interfaces
            | Route::Wait(_)
            | Route::Stats(_)
            | Route::Processes(_)
            | Route::ExecState(..)
            | Route::ExecWait(..) => "GET, HEAD",
            Route::Clock | Route::Routes | Route::Interface(_) => "GET, HEAD, PUT",
            Route::Files(_) => "GET, PUT",
            Route::Restored | Route::Spare => "PUT",
            // Its answer has no end, and so no length.
            Route::Events => "GET",
            Route::Containers => "GET, HEAD, POST",
            Route::Container(_) => "GET, HEAD, DELETE",
            Route::Shutdown
            | Route::Entropy
            | Route::Start(_)
            | Route::Pause(_)
            | Route::Resume(_)
            | Route::Kill(_)
            | Route::Resize(_)
            | Route::Attach(_)
            | Route::Exec(_)
            | Route::ExecKill(..)
            | Route::ExecResize(..) => "POST",
        }
    }

    /// Whether it takes a method.
    pub fn takes(self, method: &str) -> bool {
        self.methods().split(", ").any(|m| m == method)
    }
}

fn below<'a>(path: &'a str, parent: &str) -> Option<&'a str> {
    path.strip_prefix(parent)?.strip_prefix('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_when_it_is_one_then_found_with_its_names() {
        for (text, route) in [
            ("/v1/health", Route::Health),
            ("/v1/restored", Route::Restored),
            ("/v1/spare", Route::Spare),
            ("/v1/interfaces/eth0", Route::Interface("eth0")),
            ("/v1/containers", Route::Containers),
            ("/v1/containers/a", Route::Container("a")),
            ("/v1/containers/a/start", Route::Start("a")),
            ("/v1/containers/a/execs/7", Route::ExecState("a", "7")),
            ("/v1/containers/a/execs/7/wait", Route::ExecWait("a", "7")),
        ] {
            assert_eq!(Route::of(text), Some(route));
        }
        assert_eq!(
            Route::of(&path::of_exec("a", "b", "resize")),
            Some(Route::ExecResize("a", "b"))
        );
    }

    #[test]
    fn path_when_it_is_none_then_none() {
        for text in [
            "/",
            "/v1",
            "/v1/health/",
            "/v1/interfaces/",
            "/v1/interfaces/a/b",
            "/v1/containers/",
            "/v1/containers//start",
            "/v1/containers/a/",
            "/v1/containers/a/start/",
            "/v1/containers/a/start/now",
            "/v1/containers/a/execs/",
            "/v1/containers/a/execs/7/",
            "/v1/containers/a/execs/7/wait/x",
            "/v2/containers",
        ] {
            assert_eq!(Route::of(text), None, "{text}");
        }
    }

    #[test]
    fn methods_when_compared_then_whole_names() {
        let route = Route::Container("a");
        assert!(route.takes("DELETE") && route.takes("HEAD"));
        assert!(!route.takes("PUT") && !route.takes("DEL") && !route.takes(""));
    }
}
