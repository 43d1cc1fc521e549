//! Which pods are meant by their labels: the words of `kubectl -l`,
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>.
//!
//! `key=value`, `key==value`, `key!=value`, `key in (a,b)`, `key notin (a,b)`, `key`, `!key`, several with commas: all of them.
//! A pod without the label has another value than any: `!=` and `notin` mean it too.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::query::{MAX_PATTERN_BYTES, PatternError};

/// Most requirements of a selector, and most values of one.
const MAX_REQUIREMENTS: usize = 64;

/// Longest name of a label, and longest value.
const MAX_NAME_BYTES: usize = 63;

/// Longest prefix of a label's name.
const MAX_PREFIX_BYTES: usize = 253;

/// Which pods are meant by their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    /// The label is there.
    Exists,
    /// It is not.
    Missing,
    /// It has one of these values.
    In(Vec<String>),
    /// It has none of them, or is not there.
    NotIn(Vec<String>),
}

impl LabelSelector {
    /// Whether a pod with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Missing => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            }
        })
    }
}

impl FromStr for LabelSelector {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError::TooLong);
        }
        let wrong = |reason: String| PatternError::Selector {
            selector: text.escape_debug().to_string(),
            reason,
        };
        let mut parser = Parser {
            tokens: tokens(text).map_err(wrong)?,
            idx: 0,
        };
        let requirements = parser.selector().map_err(wrong)?;
        Ok(Self { requirements })
    }
}

/// As it can be parsed again.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, requirement) in self.requirements.iter().enumerate() {
            if idx > 0 {
                f.write_str(",")?;
            }
            let key = &requirement.key;
            match &requirement.test {
                Test::Exists => f.write_str(key)?,
                Test::Missing => write!(f, "!{key}")?,
                Test::In(values) => match values.as_slice() {
                    [value] => write!(f, "{key}={value}")?,
                    values => write!(f, "{key} in ({})", values.join(","))?,
                },
                Test::NotIn(values) => match values.as_slice() {
                    [value] => write!(f, "{key}!={value}")?,
                    values => write!(f, "{key} notin ({})", values.join(","))?,
                },
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Equal,
    NotEqual,
    Not,
    Comma,
    Open,
    Close,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Word(word) => return write!(f, "`{}`", word.escape_debug()),
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Not => "!",
            Self::Comma => ",",
            Self::Open => "(",
            Self::Close => ")",
        };
        write!(f, "`{text}`")
    }
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, n_bytes) = match first {
            '=' if rest.starts_with("==") => (Token::Equal, 2),
            '=' => (Token::Equal, 1),
            '!' if rest.starts_with("!=") => (Token::NotEqual, 2),
            '!' => (Token::Not, 1),
            ',' => (Token::Comma, 1),
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            _ if is_word(first) => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                (Token::Word(&rest[..end]), end)
            }
            other => {
                return Err(format!("`{}` cannot stand in it", other.escape_debug()));
            }
        };
        tokens.push(token);
        rest = rest[n_bytes..].trim_start();
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    idx: usize,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        let token = self.tokens.get(self.idx).cloned();
        self.idx += 1;
        token
    }

    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.idx)
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            if requirements.len() == MAX_REQUIREMENTS {
                return Err(format!("it asks for more than {MAX_REQUIREMENTS} labels"));
            }
            requirements.push(self.requirement()?);
            match self.next() {
                None => return Ok(requirements),
                Some(Token::Comma) => {}
                Some(other) => return Err(format!("{other} stands where a comma is expected")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let is_negated = self.peek() == Some(&Token::Not);
        self.idx += usize::from(is_negated);
        let key = match self.next() {
            Some(Token::Word(word)) => key(word)?,
            Some(other) => return Err(format!("{other} stands where a label is expected")),
            None => return Err("a label is expected".to_owned()),
        };
        let test = match self.peek() {
            _ if is_negated => Test::Missing,
            None | Some(Token::Comma) => Test::Exists,
            Some(Token::Equal) => {
                self.idx += 1;
                Test::In(vec![self.value()?])
            }
            Some(Token::NotEqual) => {
                self.idx += 1;
                Test::NotIn(vec![self.value()?])
            }
            Some(Token::Word("in")) => {
                self.idx += 1;
                Test::In(self.values()?)
            }
            Some(Token::Word("notin")) => {
                self.idx += 1;
                Test::NotIn(self.values()?)
            }
            Some(other) => {
                return Err(format!(
                    "{other} follows `{key}`: there are =, ==, !=, in (...) and notin (...)"
                ));
            }
        };
        Ok(Requirement { key, test })
    }

    /// A value, which may be empty.
    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            Some(Token::Word(word)) => {
                let value = value(word)?;
                self.idx += 1;
                Ok(value)
            }
            None | Some(Token::Comma | Token::Close) => Ok(String::new()),
            Some(other) => Err(format!("{other} stands where a value is expected")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        if self.next() != Some(Token::Open) {
            return Err("values stand in parentheses: key in (a,b)".to_owned());
        }
        let mut values = Vec::new();
        loop {
            if values.len() == MAX_REQUIREMENTS {
                return Err(format!("a label has more than {MAX_REQUIREMENTS} values"));
            }
            values.push(self.value()?);
            match self.next() {
                Some(Token::Close) => return Ok(values),
                Some(Token::Comma) => {}
                Some(other) => return Err(format!("{other} stands where a comma is expected")),
                None => return Err("a parenthesis is not closed".to_owned()),
            }
        }
    }
}

