//! What the tests push to: the OpenTelemetry Collector, built by its own builder out of Go modules; a server in Python with the
//! code that OpenTelemetry generates for others; a stand-in for Pyroscope and Parca. Made once, kept in the cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    cache, command,
    go::{go, install},
    package, workspace,
};

/// Raise it when the way they are made changes.
const RECIPE: &str = "1";

/// Version of the Collector and of what it is made of.
const VERSION: &str = "v0.162.0";

/// Version of its providers of configuration, which goes with [`VERSION`].
const PROVIDER_VERSION: &str = "v1.68.0";

/// Its part that names pods.
const K8S_ATTRIBUTES: &str =
    "github.com/open-telemetry/opentelemetry-collector-contrib/processor/k8sattributesprocessor";

/// Version of its part that names pods: not each one of the Collector's versions can be had.
const K8S_ATTRIBUTES_VERSION: &str = "v1.1.0";

/// What it is made of: receives OTLP, keeps memory bounded, names pods, sends on and writes files.
const COMPONENTS: [(&str, &[&str]); 3] = [
    (
        "receivers",
        &["go.opentelemetry.io/collector/receiver/otlpreceiver"],
    ),
    (
        "processors",
        &[
            "go.opentelemetry.io/collector/processor/memorylimiterprocessor",
            K8S_ATTRIBUTES,
        ],
    ),
    (
        "exporters",
        &[
            "go.opentelemetry.io/collector/exporter/debugexporter",
            "go.opentelemetry.io/collector/exporter/otlpexporter",
            "github.com/open-telemetry/opentelemetry-collector-contrib/exporter/fileexporter",
        ],
    ),
];

const PROVIDERS: [&str; 3] = ["envprovider", "fileprovider", "yamlprovider"];

/// Name of the program.
const PROGRAM: &str = "otelcol";

/// The stand-in's program, and what it is made of.
const STAND_IN: &str = "standin";
const STAND_IN_SOURCES: [&str; 3] = ["main.go", "go.mod", "go.sum"];

/// The server in Python.
const PACKAGES: [&str; 3] = [
    "opentelemetry-proto==1.45.0",
    "grpcio==1.75.1",
    "grpcio-tools==1.75.1",
];

/// Path of the Collector. `None`, said on standard output, where it cannot be made; in CI that is an error.
pub(crate) fn get() -> Result<Option<PathBuf>> {
    unless_in_ci("the OpenTelemetry Collector", collector())
}

/// Folder of packages for the machine's `python3`: the server in Python. As [`get`].
pub(crate) fn packages() -> Result<Option<PathBuf>> {
    unless_in_ci("OTLP's own generated code", python_packages())
}

/// Path of the stand-in for Pyroscope and Parca, of tests/peers/standin. As [`get`].
pub(crate) fn stand_in() -> Result<Option<PathBuf>> {
    unless_in_ci("the stand-in for Pyroscope and Parca", built_stand_in())
}

/// What was made; `None`, said, where it could not be. In CI that is an error.
pub(crate) fn unless_in_ci<T>(what: &str, made: Result<T>) -> Result<Option<T>> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(error) if env::var("CI").is_ok_and(|ci| ci == "true") => Err(error),
        Err(error) => {
            println!("{what} is left out: {error:#}");
            Ok(None)
        }
    }
}

fn collector() -> Result<PathBuf> {
    let manifest = manifest();
    let folder = cache::get(&cache::Entry {
        name: "collector",
        recipe: &format!("{RECIPE}\n{manifest}"),
        check: &|folder| command::succeeds(command::program(folder.join(PROGRAM)).arg("--version")),
        make: &|folder| make(&manifest, folder),
    })?;
    Ok(folder.join(PROGRAM))
}

