//! Tables of figures as Markdown. No measuring here.

use std::fmt::Write as _;

/// One question and its answer.
#[derive(Debug, Clone)]
pub struct Section {
    /// What was measured.
    pub title: String,
    /// How, and how often.
    pub method: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// One line each, with a cell for each column.
    pub rows: Vec<Vec<String>>,
}

impl Section {
    /// A section without rows.
    #[must_use]
    pub fn new(title: &str, method: &str, columns: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            method: method.to_owned(),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, and shows it on stderr: a run takes minutes.
    pub fn push(&mut self, row: Vec<String>) {
        eprintln!("  {}", row.join(" | "));
        self.rows.push(row);
    }
}

/// A report: its head (a title, and how it was made), the host and the sections.
#[must_use]
pub fn markdown(head: &str, host: &str, sections: &[Section]) -> String {
    let mut text = format!("{head}\n\n{host}");
    for section in sections {
        // Writing into a string cannot fail.
        let _ = write!(text, "\n## {}\n\n{}\n\n", section.title, section.method);
        let _ = writeln!(text, "| {} |", section.columns.join(" | "));
        let _ = writeln!(text, "|{}", "---|".repeat(section.columns.len()));
        for row in &section.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }
    text
}
