//! The picture on a terminal: a head of four lines, the table, the processes or the help, and a line of keys.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span as Part};
use ratatui::widgets::Paragraph;

use super::keys::{KEYS, Page, Ui, process_rows};
use super::table::{Row, SortKey, Span};
use super::text::{gil_text, seconds_text, thread_text};
use super::{History, Top};
use crate::format::{duration_text, escape, thousands};
use crate::view::columns::{cut, cut_end};

/// A terminal has room for the share of the global interpreter lock from so many columns on.
const GIL_COLUMNS: usize = 80;

/// The curve shows so many looks: at one a second, three minutes.
const CURVE_LOOKS: usize = 180;

/// Lines above the table.
const HEAD: usize = 4;

/// Levels of the curve.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws what was seen, as the user wants to see it.
pub fn draw(frame: &mut Frame<'_>, top: &Top, ui: &mut Ui) {
    let area = frame.area();
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let paused = ui.paused.take();
    let shown = paused.as_deref().unwrap_or(top);
    let mut lines = head(shown, ui, width, paused.is_some());
    // The keys have the last line, unless there is no room for a row then.
    let n_keys = usize::from(height > HEAD + 2);
    let n_body = height.saturating_sub(HEAD + n_keys);
    let body = match ui.page {
        Page::Table => table(shown, ui, width, n_body),
        Page::Processes(cursor) => processes(shown, ui, cursor, width, n_body),
        Page::Help => help(width),
    };
    lines.extend(body.into_iter().take(n_body));
    ui.paused = paused;
    frame.render_widget(Paragraph::new(lines), area);
    if n_keys == 1 {
        let last = Rect {
            y: area.height - 1,
            height: 1,
            ..area
        };
        frame.render_widget(Paragraph::new(keys(ui, width)), last);
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn reversed() -> Style {
    Style::new().add_modifier(Modifier::REVERSED)
}

/// Title, samples, CPU, and a line for what is to be said.
fn head(top: &Top, ui: &Ui, width: usize, is_paused: bool) -> Vec<Line<'static>> {
    let pid = ui.choice.pid;
    let state = if is_paused {
        "PAUSED".to_owned()
    } else {
        duration_text(std::time::Duration::from_secs(top.elapsed.as_secs()))
    };
    let title = format!("pyagent top: {}", subject(top, ui));
    let title = cut(&title, width.saturating_sub(state.chars().count() + 2));
    let gap = width.saturating_sub(columns(&title) + state.chars().count());
    let title = Line::from(vec![
        Part::styled(title, bold()),
        Part::raw(" ".repeat(gap)),
        Part::styled(state, if is_paused { reversed() } else { Style::new() }),
    ]);
    vec![
        title,
        Line::raw(cut_end(&sampling_text(top, Span::Last, pid), width)),
        Line::raw(cut_end(&cpu_text(top, pid, width), width)),
        remark(top, ui, width),
    ]
}

/// Whose time it is.
fn subject(top: &Top, ui: &Ui) -> String {
    let at = match ui.place.as_str() {
        "" => String::new(),
        place => format!(" of {}", escape(place)),
    };
    let only = match top.processes.len() {
        1 => top.processes.keys().next().copied(),
        _ => None,
    };
    match ui.choice.pid.or(only) {
        None => match top.n_running() {
            1 => format!("1 process{at}"),
            n => format!("{} processes{at}", thousands(n as i64)),
        },
        Some(pid) => {
            let known = top.processes.get(&pid);
            let name = known.map_or("", |it| it.name.as_str());
            let version = known.map_or("", |it| it.python_version.as_str());
            let ended = known.is_none_or(|it| !it.is_running);
            format!(
                "{} ({pid}{}{}){at}",
                escape(name),
                if version.is_empty() {
                    String::new()
                } else {
                    format!(", Python {}", escape(version))
                },
                if ended { ", ended" } else { "" }
            )
        }
    }
}

/// Samples, those that were lost, and the global interpreter lock.
pub(super) fn sampling_text(top: &Top, span: Span, pid: Option<u32>) -> String {
    let rate = top.vitals[2].map_or(String::new(), |it| format!(" at {:.0} Hz", it.rate_hz));
    let lost = match top.n_lost() {
        Some(n) => format!("lost {}", thousands(n.min(i64::MAX as u64) as i64)),
        None => "lost: not told".to_owned(),
    };
    let per_second = top.samples(span, pid) as f64 / top.span_seconds(span);
    let of_all = if pid.is_some() && top.processes.len() > 1 {
        " (of all)"
    } else {
        ""
    };
    format!(
        "{per_second:.0} samples/s{rate}, {lost}; GIL {}{of_all}",
        gil_text(top.gil_share(span))
    )
}

/// CPU time against that of all CPUs, with its curve.
fn cpu_text(top: &Top, pid: Option<u32>, width: usize) -> String {
    let text = cpu_share_text(top, Span::Last, pid);
    let history = match pid {
        None => Some(&top.history),
        Some(pid) => top.processes.get(&pid).map(|process| &process.history),
    };
    let columns = width
        .saturating_sub(text.chars().count() + 2)
        .min(CURVE_LOOKS);
    match history.filter(|_| columns >= 8) {
        Some(history) => format!("{text}  {}", curve(history, columns)),
        None => text,
    }
}

/// `on CPU 12.5 % of 8 CPUs`.
pub(super) fn cpu_share_text(top: &Top, span: Span, pid: Option<u32>) -> String {
    let cpus = top.cpus(span, pid);
    match top.vitals[2].map(|it| it.n_cpus) {
        Some(n @ 1..) => {
            let s = if n == 1 { "" } else { "s" };
            format!("on CPU {:.1} % of {n} CPU{s}", 100.0 * cpus / f64::from(n))
        }
        Some(0) | None => format!("on CPU {:.1} % of one", 100.0 * cpus),
    }
}

/// The last minutes; the highest bar is the most of them. The newest is at the right end.
fn curve(history: &History, columns: usize) -> String {
    let n_each = CURVE_LOOKS.div_ceil(columns);
    let looks: Vec<f32> = history.0.iter().copied().collect();
    let means = looks.rchunks(n_each).take(columns);
    let mut means: Vec<f32> = means
        .map(|looks| looks.iter().sum::<f32>() / looks.len() as f32)
        .collect();
    means.reverse();
    let most = means.iter().copied().fold(0.0, f32::max);
    let bar = |mean: &f32| match mean / most {
        share if share > 0.0 => BARS[((share * 8.0).ceil() as usize).clamp(1, 8) - 1],
        _ => ' ',
    };
    let gap = " ".repeat(columns - means.len());
    gap + &means.iter().map(bar).collect::<String>()
}

/// What has ended, the filter, or what sampling lacks.
fn remark(top: &Top, ui: &Ui, width: usize) -> Line<'static> {
    if let Some(typed) = &ui.typed {
        let typed = escape(typed).into_owned();
        // What is typed is at the end: that is what has to be seen.
        let skip = columns(&typed).saturating_sub(width.saturating_sub(10));
        let typed: String = typed.chars().skip(skip).collect();
        return Line::from(vec![
            Part::raw(format!("filter: {typed}")),
            Part::styled(" ", reversed()),
        ]);
    }
    if let Some(why) = top.ended() {
        return Line::styled(cut_end(&escape(why), width), reversed());
    }
    if !ui.choice.filter.is_empty() {
        let text = format!("filter: {} (Esc: all)", escape(&ui.choice.filter));
        return Line::raw(cut_end(&text, width));
    }
    let text = match top.remarks(Span::Last).first() {
        Some(remark) => escape(remark).into_owned(),
        None if top.elapsed.is_zero() => "sampling ...".to_owned(),
        None => String::new(),
    };
    Line::styled(
        cut_end(&text, width),
        Style::new().add_modifier(Modifier::DIM),
    )
}

