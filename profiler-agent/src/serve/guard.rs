//! Keeps web pages out: a browser on the same host can reach a loopback port for any site that it shows.
//!
//! A page may make its own name resolve to 127.0.0.1 (DNS rebinding) and is then of the same origin as this
//! server, so that it could read profiles. Its requests carry the page's name as their host (`Host`, in HTTP/2
//! `:authority`); who really means this server asks for an address of loopback or for `localhost`. Requests of other
//! sites, by `Origin` and by what a browser marks as such, are refused on every port: such a page cannot read the
//! answer, but could start work, and a browser may have a client's certificate. gRPC-Web and CORS are not served.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::http::is_grpc;

/// By which names a server may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// Those of loopback: other hosts cannot mean it.
    Loopback,
    /// Any: other hosts know it by names that it does not know.
    Any,
}

/// Lets a request through, or answers 403 (gRPC: PERMISSION_DENIED) with the reason.
pub(super) async fn refuse_web_pages(
    State(names): State<Names>,
    request: Request,
    next: Next,
) -> Response {
    match check(names, request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(reason) if is_grpc(request.headers()) => {
            tonic::Status::permission_denied(reason).into_http()
        }
        Err(reason) => (StatusCode::FORBIDDEN, format!("{reason}\n")).into_response(),
    }
}

const OTHER_SITE: &str = "refused: a web page of another site asks";

fn check(names: Names, uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    let hosts = headers.get_all(header::HOST).iter();
    let hosts = hosts.map(|host| Authority::try_from(host.as_bytes()).ok());
    let authority = uri.authority().map(|authority| Some(authority.clone()));
    let hosts: Vec<Option<Authority>> = hosts.chain(authority).collect();
    for host in &hosts {
        if names == Names::Loopback && !host.as_ref().is_some_and(|host| is_loopback(host.host())) {
            return Err(
                "refused: ask for an address of loopback or for localhost, not for another host name",
            );
        }
    }
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin_authority(origin).ok_or(OTHER_SITE)?;
        // Every name that it was asked by has to be the page's: with none there is nothing to compare.
        let is_own = |host: &Option<Authority>| {
            host.as_ref()
                .is_some_and(|host| host.as_str().eq_ignore_ascii_case(origin))
        };
        if hosts.is_empty() || !hosts.iter().all(is_own) {
            return Err(OTHER_SITE);
        }
    }
    for site in headers.get_all("sec-fetch-site") {
        if !matches!(site.as_bytes(), b"none" | b"same-origin") {
            return Err(OTHER_SITE);
        }
    }
    Ok(())
}

/// `host:port` of an origin such as `http://localhost:7099`; `None` of `null`, which is of no site.
fn origin_authority(origin: &HeaderValue) -> Option<&str> {
    let (scheme, authority) = origin.to_str().ok()?.split_once("://")?;
    matches!(scheme, "http" | "https").then_some(authority)
}

fn is_loopback(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let address = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = address.unwrap_or(&name).parse::<IpAddr>();
    name == "localhost"
        || name.ends_with(".localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_let_through(names: Names, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        check(names, &Uri::from_static("/metrics"), &map).is_ok()
    }

    #[test]
    fn addresses_of_loopback_and_localhost_are_let_through() {
        for host in [
            "127.0.0.1:7099",
            "127.8.9.1",
            "[::1]:7099",
            "[::ffff:127.0.0.1]:1",
            "localhost:1",
            "LOCALHOST",
            "a.localhost.",
        ] {
            assert!(is_let_through(Names::Loopback, &[("host", host)]), "{host}");
        }
        assert!(is_let_through(Names::Loopback, &[]));
    }

    #[test]
    fn other_names_are_refused() {
        for host in [
            "evil.example:7099",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.1.2.3",
            "0.0.0.0:7099",
            "[::]:7099",
            "192.0.2.1:7099",
            "",
            "@",
        ] {
            assert!(
                !is_let_through(Names::Loopback, &[("host", host)]),
                "{host}"
            );
        }
        let uri = Uri::from_static("http://evil.example/metrics");
        assert!(check(Names::Loopback, &uri, &HeaderMap::new()).is_err());
        // One good name does not make up for another.
        let both = [("host", "localhost"), ("host", "evil.example")];
        assert!(!is_let_through(Names::Loopback, &both));
        assert!(is_let_through(Names::Any, &[("host", "node-1.example")]));
    }

    #[test]
    fn requests_of_other_sites_are_refused() {
        for (site, is_fine) in [
            ("none", true),
            ("same-origin", true),
            ("cross-site", false),
            ("same-site", false),
        ] {
            let headers = [("host", "127.0.0.1"), ("sec-fetch-site", site)];
            assert_eq!(is_let_through(Names::Loopback, &headers), is_fine, "{site}");
        }
        for (host, origin, is_fine) in [
            ("localhost:7099", "http://localhost:7099", true),
            ("localhost:7099", "http://LOCALHOST:7099", true),
            ("localhost:7099", "http://localhost:8080", false),
            ("localhost:7099", "http://127.0.0.1:7099", false),
            ("localhost:7099", "http://evil.example", false),
            ("localhost:7099", "null", false),
            ("localhost:7099", "chrome-extension://localhost:7099", false),
            ("localhost:7099", "", false),
            ("node-1.example", "https://node-1.example", true),
            ("node-1.example", "https://evil.example", false),
        ] {
            let headers = [("host", host), ("origin", origin)];
            assert_eq!(is_let_through(Names::Any, &headers), is_fine, "{origin}");
        }
        assert!(!is_let_through(
            Names::Any,
            &[("origin", "http://localhost")]
        ));
    }
}
