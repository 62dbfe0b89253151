//! Requests to one repository of one registry, with whatever it wants to know about us.
//!
//! Redirects are followed by hand: registries send those who fetch blobs to other hosts, and what
//! proves who we are must not go there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use ureq::http::{self, Method, StatusCode, Uri};
use ureq::{Agent, Body, SendBody};

use super::challenge::{self, Challenge, Realm, Token, percent_encode};
use super::credentials::{self, Credentials};
use super::{Access, tls};
use crate::error::{Error, Result};
use crate::manifest::printable;
use crate::reference::{DOCKER_HUB, Reference};

/// Where Docker Hub's registry really is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
const MAX_REDIRECTS: usize = 5;
/// The longest error message that is read, in bytes.
const MAX_ERROR: u64 = 64 << 10;
/// The longest answer of a token server, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// How long nothing may come or go on a connection that is in use.
const STALLED: Duration = Duration::from_secs(60);
/// How long a registry may think: it hashes a blob that was pushed before it says yes.
const ANSWER: Duration = Duration::from_secs(300);

pub(super) type Response = http::Response<Body>;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// It makes no sense to try again.
    Fatal(String),
    /// It may work another time, but not earlier than in so long.
    Transient(String, Option<Duration>),
}

impl Failure {
    pub(super) fn why(self) -> String {
        match self {
            Failure::Fatal(why) | Failure::Transient(why, _) => why,
        }
    }
}

/// What is sent along. It can be sent again.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// A part of a file.
    File {
        file: &'a File,
        offset: u64,
        len: u64,
        /// Is told how much of the part has gone.
        sent: &'a (dyn Fn(u64) + Sync),
    },
}

/// A request before it is known how to authorize it.
#[derive(Clone)]
pub(super) struct Request<'a> {
    pub method: Method,
    /// A path on the registry, or a whole URL that it gave us.
    pub url: String,
    pub headers: Vec<(&'static str, String)>,
    pub payload: Payload<'a>,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: Method, url: impl Into<String>) -> Self {
        Request {
            method,
            url: url.into(),
            headers: Vec::new(),
            payload: Payload::None,
        }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(super) fn payload(mut self, payload: Payload<'a>) -> Self {
        self.payload = payload;
        self
    }
}

/// What the registry asked for, and what we have to answer.
#[derive(Debug, Default)]
struct Authorization {
    challenge: Option<Challenge>,
    /// The header for each set of scopes.
    headers: BTreeMap<String, String>,
    credentials: Option<Option<Credentials>>,
}

/// A connection to a registry, on behalf of one repository.
pub(super) struct Client {
    agent: Agent,
    /// Scheme and authority, `https://quay.io`.
    origin: Origin,
    /// The registry as people call it.
    host: String,
    repository: String,
    access: Access,
    authorization: Mutex<Authorization>,
}

/// What has to be the same for a request to carry our authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        Some(Origin {
            https,
            host: uri.host()?.to_ascii_lowercase(),
            port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
        })
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}:{}{path}", self.host, self.port)
    }
}

