//! Tools and images that are dear to make, kept outside of the checkout and keyed by how they are made.
//!
//! An entry is made in a temporary folder and renamed, so that what lies under its name is whole; it is
//! checked before each use and made anew when the check fails.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::timing;

/// What is made, how, and how one sees that it is whole.
pub(crate) struct Entry<'a> {
    /// First part of the folder's name, for people.
    pub(crate) name: &'a str,
    /// Everything that the result depends on. Another recipe is another entry.
    pub(crate) recipe: &'a str,
    /// Whether the entry in this folder works.
    pub(crate) check: &'a dyn Fn(&Path) -> bool,
    /// Makes the entry in this folder, which is empty. It is renamed afterwards.
    pub(crate) make: &'a dyn Fn(&Path) -> Result<()>,
}

/// Folder of the caches: `$PYAGENT_CACHE`, else `pyagent` in the user's cache folder.
pub(crate) fn root() -> Result<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let root = set("PYAGENT_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("pyagent")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/pyagent")))
        .context("no place for a cache: set PYAGENT_CACHE to a folder")?;
    std::path::absolute(&root).with_context(|| format!("{}", root.display()))
}

/// Folder of `entry` if it was made before and works.
pub(crate) fn find(entry: &Entry<'_>) -> Result<Option<PathBuf>> {
    let folder = root()?.join(format!("{}-{}", entry.name, key(entry.recipe)));
    Ok((entry.check)(&folder).then_some(folder))
}

/// Folder of `entry`; makes it if it is not there or does not work.
pub(crate) fn get(entry: &Entry<'_>) -> Result<PathBuf> {
    get_in(&root()?, entry)
}

fn get_in(root: &Path, entry: &Entry<'_>) -> Result<PathBuf> {
    let folder_name = format!("{}-{}", entry.name, key(entry.recipe));
    let folder = root.join(&folder_name);
    if (entry.check)(&folder) {
        return Ok(folder);
    }
    fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    // One maker at a time; who waited finds the work done. The lock goes with its file handle.
    let lock_path = root.join(format!(".{folder_name}.lock"));
    let lock = fs::File::create(&lock_path).with_context(|| format!("{}", lock_path.display()))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if (entry.check)(&folder) {
        return Ok(folder);
    }
    timing::timed(
        &format!("making {folder_name} in {}", root.display()),
        || {
            let temporary = tempfile::Builder::new()
                .prefix(".making-")
                .tempdir_in(root)?;
            let made = temporary.path().join("entry");
            fs::create_dir(&made)?;
            (entry.make)(&made)?;
            ensure!(
                (entry.check)(&made),
                "{} was made, but does not work",
                entry.name
            );
            if folder.exists() {
                fs::remove_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
            }
            fs::rename(&made, &folder).with_context(|| format!("{}", folder.display()))
        },
    )?;
    if !(entry.check)(&folder) {
        bail!(
            "{} does not work after it was moved to {}",
            entry.name,
            folder.display()
        );
    }
    Ok(folder)
}

/// First 12 hexadecimal digits of the recipe's SHA-256.
fn key(recipe: &str) -> String {
    let mut digits = format!("{:x}", Sha256::digest(recipe));
    digits.truncate(12);
    digits
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn is_whole(folder: &Path) -> bool {
        fs::read(folder.join("file")).is_ok_and(|bytes| bytes == b"whole")
    }

    fn write_whole(folder: &Path) -> Result<()> {
        Ok(fs::write(folder.join("file"), "whole")?)
    }

    #[test]
    fn an_entry_is_made_once_and_made_anew_when_its_check_fails() {
        let root = tempfile::tempdir().unwrap();
        let n_made = Cell::new(0);
        let make = |folder: &Path| {
            n_made.set(n_made.get() + 1);
            write_whole(folder)
        };
        let entry = Entry {
            name: "tool",
            recipe: "v1",
            check: &is_whole,
            make: &make,
        };
        let folder = get_in(root.path(), &entry).unwrap();
        assert_eq!(get_in(root.path(), &entry).unwrap(), folder);
        assert_eq!(n_made.get(), 1);
        fs::write(folder.join("file"), "damaged").unwrap();
        get_in(root.path(), &entry).unwrap();
        assert_eq!(n_made.get(), 2);
        assert!(is_whole(&folder));
    }

    #[test]
    fn another_recipe_is_another_entry() {
        let root = tempfile::tempdir().unwrap();
        let entry = |recipe| Entry {
            name: "tool",
            recipe,
            check: &is_whole,
            make: &write_whole,
        };
        assert_ne!(
            get_in(root.path(), &entry("v1")).unwrap(),
            get_in(root.path(), &entry("v2")).unwrap()
        );
    }

    #[test]
    fn what_could_not_be_made_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let make = |folder: &Path| Ok(fs::write(folder.join("file"), "half")?);
        let entry = Entry {
            name: "tool",
            recipe: "v1",
            check: &is_whole,
            make: &make,
        };
        get_in(root.path(), &entry).unwrap_err();
        let left: Vec<_> = fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(
            left.iter()
                .all(|name| name.to_string_lossy().ends_with(".lock")),
            "{left:?}"
        );
    }
}
