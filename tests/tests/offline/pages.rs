//! The page of the format `html` as a browser shows it: its figures beside those that are counted here from the same
//! samples, what clicks, keys and filters do, and that names stay names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use profiler_agent::format::Format;
use profiler_agent::profile::aggregate::{
    Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
};
use profiler_agent::profile::model::{FrameKind, Profile, ValueType};
use pyagent_tests::browser::Browser;
use serde_json::{Value, json};

const PERIOD_NS: i64 = 10_101_010;

/// How a page is said to be, unless a test changes that.
const SIZE: (u32, u32) = (1280, 800);

/// Of a row of the picture, in pixels: `ROW` in `graph.js`.
const ROW: f64 = 19.0;

/// Names that would run, would turn text around, or would be taken for a place in our page.
const HOSTILE: [&str; 6] = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "\"'`${window.hacked=1}\\",
    "a\u{202e}b\u{2028}c\x1b[2J\0",
    "--><svg/onload=window.hacked=1>",
    "{{data}}{{script}}",
];

/// One line of the truth: in which thread which stack, root first, was seen how often.
#[derive(Debug, Clone)]
struct Row {
    pid: u32,
    tid: u32,
    /// Names; one that begins with `[` and one letter is of that kind.
    stack: Vec<String>,
    count: i64,
}

fn row(pid: u32, tid: u32, stack: &[&str], count: i64) -> Row {
    Row {
        pid,
        tid,
        stack: stack.iter().map(|name| (*name).to_owned()).collect(),
        count,
    }
}

fn truth() -> Vec<Row> {
    vec![
        row(7, 7, &["main", "fib", "fib", "fib"], 700),
        row(7, 7, &["main", "fib"], 50),
        row(7, 7, &["main", "read", "n:deflate"], 200),
        row(7, 8, &["main", "read", "n:deflate"], 40),
        row(7, 8, &["main", "read", "k:vfs_read"], 10),
        row(9, 9, &["main", "Счёт.сложить"], 300),
        row(9, 9, &["main", "s:loads", "p:parse"], 80),
        row(9, 9, &[], 20),
    ]
}

fn kind_of(name: &str) -> (FrameKind, &'static str, &str) {
    match name.split_at_checked(2) {
        Some(("n:", name)) => (FrameKind::Native, "libz.so.1", name),
        Some(("k:", name)) => (FrameKind::Kernel, "vmlinux", name),
        Some(("s:", name)) => (
            FrameKind::Python,
            "/usr/lib/python3.12/json/decoder.py",
            name,
        ),
        Some(("p:", name)) => (
            FrameKind::Python,
            "/v/lib/python3.12/site-packages/yaml/a.py",
            name,
        ),
        _ => (FrameKind::Python, "/srv/app.py", name),
    }
}

fn resolved(name: &str, line: u32) -> ResolvedFrame {
    let (kind, filename, name) = kind_of(name);
    let function = ResolvedFunction {
        kind,
        name: name.into(),
        filename: filename.into(),
        start_line: if kind == FrameKind::Python { 3 } else { 0 },
        mapping: "[python]".into(),
        build_id: "".into(),
    };
    ResolvedFrame {
        function: Arc::new(function),
        line: if kind == FrameKind::Python { line } else { 0 },
        address: 0,
    }
}

/// The profile. A function is at another line in each of its samples, which must not tell it apart.
fn profile(rows: &[Row], comm: &str) -> Profile {
    let start = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    let mut aggregator = Aggregator::new(start, &ValueType::CPU_SAMPLES, PERIOD_NS);
    for (idx, row) in rows.iter().enumerate() {
        let frames = row.stack.iter().rev();
        let sample = ResolvedSample {
            frames: frames
                .map(|name| resolved(name, 10 + idx as u32 % 3))
                .collect(),
            labels: Arc::new(ThreadLabels {
                process: Arc::new(ProcessLabels {
                    comm: comm.into(),
                    ..ProcessLabels::of_pid(row.pid)
                }),
                tid: row.tid,
                started_ns: 0,
                thread_name: format!("worker {}", row.tid).into(),
            }),
            instruction: None,
            values: [row.count, row.count * PERIOD_NS].into(),
        };
        aggregator.add(&sample);
    }
    let comments = vec!["3 samples lost: ring full".into()];
    aggregator.finish(Duration::from_secs(12), comments)
}

