//! By what control groups and containers are chosen: the values of `--cgroup` and `--container`.

use std::fmt;
use std::str::FromStr;

use regex::Regex;

use super::query::{MAX_PATTERN_BYTES, PatternError, parse_pattern};

/// Where the tree of control groups is mounted: people copy paths from there.
const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// Fewest digits of a container's id: what `podman ps` and `docker ps` show. Fewer could be a name.
const MIN_ID_DIGITS: usize = 12;

/// Which control groups: one with all below it, or those whose path matches.
#[derive(Debug, Clone)]
pub enum CgroupSelector {
    /// A path from the root, without a slash at its end.
    Path(String),
    /// Searched for in the path.
    Pattern(Regex),
}

impl CgroupSelector {
    /// Whether the group at `path` is meant.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Path(top) => path
                .strip_prefix(top.as_str())
                .is_some_and(|below| below.is_empty() || below.starts_with('/')),
            Self::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

/// What begins with a slash is a path, all else a regular expression.
impl FromStr for CgroupSelector {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if !text.starts_with('/') {
            return Ok(Self::Pattern(parse_pattern(text)?));
        }
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError::TooLong);
        }
        let mounted = text.strip_prefix(MOUNT_POINT);
        let path = mounted.filter(|path| path.is_empty() || path.starts_with('/'));
        let path = path.unwrap_or(text).trim_end_matches('/');
        Ok(Self::Path(path.to_owned()))
    }
}

/// As it can be parsed again.
impl fmt::Display for CgroupSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) if path.is_empty() => f.write_str("/"),
            Self::Path(path) => f.write_str(path),
            Self::Pattern(pattern) => pattern.fmt(f),
        }
    }
}

/// Which container: its name, its id, or the first digits of its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSelector(String);

impl ContainerSelector {
    /// Whether the container of this id and name is meant. Either may be empty: not known, or no container.
    #[must_use]
    pub fn matches(&self, id: &str, name: &str) -> bool {
        let Self(text) = self;
        let is_start_of_id = text.len() >= MIN_ID_DIGITS && id.starts_with(text.as_str());
        is_start_of_id || text == name
    }
}

impl FromStr for ContainerSelector {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        match text.len() {
            0 => Err(PatternError::NoContainer),
            length if length > MAX_PATTERN_BYTES => Err(PatternError::TooLong),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for ContainerSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which namespaces of Kubernetes: one, or any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceSelector {
    /// Every process in a pod.
    Any,
    /// The one that is called so.
    Named(String),
}

/// What means any namespace.
const ANY_NAMESPACE: &str = "*";

impl NamespaceSelector {
    /// Whether a process of this namespace is meant; it is empty when it is not known, or when the process is in no pod.
    #[must_use]
    pub fn matches(&self, namespace: &str, is_in_pod: bool) -> bool {
        match self {
            Self::Any => is_in_pod,
            Self::Named(name) => name == namespace,
        }
    }
}

/// Whether a text can be the name of a Kubernetes namespace (RFC 1123).
#[must_use]
pub fn is_namespace(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(is_inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A name, or `*`.
impl FromStr for NamespaceSelector {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text == ANY_NAMESPACE {
            return Ok(Self::Any);
        }
        if is_namespace(text) {
            return Ok(Self::Named(text.to_owned()));
        }
        let shown: String = text.chars().take(64).collect();
        Err(PatternError::Namespace(shown.escape_debug().to_string()))
    }
}

impl fmt::Display for NamespaceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => ANY_NAMESPACE,
            Self::Named(name) => name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(text: &str) -> CgroupSelector {
        text.parse().unwrap()
    }

    #[test]
    fn a_path_means_its_group_and_all_below_it() {
        for text in [
            "/system.slice",
            "/system.slice/",
            "/sys/fs/cgroup/system.slice",
        ] {
            let selector = cgroup(text);
            assert_eq!(selector.to_string(), "/system.slice");
            assert!(selector.matches("/system.slice"));
            assert!(selector.matches("/system.slice/web.service"));
            assert!(!selector.matches("/system.slices"));
            assert!(!selector.matches("/user.slice/system.slice"));
            assert!(!selector.matches(""));
        }
        assert!(cgroup("/").matches("/user.slice"));
        assert_eq!(cgroup("/").to_string(), "/");
        assert_eq!(cgroup("/sys/fs/cgroups").to_string(), "/sys/fs/cgroups");
    }

    #[test]
    fn all_else_is_searched_for_in_the_path() {
        let selector = cgroup("web.*service$");
        assert!(selector.matches("/system.slice/web-1.service"));
        assert!(!selector.matches("/system.slice/web.service/init"));
        assert_eq!(selector.to_string(), "web.*service$");
        assert!("(".parse::<CgroupSelector>().is_err());
        assert!(
            format!("/{}", "a".repeat(5000))
                .parse::<CgroupSelector>()
                .is_err()
        );
    }

    #[test]
    fn a_namespace_is_chosen_by_its_name_or_any_is() {
        let namespace = |text: &str| -> NamespaceSelector { text.parse().unwrap() };
        assert!(namespace("shop").matches("shop", true));
        assert!(!namespace("shop").matches("shopping", true));
        assert!(!namespace("shop").matches("", true));
        assert!(namespace("*").matches("", true) && namespace("*").matches("shop", true));
        assert!(!namespace("*").matches("", false));
        for wrong in [
            "",
            "Shop",
            "a,b",
            "-a",
            "a-",
            "a.b",
            "\u{1b}",
            &"a".repeat(64),
        ] {
            let error = wrong.parse::<NamespaceSelector>().unwrap_err();
            assert!(!error.to_string().contains('\u{1b}'), "{error}");
        }
        for text in ["shop", "*", "a-1"] {
            assert_eq!(namespace(text).to_string(), text);
        }
    }

    #[test]
    fn a_container_is_chosen_by_its_name_or_by_the_first_twelve_digits_of_its_id() {
        let id = "8a1b2c3d4e5f6071".repeat(4);
        let matches = |text: &str, name: &str| {
            let selector: ContainerSelector = text.parse().unwrap();
            selector.matches(&id, name)
        };
        assert!(matches(&id, "web"));
        assert!(matches(&id[..12], "web"));
        assert!(!matches(&id[..11], "web"));
        assert!(matches("web", "web"));
        assert!(!matches("we", "web") && !matches("web.", "web") && !matches("web", ""));
        assert!("".parse::<ContainerSelector>().is_err());
    }
}