fn columns(text: &str) -> usize {
    text.chars().map(crate::view::columns::columns_of).sum()
}

/// Columns of the thread, with the space behind them.
fn thread_columns(ui: &Ui, width: usize) -> usize {
    if ui.choice.by_thread {
        (width / 5).clamp(10, 32)
    } else {
        0
    }
}

/// Widths of the columns of numbers, in the order of [`SortKey::ALL`].
const NUMBER_WIDTHS: [usize; 5] = [7, 8, 9, 10, 7];

/// The columns of numbers with their widths. That of the global interpreter lock is there where it is known.
pub(super) fn number_columns(has_gil: bool) -> impl Iterator<Item = (SortKey, usize)> {
    let columns = SortKey::ALL.into_iter().zip(NUMBER_WIDTHS);
    columns.filter(move |(key, _)| has_gil || *key != SortKey::GilPercent)
}

fn table(top: &Top, ui: &mut Ui, width: usize, height: usize) -> Vec<Line<'static>> {
    let n_thread = thread_columns(ui, width);
    let has_gil = top.kept.knows_gil && width >= GIL_COLUMNS;
    let mut heads: Vec<Part<'static>> = number_columns(has_gil)
        .map(|(key, n)| {
            let style = if key == ui.choice.sort {
                reversed().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
            } else {
                reversed()
            };
            let head = key.head();
            let gap = " ".repeat(n - head.len());
            vec![Part::styled(gap, reversed()), Part::styled(head, style)]
        })
        .collect::<Vec<_>>()
        .concat();
    let thread = if n_thread > 0 { "Thread" } else { "" };
    let function = function_head(ui);
    let n_numbers: usize = number_columns(has_gil).map(|(_, n)| n).sum();
    // Two spaces are behind the numbers.
    let rest = width.saturating_sub(n_numbers + 2 + n_thread);
    heads.push(Part::styled(
        format!("  {thread:<n_thread$}{:<rest$}", cut_end(function, rest)),
        reversed(),
    ));
    let rows = top.rows(&ui.choice);
    let n_rows = ui.top.map_or(rows.len(), |top| rows.len().min(top));
    ui.n_fitting = height.saturating_sub(1);
    ui.scroll = ui.scroll.min(n_rows.saturating_sub(ui.n_fitting));
    let mut lines = vec![Line::from(heads)];
    let shown = rows[..n_rows].iter().skip(ui.scroll).take(ui.n_fitting);
    lines.extend(shown.map(|row| table_row(row, ui, has_gil, [n_thread, rest])));
    if rows.is_empty() {
        let why = if ui.choice.filter.is_empty() {
            "  nothing has used the CPU yet; waiting is not in it"
        } else {
            "  nothing has this text in its function or file"
        };
        lines.push(Line::raw(cut_end(why, width)));
    }
    lines
}

