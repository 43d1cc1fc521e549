//! Which service a process is part of: what it declares itself, by the variables that OpenTelemetry's SDKs read
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>), else what its arguments say.
//!
//! A process's environment is full of secrets: nothing is looked at but these two variables.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};

use super::pod::PodLabel;
use crate::ids::Pid;

const SERVICE_NAME: &[u8] = b"OTEL_SERVICE_NAME=";
const RESOURCE_ATTRIBUTES: &[u8] = b"OTEL_RESOURCE_ATTRIBUTES=";

/// Most bytes of an environment that are read: more than the kernel takes by default.
const MAX_ENVIRONMENT_BYTES: u64 = 4 << 20;

/// Most bytes of a variable that are looked at.
const MAX_VARIABLE_BYTES: usize = 16 << 10;

/// Most characters of a name.
const MAX_NAME_CHARS: usize = 255;

/// What a process declares of its service; what it does not is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Declared {
    /// `service.name`.
    pub name: String,
    /// `service.namespace`.
    pub namespace: String,
    /// `service.version`.
    pub version: String,
    /// `deployment.environment.name`.
    pub environment: String,
}

/// What the user says of processes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelOptions {
    /// Name of the service of processes that declare none.
    pub service_name: Option<String>,
    /// The name is that of all, whatever they declare.
    pub is_for_all: bool,
    /// Labels of every process: names and texts. They win over what was found.
    pub labels: Vec<(String, String)>,
    /// Labels and annotations of their pods that processes get as labels.
    pub pod_labels: Vec<PodLabel>,
}

impl Declared {
    /// Reads it; nothing where the environment cannot be read.
    #[must_use]
    pub(super) fn of_process(pid: Pid) -> Self {
        let file = File::open(format!("/proc/{pid}/environ"));
        file.map_or_else(
            |_| Self::default(),
            |file| Self::read(file.take(MAX_ENVIRONMENT_BYTES)),
        )
    }

    /// Reads an environment: variables, each ended by a zero byte.
    fn read(environment: impl std::io::Read) -> Self {
        let mut declared = Self::default();
        let mut name = String::new();
        let mut environment = BufReader::new(environment);
        let mut variable = Vec::new();
        loop {
            variable.clear();
            match environment.read_until(0, &mut variable) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            // The last one may be cut.
            let Some(variable) = variable.strip_suffix(&[0]) else {
                break;
            };
            if variable.len() > MAX_VARIABLE_BYTES {
                continue;
            }
            if let Some(value) = variable.strip_prefix(SERVICE_NAME) {
                name = shortened(&String::from_utf8_lossy(value));
            } else if let Some(value) = variable.strip_prefix(RESOURCE_ATTRIBUTES) {
                declared = Self::of_attributes(value).unwrap_or_default();
            }
        }
        if !name.is_empty() {
            declared.name = name;
        }
        declared
    }

    /// Out of `key=value,key=value`, values percent-encoded. `None`: it is not that, and then all of it counts for nothing.
    fn of_attributes(value: &[u8]) -> Option<Self> {
        let mut declared = Self::default();
        let mut old_environment = String::new();
        for pair in value.split(|byte| *byte == b',') {
            let pair = pair.trim_ascii();
            if pair.is_empty() {
                continue;
            }
            let middle = pair.iter().position(|byte| *byte == b'=')?;
            let value = shortened(&decoded(pair[middle + 1..].trim_ascii())?);
            match pair[..middle].trim_ascii() {
                b"service.name" => declared.name = value,
                b"service.namespace" => declared.namespace = value,
                b"service.version" => declared.version = value,
                b"deployment.environment.name" => declared.environment = value,
                // Its name until 2024.
                b"deployment.environment" => old_environment = value,
                _ => {}
            }
        }
        if declared.environment.is_empty() {
            declared.environment = old_environment;
        }
        Some(declared)
    }
}

