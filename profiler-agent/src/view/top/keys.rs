//! What the user chose, and what each key does: those of py-spy's top, and more.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::table::{Choice, SortKey};
use super::{Process, Top};

/// Keys and what they do, for the help.
pub(super) const KEYS: [(&str, &str); 14] = [
    (
        "1",
        "sort by %Own: time of one CPU in the function itself, now",
    ),
    ("2", "sort by %Total: with what it calls"),
    ("3", "sort by OwnTime: since the begin"),
    ("4", "sort by TotalTime"),
    ("5", "sort by %GIL: %Total in which the thread held the GIL"),
    ("l f", "by line and back; by function"),
    ("t", "each thread for itself"),
    ("Tab", "processes; Enter takes one, or all"),
    ("/", "only functions and files with this text; Esc: all"),
    ("p", "pause the picture, not the sampling (Space too)"),
    ("r", "forget what was seen, begin anew"),
    ("↑↓", "move (j, k, PgUp, PgDn, Home, End)"),
    ("? x", "this help; leave it"),
    ("q", "quit (Ctrl-C)"),
];

/// Characters of a filter, at most.
const MAX_FILTER: usize = 200;

/// What follows from a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The picture may be another one.
    Redraw,
    /// What was seen is to be forgotten.
    Reset,
    /// The end.
    Quit,
}

/// What is on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Page {
    #[default]
    Table,
    /// The processes, and which of them the cursor is on; `None`: all of them.
    Processes(Option<u32>),
    Help,
}

/// What the user chose.
#[derive(Debug, Default)]
pub struct Ui {
    /// Which rows.
    pub choice: Choice,
    /// Rows in the table, at most.
    pub(super) top: Option<usize>,
    pub(super) has_colors: bool,
    pub(super) place: String,
    pub(super) page: Page,
    /// Text of a filter that is being typed.
    pub(super) typed: Option<String>,
    /// The first row that is shown.
    pub(super) scroll: usize,
    /// Rows that fit, of the last picture.
    pub(super) n_fitting: usize,
    /// The picture stands still: what was seen until then.
    pub(super) paused: Option<Box<Top>>,
}

impl Ui {
    /// The table of a choice. `place` is what is looked at, such as the address of an agent; empty: this host.
    #[must_use]
    pub fn new(choice: Choice, top: Option<usize>, has_colors: bool, place: String) -> Self {
        Self {
            choice,
            top,
            has_colors,
            place,
            ..Self::default()
        }
    }

    /// What a key does.
    pub fn on_key(&mut self, key: KeyEvent, top: &Top) -> Outcome {
        if key.kind == KeyEventKind::Release {
            return Outcome::Redraw;
        }
        let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if has_control && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Outcome::Quit;
        }
        if self.typed.is_some() {
            self.type_filter(key.code, has_control);
            return Outcome::Redraw;
        }
        if has_control || key.modifiers.contains(KeyModifiers::ALT) {
            return Outcome::Redraw;
        }
        match key.code {
            KeyCode::Char('q' | 'Q') => return Outcome::Quit,
            KeyCode::Char('r' | 'R') => {
                self.paused = None;
                self.scroll = 0;
                return Outcome::Reset;
            }
            KeyCode::Char(digit @ '1'..='5') => {
                self.choice.sort = SortKey::ALL[digit as usize - '1' as usize];
                self.scroll = 0;
            }
            KeyCode::Char('l' | 'L') => self.choice.by_function = !self.choice.by_function,
            KeyCode::Char('f' | 'F') => self.choice.by_function = true,
            KeyCode::Char('t' | 'T') => self.choice.by_thread = !self.choice.by_thread,
            KeyCode::Char('p' | 'P' | ' ') => {
                self.paused = match self.paused.take() {
                    Some(_) => None,
                    None => Some(Box::new(top.clone())),
                };
            }
            KeyCode::Char('/') => {
                self.page = Page::Table;
                self.typed = Some(self.choice.filter.clone());
            }
            KeyCode::Char('?' | 'h' | 'H') => {
                self.page = if self.page == Page::Help {
                    Page::Table
                } else {
                    Page::Help
                };
            }
            KeyCode::Char('x' | 'X') => self.page = Page::Table,
            KeyCode::Tab => {
                self.page = match self.page {
                    Page::Processes(_) => Page::Table,
                    Page::Table | Page::Help => Page::Processes(self.choice.pid),
                };
            }
            KeyCode::Enter => {
                if let Page::Processes(cursor) = self.page {
                    self.choice.pid = cursor;
                    self.page = Page::Table;
                    self.scroll = 0;
                }
            }
            KeyCode::Esc => self.leave(),
            KeyCode::Up | KeyCode::Char('k') => self.go(top, -1),
            KeyCode::Down | KeyCode::Char('j') => self.go(top, 1),
            KeyCode::PageUp => self.go(top, -(self.n_fitting.max(1) as isize)),
            KeyCode::PageDown => self.go(top, self.n_fitting.max(1) as isize),
            KeyCode::Home => self.go(top, isize::MIN),
            KeyCode::End => self.go(top, isize::MAX),
            _ => {}
        }
        Outcome::Redraw
    }

    /// From the page, then from the filter, then from the process.
    fn leave(&mut self) {
        if self.page != Page::Table {
            self.page = Page::Table;
        } else if !self.choice.filter.is_empty() {
            self.choice.filter.clear();
        } else {
            self.choice.pid = None;
        }
        self.scroll = 0;
    }

    fn type_filter(&mut self, code: KeyCode, has_control: bool) {
        let Some(typed) = &mut self.typed else { return };
        match code {
            KeyCode::Esc => {
                self.typed = None;
                self.choice.filter.clear();
            }
            KeyCode::Enter => self.typed = None,
            KeyCode::Char('u') if has_control => typed.clear(),
            KeyCode::Backspace => {
                typed.pop();
            }
            KeyCode::Char(char) if !has_control && typed.len() < MAX_FILTER => typed.push(char),
            _ => {}
        }
        if let Some(typed) = &self.typed {
            self.choice.filter.clone_from(typed);
        }
        self.scroll = 0;
    }

    fn go(&mut self, top: &Top, step: isize) {
        match self.page {
            Page::Table => self.scroll = self.scroll.saturating_add_signed(step),
            Page::Processes(cursor) => {
                let top = self.paused.as_deref().unwrap_or(top);
                let rows = process_rows(top);
                let at = cursor.and_then(|pid| rows.iter().position(|(known, _)| *known == pid));
                let at = at.map_or(0, |idx| idx + 1);
                let at = at.saturating_add_signed(step).min(rows.len());
                let row = at.checked_sub(1).and_then(|idx| rows.get(idx));
                self.page = Page::Processes(row.map(|(pid, _)| *pid));
            }
            Page::Help => {}
        }
    }
}

/// The processes: those that use most CPU first, then those that used most, then by id.
pub(super) fn process_rows(top: &Top) -> Vec<(u32, &Process)> {
    let mut rows: Vec<(u32, &Process)> = top.processes.iter().map(|(pid, it)| (*pid, it)).collect();
    rows.sort_by_key(|(pid, it)| {
        let used = std::cmp::Reverse((it.current_ns, it.whole_ns));
        (!it.is_running, used, *pid)
    });
    rows
}
