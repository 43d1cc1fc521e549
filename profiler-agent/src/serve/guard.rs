//! Keeps web pages out: a browser on the same host can reach a loopback port for any site that it shows.
//!
//! A page may make its own name resolve to 127.0.0.1 (DNS rebinding) and is then of the same origin as this
//! server, so that it could read profiles. Its requests carry the page's name as their host; who really means
//! this server asks for an address or for `localhost`. Requests that a browser marks as those of another site
//! are refused too: such a page cannot read the answer, but could start work.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::http::is_grpc;

/// Lets a request through, or answers 403 (gRPC: PERMISSION_DENIED) with the reason.
pub(super) async fn refuse_web_pages(request: Request, next: Next) -> Response {
    match check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(reason) if is_grpc(request.headers()) => {
            tonic::Status::permission_denied(reason).into_http()
        }
        Err(reason) => (StatusCode::FORBIDDEN, format!("{reason}\n")).into_response(),
    }
}

fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    let hosts = headers.get_all(header::HOST).iter();
    let hosts = hosts.map(|host| Authority::try_from(host.as_bytes()).ok());
    let authority = uri.authority().map(|authority| Some(authority.clone()));
    for host in hosts.chain(authority) {
        if !host.is_some_and(|host| is_local(host.host())) {
            return Err(
                "refused: ask for an IP address or for localhost, not for another host name",
            );
        }
    }
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        None | Some(b"none" | b"same-origin") => Ok(()),
        Some(_) => Err("refused: a web page of another site asks"),
    }
}

fn is_local(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let address = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    name == "localhost"
        || name.ends_with(".localhost")
        || address.unwrap_or(&name).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_let_through(host: &str, site: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(site) = site {
            headers.insert("sec-fetch-site", site.parse().unwrap());
        }
        check(&Uri::from_static("/metrics"), &headers).is_ok()
    }

    #[test]
    fn addresses_and_localhost_are_let_through() {
        for host in [
            "127.0.0.1:7099",
            "[::1]:7099",
            "10.1.2.3",
            "localhost:1",
            "LOCALHOST",
            "a.localhost.",
        ] {
            assert!(is_let_through(host, None), "{host}");
        }
        assert!(check(&Uri::from_static("/"), &HeaderMap::new()).is_ok());
    }

    #[test]
    fn other_names_are_refused() {
        for host in [
            "evil.example:7099",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "@",
        ] {
            assert!(!is_let_through(host, None), "{host}");
        }
        let uri = Uri::from_static("http://evil.example/metrics");
        assert!(check(&uri, &HeaderMap::new()).is_err());
    }

    #[test]
    fn requests_of_other_sites_are_refused() {
        assert!(is_let_through("127.0.0.1", Some("none")));
        assert!(is_let_through("127.0.0.1", Some("same-origin")));
        assert!(!is_let_through("127.0.0.1", Some("cross-site")));
        assert!(!is_let_through("127.0.0.1", Some("same-site")));
    }
}