impl Client {
    /// Finds out how the registry of `reference` is spoken to. `Failure` if it cannot be reached.
    pub(super) fn new(reference: &Reference, access: &Access) -> Result<Self> {
        let host = reference.host();
        let failed = |why: String| Error::Registry {
            doing: "talk to".into(),
            host: host.into(),
            why,
        };
        let real = if host == DOCKER_HUB {
            DOCKER_HUB_HOST
        } else {
            host
        };
        let origin = |scheme: &str| {
            let uri: Uri = format!("{scheme}://{real}/")
                .parse()
                .map_err(|e| failed(format!("{e}")))?;
            Origin::of(&uri).ok_or_else(|| failed("it has no host name".into()))
        };
        let https = origin("https")?;
        let local = is_loopback(&https.host);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .accept_encoding("identity")
            .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(STALLED / 2))
            .timeout_connect(Some(STALLED / 2))
            .timeout_per_read(Some(STALLED))
            .timeout_per_write(Some(STALLED))
            .timeout_recv_response(Some(ANSWER))
            .tls_config(tls::config(host, access)?);
        if local {
            config = config.proxy(None);
        }
        let mut client = Client {
            agent: config.build().new_agent(),
            origin: https,
            host: host.into(),
            repository: reference.path().into(),
            access: access.clone(),
            authorization: Mutex::default(),
        };
        if local || access.insecure {
            // Either may answer here. What speaks TLS gets TLS.
            let ping = |client: &Client| client.once(&Request::new(Method::GET, "/v2/"), None);
            if let Err(first) = ping(&client) {
                let https = std::mem::replace(&mut client.origin, origin("http")?);
                match ping(&client) {
                    // What a server says that expected TLS after all.
                    Ok(answer) if answer.status() != StatusCode::BAD_REQUEST => (),
                    _ if https.port == 443 => return Err(failed(first.why())),
                    Err(second) if matches!(first, Failure::Transient(..)) => {
                        return Err(failed(second.why()));
                    }
                    _ => return Err(failed(first.why())),
                }
            }
        }
        Ok(client)
    }

    /// The registry as people call it.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// `/v2/REPOSITORY/rest`.
    pub(super) fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.repository)
    }

    /// The scope for doing `actions` (`pull`, `pull,push`) here.
    pub(super) fn scope(&self, actions: &str) -> String {
        scope(&self.repository, actions)
    }

    /// Sends a request, authorized for these scopes (separated by spaces) if the registry wants that,
    /// and follows redirects of what is only read.
    pub(super) fn send(
        &self,
        request: &Request<'_>,
        scopes: &str,
    ) -> std::result::Result<Response, Failure> {
        let mut request = request.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.authorized(&request, scopes)?;
            let reading = matches!(request.method, Method::GET | Method::HEAD);
            if !reading || !response.status().is_redirection() {
                return Ok(response);
            }
            let target = location(&response, &request.url)
                .ok_or_else(|| Failure::Fatal("it redirects to nowhere".into()))?;
            let insecure = !self.origin.https || self.access.insecure;
            if !insecure && !target.starts_with("https://") && target.contains("://") {
                return Err(Failure::Fatal(
                    "it redirects to a place without TLS; --insecure allows that".into(),
                ));
            }
            request.url = target;
        }
        Err(Failure::Fatal("it redirects in circles".into()))
    }

    fn authorized(
        &self,
        request: &Request<'_>,
        scopes: &str,
    ) -> std::result::Result<Response, Failure> {
        if !self.is_ours(&request.url) {
            return self.once(request, None);
        }
        let known = {
            let authorization = self.authorization();
            authorization.headers.get(scopes).cloned()
        };
        let response = self.once(request, known.as_deref())?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        match self.answer(&response, scopes, known.as_deref())? {
            Some(header) => self.once(request, Some(&header)),
            None => Ok(response),
        }
    }

    /// Whether a URL is the registry's own, and may see who we are.
    fn is_ours(&self, url: &str) -> bool {
        if url.starts_with('/') {
            return true;
        }
        let origin = url.parse().ok().as_ref().and_then(Origin::of);
        origin.as_ref() == Some(&self.origin)
    }

    fn authorization(&self) -> std::sync::MutexGuard<'_, Authorization> {
        self.authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a challenge: with the header that another thread got meanwhile, with our password, or
    /// with a token. Threads that are challenged together wait for one of them to get it.
    fn answer(
        &self,
        response: &Response,
        scopes: &str,
        used: Option<&str>,
    ) -> std::result::Result<Option<String>, Failure> {
        let mut authorization = self.authorization();
        let newer = authorization.headers.get(scopes);
        if newer.map(String::as_str) != used {
            return Ok(newer.cloned());
        }
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let found = challenge::parse(headers.iter().filter_map(|value| value.to_str().ok()));
        let Some(challenge) = found.or_else(|| authorization.challenge.clone()) else {
            return Ok(None);
        };
        authorization.challenge = Some(challenge.clone());
        if authorization.credentials.is_none() {
            let found = match &self.access.credentials {
                Some(given) => Some(given.clone()),
                None => credentials::find(&self.host, self.access.config.as_deref())
                    .map_err(|e| Failure::Fatal(e.to_string()))?,
            };
            authorization.credentials = Some(found);
        }
        let credentials = authorization.credentials.clone().flatten();
        let header = match &challenge {
            // A password that was refused is not right the second time.
            Challenge::Basic if used.is_some() => None,
            Challenge::Basic => credentials.as_ref().and_then(Credentials::basic),
            Challenge::Bearer(realm) => Some(self.token(realm, scopes, credentials.as_ref())?),
        };
        match &header {
            Some(header) => authorization.headers.insert(scopes.into(), header.clone()),
            None => authorization.headers.remove(scopes),
        };
        Ok(header)
    }

    /// Gets a token that is good for these scopes.
    fn token(
        &self,
        realm: &Realm,
        scopes: &str,
        credentials: Option<&Credentials>,
    ) -> std::result::Result<String, Failure> {
        let bad = || {
            Failure::Fatal(format!(
                "it sends for tokens to {:?}, which is no https URL",
                printable(&realm.url)
            ))
        };
        let uri: Uri = realm.url.parse().map_err(|_| bad())?;
        let origin = Origin::of(&uri).ok_or_else(bad)?;
        if !origin.https && self.origin.https && !self.access.insecure {
            return Err(bad());
        }
        let mut parameters = Vec::new();
        if let Some(service) = &realm.service {
            parameters.push(("service", service.as_str()));
        }
        // What the registry says it needs may be more than what we think.
        let mut all: Vec<&str> = scopes
            .split(' ')
            .filter(|scope| !scope.is_empty())
            .collect();
        for scope in realm.scope.iter().flat_map(|scopes| scopes.split(' ')) {
            if !all.contains(&scope) && !all.iter().any(|ours| covers(ours, scope)) {
                all.push(scope);
            }
        }
        parameters.extend(all.iter().map(|scope| ("scope", *scope)));
        let form = |parameters: &[(&str, &str)]| {
            let pairs = parameters
                .iter()
                .map(|(key, value)| format!("{key}={}", percent_encode(value)));
            pairs.collect::<Vec<_>>().join("&")
        };

        let body;
        let request = match credentials {
            Some(Credentials::IdentityToken(token)) => {
                let scope = all.join(" ");
                parameters.retain(|(key, _)| *key != "scope");
                parameters.extend([
                    ("scope", scope.as_str()),
                    ("grant_type", "refresh_token"),
                    ("client_id", "bulkhead"),
                    ("refresh_token", token),
                ]);
                body = form(&parameters);
                Request::new(Method::POST, &realm.url)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .payload(Payload::Bytes(body.as_bytes()))
            }
            _ => {
                let mark = if realm.url.contains('?') { '&' } else { '?' };
                Request::new(
                    Method::GET,
                    format!("{}{mark}{}", realm.url, form(&parameters)),
                )
            }
        };
        let basic = credentials.and_then(Credentials::basic);
        let response = expect(self.once(&request, basic.as_deref())?, &[StatusCode::OK]).map_err(
            |e| match e {
                Failure::Fatal(why) => Failure::Fatal(format!("it gives us no token: {why}")),
                transient => transient,
            },
        )?;
        let bytes = read_all(response, MAX_TOKEN)?;
        let token = serde_json::from_slice::<Token>(&bytes).ok();
        match token.and_then(Token::into_string) {
            Some(token) => Ok(format!("Bearer {token}")),
            None => Err(Failure::Fatal("its token server answers nonsense".into())),
        }
    }

    /// Sends one request, as it is.
    fn once(
        &self,
        request: &Request<'_>,
        authorization: Option<&str>,
    ) -> std::result::Result<Response, Failure> {
        let url = match request.url.starts_with('/') {
            true => self.origin.url(&request.url),
            false => request.url.clone(),
        };
        let mut builder = http::Request::builder()
            .method(request.method.clone())
            .uri(url);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        let invalid =
            |e: http::Error| Failure::Fatal(format!("it gave an address that is none: {e}"));
        let answer = match request.payload {
            Payload::None if matches!(request.method, Method::GET | Method::HEAD) => {
                self.agent.run(builder.body(()).map_err(invalid)?)
            }
            Payload::None => self.agent.run(builder.body(&b""[..]).map_err(invalid)?),
            Payload::Bytes(bytes) => self.agent.run(builder.body(bytes).map_err(invalid)?),
            Payload::File {
                file,
                offset,
                len,
                sent,
            } => {
                let mut part = Part::new(file, offset, len, sent).map_err(|e| {
                    Failure::Fatal(format!("cannot read the blob from the store: {e}"))
                })?;
                let body = SendBody::from_reader(&mut part);
                let builder = builder.header("content-length", len);
                self.agent.run(builder.body(body).map_err(invalid)?)
            }
        };
        answer.map_err(|e| classify(&e))
    }
}

