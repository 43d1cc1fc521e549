//! `cargo xtask interpreters`: CPython builds that few machines have, for the tests. From Debian's packages where
//! there are some (`packages`), else compiled from Debian's source (`source`). Each is kept in the cache and can be
//! used without the network afterwards.

mod packages;
mod source;

use std::{env, ffi::OsString, fs, path::PathBuf};

use anyhow::Result;

use crate::command;

/// What `cargo xtask interpreters` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also what takes a quarter of an hour to make: clang with link-time optimization and BOLT.
    #[arg(long)]
    all: bool,
}

/// Folders with an interpreter in each file, joined as in a search path; makes what is missing. Where something cannot
/// be made this says why and goes on without it; in CI it is an error.
pub(crate) fn get() -> Result<OsString> {
    folders(false)
}

fn folders(all: bool) -> Result<OsString> {
    let mut folders = Vec::new();
    for made in [packages::get(), source::get(all)] {
        match made {
            Ok(made) => folders.extend(made),
            Err(error) if env::var("CI").is_ok_and(|ci| ci == "true") => return Err(error),
            Err(error) => println!("interpreters that are left out: {error:#}"),
        }
    }
    Ok(env::join_paths(folders)?)
}

/// Lists what was found.
pub(crate) fn list(args: &Args) -> Result<()> {
    let question = "import sys; print(sys.version.replace(chr(10), ' '))";
    for folder in env::split_paths(&folders(args.all)?) {
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        paths.sort();
        for path in paths {
            let mut ask = command::program(&path);
            let version = command::output(ask.args(["-I", "-S", "-c", question]))
                .unwrap_or_else(|error| format!("does not start: {error:#}"));
            println!("{}: {}", path.display(), version.trim());
        }
    }
    Ok(())
}