/// Undoes percent-encoding; `None`: it is none.
fn decoded(text: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn shortened(text: &str) -> String {
    text.trim().chars().take(MAX_NAME_CHARS).collect()
}

/// The name of the service that arguments tell: that of the application which a server of applications runs, else that of the
/// script or module. `None`: they tell nothing, as those of `python -c`.
#[must_use]
pub fn name_of_arguments(arguments: &[String]) -> Option<String> {
    let (first, rest) = arguments.split_first()?;
    if let Some(name) = name_of_title(first) {
        return Some(shortened(&name));
    }
    let name = if is_interpreter(first) {
        let (started, rest) = started(rest)?;
        match started {
            Started::Module(module) => {
                let package = module.strip_suffix(".__main__").unwrap_or(module);
                name_of_tool(package, rest).unwrap_or_else(|| package.to_owned())
            }
            Started::Script(path) => {
                name_of_tool(stem(path), rest).unwrap_or_else(|| name_of_script(path))
            }
        }
    } else {
        name_of_tool(stem(first), rest).unwrap_or_else(|| name_of_script(first))
    };
    Some(shortened(&name)).filter(|name| !name.is_empty())
}

/// What a process that renames itself writes over its arguments: `gunicorn: worker [shop.wsgi:app]`.
fn name_of_title(title: &str) -> Option<String> {
    let name = title.strip_prefix("gunicorn: ")?;
    let (_, name) = name.split_once('[')?;
    let (name, _) = name.split_once(']')?;
    Some(application(name))
}

fn is_interpreter(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or_default();
    ["python", "pypy"]
        .iter()
        .any(|it| name.to_ascii_lowercase().starts_with(it))
}

/// What an interpreter is told to run.
enum Started<'a> {
    Module(&'a str),
    Script(&'a str),
}

/// What an interpreter runs, and the arguments of that.
fn started(arguments: &[String]) -> Option<(Started<'_>, &[String])> {
    let mut idx = 0;
    while let Some(argument) = arguments.get(idx) {
        idx += 1;
        let rest = arguments.get(idx..).unwrap_or_default();
        let Some(options) = argument.strip_prefix('-') else {
            return Some((Started::Script(argument), rest));
        };
        if options.is_empty() {
            // Standard input.
            return None;
        }
        if options.starts_with('-') {
            idx += usize::from(options == "-check-hash-based-pycs");
            continue;
        }
        // Several letters can stand behind one dash; the first that takes a value takes the rest, or the next argument.
        let Some(letter) = options.find(['m', 'c', 'W', 'X']) else {
            continue;
        };
        let (letter, value) = options.split_at(letter).1.split_at(1);
        match letter {
            "m" if value.is_empty() => {
                let (module, rest) = rest.split_first()?;
                return Some((Started::Module(module), rest));
            }
            "m" => return Some((Started::Module(value), rest)),
            "c" => return None,
            _ => idx += usize::from(value.is_empty()),
        }
    }
    None
}

/// The name of a file without its folder and ending.
fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once('.') {
        Some((stem, "py" | "pyc" | "pyz" | "pyw")) if !stem.is_empty() => stem,
        _ => name,
    }
}

/// The script's own name, or the folder's where every script is called so.
fn name_of_script(path: &str) -> String {
    let stem = stem(path);
    let folder = path.rsplit('/').nth(1).unwrap_or_default();
    if matches!(stem, "__main__" | "manage") && !matches!(folder, "" | "." | "..") {
        folder.to_owned()
    } else {
        stem.to_owned()
    }
}

/// What programs that run others are asked to run; `None` for all other programs.
fn name_of_tool(tool: &str, arguments: &[String]) -> Option<String> {
    match tool {
        "gunicorn" => {
            let name = option(arguments, &["-n", "--name"]);
            let name = name.map(str::to_owned);
            Some(
                name.or_else(|| positional(arguments))
                    .unwrap_or_else(|| tool.to_owned()),
            )
        }
        "uvicorn" | "hypercorn" | "daphne" | "granian" | "waitress-serve" | "waitress" => {
            Some(positional(arguments).unwrap_or_else(|| tool.to_owned()))
        }
        "celery" => {
            let app = option(arguments, &["-A", "--app"]);
            Some(app.map_or_else(|| tool.to_owned(), application))
        }
        "flask" => {
            let app = option(arguments, &["-A", "--app"]);
            Some(app.map_or_else(|| tool.to_owned(), |app| application(stem(app))))
        }
        "airflow" => {
            let words = arguments.iter().map(String::as_str);
            let mut words = words.filter(|it| is_identifier(&it.replace('-', "_")));
            match (words.next(), words.next()) {
                // `airflow celery worker`, `airflow tasks run`.
                (Some("tasks"), _) => Some("airflow-task".to_owned()),
                (Some("celery"), Some(command)) | (Some(command), _) => {
                    Some(format!("airflow-{command}"))
                }
                (None, _) => Some(tool.to_owned()),
            }
        }
        "streamlit" => {
            let mut scripts = arguments
                .iter()
                .filter(|it| it.strip_suffix(".py").is_some());
            Some(
                scripts
                    .next()
                    .map_or_else(|| tool.to_owned(), |it| name_of_script(it)),
            )
        }
        _ => None,
    }
}

/// The value of an option: `-A x`, `-Ax`, `--app x`, `--app=x`.
fn option<'a>(arguments: &'a [String], names: &[&str]) -> Option<&'a str> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        for name in names {
            match argument.strip_prefix(name) {
                Some("") => return arguments.next().map(String::as_str),
                Some(value) if name.starts_with("--") => {
                    if let Some(value) = value.strip_prefix('=') {
                        return Some(value);
                    }
                }
                Some(value) => return Some(value),
                None => {}
            }
        }
    }
    None
}