/// A scope of token authentication.
pub(super) fn scope(repository: &str, actions: &str) -> String {
    format!("repository:{repository}:{actions}")
}

/// Whether our scope is good for all that theirs is.
fn covers(ours: &str, theirs: &str) -> bool {
    let (Some((our_name, our_actions)), Some((name, actions))) =
        (ours.rsplit_once(':'), theirs.rsplit_once(':'))
    else {
        return false;
    };
    our_name == name
        && actions
            .split(',')
            .all(|action| our_actions.split(',').any(|ours| ours == action))
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Where a response points to, as a whole URL or as a path on the registry.
pub(super) fn location(response: &Response, asked: &str) -> Option<String> {
    let target = response.headers().get(LOCATION)?.to_str().ok()?;
    if target.starts_with("https://") || target.starts_with("http://") {
        return Some(target.into());
    }
    if !target.starts_with('/') || target.starts_with("//") {
        return None;
    }
    // A path belongs to whoever gave it.
    match asked.parse::<Uri>().ok().as_ref().and_then(Origin::of) {
        Some(origin) => Some(origin.url(target)),
        None => Some(target.into()),
    }
}

/// Passes answers with one of these statuses; makes a sentence of any other.
pub(super) fn expect(
    response: Response,
    statuses: &[StatusCode],
) -> std::result::Result<Response, Failure> {
    let status = response.status();
    if statuses.contains(&status) {
        return Ok(response);
    }
    let after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let said = read_all(response, MAX_ERROR)
        .ok()
        .and_then(|bytes| message(&bytes))
        .map(|said| format!(" ({said})"))
        .unwrap_or_default();
    let reason = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!(
            "it does not let us; check the name, and log in with `docker login` or `podman login`{said}"
        ),
        StatusCode::NOT_FOUND => format!("there is no such thing{said}"),
        StatusCode::TOO_MANY_REQUESTS => format!("it wants fewer requests; try later{said}"),
        _ => format!("it answers {status}{said}"),
    };
    Err(match status.as_u16() {
        408 | 429 | 500 | 502..=504 => Failure::Transient(reason, after),
        _ => Failure::Fatal(reason),
    })
}