/// A file of the page, in a folder of its own.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(profile: &Profile) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    let mut bytes = Vec::new();
    let format = Format::from_path(&path).unwrap();
    format.write(profile, &mut bytes).unwrap();
    fs::write(&path, bytes).unwrap();
    File {
        _folder: folder,
        path,
    }
}

fn open(path: &Path) -> Browser {
    let mut browser = Browser::start(SIZE.0, SIZE.1);
    browser.open(path, "");
    browser
}

/// What the truth says: of each function, by the name that is shown, its own samples and those that it was in.
fn amounts<'a>(rows: impl Iterator<Item = &'a Row>) -> BTreeMap<String, (i64, i64)> {
    let mut amounts: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for row in rows {
        let names: Vec<&str> = match &row.stack[..] {
            [] => vec!["[no stack]"],
            stack => stack.iter().map(|name| kind_of(name).2).collect(),
        };
        amounts
            .entry(names[names.len() - 1].to_owned())
            .or_default()
            .0 += row.count;
        for name in BTreeSet::from_iter(names) {
            amounts.entry(name.to_owned()).or_default().1 += row.count;
        }
    }
    amounts
}

/// The list of functions of the page, in the unit of its values.
fn listed(browser: &mut Browser) -> BTreeMap<String, (i64, i64)> {
    let rows = browser.evaluate(
        "[...document.querySelectorAll('#functions tbody tr')].map((row) => \
         [row.querySelector('bdi').textContent, Number(row.dataset.self), Number(row.dataset.total)])",
    );
    let rows = rows.as_array().unwrap().iter();
    let number = |value: &Value| value.as_f64().unwrap() as i64;
    rows.map(|row| {
        let name = row[0].as_str().unwrap().to_owned();
        (name, (number(&row[1]), number(&row[2])))
    })
    .collect()
}

fn times(amounts: BTreeMap<String, (i64, i64)>, by: i64) -> BTreeMap<String, (i64, i64)> {
    let all = amounts.into_iter();
    all.map(|(name, (own, total))| (name, (own * by, total * by)))
        .collect()
}

/// Chooses an option, as a person does with a list.
fn choose(browser: &mut Browser, list: &str, option: &str) {
    browser.evaluate(&format!(
        "(() => {{ const list = document.getElementById('{list}'); \
         list.value = [...list.options].find((it) => it.textContent === '{option}').value; \
         list.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
    ));
    browser.drawn();
}

/// Clicks what a selector finds.
fn click_on(browser: &mut Browser, selector: &str) {
    let selector = json!(selector);
    let middle = browser.evaluate(&format!(
        "(() => {{ const its = document.querySelector({selector}); its.scrollIntoView({{block: 'nearest'}}); \
         const box = its.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
    ));
    browser.click(middle[0].as_f64().unwrap(), middle[1].as_f64().unwrap());
}

fn text_of(browser: &mut Browser, selector: &str) -> String {
    let text = browser.evaluate(&format!("document.querySelector('{selector}').textContent"));
    text.as_str().unwrap().to_owned()
}

/// Left, top, width and height of the picture as far as it is seen.
fn picture(browser: &mut Browser) -> [f64; 4] {
    let edges = browser.evaluate(
        "(() => { const box = document.getElementById('canvas').getBoundingClientRect(); \
         return [box.x, box.y, box.width, box.height]; })()",
    );
    [0, 1, 2, 3].map(|idx| edges[idx].as_f64().unwrap())
}

/// A place in the picture: so far from the left, in parts of the width, and the row from above.
fn place(browser: &mut Browser, share: f64, row: u32) -> (f64, f64) {
    let [left, top, width, _] = picture(browser);
    (left + share * width, top + (f64::from(row) + 0.5) * ROW)
}

