//! What `repr` gives by its name: functions, methods, generators, modules, code.
//!
//! Fields are those of `Include/cpython/{methodobject,classobject,genobject}.h` and `Objects/moduleobject.c`, the same from 3.6
//! to 3.15 where [`super::ObjectLayout`] says nothing else.

use super::types::{Kind, MAX_NAME_BYTES, Named, TypeFacts, c_text};
use super::{Out, Unreadable, Values, read_word};
use crate::ids::Address;
use crate::process::memory::ReadMemory;
use crate::python::thread_name::TYPE_BASICSIZE;

/// Most characters of a path.
const MAX_PATH_CHARS: usize = 1024;

impl<M: ReadMemory> Values<'_, M> {
    /// One of these.
    pub(super) fn named(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        facts: &TypeFacts,
        named: Named,
    ) -> Result<(), Unreadable> {
        match named {
            Named::Function => {
                let called = self.qualname(object)?;
                out.push(&format!("<function {called} at {object}>"));
            }
            Named::BuiltinFunction => {
                let text = self.builtin_function(object)?;
                out.push(&text);
            }
            Named::Method => {
                let function = Address(self.field(object, 0)?);
                let of = Address(self.field(object, 8)?);
                let called = match self.facts(function)?.kind {
                    Kind::Named(Named::Function) => self.qualname(function)?,
                    Kind::Named(Named::BuiltinFunction) => self.method_name(function)?,
                    _ => "?".to_owned(),
                };
                out.push(&format!("<bound method {called} of "));
                if !out.is_full {
                    self.within(out, path, of)?;
                }
                out.close(">");
            }
            Named::Generator => {
                let called = self.field(object, self.layout.generator_qualname)?;
                let called = self.name(Address(called))?;
                out.push(&format!("<{} object {called} at {object}>", facts.name));
            }
            Named::Module => {
                let namespace = Address(self.field(object, 0)?);
                self.module(out, path, namespace)?;
            }
            Named::Code => {
                let [name, file, line] = self.layout.code.map(|offset| object.add(offset));
                let name = self.name(Address(read_word(&self.memory, name)?))?;
                let file = Address(read_word(&self.memory, file)?);
                let file = self.layout.text(&self.memory, file, MAX_PATH_CHARS)?;
                let line = self.memory.read_u32(line)?.cast_signed();
                out.push(&format!(
                    "<code object {name} at {object}, file \"{file}\", line {line}>"
                ));
            }
            Named::Lock | Named::ReentrantLock => {
                let text = self.lock(object, &facts.name, named == Named::ReentrantLock)?;
                out.push(&text);
            }
            // Up to 3.9 it does not say of what.
            Named::Wrapper if self.layout.minor < 10 => {
                out.push(&format!("<{} object at {object}>", facts.name));
            }
            Named::Wrapper => {
                let of = Address(self.field(object, 0)?);
                out.push(&format!("<{}(", facts.name));
                if !out.is_full {
                    self.within(out, path, of)?;
                }
                out.close(")>");
            }
        }
        Ok(())
    }

    /// `lockobject` and `rlockobject` of `Modules/_threadmodule.c`.
    fn lock(&self, object: Address, name: &str, is_reentrant: bool) -> Result<String, Unreadable> {
        // Newer ones begin with a `PyMutex`, its lowest bit set while it is held: of 3.14 on, and of releases of 3.13. Others
        // begin with a pointer, and have their weak references behind it too.
        let with_pointer = self.layout.header + if is_reentrant { 32 } else { 24 };
        let class = object.add(self.layout.header - 8);
        let class = Address(read_word(&self.memory, class)?);
        let is_mutex = self.field(class, TYPE_BASICSIZE)? < with_pointer;
        let is_held = self.field(object, 0)? & 1 == 1;
        let state = |is_held: bool| if is_held { "locked" } else { "unlocked" };
        if !is_reentrant {
            let is_held = if is_mutex {
                is_held
            } else {
                self.field(object, 16)? & 0xff != 0
            };
            return Ok(format!("<{} {name} object at {object}>", state(is_held)));
        }
        let owner = self.field(object, 8)?.cast_signed();
        let level = self.field(object, 16)?;
        // A mutex counts how often it was taken again.
        let count = match (is_mutex, is_held) {
            (false, _) => level,
            (true, true) => level.wrapping_add(1),
            (true, false) => 0,
        };
        let state = state(count != 0);
        Ok(format!(
            "<{state} {name} object owner={owner} count={count} at {object}>"
        ))
    }

    /// A str that is a name.
    fn name(&mut self, text: Address) -> Result<String, Unreadable> {
        if self.facts(text)?.kind != Kind::Str {
            return Err(Unreadable);
        }
        self.layout.text(&self.memory, text, MAX_NAME_BYTES)
    }

    /// Of a function.
    fn qualname(&mut self, function: Address) -> Result<String, Unreadable> {
        let text = self.field(function, self.layout.function_qualname)?;
        self.name(Address(text))
    }

    /// `m_ml->ml_name` of a function in C.
    fn method_name(&mut self, function: Address) -> Result<String, Unreadable> {
        let definition = Address(self.field(function, 0)?);
        let name = Address(read_word(&self.memory, definition)?);
        c_text(&self.memory, name)
    }

    fn builtin_function(&mut self, object: Address) -> Result<String, Unreadable> {
        let called = self.method_name(object)?;
        let of = Address(self.field(object, 8)?);
        if !of.is_null() {
            let facts = self.facts(of)?;
            if facts.kind != Kind::Named(Named::Module) {
                let of_type = &facts.c_name;
                return Ok(format!(
                    "<built-in method {called} of {of_type} object at {of}>"
                ));
            }
        }
        Ok(format!("<built-in function {called}>"))
    }

    /// As `importlib._bootstrap._module_repr` has it.
    fn module(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        namespace: Address,
    ) -> Result<(), Unreadable> {
        if namespace.is_null() {
            out.push("<module '?'>");
            return Ok(());
        }
        let names = ["__name__", "__file__", "__loader__", "__spec__"];
        let mut found = self.find_in_dict(namespace, names)?;
        for it in &mut found {
            *it = self.unless_none(*it)?;
        }
        let [mut name, mut file, mut loader, spec] = found;
        let mut by = self.loader_name(loader)?;
        let own_loaders = ["BuiltinImporter", "FrozenImporter", "_NamespaceLoader"];
        // Up to 3.9 these say themselves what they loaded, and up to 3.11 where nothing else does.
        let says_itself = own_loaders.contains(&&*by)
            && match self.layout.minor {
                ..10 => true,
                10 | 11 => spec.is_none(),
                12.. => false,
            };
        let mut origin = None;
        if let Some(spec) = spec.filter(|_| !says_itself) {
            let names = ["name", "loader", "origin", "_set_fileattr"];
            let [called, of_spec, from, has_location] = self.attributes(spec, names)?;
            name = called.or(name);
            loader = self.unless_none(of_spec)?;
            by = self.loader_name(loader)?;
            origin = self.unless_none(from)?;
            let has_location = match has_location {
                Some(has_location) => self.int(has_location)? != "0",
                None => false,
            };
            file = origin.filter(|_| has_location);
        }
        out.push("<module ");
        match name {
            Some(name) => self.within(out, path, name)?,
            None => out.push("'?'"),
        }
        match (&*by, file, origin, loader) {
            ("BuiltinImporter", ..) if says_itself => out.push(" (built-in)"),
            ("FrozenImporter", ..) if says_itself => out.push(" (frozen)"),
            (..) if says_itself => out.push(" (namespace)"),
            (_, Some(file), ..) => {
                out.push(" from ");
                if !out.is_full {
                    self.within(out, path, file)?;
                }
            }
            (_, None, Some(origin), _) => {
                let origin = self.layout.text(&self.memory, origin, MAX_PATH_CHARS)?;
                out.push(&format!(" ({origin})"));
            }
            ("NamespaceLoader", None, None, Some(loader)) if self.layout.minor >= 12 => {
                out.push(" (namespace)");
                self.namespace_path(out, path, loader)?;
            }
            (_, None, None, Some(loader)) => {
                out.push(" (");
                if !out.is_full {
                    self.within(out, path, loader)?;
                }
                out.push(")");
            }
            (_, None, None, None) => {}
        }
        out.close(">");
        Ok(())
    }

    /// ` from [...]`: the folders of a package without a file.
    fn namespace_path(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        loader: Address,
    ) -> Result<(), Unreadable> {
        let [Some(folders)] = self.attributes(loader, ["_path"])? else {
            return Ok(());
        };
        let [Some(folders)] = self.attributes(folders, ["_path"])? else {
            return Ok(());
        };
        if self.facts(folders)?.kind == Kind::List {
            out.push(" from ");
            if !out.is_full {
                self.within(out, path, folders)?;
            }
        }
        Ok(())
    }

    /// The class of a loader, or that class itself, without its module.
    fn loader_name(&mut self, loader: Option<Address>) -> Result<String, Unreadable> {
        let Some(loader) = loader else {
            return Ok(String::new());
        };
        let mut facts = self.facts(loader)?;
        if facts.kind == Kind::Type {
            facts = self.facts_of_type(loader)?;
        }
        Ok(facts.own_name().to_owned())
    }

    fn unless_none(&mut self, object: Option<Address>) -> Result<Option<Address>, Unreadable> {
        match object {
            Some(object) if self.facts(object)?.kind == Kind::None => Ok(None),
            object => Ok(object),
        }
    }
}