/// The message in the body of an error (OCI distribution-spec #error-codes).
fn message(bytes: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let error = body.get("errors").and_then(|errors| errors.get(0));
    let text = error
        .and_then(|error| error.get("message").or(error.get("code")))
        .or(body.get("details"))?
        .as_str()?;
    Some(printable(text))
}

/// Reads a body of at most `most` bytes.
pub(super) fn read_all(response: Response, most: u64) -> std::result::Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let reader = response.into_body().into_reader();
    match reader.take(most.saturating_add(1)).read_to_end(&mut bytes) {
        Ok(n) if n as u64 > most => Err(Failure::Fatal(format!(
            "it answers with more than {most} bytes"
        ))),
        Ok(_) => Ok(bytes),
        Err(e) => Err(Failure::Transient(
            format!("the connection broke: {e}"),
            None,
        )),
    }
}

/// What a failed request means.
fn classify(error: &ureq::Error) -> Failure {
    use ureq::Error as E;
    let why = printable(&error.to_string());
    match error {
        E::HostNotFound => Failure::Transient("there is no such host".into(), None),
        E::Timeout(_) => Failure::Transient("it does not answer in time".into(), None),
        E::Io(e) if is_certificate(e) => Failure::Fatal(why),
        E::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            Failure::Transient("nothing listens there".into(), None)
        }
        E::Io(_) | E::ConnectionFailed | E::Protocol(_) => {
            Failure::Transient(format!("the connection broke: {why}"), None)
        }
        E::Rustls(_) | E::Tls(_) => Failure::Fatal(format!("there is no TLS with it: {why}")),
        _ => Failure::Fatal(why),
    }
}

/// TLS errors come wrapped: they say themselves what they are about.
fn is_certificate(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData && error.to_string().contains("certificate")
}

/// A part of a file, read from its own position: the file is shared by threads.
struct Part<'a> {
    file: &'a File,
    at: u64,
    start: u64,
    end: u64,
    sent: &'a (dyn Fn(u64) + Sync),
}

impl<'a> Part<'a> {
    fn new(
        file: &'a File,
        offset: u64,
        len: u64,
        sent: &'a (dyn Fn(u64) + Sync),
    ) -> io::Result<Self> {
        let mut opened = file;
        let length = opened.seek(SeekFrom::End(0))?;
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= length)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Part {
            file,
            at: offset,
            start: offset,
            end,
            sent,
        })
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let len = buffer.len().min(most);
        let n = self.file.read_at(&mut buffer[..len], self.at)?;
        self.at += n as u64;
        (self.sent)(self.at - self.start);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Option<Origin> {
        Origin::of(&url.parse().expect(url))
    }

    #[test]
    fn origin_when_anything_differs_is_another() {
        let ours = origin("https://quay.io/v2/");
        assert_eq!(ours, origin("https://QUAY.io:443/x?y"));
        for other in [
            "http://quay.io/",
            "https://quay.io:8443/",
            "https://quay.io.evil.io/",
            "https://quay.io@evil.io/",
            "https://evil.io/quay.io/",
        ] {
            assert_ne!(ours, origin(other), "{other}");
        }
        assert_eq!(origin("ftp://quay.io/"), None);
    }

    #[test]
    fn scope_when_ours_is_wider_covers_theirs() {
        assert!(covers("repository:a/b:pull,push", "repository:a/b:pull"));
        assert!(!covers("repository:a/b:pull", "repository:a/b:pull,push"));
        assert!(!covers("repository:a/b:pull", "repository:a/c:pull"));
    }

    #[test]
    fn message_of_an_error_is_the_registrys() {
        let body = br#"{"errors":[{"code":"DENIED","message":"requested access\nis denied"}]}"#;
        assert_eq!(message(body), Some("requested access is denied".into()));
        assert_eq!(message(b"<html>"), None);
    }

    #[test]
    fn loopback_is_what_never_leaves_the_machine() {
        for local in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert!(is_loopback(local), "{local}");
        }
        for other in ["localhost.evil.io", "10.0.0.1", "127.0.0.1.nip.io"] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}