/// What is told of the frame at a place: its name, total and own value.
fn told(browser: &mut Browser, (x, y): (f64, f64)) -> Option<(String, i64, i64)> {
    browser.point(x, y);
    let told = browser.evaluate(
        "(() => { const tip = document.getElementById('tip'); return tip.hidden ? null : \
         [tip.querySelector('bdi').textContent, Number(tip.dataset.total), Number(tip.dataset.self)]; })()",
    );
    let number = |value: &Value| value.as_f64().unwrap() as i64;
    let name = told[0].as_str()?.to_owned();
    Some((name, number(&told[1]), number(&told[2])))
}

#[test]
fn the_figures_of_functions_are_those_of_the_samples() {
    let rows = truth();
    let file = file(&profile(&rows, "python3"));
    let mut browser = open(&file.path);
    // Nanoseconds first, as in reports.
    assert_eq!(listed(&mut browser), times(amounts(rows.iter()), PERIOD_NS));
    choose(&mut browser, "type", "Samples");
    assert_eq!(listed(&mut browser), amounts(rows.iter()));
    // Neither the view nor the roots change what a function has.
    for (list, option) in [("view", "callers"), ("view", "flame"), ("group", "threads")] {
        choose(&mut browser, list, option);
        assert_eq!(listed(&mut browser), amounts(rows.iter()), "{option}");
    }
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn filters_leave_the_samples_of_processes_and_threads() {
    let rows = truth();
    let file = file(&profile(&rows, "python3"));
    let mut browser = open(&file.path);
    choose(&mut browser, "type", "Samples");
    let of = |chosen: &dyn Fn(&Row) -> bool| amounts(rows.iter().filter(|row| chosen(row)));
    click_on(&mut browser, "#processes summary");
    // The largest is first.
    click_on(&mut browser, "#processes li:nth-child(2) button");
    assert_eq!(
        text_of(&mut browser, "#processes summary"),
        "Processes: python3 (9)"
    );
    assert_eq!(listed(&mut browser), of(&|row| row.pid == 9));
    click_on(&mut browser, "#processes li:nth-child(1) button");
    assert_eq!(listed(&mut browser), of(&|row| row.pid == 7));
    let all = place(&mut browser, 0.5, 0);
    browser.press("Escape");
    assert_eq!(told(&mut browser, all), Some(("all".into(), 1000, 0)));
    // Of its threads the smaller one.
    click_on(&mut browser, "#threads summary");
    let n_offered = browser.evaluate("document.querySelectorAll('#threads li').length");
    assert_eq!(n_offered, 2);
    click_on(&mut browser, "#threads li:nth-child(2) input");
    assert_eq!(listed(&mut browser), of(&|row| row.tid == 7));
    // The address has it, for another browser.
    let fragment = browser.evaluate("location.hash");
    browser.open(&file.path, fragment.as_str().unwrap());
    assert_eq!(listed(&mut browser), of(&|row| row.tid == 7));
    click_on(&mut browser, "#threads summary");
    click_on(&mut browser, "#threads .top button:nth-of-type(2)");
    assert_eq!(listed(&mut browser), BTreeMap::new());
    assert_eq!(
        browser.evaluate("document.getElementById('empty').hidden"),
        json!(false)
    );
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn frames_are_where_they_belong_and_a_click_zooms() {
    let rows = truth();
    let file = file(&profile(&rows, "python3"));
    let mut browser = open(&file.path);
    choose(&mut browser, "type", "Samples");
    let name = |text: &str, total, own| Some((text.to_owned(), total, own));
    // Row by row, the largest first: of 1400 samples 1000 are process 7's, of these 750 fib's.
    for (samples, row, expected) in [
        (500.0, 0, name("all", 1400, 0)),
        (500.0, 1, name("python3 (7)", 1000, 0)),
        (1200.0, 1, name("python3 (9)", 400, 0)),
        (500.0, 2, name("main", 1000, 0)),
        (740.0, 3, name("fib", 750, 50)),
        (690.0, 4, name("fib", 700, 0)),
        (690.0, 5, name("fib", 700, 700)),
        (725.0, 4, None),
        (990.0, 3, name("read", 250, 0)),
        (980.0, 4, name("deflate", 240, 240)),
        (995.0, 4, name("vfs_read", 10, 10)),
        (1370.0, 4, name("parse", 80, 80)),
        (1390.0, 2, name("[no stack]", 20, 20)),
        (500.0, 9, None),
    ] {
        let place = place(&mut browser, samples / 1400.0, row);
        assert_eq!(told(&mut browser, place), expected, "{samples}, row {row}");
    }
    // What is zoomed fills the width; what it is in is above, as wide.
    let read = place(&mut browser, 990.0 / 1400.0, 3);
    browser.click(read.0, read.1);
    for (samples, row, expected) in [
        (10.0, 1, name("python3 (7)", 1000, 0)),
        (10.0, 3, name("read", 250, 0)),
        (235.0, 4, name("deflate", 240, 240)),
        (245.0, 4, name("vfs_read", 10, 10)),
    ] {
        let place = place(&mut browser, samples / 250.0, row);
        assert_eq!(told(&mut browser, place), expected, "{samples}, row {row}");
    }
    let path = text_of(&mut browser, "#path");
    assert_eq!(
        path,
        "all›python3 (7)›main (/srv/app.py:3)›read (/srv/app.py:3) 250 (17.86% of what is shown)"
    );
    // The way back, the path, Escape, and the address.
    let fragment = browser.evaluate("location.hash");
    browser.evaluate(
        "new Promise((done) => { addEventListener('hashchange', done); history.back(); })",
    );
    browser.drawn();
    assert_eq!(text_of(&mut browser, "#path"), "all 1,400");
    browser.open(&file.path, fragment.as_str().unwrap());
    assert_eq!(text_of(&mut browser, "#path"), path);
    click_on(&mut browser, "#path button:nth-of-type(2)");
    assert!(text_of(&mut browser, "#path").starts_with("all›python3 (7) 1,000 "));
    browser.press("Escape");
    assert_eq!(text_of(&mut browser, "#path"), "all 1,400");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn flames_stand_on_their_roots_and_callers_are_beneath_what_they_call() {
    let rows = truth();
    let file = file(&profile(&rows, "python3"));
    let mut browser = open(&file.path);
    choose(&mut browser, "type", "Samples");
    choose(&mut browser, "group", "functions");
    choose(&mut browser, "view", "flame");
    let [left, top, width, height] = picture(&mut browser);
    let name = |text: &str, total, own| Some((text.to_owned(), total, own));
    for (samples, row, expected) in [
        (10.0, 0.0, name("all", 1400, 0)),
        (10.0, 1.0, name("main", 1380, 0)),
        (10.0, 2.0, name("fib", 750, 50)),
    ] {
        let place = (
            left + width * samples / 1400.0,
            top + height - (row + 0.5) * ROW,
        );
        assert_eq!(told(&mut browser, place), expected, "{samples}, row {row}");
    }
    choose(&mut browser, "view", "callers");
    // Leaves by what is their own: fib 750, Счёт.сложить 300, deflate 240, parse 80, [no stack] 20, vfs_read 10.
    for (samples, row, expected) in [
        (10.0, 1, ("fib", 750)),
        (1040.0, 1, ("Счёт.сложить", 300)),
        (1280.0, 1, ("deflate", 240)),
        (1280.0, 2, ("read", 240)),
        (1280.0, 3, ("main", 240)),
        // Of fib's own 700 were called by fib, and 50 by main.
        (690.0, 2, ("fib", 700)),
        (725.0, 2, ("main", 50)),
    ] {
        let place = place(&mut browser, samples / 1400.0, row);
        let (name, total, _) = told(&mut browser, place).unwrap();
        assert_eq!((&*name, total), expected, "{samples}, row {row}");
    }
    // A box for each line: fib was at three.
    choose(&mut browser, "view", "icicle");
    click_on(&mut browser, "#lines");
    let mut lines = BTreeMap::new();
    for share in 0..140 {
        let place = place(&mut browser, (f64::from(share) + 0.5) / 140.0, 1);
        let (name, total, _) = told(&mut browser, place).unwrap();
        let at = text_of(&mut browser, "#tip .soft");
        lines.insert((name, at), total);
    }
    let at = |line: u32, total| (("main".to_owned(), format!("/srv/app.py:{line}")), total);
    let mut expected = BTreeMap::from([at(10, 740), at(11, 60), at(12, 580)]);
    for (line, total) in [(10, 0), (11, 0), (12, 0)] {
        let of_line = rows.iter().enumerate().filter(|(idx, row)| {
            10 + *idx as u32 % 3 == line && row.stack.first().is_some_and(|name| name == "main")
        });
        let total = total + of_line.map(|(_, row)| row.count).sum::<i64>();
        expected.insert(at(line, 0).0, total);
    }
    expected.insert(("[no stack]".into(), ORIGIN_OF_REMARKS.into()), 20);
    assert_eq!(lines, expected);
    assert_eq!(browser.complaints(), [""; 0]);
}

/// What stands where other frames have their file.
const ORIGIN_OF_REMARKS: &str = "a remark of pyagent, not a function";

/// Types a text into the search.
fn search(browser: &mut Browser, text: &str) -> (i64, i64) {
    let text = json!(text);
    browser.evaluate(&format!(
        "(() => {{ const its = document.getElementById('search'); its.value = {text}; \
         its.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    ));
    // It waits for more to be typed.
    let start = Instant::now();
    while browser.evaluate("state.search") != text {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it is not searched for"
        );
    }
    let output = browser.evaluate("({...document.getElementById('found').dataset})");
    let number = |name: &str| output[name].as_str().unwrap().parse().unwrap();
    (number("whole"), number("zoomed"))
}

#[test]
fn a_search_counts_each_stack_once() {
    let rows = truth();
    let file = file(&profile(&rows, "python3"));
    let mut browser = open(&file.path);
    choose(&mut browser, "type", "Samples");
    let of = |names: &[&str]| {
        let is_in = |row: &&Row| {
            row.stack
                .iter()
                .any(|name| names.contains(&kind_of(name).2))
        };
        rows.iter().filter(is_in).map(|row| row.count).sum::<i64>()
    };
    for view in ["icicle", "callers", "flame"] {
        choose(&mut browser, "view", view);
        assert_eq!(
            search(&mut browser, "fib"),
            (of(&["fib"]), of(&["fib"])),
            "{view}"
        );
        assert_eq!(search(&mut browser, "LIBZ").0, of(&["deflate"]), "{view}");
        assert_eq!(
            search(&mut browser, "счёт").0,
            of(&["Счёт.сложить"]),
            "{view}"
        );
        assert_eq!(
            search(&mut browser, "[libz.so.1] d").0,
            of(&["deflate"]),
            "{view}"
        );
        assert_eq!(search(&mut browser, "nothing").0, 0, "{view}");
    }
    choose(&mut browser, "view", "icicle");
    assert_eq!(search(&mut browser, "^f.b |^loads"), (0, 0));
    click_on(&mut browser, "#regex");
    assert_eq!(text_of(&mut browser, "#found"), "found in 59.29% (830)");
    assert_eq!(of(&["fib", "loads"]), 830);
    assert_eq!(
        listed(&mut browser).into_keys().collect::<Vec<_>>(),
        ["fib", "loads"]
    );
    search(&mut browser, "(");
    assert!(text_of(&mut browser, "#found").contains("Invalid regular expression"));
    search(&mut browser, "^main|deflate");
    let zoom = place(&mut browser, 990.0 / 1400.0, 3);
    browser.click(zoom.0, zoom.1);
    // It was called by main: all of it is found.
    assert_eq!(
        text_of(&mut browser, "#found"),
        "found in 98.57% (1,380); 100.00% of zoomed"
    );
    assert_eq!(search(&mut browser, "deflate"), (240, 240));
    assert!(text_of(&mut browser, "#found").ends_with("; 96.00% of zoomed"));
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn the_keyboard_goes_everywhere() {
    let file = file(&profile(&truth(), "python3"));
    let mut browser = open(&file.path);
    choose(&mut browser, "type", "Samples");
    browser.evaluate("document.getElementById('canvas').focus()");
    let mut at = |keys: &[&str]| {
        for key in keys {
            browser.press(key);
        }
        let status = text_of(&mut browser, "#status");
        status.split(" · ").next().unwrap().to_owned()
    };
    assert_eq!(at(&["ArrowDown"]), "all");
    assert_eq!(at(&["ArrowDown"]), "python3 (7)");
    assert_eq!(at(&["ArrowRight"]), "python3 (9)");
    assert_eq!(at(&["ArrowDown", "ArrowDown"]), "Счёт.сложить");
    assert_eq!(at(&["ArrowRight"]), "loads");
    assert_eq!(at(&["Enter", "ArrowDown"]), "parse");
    assert_eq!(at(&["ArrowUp", "ArrowUp"]), "main");
    assert_eq!(at(&["Backspace"]), "main");
    assert_eq!(at(&["Escape", "Home"]), "all");
    assert_eq!(at(&["ArrowDown", "c"]), "Copied: python3 (7)");
    browser.press("/");
    let focus = browser.evaluate("document.activeElement.id");
    assert_eq!(focus, "search");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn hostile_names_are_shown_and_never_run() {
    let mut rows = Vec::new();
    for (idx, name) in (1..).zip(HOSTILE) {
        rows.push(row(idx, idx, &[name, "n:x</script>"], i64::from(idx)));
    }
    let mut profile = profile(&rows, HOSTILE[0]);
    profile.comments.extend(HOSTILE.map(str::to_owned));
    let file = file(&profile);
    let mut browser = open(&file.path);
    choose(&mut browser, "group", "functions");
    let shown: BTreeSet<String> = listed(&mut browser).into_keys().collect();
    let mut expected = BTreeSet::from(HOSTILE.map(str::to_owned));
    expected.remove(HOSTILE[3]);
    expected.insert("a\\u{202e}b\\u{2028}c\\u{1b}[2J\\u{0}".into());
    expected.insert("x</script>".into());
    assert_eq!(shown, expected);
    for (row, share) in [(1, 0.1), (2, 0.1), (1, 0.5), (1, 0.7), (1, 0.97)] {
        let place = place(&mut browser, share, row);
        assert!(told(&mut browser, place).is_some_and(|(name, ..)| expected.contains(&name)));
    }
    click_on(&mut browser, "#processes summary");
    click_on(&mut browser, "#threads summary");
    click_on(&mut browser, "#remarks summary");
    for text in ["<img", "</script>", "{{data}}"] {
        search(&mut browser, text);
    }
    let fragment = "#zoom=zzzz.-1.%3Cimg%3E&search=%3Cimg%20src=x%20onerror=hacked=1%3E&processes=!99999999999&type=__proto__";
    browser.open(&file.path, fragment);
    assert_eq!(text_of(&mut browser, "#path button"), "all");
    assert_eq!(
        browser.evaluate("[typeof window.hacked, document.images.length]"),
        json!(["undefined", 0])
    );
    // One script that runs, one block of data: no name has made a third one.
    assert_eq!(browser.evaluate("document.scripts.length"), 2);
    assert_eq!(browser.complaints(), [""; 0]);
    // The policy holds: what would be put in nevertheless does not run, and nothing is loaded.
    browser.evaluate(
        "(() => { const made = document.createElement('script'); made.textContent = 'window.hacked = 1'; \
         document.body.append(made); document.body.insertAdjacentHTML('beforeend', '<img src=x: onerror=hacked=1>'); \
         return fetch('http://127.0.0.1:9/').catch(() => 1); })()",
    );
    assert_eq!(browser.evaluate("typeof window.hacked"), "undefined");
    let n_with = |text: &str| {
        let complaints = browser.complaints().iter();
        complaints.filter(|it| it.contains(text)).count()
    };
    assert!(n_with("Content Security Policy") > 0);
    // Of what the page would ask for nothing leaves it.
    let n_asked = n_with("Network.requestWillBeSent");
    assert!(n_asked > 0 && n_with("\"blockedReason\":\"csp\"") == n_asked);
}

#[test]
fn themes_change_colours_and_small_windows_show_everything() {
    let file = file(&profile(&truth(), "python3"));
    let mut browser = open(&file.path);
    // The page's own colour, and that of the picture where a frame is.
    let colours = |browser: &mut Browser| {
        browser.evaluate(
            "(() => { const copy = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}); \
             copy.drawImage(document.getElementById('canvas'), -5, -60); \
             return [getComputedStyle(document.body).backgroundColor, copy.getImageData(0, 0, 1, 1).data.join()]; })()",
        )
    };
    browser.prefer("light");
    browser.drawn();
    let light = colours(&mut browser);
    browser.prefer("dark");
    browser.drawn();
    let dark = colours(&mut browser);
    assert!(light[0] != dark[0] && light[1] != dark[1], "{light} {dark}");
    // What the button says counts more than the system.
    click_on(&mut browser, "#theme");
    assert_eq!(
        (text_of(&mut browser, "#theme"), colours(&mut browser)),
        ("Theme: light".into(), light)
    );
    browser.prefer("light");
    click_on(&mut browser, "#theme");
    assert_eq!(
        (text_of(&mut browser, "#theme"), colours(&mut browser)),
        ("Theme: dark".into(), dark)
    );
    for (width, height) in [SIZE, (600, 800), (360, 640)] {
        browser.resize(width, height);
        browser.drawn();
        let page = browser.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.scrollHeight, innerWidth, innerHeight]",
        );
        assert_eq!(
            (&page[0], &page[1]),
            (&page[2], &page[3]),
            "nothing is outside of {width} x {height}"
        );
        let [_, _, drawn_width, drawn_height] = picture(&mut browser);
        assert!(
            drawn_width > f64::from(width) / 2.0 && drawn_height > 5.0 * ROW,
            "{width} x {height}"
        );
        let last =
            browser.evaluate("document.getElementById('legend').getBoundingClientRect().bottom");
        assert!(last.as_f64().unwrap() <= f64::from(height));
    }
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_profile_of_many_processes_and_one_of_none_are_shown() {
    let mut rows = Vec::new();
    for pid in 1..=200 {
        for stack in 0..500 {
            // Shared by all, as of workers of one server; a quarter is that of one of four programs.
            let own = if stack % 4 == 0 { 1 + pid % 4 } else { 0 };
            let names: Vec<String> = (0..12 + stack % 20)
                // Stacks part one by one on their way, as those of a program do.
                .map(|depth| {
                    format!(
                        "f_{own}_{depth}_{}",
                        stack >> 9_u32.saturating_sub(depth / 2)
                    )
                })
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            rows.push(row(pid, pid, &names, i64::from(1 + stack % 7)));
        }
    }
    let whole: i64 = rows.iter().map(|row| row.count).sum();
    let many = file(&profile(&rows, "gunicorn"));
    let n_bytes = fs::metadata(&many.path).unwrap().len();
    let start = Instant::now();
    let mut browser = open(&many.path);
    let loading = browser.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd");
    println!(
        "{n_bytes} bytes, loaded in {loading} ms, with the browser's start {:?}",
        start.elapsed()
    );
    choose(&mut browser, "type", "Samples");
    assert_eq!(browser.evaluate("tree.total[0]"), whole);
    let n_nodes = browser.evaluate("tree.nTree");
    println!("{n_nodes} frames in the tree");
    let expected = amounts(rows.iter());
    let shown = listed(&mut browser);
    assert!(shown.len() >= 300);
    for (name, amounts) in shown {
        assert_eq!(amounts, expected[&name], "{name}");
    }
    let nothing = file(&profile(&[], "python3"));
    browser.open(&nothing.path, "");
    assert!(text_of(&mut browser, "#empty").starts_with("No samples"));
    assert_eq!(browser.complaints(), [""; 0]);
}
