//! The terminal: taken, drawn on, listened to, and given back as it was, whatever happens.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Seek as _, SeekFrom, Stdout, Write as _};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyEvent};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use rustix::fs::MemfdFlags;
use tokio::sync::mpsc;

use crate::view::top::{Top, Ui, draw};

/// Whether the screen was given back is looked at this often by who waits for keys.
const KEY_INTERVAL: Duration = Duration::from_millis(100);

/// Of what was said on standard error meanwhile so much is shown at the end.
const MAX_SAID: u64 = 64 << 10;

/// What the terminal says.
pub(super) enum Input {
    Key(KeyEvent),
    /// It has another size.
    Resized,
    /// It is not there any more.
    Gone,
}

/// A terminal that is drawn on; given back when dropped.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    events: mpsc::Receiver<Event>,
    taken: Arc<Taken>,
}

/// What has to be given back, once.
struct Taken {
    is_closed: AtomicBool,
    said: Mutex<Option<Said>>,
}

/// Standard error while the screen is drawn on: a file in memory, since lines in between would be drawn over.
struct Said {
    stderr: OwnedFd,
    file: File,
}

impl Screen {
    /// Takes the terminal of standard output.
    pub(super) fn open() -> Result<Self> {
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()));
        let terminal = terminal.context("cannot draw on the terminal")?;
        let taken = Arc::new(Taken {
            is_closed: AtomicBool::new(false),
            said: Mutex::new(None),
        });
        let (sender, events) = mpsc::channel(64);
        let screen = Self {
            terminal,
            events,
            taken: taken.clone(),
        };
        // From here on it is given back when something fails.
        enable_raw_mode().context("there is no terminal to read keys from")?;
        execute!(io::stdout(), EnterAlternateScreen).context("cannot draw on the terminal")?;
        taken.begin_saying();
        let of_panic = taken.clone();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            of_panic.give_back();
            hook(info);
        }));
        std::thread::spawn(move || read_events(&sender, &taken));
        Ok(screen)
    }

    /// Draws.
    pub(super) fn draw(&mut self, top: &Top, ui: &mut Ui) -> Result<()> {
        if self.is_closed() {
            return Ok(());
        }
        self.terminal
            .draw(|frame| draw(frame, top, ui))
            .context("cannot draw on the terminal")?;
        Ok(())
    }

    /// What the terminal says next.
    pub(super) async fn input(&mut self) -> Result<Input> {
        loop {
            match self.events.recv().await {
                None => return Ok(Input::Gone),
                Some(Event::Key(key)) => return Ok(Input::Key(key)),
                Some(Event::Resize(..)) => return Ok(Input::Resized),
                Some(Event::FocusGained | Event::FocusLost | Event::Mouse(_) | Event::Paste(_)) => {
                }
            }
        }
    }

    /// It was given back already, since a thread panicked.
    pub(super) fn is_closed(&self) -> bool {
        self.taken.is_closed.load(Ordering::Relaxed)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.taken.give_back();
    }
}

fn read_events(sender: &mpsc::Sender<Event>, taken: &Taken) {
    while !taken.is_closed.load(Ordering::Relaxed) {
        match event::poll(KEY_INTERVAL) {
            Ok(false) => {}
            Ok(true) => match event::read() {
                Ok(event) => {
                    if sender.blocking_send(event).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            },
            Err(_) => return,
        }
    }
}

impl Taken {
    fn begin_saying(&self) {
        if io::stderr().is_terminal()
            && let Ok(said) = Said::begin()
        {
            *self.said() = Some(said);
        }
    }

    fn said(&self) -> std::sync::MutexGuard<'_, Option<Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self) {
        if self.is_closed.swap(true, Ordering::Relaxed) {
            return;
        }
        // A terminal that has gone needs nothing back.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
        if let Some(said) = self.said().take() {
            said.end();
        }
    }
}

impl Said {
    fn begin() -> io::Result<Self> {
        let stderr = rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3)?;
        let file = rustix::fs::memfd_create("pyagent-stderr", MemfdFlags::CLOEXEC)?;
        rustix::stdio::dup2_stderr(&file)?;
        Ok(Self {
            stderr,
            file: file.into(),
        })
    }

    /// Standard error is what it was, and gets the end of what was said.
    fn end(mut self) {
        let _ = rustix::stdio::dup2_stderr(&self.stderr);
        let mut text = Vec::new();
        let length = self.file.metadata().map_or(0, |it| it.len());
        let start = SeekFrom::Start(length.saturating_sub(MAX_SAID));
        if self.file.seek(start).is_ok() && self.file.read_to_end(&mut text).is_ok() {
            let _ = io::stderr().write_all(&text);
        }
    }
}