pub(super) const fn function_head(ui: &Ui) -> &'static str {
    if ui.choice.has_no_lines {
        "Function (file)"
    } else if ui.choice.by_function {
        "Function (file:first line)"
    } else {
        "Function (file:line)"
    }
}

fn table_row(row: &Row<'_>, ui: &Ui, has_gil: bool, [n_thread, rest]: [usize; 2]) -> Line<'static> {
    let color = match row.own_percent {
        _ if !ui.has_colors => Style::new(),
        30.0.. => Style::new().fg(Color::Red),
        10.0.. => Style::new().fg(Color::Yellow),
        2.0.. => Style::new().fg(Color::Green),
        _ => Style::new(),
    };
    let mut parts = vec![Part::styled(numbers(row, has_gil), color), Part::raw("  ")];
    if n_thread > 0 {
        let thread = cut_end(&thread_text(row.thread, ui.choice.pid), n_thread - 1);
        let gap = n_thread.saturating_sub(columns(&thread));
        parts.push(Part::raw(thread + &" ".repeat(gap)));
    }
    parts.push(Part::raw(cut(&row.function(&ui.choice), rest)));
    Line::from(parts)
}

/// The numbers of a row.
pub(super) fn numbers(row: &Row<'_>, has_gil: bool) -> String {
    let percent = |percent: f64| format!("{percent:.1}%");
    let cells = number_columns(has_gil).map(|(key, width)| {
        let cell = match key {
            SortKey::OwnPercent => percent(row.own_percent),
            SortKey::TotalPercent => percent(row.total_percent),
            SortKey::OwnTime => seconds_text(row.whole.own),
            SortKey::TotalTime => seconds_text(row.whole.total),
            SortKey::GilPercent => row.gil_percent.map_or_else(|| "-".to_owned(), percent),
        };
        format!("{cell:>width$}")
    });
    cells.collect()
}

fn processes(
    top: &Top,
    ui: &mut Ui,
    cursor: Option<u32>,
    width: usize,
    height: usize,
) -> Vec<Line<'static>> {
    let head = format!(
        "{:>8}{:>8}{:>9}  {:<12}  Process",
        "PID", "%CPU", "Time", "3 min"
    );
    let mut lines = vec![Line::styled(
        format!("{:<width$}", cut_end(&head, width)),
        reversed(),
    )];
    let row = |pid: String, cpus: f64, whole_ns: i64, history: &History, name: &str| {
        let text = format!(
            "{pid:>8}{:>8}{:>9}  {}  ",
            format!("{:.1}%", 100.0 * cpus),
            seconds_text(whole_ns),
            curve(history, 12)
        );
        let rest = width.saturating_sub(columns(&text));
        cut_end(&format!("{text}{}", cut(name, rest)), width)
    };
    let mut rows = vec![(
        None,
        row(
            "all".to_owned(),
            top.cpus(Span::Last, None),
            top.whole_ns,
            &top.history,
            "all processes",
        ),
    )];
    for (pid, process) in process_rows(top) {
        let ended = if process.is_running { "" } else { " (ended)" };
        let name = format!("{}{ended}", escape(&process.name));
        let cpus = top.cpus(Span::Last, Some(pid));
        let text = row(
            pid.to_string(),
            cpus,
            process.whole_ns,
            &process.history,
            &name,
        );
        rows.push((Some(pid), text));
    }
    ui.n_fitting = height.saturating_sub(1);
    let at = rows.iter().position(|(pid, _)| *pid == cursor).unwrap_or(0);
    // The cursor's row is always there.
    let first = at.saturating_sub(ui.n_fitting.saturating_sub(1));
    for (pid, text) in rows.into_iter().skip(first) {
        let style = if pid == cursor {
            reversed()
        } else {
            Style::new()
        };
        lines.push(Line::styled(format!("{text:<width$}"), style));
    }
    lines
}

fn help(width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![Line::raw("")];
    lines.extend(KEYS.iter().map(|(key, what)| {
        Line::from(vec![
            Part::styled(format!(" {key:<5}"), bold()),
            Part::raw(cut_end(what, width.saturating_sub(6))),
        ])
    }));
    lines
}

fn keys(ui: &Ui, width: usize) -> Line<'static> {
    let text = match (&ui.typed, ui.page) {
        (Some(_), _) => "Enter: keep the filter  Esc: no filter",
        (None, Page::Table) => {
            "q quit  ? help  1-5 sort  l line  t threads  / filter  Tab processes  p pause"
        }
        (None, Page::Processes(_)) => "Enter: this one  Tab: back  q quit",
        (None, Page::Help) => "x: back  q quit",
    };
    Line::styled(
        format!("{:<width$}", cut_end(text, width)),
        Style::new().add_modifier(Modifier::DIM),
    )
}
