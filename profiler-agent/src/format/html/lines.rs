//! What the page of annotated source is told: files with some of their lines, what each line takes of each value, and the
//! functions that lead there. Which files, functions and lines these are is decided by who makes it; every text passes
//! [`escape`] here, on its way out. The script beside this file (`lines.js`) reads it.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use crate::format::escape;

/// All that the page shows. Lengths: each list of amounts has one entry a value of [`LinesPage::types`].
#[derive(Debug, Serialize)]
pub struct LinesPage<'a> {
    /// The version of pyagent.
    pub version: &'static str,
    /// What can be looked at.
    pub types: Vec<LinesValue>,
    /// Which of them is shown first: an index.
    pub main: usize,
    /// Whether what calls other functions comes first, not what takes most by itself.
    pub by_total: bool,
    /// What all of it is of, such as `2,970 samples of 3 processes in 30 s`.
    #[serde(serialize_with = "escaped")]
    pub subtitle: String,
    /// What is missing, in words: of the profile, and of the page.
    #[serde(serialize_with = "all_escaped")]
    pub comments: Vec<String>,
    /// The files, most first.
    pub files: Vec<LinesFile<'a>>,
    /// The functions, most first.
    pub functions: Vec<LinesFunction<'a>>,
}

/// A value of the profile.
#[derive(Debug, Serialize)]
pub struct LinesValue {
    /// Kind, as `cpu`.
    pub kind: &'static str,
    /// Unit, as `nanoseconds`.
    pub unit: &'static str,
    /// Of all samples.
    pub whole: i64,
}

/// Some lines of a file, in their order; those that are not known, as line 0, last.
#[derive(Debug, Default, Serialize)]
pub struct LinesFile<'a> {
    /// Path.
    #[serde(serialize_with = "escaped")]
    pub name: &'a str,
    /// Path without the folders above its package.
    #[serde(serialize_with = "escaped")]
    pub short: &'a str,
    /// Whether it is of a library, not of the program.
    pub is_library: bool,
    /// Why it could not be read, or why it may not be what ran; empty when it is as it was.
    #[serde(serialize_with = "escaped")]
    pub problem: String,
    /// Of each value what its lines take by themselves.
    pub own: Vec<i64>,
    /// Numbers of its lines.
    pub lines: Vec<u32>,
    /// Their text.
    #[serde(serialize_with = "all_escaped")]
    pub text: Vec<Cow<'a, str>>,
    /// Which of them have samples: indices into `lines`.
    pub at: Vec<u32>,
    /// Of each value, of each of those.
    pub amounts: Vec<SplitColumn>,
}

/// Of each line with samples what it takes of one value; none is below 0.
#[derive(Debug, Default, Clone, Serialize)]
pub struct SplitColumn {
    /// With what it calls.
    pub total: Vec<i64>,
    /// While the interpreter ran it.
    pub python: Vec<i64>,
    /// In machine code that it called.
    pub native: Vec<i64>,
    /// In the kernel.
    pub kernel: Vec<i64>,
}

/// A function.
#[derive(Debug, Serialize)]
pub struct LinesFunction<'a> {
    /// Its file: an index.
    pub file: usize,
    /// Name.
    #[serde(serialize_with = "escaped")]
    pub name: &'a str,
    /// The line to show, of those that are there; 0: none is known.
    pub line: u32,
    /// Of each value what its lines take by themselves.
    pub own: Vec<i64>,
    /// Of each value, with what it calls.
    pub total: Vec<i64>,
}

fn escaped<S: Serializer>(text: &impl AsRef<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&escape(text.as_ref()))
}

fn all_escaped<S: Serializer>(texts: &[impl AsRef<str>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(texts.iter().map(|text| escape(text.as_ref())))
}
