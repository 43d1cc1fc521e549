//! The programs that all tools run: tests/workloads/toolbox.

/// A program, and what of it is compared.
#[derive(Debug)]
pub(super) struct Program {
    /// As it is named on the command line, and its files in the scratch folder.
    pub(super) name: &'static str,
    /// As it is named in the document.
    pub(super) title: &'static str,
    /// What it does, in a sentence.
    pub(super) description: &'static str,
    pub(super) script: &'static str,
    /// The function that shares are of.
    pub(super) root: &'static str,
    /// Its argument.
    pub(super) size: u32,
    /// The same for tools that trace, which make it many times slower.
    pub(super) small: u32,
    /// Whether its work grows with the square of its argument.
    pub(super) is_square: bool,
    /// Whether it serves, and has to be asked.
    pub(super) needs_load: bool,
    /// Functions that are too short to be timed by the program, so that there is only what tools say.
    pub(super) untimed: &'static [&'static str],
    /// The function whose lines are shown.
    pub(super) shown: &'static str,
    /// What line_profiler prints above it.
    pub(super) shown_as: &'static str,
    /// What finds the costs of the lines of a loop in that function.
    pub(super) line_costs: Option<&'static str>,
}

impl Program {
    /// The argument for so many percent of the work of `size`.
    pub(super) fn scaled(&self, size: u32, percent: u32) -> u32 {
        let factor = f64::from(percent) / 100.0;
        // A picture has as many points as its width, squared.
        let factor = if self.is_square {
            factor.sqrt()
        } else {
            factor
        };
        (f64::from(size) * factor).round().max(1.0) as u32
    }
}

/// Their names.
pub(super) const NAMES: [&str; 3] = ["julia", "nbody", "web"];

pub(super) const PROGRAMS: &[Program] = &[
    Program {
        name: NAMES[0],
        title: "Julia set",
        description: "One function with a hot loop over complex numbers, which calls `abs` some ten million times, and \
                      three lighter ones.",
        script: "julia.py",
        root: "calc_pure_python",
        size: 700,
        small: 240,
        is_square: true,
        needs_load: false,
        untimed: &[],
        shown: "calculate_z_serial_purepython",
        shown_as: "Function: calculate_z_serial_purepython",
        line_costs: Some("doubled.py"),
    },
    Program {
        name: NAMES[1],
        title: "N-body",
        description: "Two paths that call one small function, `distance`, once for each pair of bodies: a tracer sees every \
                      call of it.",
        script: "nbody.py",
        root: "simulate",
        size: 9000,
        small: 1200,
        is_square: false,
        needs_load: false,
        untimed: &["distance", "accelerate", "potential_energy"],
        shown: "advance",
        shown_as: "Function: advance",
        line_costs: None,
    },
    Program {
        name: NAMES[2],
        title: "Web application",
        description: "Django under the standard library's WSGI server, one thread, asked for four pages in turn by three \
                      connections: a template, a query of SQLite, JSON, regular expressions.",
        script: "web.py",
        root: "serve",
        size: 1000,
        small: 240,
        is_square: false,
        needs_load: true,
        untimed: &[],
        shown: "orders",
        shown_as: "Function: orders",
        line_costs: None,
    },
];
