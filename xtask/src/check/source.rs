//! Rust source as the rules see it: the paths that it names and where it says `unsafe`. Works on tokens, so
//! that comments and strings do not count, and what stands inside of macros does.

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// What one file names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// Every path of two or more segments, and everything after `use`.
    pub(crate) paths: Vec<SourcePath>,
    /// Lines with the keyword `unsafe`.
    pub(crate) unsafe_lines: Vec<usize>,
}

/// A path such as `crate::profile::model`, use trees spread out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourcePath {
    /// Line of its first segment.
    pub(crate) line: usize,
    /// Its segments; `*` for all of a module.
    pub(crate) segments: Vec<String>,
    /// Inline modules around it, which `self` and `super` go by.
    pub(crate) inline_depth: usize,
}

impl Source {
    /// Reads a file's text.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let tokens: TokenStream = text.parse().map_err(|error| anyhow!("not Rust: {error}"))?;
        let mut source = Self::default();
        source.walk(tokens, 0);
        Ok(source)
    }

    fn walk(&mut self, tokens: TokenStream, inline_depth: usize) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut idx = 0;
        while let Some(token) = tokens.get(idx) {
            match token {
                TokenTree::Ident(ident) if ident == "unsafe" => {
                    self.unsafe_lines.push(ident.span().start().line);
                    idx += 1;
                }
                TokenTree::Ident(ident) if ident == "use" => {
                    let end = find_semicolon(&tokens, idx);
                    self.use_tree(&tokens[idx + 1..end], &[], inline_depth);
                    idx = end;
                }
                TokenTree::Ident(ident) => {
                    let segments = path_at(&tokens[idx..]);
                    // `mod name { ... }`: its content is one module deeper.
                    let after_mod = idx > 0 && is_ident(&tokens[idx - 1], "mod");
                    if let (true, Some(TokenTree::Group(body))) = (after_mod, tokens.get(idx + 1)) {
                        self.walk(body.stream(), inline_depth + 1);
                        idx += 2;
                        continue;
                    }
                    idx += segments.len() * 3 - 2;
                    if segments.len() > 1 {
                        self.paths.push(SourcePath {
                            line: ident.span().start().line,
                            segments,
                            inline_depth,
                        });
                    }
                }
                TokenTree::Group(group) => {
                    self.walk(group.stream(), inline_depth);
                    idx += 1;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => idx += 1,
            }
        }
    }

    /// Spreads `a::{b, c::*} as d` out into paths that begin with `prefix`.
    fn use_tree(&mut self, tokens: &[TokenTree], prefix: &[String], inline_depth: usize) {
        for branch in tokens.split(|token| is_punct(token, ',')) {
            let Some(first) = branch.first() else {
                continue;
            };
            let line = first.span().start().line;
            let mut segments = prefix.to_vec();
            let mut is_whole = true;
            for token in branch {
                match token {
                    TokenTree::Ident(ident) if ident == "as" => break,
                    TokenTree::Ident(ident) => segments.push(ident.to_string()),
                    TokenTree::Punct(punct) if punct.as_char() == '*' => segments.push("*".into()),
                    TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                        let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                        self.use_tree(&inner, &segments, inline_depth);
                        is_whole = false;
                    }
                    TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                }
            }
            if is_whole {
                self.paths.push(SourcePath {
                    line,
                    segments,
                    inline_depth,
                });
            }
        }
    }
}

/// The segments of the path that begins here: one when it is a plain name.
fn path_at(tokens: &[TokenTree]) -> Vec<String> {
    let mut segments = Vec::new();
    let mut rest = tokens;
    while let [TokenTree::Ident(ident), after @ ..] = rest {
        segments.push(ident.to_string());
        match after {
            [first, second, after @ ..] if is_punct(first, ':') && is_punct(second, ':') => {
                rest = after;
            }
            _ => break,
        }
    }
    segments
}

fn find_semicolon(tokens: &[TokenTree], from: usize) -> usize {
    tokens[from..]
        .iter()
        .position(|token| is_punct(token, ';'))
        .map_or(tokens.len(), |offset| from + offset)
}

fn is_punct(token: &TokenTree, char: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == char)
}

fn is_ident(token: &TokenTree, name: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        Source::parse(text)
            .unwrap()
            .paths
            .iter()
            .map(|path| path.segments.join("::"))
            .collect()
    }

    #[test]
    fn use_trees_are_spread_out() {
        let text = "use crate::{a::{self, B as C}, d::*}; pub(crate) use aya;";
        assert_eq!(
            paths(text),
            ["crate::a::self", "crate::a::B", "crate::d::*", "aya"]
        );
    }

    #[test]
    fn paths_in_types_expressions_and_macros_are_seen() {
        let text =
            "fn f(x: &crate::a::T) -> Vec<aya::Ebpf> { g!(super::h(1), self::i); ::tonic::j() }";
        assert_eq!(
            paths(text),
            [
                "crate::a::T",
                "aya::Ebpf",
                "super::h",
                "self::i",
                "tonic::j"
            ]
        );
    }

    #[test]
    fn comments_and_strings_do_not_count() {
        let source =
            Source::parse("//! unsafe crate::a\nconst S: &str = \"unsafe aya::b\"; /* unsafe */")
                .unwrap();
        assert_eq!(source, Source::default());
    }

    #[test]
    fn unsafe_is_found_wherever_it_stands() {
        let text = "unsafe impl X for Y {}\nfn f() {\n    m!(unsafe { g() });\n}";
        assert_eq!(Source::parse(text).unwrap().unsafe_lines, [1, 3]);
    }

    #[test]
    fn inline_modules_are_counted() {
        let source =
            Source::parse("mod tests { use super::a; mod deep { use super::super::b; } }").unwrap();
        let depths: Vec<_> = source.paths.iter().map(|path| path.inline_depth).collect();
        assert_eq!(depths, [1, 2]);
    }
}
