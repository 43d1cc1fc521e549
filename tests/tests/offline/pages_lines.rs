//! The page of `report --lines --html` as a browser shows it: its figures beside the stacks that they are of, what keys and
//! choices do, that names and source stay text, and that a large program stays small.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pyagent_tests::browser::Browser;
use pyagent_tests::pyagent::{run, text};
use pyagent_tests::samples::{FILLED, FILLING, bytes, memory};
use serde_json::{Value, json};

const SOURCE: &str = "\
import zlib

def work(data):
    total = 0
    for byte in data:
        total += byte
    return zlib.compress(data), helper(total)

def helper(total):
    return total * 2
";

/// What would run, turn text around, or end the block of data.
const HOSTILE: [&str; 5] = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "x = '\u{202e}' \u{2028} \x1b[2J",
    "{{data}}{{script}}${window.hacked=1}",
    "--><svg/onload=window.hacked=1>",
];

/// A folder with sources and the page of some folded stacks.
struct Page {
    folder: tempfile::TempDir,
    said: String,
}

impl Page {
    fn of(files: &[(&str, &str)], stacks: impl Fn(&Path) -> Vec<u8>, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, source) in files {
            fs::write(folder.path().join(name), source).unwrap();
        }
        let stacks = stacks(folder.path());
        let page = folder.path().join("page.html");
        let output = [
            &["-", "--lines", "--html", "-o", page.to_str().unwrap()],
            more,
        ]
        .concat();
        let output = run("report", &output, &stacks);
        assert_eq!(text(&output), "", "the page goes into its file");
        let said = String::from_utf8(output.stderr).unwrap();
        Self { folder, said }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("page.html")
    }

    fn open(&self) -> Browser {
        let mut browser = Browser::start(1280, 800);
        browser.open(&self.path(), "");
        browser
    }
}

/// 100 samples: 20 in the loop, 50 in its body, 25 in zlib, 3 in the kernel, 2 in what it calls.
fn stacks(folder: &Path) -> Vec<u8> {
    let file = folder.join("app.py");
    let file = file.display();
    format!(
        "work ({file}:5) 20\nwork ({file}:6) 50\nwork ({file}:7);[libz.so.1] deflate 25\n\
         work ({file}:7);copy_[k] 3\nwork ({file}:7);helper ({file}:10) 2\n"
    )
    .into_bytes()
}

/// Of each line that is shown: number, total, Python, native, kernel (-1: it has no samples), and its text.
fn lines(browser: &mut Browser) -> Vec<(i64, [i64; 4], String)> {
    let rows = browser.evaluate(
        "[...document.querySelectorAll('#rows tbody tr[data-line]')].map((row) => [Number(row.dataset.line), \
         ...['total', 'python', 'native', 'kernel'].map((part) => Number(row.dataset[part] ?? -1)), \
         row.querySelector('td.code').textContent])",
    );
    let number = |value: &Value| value.as_f64().unwrap() as i64;
    let row = |row: &Value| {
        let amounts = [1, 2, 3, 4].map(|idx| number(&row[idx]));
        (
            number(&row[0]),
            amounts,
            row[5].as_str().unwrap().to_owned(),
        )
    };
    rows.as_array().unwrap().iter().map(row).collect()
}

/// The list: name, what is its own, and with what it calls.
fn listed(browser: &mut Browser) -> Vec<(String, i64, i64)> {
    let rows = browser.evaluate(
        "[...document.querySelectorAll('#names button')].map((its) => [its.querySelector('.name').textContent, \
         Number(its.dataset.own), Number(its.dataset.total)])",
    );
    let number = |value: &Value| value.as_f64().unwrap() as i64;
    let row = |row: &Value| {
        (
            row[0].as_str().unwrap().to_owned(),
            number(&row[1]),
            number(&row[2]),
        )
    };
    rows.as_array().unwrap().iter().map(row).collect()
}

fn choose(browser: &mut Browser, list: &str, option: &str) {
    browser.evaluate(&format!(
        "(() => {{ const list = document.getElementById('{list}'); \
         list.value = [...list.options].find((it) => it.textContent === '{option}').value; \
         list.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
    ));
    browser.drawn();
}

fn text_of(browser: &mut Browser, selector: &str) -> String {
    let text = browser.evaluate(&format!("document.querySelector('{selector}').textContent"));
    text.as_str().unwrap().to_owned()
}