/// What the builder is told.
fn manifest() -> String {
    let section = |kind: &str, modules: &[String]| {
        let modules: Vec<String> = modules
            .iter()
            .map(|module| format!("  - gomod: {module}\n"))
            .collect();
        format!("{kind}:\n{}", modules.concat())
    };
    let version = VERSION.trim_start_matches('v');
    let head = format!(
        "dist:\n  name: {PROGRAM}\n  description: for tests\n  version: {version}\n  output_path: ./build\n"
    );
    let components = COMPONENTS.map(|(kind, modules)| {
        let modules: Vec<String> = modules
            .iter()
            .map(|module| match *module {
                K8S_ATTRIBUTES => format!("{module} {K8S_ATTRIBUTES_VERSION}"),
                _ => format!("{module} {VERSION}"),
            })
            .collect();
        section(kind, &modules)
    });
    let providers = PROVIDERS.map(|it| {
        format!("go.opentelemetry.io/collector/confmap/provider/{it} {PROVIDER_VERSION}")
    });
    let providers = section("providers", &providers);
    head + &components.concat() + &providers
}

fn built_stand_in() -> Result<PathBuf> {
    let source = workspace::root().join("tests/peers/standin");
    let sources = STAND_IN_SOURCES.map(|name| fs::read_to_string(source.join(name)));
    let sources: Vec<String> = sources.into_iter().collect::<Result<_, _>>()?;
    let folder = cache::get(&cache::Entry {
        name: "push-stand-in",
        recipe: &format!("{RECIPE}\n{sources:?}"),
        check: &|folder| folder.join(STAND_IN).exists(),
        make: &|folder| {
            let mut build = go(&source)?;
            build
                .args(["build", "-trimpath", "-o"])
                .arg(folder.join(STAND_IN))
                .arg(".")
                // What is written down is what is built.
                .env("GOFLAGS", "-mod=readonly -buildvcs=false");
            command::output(&mut build)?;
            Ok(())
        },
    })?;
    Ok(folder.join(STAND_IN))
}

fn make(manifest: &str, folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let builder = format!("go.opentelemetry.io/collector/cmd/builder@{VERSION}");
    install(&builder, scratch.path(), scratch.path())
        .context("Go cannot get the Collector's builder")?;
    fs::write(scratch.path().join("manifest.yaml"), manifest)?;
    let mut generate = command::program(scratch.path().join("builder"));
    generate
        .current_dir(scratch.path())
        .args(["--config", "manifest.yaml", "--skip-compilation"]);
    // It ends by asking for modules that only tests of its parts need, and that may not be had: the build tells.
    let generated = command::output(&mut generate);
    let sources = scratch.path().join("build");
    if !sources.join("go.mod").exists() {
        generated.context("the Collector's builder")?;
    }
    command::output(go(&sources)?.args(["mod", "tidy", "-e"]))
        .context("Go cannot get what the Collector is made of")?;
    let mut build = go(&sources)?;
    build
        .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
        .arg(folder.join(PROGRAM))
        .arg(".")
        // It also runs in an image that has nothing else.
        .env("CGO_ENABLED", "0");
    command::output(&mut build).context("the Collector cannot be built")?;
    Ok(())
}

fn python_packages() -> Result<PathBuf> {
    package::install(&["python3"], &["python3"])?;
    let question = "import sys; print(sys.executable, sys.version)";
    let python = command::output(command::program("python3").args(["-I", "-c", question]))?;
    let imports = "import grpc; from opentelemetry.proto.collector.profiles.v1development \
                   import profiles_service_pb2";
    cache::get(&cache::Entry {
        name: "otlp-python",
        recipe: &format!("{RECIPE}\n{python}\n{PACKAGES:?}"),
        check: &|folder| {
            let mut python = command::program("python3");
            command::succeeds(python.args(["-c", imports]).env("PYTHONPATH", folder))
        },
        make: &|folder| {
            let mut install = command::program("python3");
            install
                .args(["-m", "pip", "install", "--quiet", "--no-compile"])
                .args(["--disable-pip-version-check", "--root-user-action=ignore"])
                .arg("--target")
                .arg(folder)
                .args(PACKAGES);
            command::output(&mut install).context("pip cannot get OTLP's generated code")?;
            Ok(())
        },
    })
}
