//! Text in the columns of a terminal.

use unicode_width::UnicodeWidthChar as _;

/// The text in at most `width` columns; what does not fit is cut out of its middle, since names begin with what
/// tells them apart and end with the line.
pub(super) fn cut(text: &str, width: usize) -> String {
    let columns: usize = text.chars().map(columns_of).sum();
    if columns <= width {
        return text.to_owned();
    }
    let side = width.saturating_sub(1) / 2;
    let start = fitting(text.chars(), side);
    let end: Vec<char> = fitting(text.chars().rev(), side);
    let end = end.into_iter().rev();
    start.into_iter().chain(['…']).chain(end).collect()
}

/// The same, cut at its end.
pub(super) fn cut_end(text: &str, width: usize) -> String {
    let columns: usize = text.chars().map(columns_of).sum();
    if columns <= width {
        return text.to_owned();
    }
    let start = fitting(text.chars(), width.saturating_sub(1));
    start.into_iter().chain(['…']).collect()
}

/// The text on as many lines as it takes, none wider than `width`: the first one is indented by `indent` columns, further ones
/// by two more. A word that is wider than a line is cut. Each line has its end.
pub(super) fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let mut lines = String::new();
    let mut n_columns = 0;
    for word in text.split_ascii_whitespace() {
        let is_first = lines.is_empty();
        let indent = if is_first { indent } else { indent + 2 };
        let n_word: usize = word.chars().map(columns_of).sum();
        if is_first {
            n_columns = indent;
            lines.push_str(&" ".repeat(indent));
        } else if n_columns + 1 + n_word > width {
            n_columns = indent;
            lines.push('\n');
            lines.push_str(&" ".repeat(indent));
        } else {
            n_columns += 1;
            lines.push(' ');
        }
        lines.push_str(&cut(word, width.saturating_sub(n_columns)));
        n_columns += n_word;
    }
    lines.push('\n');
    lines
}

/// Each line in at most `width` columns; what is behind them is cut off. Sequences of colours have no width, and stay.
pub(super) fn bounded(text: &str, width: usize) -> String {
    let mut bounded = String::with_capacity(text.len());
    for line in text.lines() {
        let is_wide = visible(line)
            .map(|(char, _)| columns_of(char))
            .sum::<usize>()
            > width;
        let mut n_left = Some(if is_wide {
            width.saturating_sub(1)
        } else {
            width
        });
        let mut copied = 0;
        for (char, at) in visible(line) {
            // What stands between is a sequence of colours.
            bounded.push_str(&line[copied..at]);
            copied = at + char.len_utf8();
            let Some(left) = n_left else { continue };
            n_left = left.checked_sub(columns_of(char));
            bounded.push(if n_left.is_some() { char } else { '…' });
        }
        bounded.push_str(&line[copied..]);
        bounded.push('\n');
    }
    bounded
}

/// The characters that a terminal shows, with their places: all but sequences of colours.
fn visible(line: &str) -> impl Iterator<Item = (char, usize)> {
    let mut is_color = false;
    line.char_indices().filter_map(move |(at, char)| {
        let was_color = is_color;
        is_color = char == '\x1b' || (is_color && char != 'm');
        (!is_color && !was_color).then_some((char, at))
    })
}

/// Columns that a terminal gives a text.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

fn fitting(chars: impl Iterator<Item = char>, width: usize) -> Vec<char> {
    let mut columns = 0;
    chars
        .take_while(|char| {
            columns += columns_of(*char);
            columns <= width
        })
        .collect()
}

/// Columns that a terminal gives a character: two for the wide scripts and for emoji.
pub(super) fn columns_of(char: char) -> usize {
    match char {
        // It makes the character before it an emoji, which may be wider by one.
        '\u{fe0f}' => 1,
        char => char.width().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut_at_the_place_that_was_asked_for() {
        assert_eq!(cut("abcdefgh", 5), "ab…gh");
        assert_eq!(cut_end("abcdefgh", 5), "abcd…");
        assert_eq!(cut_end("abcde", 5), "abcde");
        // Two columns each.
        assert_eq!(cut_end("日本語", 5), "日本…");
        assert_eq!(cut_end("x", 0), "…");
    }

    #[test]
    fn rows_are_cut_and_their_colours_end() {
        assert_eq!(bounded("abc\nabcdef\n", 4), "abc\nabc…\n");
        assert_eq!(
            bounded("\x1b[31mabcdef\x1b[0m  g", 4),
            "\x1b[31mabc…\x1b[0m\n"
        );
        assert_eq!(bounded("\x1b[2mabcd\x1b[0m", 4), "\x1b[2mabcd\x1b[0m\n");
        assert_eq!(bounded("日本語", 5), "日本…\n");
    }
}