fn search(browser: &mut Browser, wanted: &str) {
    let wanted = json!(wanted);
    browser.evaluate(&format!(
        "(() => {{ const its = document.getElementById('search'); its.value = {wanted}; \
         its.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    ));
    // It waits for more to be typed.
    let start = Instant::now();
    while browser.evaluate("state.search") != wanted {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it is not searched for"
        );
    }
}

/// How strong the colour of a line is.
fn heat(browser: &mut Browser, line: u32) -> f64 {
    let heat = browser.evaluate(&format!(
        "Number(document.querySelector('tr[data-line=\"{line}\"] td.code').style.getPropertyValue('--heat-of') || 0)"
    ));
    heat.as_f64().unwrap()
}

#[test]
fn lines_have_the_figures_of_their_samples_and_the_hottest_is_the_reddest() {
    let page = Page::of(&[("app.py", SOURCE)], stacks, &[]);
    assert!(page.said.contains("2 functions of 1 file"), "{}", page.said);
    let mut browser = page.open();
    assert_eq!(
        listed(&mut browser),
        [("work".into(), 98, 100), ("helper".into(), 2, 2)]
    );
    let shown = lines(&mut browser);
    let source: Vec<&str> = SOURCE.lines().collect();
    for (number, _, code) in &shown {
        assert_eq!(code, source[*number as usize - 1]);
    }
    let amounts: Vec<(i64, [i64; 4])> = shown.iter().map(|(line, its, _)| (*line, *its)).collect();
    let none = [-1; 4];
    assert_eq!(
        amounts,
        [
            (3, none),
            (4, none),
            (5, [20, 20, 0, 0]),
            (6, [50, 50, 0, 0]),
            (7, [30, 0, 25, 3]),
            (8, none),
            (9, none),
            (10, [2, 2, 0, 0]),
        ]
    );
    // Of its own 50, 28, 20, 2: line 7's calls are not its own. The sum of the bars' widths goes by the total.
    let heats = [6, 7, 5, 10, 3].map(|line| heat(&mut browser, line));
    assert!(
        heats.is_sorted_by(|a, b| a > b) && heats[4] == 0.0,
        "{heats:?}"
    );
    let widths = browser.evaluate(
        "[...document.querySelectorAll('tr[data-line=\"7\"] td.split i')].map((it) => [it.className, it.getBoundingClientRect().width])",
    );
    let widths = widths.as_array().unwrap();
    let names: Vec<&str> = widths.iter().map(|it| it[0].as_str().unwrap()).collect();
    assert_eq!(names, ["native", "kernel", "calls"]);
    let [native, kernel, calls] = [0, 1, 2].map(|idx| widths[idx][1].as_f64().unwrap());
    assert!(
        (native / kernel - 25.0 / 3.0).abs() < 0.3 && calls < kernel,
        "{widths:?}"
    );
    // With what they call line 7 is before line 5, and helper's line is as it was.
    choose(&mut browser, "heat", "with what it calls");
    assert!(heat(&mut browser, 7) > heat(&mut browser, 5));
    choose(&mut browser, "list", "files");
    assert_eq!(listed(&mut browser).len(), 1);
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn keys_search_the_list_and_go_through_lines_by_heat() {
    let page = Page::of(&[("app.py", SOURCE)], stacks, &[]);
    let mut browser = page.open();
    let marked = |browser: &mut Browser| text_of(browser, "tr.at td.line");
    assert_eq!(marked(&mut browser), "3");
    let mut seen = Vec::new();
    for key in ["n", "n", "n", "n", "n", "p"] {
        browser.press(key);
        seen.push(marked(&mut browser));
    }
    assert_eq!(seen, ["6", "7", "5", "10", "10", "5"]);
    browser.press("/");
    assert_eq!(browser.evaluate("document.activeElement.id"), "search");
    search(&mut browser, "HELP");
    assert_eq!(listed(&mut browser).len(), 1);
    browser.press("Enter");
    browser.press("Enter");
    // A button answers the key as the browser has it; what it opens is what a click opens.
    browser.evaluate("document.activeElement.click()");
    assert_eq!(marked(&mut browser), "9");
    // The address has it, for another browser.
    let fragment = browser.evaluate("location.hash");
    browser.open(&page.path(), fragment.as_str().unwrap());
    assert_eq!(marked(&mut browser), "9");
    browser.press("Escape");
    assert_eq!(listed(&mut browser).len(), 2);
    browser.evaluate("document.querySelector('#names button').focus()");
    browser.press("ArrowDown");
    let focused = "document.activeElement.querySelector('.name').textContent";
    assert_eq!(browser.evaluate(focused), "helper");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn what_cannot_be_read_is_said_beside_the_lines_with_samples() {
    let stacks = |folder: &Path| {
        let gone = folder.join("gone.py");
        let gone = gone.display();
        format!(
            "f ({gone}:7) 5\ng (<string>:1) 3\nh (/etc/passwd:2) 2\n{} 1\n",
            "no_line (/srv/x.py)"
        )
        .into_bytes()
    };
    let page = Page::of(&[], stacks, &[]);
    let mut browser = page.open();
    for (name, line, reason) in [
        ("f", 7, "no such file"),
        ("g", 1, "made while the program ran"),
        ("h", 2, "only .py files"),
        ("no_line", 0, "no such file"),
    ] {
        search(&mut browser, name);
        browser.evaluate(&format!(
            "[...document.querySelectorAll('#names button')].find((it) => it.entry.name === '{name}').click()"
        ));
        let shown = lines(&mut browser);
        assert_eq!(
            (shown.len(), shown[0].0, &*shown[0].2),
            (1, line, ""),
            "{name}"
        );
        let problem = text_of(&mut browser, "#problem");
        assert!(problem.contains(reason), "{name}: {problem}");
    }
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn hostile_source_and_names_are_shown_and_never_run() {
    let source = HOSTILE.join("\n");
    let stacks = |folder: &Path| {
        let mut stacks = String::new();
        for (idx, name) in (1..).zip(HOSTILE) {
            let (file, name) = (folder.join("evil.py"), name.replace(['(', ')', ';'], "_"));
            let _ = writeln!(stacks, "{name} ({}:{idx}) {idx}", file.display());
        }
        stacks.into_bytes()
    };
    let page = Page::of(&[("evil.py", source.as_str())], stacks, &[]);
    let mut browser = page.open();
    let shown = lines(&mut browser);
    let code: Vec<&str> = shown.iter().map(|(_, _, code)| code.as_str()).collect();
    let mut expected = HOSTILE.map(str::to_owned);
    expected[2] = "x = '\\u{202e}' \\u{2028} \\u{1b}[2J".into();
    for line in &expected {
        assert!(code.contains(&line.as_str()), "{line}: {code:?}");
    }
    let n_listed = listed(&mut browser).len();
    assert_eq!(n_listed, HOSTILE.len());
    let fragment = "#file=99999999999&function=-1&type=__proto__&heat=%3Cimg%3E&search=%3Cimg%20src=x%20onerror=hacked=1%3E";
    browser.open(&page.path(), fragment);
    choose(&mut browser, "list", "files");
    assert_eq!(
        browser.evaluate("[typeof window.hacked, document.images.length, document.scripts.length]"),
        json!(["undefined", 0, 2])
    );
    assert_eq!(browser.complaints(), [""; 0]);
    browser.evaluate(
        "(() => { const made = document.createElement('script'); made.textContent = 'window.hacked = 1'; \
         document.body.append(made); return fetch('http://127.0.0.1:9/').catch(() => 1); })()",
    );
    assert_eq!(browser.evaluate("typeof window.hacked"), "undefined");
}

#[test]
fn a_profile_of_memory_has_its_values_beside_each_other() {
    let stacks = |folder: &Path| {
        let file = folder.join("fill.py").display().to_string();
        bytes("pprof", &memory(file.leak()))
    };
    let page = Page::of(&[("fill.py", FILLING)], stacks, &[]);
    let mut browser = page.open();
    // The file is younger than the profile says that it is.
    assert!(text_of(&mut browser, "#problem").contains("changed after the profile"));
    for (idx, (value, head, n_heads)) in (0..).zip([
        ("Objects allocated", "objects", 9),
        ("Bytes allocated", "allocated", 9),
        ("Objects in use", "objects in use", 10),
        ("Bytes in use", "in use", 9),
        ("Bytes in use at the peak", "at peak", 9),
        ("Bytes that were temporary", "temporary", 9),
    ]) {
        choose(&mut browser, "type", value);
        let heads = browser
            .evaluate("[...document.querySelectorAll('#rows th')].map((it) => it.textContent)");
        assert_eq!(heads[1], head);
        let heads = heads.as_array().unwrap();
        assert_eq!(heads.len(), n_heads, "{heads:?}");
        let of_line = |line: u32| FILLED.iter().find(|(it, _)| *it == line).unwrap().1[idx];
        let shown = lines(&mut browser);
        let total = |line: i64| shown.iter().find(|(it, ..)| *it == line).unwrap().1;
        assert_eq!(total(2), [of_line(2), of_line(2), 0, 0], "{value}");
        assert_eq!(total(3), [of_line(3), of_line(3), 0, 0], "{value}");
        assert_eq!(total(4), [of_line(8), 0, 0, 0], "{value}");
        assert_eq!(total(8), [of_line(8), 0, of_line(8), 0], "{value}");
    }
    choose(&mut browser, "type", "Bytes in use");
    let cells = browser.evaluate(
        "[...document.querySelectorAll('tr[data-line=\"3\"] td.part')].map((it) => it.textContent)",
    );
    assert_eq!(cells, json!(["50.0 MiB", "512 KiB", "50.0 MiB", "100"]));
    keep_pictures(&mut browser, "memory");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// For who changes how the page looks: `PYAGENT_KEEP_PICTURES=FOLDER`.
fn keep_pictures(browser: &mut Browser, name: &str) {
    let Some(folder) = std::env::var_os("PYAGENT_KEEP_PICTURES") else {
        return;
    };
    browser.resize(1280, 800);
    for scheme in ["light", "dark"] {
        browser.evaluate(&format!("takeTheme('{scheme}')"));
        browser.drawn();
        let path = Path::new(&folder).join(format!("{name}-{scheme}.png"));
        fs::write(path, browser.picture()).unwrap();
    }
}

#[test]
fn themes_change_colours_and_small_windows_show_everything() {
    let page = Page::of(&[("app.py", SOURCE)], stacks, &[]);
    let mut browser = page.open();
    let colours = "(() => { const of = (selector) => getComputedStyle(document.querySelector(selector)).backgroundColor; \
                   return [of('body'), of('tr[data-line=\"6\"] td.code')].join(); })()";
    browser.prefer("light");
    let light = browser.evaluate(colours);
    browser.prefer("dark");
    let dark = browser.evaluate(colours);
    assert_ne!(light, dark);
    browser.evaluate("document.getElementById('theme').click()");
    assert_eq!(
        (text_of(&mut browser, "#theme"), browser.evaluate(colours)),
        ("Theme: light".into(), light)
    );
    for (width, height) in [(1280, 800), (600, 800), (360, 640)] {
        browser.resize(width, height);
        browser.drawn();
        let page = browser.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.scrollHeight, innerWidth, innerHeight, \
             document.getElementById('rows').clientHeight]",
        );
        assert_eq!(
            (&page[0], &page[1]),
            (&page[2], &page[3]),
            "{width} x {height}"
        );
        assert!(
            page[4].as_f64().unwrap() > 80.0,
            "{width} x {height}: {page}"
        );
    }
    keep_pictures(&mut browser, "lines");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// 200 files of 2,000 lines, each line with samples: more than a page has room for.
#[test]
fn a_large_program_stays_small_and_says_what_is_left_out() {
    let mut stacks = String::new();
    let mut whole = 0;
    let folder = tempfile::tempdir().unwrap();
    for file in 0..200 {
        let path = folder.path().join(format!("m{file}.py"));
        let mut source = String::new();
        for function in 0..20 {
            let _ = writeln!(source, "def f{function}(x):");
            for line in 2..=100 {
                let _ = writeln!(
                    source,
                    "    value_{line} = compute_something(x, {line}, 'of a usual length')"
                );
                let number = function * 100 + line;
                let count = 1 + (file * 7 + function * 3 + line) % 11;
                whole += count;
                let _ = writeln!(stacks, "f{function} ({}:{number}) {count}", path.display());
            }
        }
        fs::write(path, source).unwrap();
    }
    let page = Page::of(&[], |_| stacks.clone().into_bytes(), &[]);
    let n_bytes = fs::metadata(page.path()).unwrap().len();
    println!("{n_bytes} bytes");
    assert!(n_bytes < 5 << 20, "{n_bytes}");
    let mut browser = page.open();
    let said = text_of(&mut browser, "#remarks");
    assert!(
        said.contains("of 4,000 functions are not on this page"),
        "{said}"
    );
    // What is said to be missing and what is shown are all of it.
    let shown = browser.evaluate("data.functions.reduce((sum, it) => sum + it.own[0], 0)");
    let of_lines = browser.evaluate(
        "data.files.reduce((sum, file) => sum + file.amounts[0].python.reduce((a, b) => a + b, 0), 0)",
    );
    assert_eq!(shown, of_lines);
    let shown = shown.as_f64().unwrap();
    assert!(shown > 0.0 && shown < f64::from(whole));
    let missing = format!(
        "{:.1} % of all is their own",
        100.0 * (1.0 - shown / f64::from(whole))
    );
    assert!(said.contains(&missing), "{said}: {missing}");
    let nothing = Page::of(&[], |_| b"[libz.so.1] deflate 3\n".to_vec(), &[]);
    browser.open(&nothing.path(), "");
    assert!(text_of(&mut browser, "#empty").starts_with("No Python function of those"));
    assert_eq!(browser.complaints(), [""; 0]);
}