/// The application among the arguments of a server: `shop.wsgi:app`, else the first `shop.wsgi` that is no option's value.
fn positional(arguments: &[String]) -> Option<String> {
    let is_application = |it: &&String| {
        let (module, object) = it.split_once(':').unwrap_or_default();
        // `localhost:8000` is none, nor `app:8000`.
        let object = object.split('(').next().unwrap_or_default();
        is_dotted(module) && is_dotted(object)
    };
    if let Some(found) = arguments.iter().find(is_application) {
        return Some(application(found));
    }
    let mut before = "";
    for argument in arguments {
        let is_value = before.starts_with('-') && !before.contains('=');
        if !is_value && is_dotted(argument) {
            return Some(application(argument));
        }
        before = argument;
    }
    None
}

/// What an application is called by its import path: the package of `shop.wsgi:app`.
fn application(path: &str) -> String {
    let module = path.split(':').next().unwrap_or_default();
    let mut parts = module.split('.').filter(|part| !part.is_empty());
    match (parts.next(), parts.next()) {
        // A folder of sources, not their name.
        (Some("src"), Some(package)) | (Some(package), _) => package.to_owned(),
        (None, _) => module.to_owned(),
    }
}

/// Names joined by dots.
fn is_dotted(text: &str) -> bool {
    text.split('.').all(is_identifier)
}

fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars
        .next()
        .is_some_and(|it| it.is_alphabetic() || it == '_')
        && chars.all(|it| it.is_alphanumeric() || it == '_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A process that renames itself has one argument, blanks and all.
    fn name(command: &str) -> Option<String> {
        let mut arguments: Vec<String> = command.split(' ').map(str::to_owned).collect();
        if arguments[0].ends_with(':') {
            arguments = vec![command.to_owned()];
        }
        name_of_arguments(&arguments)
    }

    #[test]
    fn arguments_tell_the_application() {
        for (command, expected) in [
            ("/usr/bin/python3 /usr/bin/gunicorn shop.wsgi:app", "shop"),
            (
                "python /venv/bin/gunicorn -w 4 --bind 0.0.0.0:8000 shop.wsgi:app",
                "shop",
            ),
            (
                "python /venv/bin/gunicorn --bind localhost:8000 shop.wsgi",
                "shop",
            ),
            (
                "python -m gunicorn -n front shop.wsgi:create_app()",
                "front",
            ),
            ("python -m gunicorn --name=front shop.wsgi", "front"),
            ("gunicorn: master [shop.wsgi:app]", "shop"),
            ("gunicorn: worker [front]", "front"),
            (
                "python3.12 /usr/local/bin/uvicorn api.main:app --port 80",
                "api",
            ),
            ("python -m uvicorn --host 0.0.0.0 src.api.main:app", "api"),
            ("python /venv/bin/uvicorn", "uvicorn"),
            ("python /venv/bin/celery -A proj worker -l info", "proj"),
            ("python -m celery --app=proj.celery:app beat", "proj"),
            ("python -m celery -Aproj worker", "proj"),
            ("python /venv/bin/celery worker", "celery"),
            (
                "/usr/bin/python3 /usr/bin/airflow scheduler",
                "airflow-scheduler",
            ),
            (
                "python /usr/bin/airflow celery worker -q a",
                "airflow-worker",
            ),
            (
                "python /usr/bin/airflow dag-processor",
                "airflow-dag-processor",
            ),
            (
                "python /usr/bin/airflow tasks run dag task now",
                "airflow-task",
            ),
            ("python -m flask --app shop/web.py run", "web"),
            ("python /venv/bin/streamlit run /srv/board.py", "board"),
            ("python -m http.server 8000", "http.server"),
            ("python -um http.server", "http.server"),
            ("python -mhttp.server", "http.server"),
            ("python -m pkg.__main__", "pkg"),
            ("python /srv/app.py --password secret", "app"),
            ("python -u -X dev -W ignore -Xutf8 app.py", "app"),
            ("python --check-hash-based-pycs always job.py", "job"),
            ("python /srv/shop/manage.py runserver", "shop"),
            ("python manage.py runserver", "manage"),
            ("python /srv/tool/__main__.py", "tool"),
            ("/srv/packed", "packed"),
            ("/opt/job.pyz x", "job"),
        ] {
            assert_eq!(name(command).as_deref(), Some(expected), "{command}");
        }
        for command in [
            "python",
            "python -c import(x)",
            "python -",
            "python -Bc x",
            "python -m",
        ] {
            assert_eq!(name(command), None, "{command}");
        }
    }

    fn read(environment: &str) -> Declared {
        Declared::read(environment.replace('|', "\0").as_bytes())
    }

    #[test]
    fn the_two_variables_are_read_as_opentelemetry_reads_them() {
        let both = "PATH=/bin|OTEL_RESOURCE_ATTRIBUTES=service.name=a,service.version=1%2C2 , team=x,\
                    deployment.environment=test,service.namespace=%D0%B0|OTEL_SERVICE_NAME=shop|";
        let expected = Declared {
            name: "shop".to_owned(),
            namespace: "а".to_owned(),
            version: "1,2".to_owned(),
            environment: "test".to_owned(),
        };
        assert_eq!(read(both), expected);
        assert_eq!(
            read("OTEL_SERVICE_NAME=|OTEL_RESOURCE_ATTRIBUTES=service.name=a|").name,
            "a"
        );
        assert_eq!(read("XOTEL_SERVICE_NAME=a|"), Declared::default());
        // Cut, and not encoded as it should be.
        assert_eq!(read("OTEL_SERVICE_NAME=cut"), Declared::default());
        for wrong in [
            "service.name=a,b",
            "service.name=%",
            "service.name=%zz",
            "service.name=%ff",
        ] {
            let environment = format!("OTEL_RESOURCE_ATTRIBUTES={wrong}|");
            assert_eq!(read(&environment), Declared::default(), "{wrong}");
        }
        let long = format!("OTEL_SERVICE_NAME={}|", "я".repeat(1000));
        assert_eq!(read(&long).name.chars().count(), MAX_NAME_CHARS);
    }

    proptest! {
        #[test]
        fn whatever_a_process_says_is_read_without_harm(
            environment in prop::collection::vec(any::<u8>(), 0..300),
            arguments in prop::collection::vec("(-[a-zA-Z]{0,3}|[a-z:./\\[(]{0,12}|gunicorn: |python|celery)", 0..6),
        ) {
            let mut bytes = RESOURCE_ATTRIBUTES.to_vec();
            bytes.extend(environment);
            bytes.push(0);
            Declared::read(&*bytes);
            let _ = name_of_arguments(&arguments);
        }
    }
}
