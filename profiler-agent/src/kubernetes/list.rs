//! Lists of objects, read page by page and to a bound.

use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::pods::ListMetadata;
use super::request::{self, ApiError, encoded};

/// Objects in one answer.
const PAGE: usize = 250;

const JSON: &str = "application/json";

#[derive(Debug, Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: ListMetadata,
    items: Vec<T>,
}

/// Gives each object of a list to `take`; `n_max` at most. Returns whether that is all there are.
///
/// `path` has no query yet, `query` is a list of names and values.
pub(super) async fn each<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    query: &[(&str, &str)],
    n_max: usize,
    mut take: impl FnMut(T),
) -> Result<bool, ApiError> {
    let mut next = String::new();
    let mut n_taken = 0;
    for _ in 0..=n_max.div_ceil(PAGE).max(1) {
        let mut path = format!("{path}?limit={PAGE}");
        for (name, value) in query.iter().filter(|(_, value)| !value.is_empty()) {
            path.extend(["&", name, "=", &encoded(value)]);
        }
        if !next.is_empty() {
            path.extend(["&continue=", &encoded(&next)]);
        }
        let page: Page<T> = request::get(client, &path, JSON).await?;
        let room = n_max - n_taken;
        let n_here = page.items.len();
        page.items.into_iter().take(room).for_each(&mut take);
        n_taken += n_here.min(room);
        next = page.metadata.next;
        if next.is_empty() {
            return Ok(n_here <= room);
        }
        if n_here >= room {
            return Ok(false);
        }
    }
    Err(ApiError::Garbled("a list does not end".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fake::{Answer, FakeServer};
    use super::*;

    async fn listed(server: &FakeServer, n_max: usize) -> (Result<bool, ApiError>, Vec<i64>) {
        let mut taken = Vec::new();
        let take = |it: Value| taken.extend(it.as_i64());
        let query = [("labelSelector", "a in (b)"), ("fieldSelector", "")];
        let is_all = each(&server.client(), "/pods", &query, n_max, take).await;
        (is_all, taken)
    }

    #[tokio::test]
    async fn pages_are_one_list_that_has_an_end() {
        let server = FakeServer::start().await;
        let first = json!({"metadata": {"continue": "a b"}, "items": [1, 2]});
        let second = json!({"metadata": {}, "items": [3]});
        let answers = || {
            server.answer("/pods", Answer::json(200, &first));
            server.then("/pods", Answer::json(200, &second));
        };
        answers();
        assert_eq!(listed(&server, 9).await, (Ok(true), vec![1, 2, 3]));
        let limit = "/pods?limit=250&labelSelector=a%20in%20%28b%29";
        assert_eq!(
            server.asked_in_full(),
            [limit.to_owned(), format!("{limit}&continue=a%20b")]
        );
        answers();
        assert_eq!(listed(&server, 2).await, (Ok(false), vec![1, 2]));
        answers();
        assert_eq!(listed(&server, 3).await.1, [1, 2, 3]);
        // One that says for ever that there is more.
        server.answer(
            "/pods",
            Answer::json(200, &json!({"metadata": {"continue": "x"}, "items": []})),
        );
        assert!(listed(&server, 600).await.0.is_err());
        server.answer("/pods", Answer::status(403, "no"));
        assert!(listed(&server, 9).await.0.unwrap_err().is_forbidden());
    }
}