/// A label's key: a name, or a domain, a slash and a name.
fn key(text: &str) -> Result<String, String> {
    if is_key(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is no name of a label: write app, or example.com/app"
    ))
}

/// Whether a text can be the key of a label or an annotation.
#[must_use]
pub fn is_key(text: &str) -> bool {
    let (prefix, name) = text.rsplit_once('/').unzip();
    let name = name.unwrap_or(text);
    let is_domain = |prefix: &str| {
        (1..=MAX_PREFIX_BYTES).contains(&prefix.len())
            && prefix.split('.').all(|part| {
                is_between_alphanumerics(part) && part.bytes().all(|it| !matches!(it, b'_' | b'.'))
            })
            && !prefix.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    is_between_alphanumerics(name) && prefix.is_none_or(is_domain)
}

fn value(text: &str) -> Result<String, String> {
    if text.is_empty() || is_between_alphanumerics(text) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is no value of a label"))
}

/// Begins and ends with a letter or a digit, with dashes, underscores and dots in between.
fn is_between_alphanumerics(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= MAX_NAME_BYTES
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn parse(text: &str) -> LabelSelector {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn each_form_means_what_kubectl_means() {
        let pod = labels(&[("app", "web"), ("tier", ""), ("example.com/team", "shop")]);
        for (text, expected) in [
            ("app=web", true),
            ("app==web", true),
            ("app = web", true),
            ("app=we", false),
            ("app!=web", false),
            ("app!=db", true),
            // Without the label.
            ("zone!=a", true),
            ("zone notin (a)", true),
            ("zone in (a)", false),
            ("zone", false),
            ("!zone", true),
            ("! zone", true),
            ("app", true),
            ("!app", false),
            ("app in (db,web)", true),
            ("app in(db, web)", true),
            ("app in (db)", false),
            ("app notin (db,web)", false),
            ("app notin (db)", true),
            // An empty value is one.
            ("tier=", true),
            ("tier==", true),
            ("tier", true),
            ("tier!=", false),
            ("tier in ()", true),
            ("app in (,db)", false),
            ("tier in (,db)", true),
            ("app=,tier", false),
            // All of them.
            ("app=web,tier=,example.com/team in (shop),!zone", true),
            ("app=web,zone", false),
            // Words are words by their place.
            ("in in (in)", false),
            ("in", false),
            ("notin!=in", true),
        ] {
            assert_eq!(parse(text).matches(&pod), expected, "{text}");
        }
        assert!(parse("in=in").matches(&labels(&[("in", "in")])));
        assert!(!parse("app").matches(&BTreeMap::new()));
    }

    #[test]
    fn what_is_none_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "a label is expected"),
            (" ", "a label is expected"),
            ("app=web,", "a label is expected"),
            (",app", "`,`"),
            ("=web", "`=`"),
            ("app web", "`web` follows `app`"),
            ("app=web db", "a comma is expected"),
            ("app in web", "parentheses"),
            ("app in (web", "not closed"),
            ("app in (web db)", "a comma is expected"),
            ("app in ((web))", "`(`"),
            ("app>1", "`>`"),
            ("!app=web", "a comma is expected"),
            ("app=!web", "`!`"),
            ("app=a/b", "no value"),
            ("-app", "no name"),
            ("a/b/c", "no name"),
            ("/app", "no name"),
            ("Example.com/app", "no name"),
            ("app=web\u{1b}", "\\u{1b}"),
            ("ä", "ä"),
        ] {
            let error = text.parse::<LabelSelector>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains(['\n', '\u{1b}']), "{error}");
        }
        let long = format!("app={}", "x".repeat(MAX_NAME_BYTES + 1));
        assert!(long.parse::<LabelSelector>().is_err());
        let many = vec!["a"; MAX_REQUIREMENTS + 1].join(",");
        assert!(many.parse::<LabelSelector>().is_err());
        let many = format!("a in ({many})");
        assert!(many.parse::<LabelSelector>().is_err());
        assert_eq!(
            "a".repeat(MAX_PATTERN_BYTES + 1).parse::<LabelSelector>(),
            Err(PatternError::TooLong)
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_a_selector_or_a_reason(text in "\\PC{0,60}|[a-c!=,() ]{0,30}") {
            let _ = text.parse::<LabelSelector>();
        }

        #[test]
        fn what_is_shown_means_the_same(
            text in "(!?[ab]|[ab] ?(=|==|!=) ?[xy]?|[ab] (not)?in \\([xy]?(,[xy]?){0,2}\\))(,([ab]|!b|a!=x|b in \\(x,y\\))){0,3}",
            values in proptest::collection::vec(proptest::option::of("[xy]?"), 2)
        ) {
            let selector = parse(&text);
            let pod: BTreeMap<String, String> = ["a", "b"].into_iter().zip(values)
                .filter_map(|(key, value)| Some((key.to_owned(), value?)))
                .collect();
            let shown = parse(&selector.to_string());
            proptest::prop_assert_eq!(&selector, &shown);
            proptest::prop_assert_eq!(selector.matches(&pod), shown.matches(&pod));
        }
    }
}
