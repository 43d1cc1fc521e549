//! What somebody who asks may see and do: parsed from a token's line or a certificate's, decided once for each request.

use std::str::FromStr;

use axum::http::Extensions;

use crate::kubernetes::review::Access;
use crate::profile::query::Viewer;
use crate::profile::selector::is_namespace;

/// What somebody who asks may see and do. A request carries it as an extension; one without may do nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything of these processes, and the agent's status.
    Processes(Viewer),
    /// The agent's status, health and metrics alone.
    ReadStatus,
}

/// A scope that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no scope: write all, namespaces=NAME,NAME or read-status")]
pub struct UnknownScope(String);

impl Scope {
    /// Everything.
    pub const ALL: Self = Self::Processes(Viewer::All);

    /// That of a request; of one that nobody has let through: no process.
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or(Self::ReadStatus)
    }

    /// Whose processes are seen, profiled and looked into. Others are as if they were not there.
    #[must_use]
    pub fn viewer(&self) -> Viewer {
        match self {
            Self::Processes(viewer) => viewer.clone(),
            Self::ReadStatus => Viewer::Nobody,
        }
    }
}

impl From<Access> for Scope {
    fn from(access: Access) -> Self {
        Self::Processes(match access {
            Access::Everything => Viewer::All,
            Access::Namespaces(names) => Viewer::Namespaces(names),
        })
    }
}

/// Most Kubernetes namespaces in one scope.
const MAX_NAMESPACES: usize = 1000;

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let unknown = || UnknownScope(text.escape_debug().to_string());
        match text {
            "all" => return Ok(Self::ALL),
            "read-status" => return Ok(Self::ReadStatus),
            _ => {}
        }
        let names = text.strip_prefix("namespaces=").ok_or_else(unknown)?;
        let names: Vec<String> = names.split(',').map(str::to_owned).collect();
        if names.len() > MAX_NAMESPACES || !names.iter().all(|name| is_namespace(name)) {
            return Err(unknown());
        }
        Ok(Self::Processes(Viewer::Namespaces(names)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_or_refused() {
        assert_eq!("all".parse(), Ok(Scope::ALL));
        assert_eq!("read-status".parse(), Ok(Scope::ReadStatus));
        let namespaces = Viewer::Namespaces(vec!["shop".to_owned(), "team-2".to_owned()]);
        assert_eq!(
            "namespaces=shop,team-2".parse(),
            Ok(Scope::Processes(namespaces))
        );
        for text in [
            "",
            "All",
            "namespaces=",
            "namespaces=a,",
            "namespaces=*",
            "namespaces=A",
            "read",
        ] {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_request_that_nobody_let_through_sees_nothing() {
        assert_eq!(Scope::of(&Extensions::new()).viewer(), Viewer::Nobody);
    }
}
