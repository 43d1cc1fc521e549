//! What is right: the shares that tools give beside those of the program's own account.
//!
//! A program does not take the same shares in each run, and what its lines take is known within an error: this is added to the
//! bounds. A share is right if it is within [`MAX_POINTS`] of the account's, or if the account's is in the share's binomial
//! interval. Two functions whose true shares differ by [`MIN_DIFFERENCE`] must be in the right order. Only pyagent can fail here:
//! what others say is shown beside, with what their runs cost.

use super::{
    Outcome,
    answer::{Account, Answer, Share, What},
    tools::{TOOLS, Tool},
};

/// How far a share may be from the true one.
const MAX_POINTS: f64 = 0.03;

/// True shares that differ by this have an order.
const MIN_DIFFERENCE: f64 = 0.05;

/// Two-sided 99.9 % of the normal distribution, in standard deviations.
const Z: f64 = 3.290_527;

/// One question about a program, with everybody's answers.
#[derive(Debug)]
pub(super) struct View {
    pub(super) title: String,
    /// What shares are of.
    pub(super) whole: String,
    pub(super) tools: Vec<Tool>,
    pub(super) rows: Vec<Row>,
}

/// What is true, as well as it is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Truth {
    pub(super) share: f64,
    /// How far off it may be.
    pub(super) error: f64,
}

/// One function or line.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) what: What,
    /// `None` where it is not known.
    pub(super) truth: Option<Truth>,
    /// As in [`View::tools`]; `None` for what a tool never says.
    pub(super) answers: Vec<Option<Share>>,
}

/// How many pairs have an order, and those that a tool has in another one, the larger first.
#[derive(Debug, Default)]
pub(super) struct Order {
    pub(super) n_pairs: usize,
    pub(super) wrong: Vec<(String, String)>,
}

impl Share {
    /// Wilson's interval of 99.9 %; no width where it was not sampled.
    pub(super) fn interval(self) -> (f64, f64) {
        let Some(n) = self.n.filter(|n| *n > 0.0) else {
            return (self.value, self.value);
        };
        let widening = 1.0 + Z * Z / n;
        let middle = (self.value + Z * Z / (2.0 * n)) / widening;
        let variance = self.value * (1.0 - self.value) / n + Z * Z / (4.0 * n * n);
        let half = Z * variance.max(0.0).sqrt() / widening;
        (middle - half, middle + half)
    }

    pub(super) fn is_right(self, truth: Truth) -> bool {
        let (low, high) = self.interval();
        let (least, most) = (truth.share - truth.error, truth.share + truth.error);
        (self.value - truth.share).abs() <= MAX_POINTS + truth.error
            || (low <= most && high >= least)
    }
}

impl View {
    /// Column of a tool.
    fn column(&self, tool: Tool) -> Option<usize> {
        self.tools.iter().position(|it| *it == tool)
    }

    /// Rows whose truth is known, with it and a tool's answer.
    pub(super) fn judged(&self, tool: Tool) -> impl Iterator<Item = (&What, Truth, Share)> {
        let column = self.column(tool);
        self.rows.iter().filter_map(move |row| {
            let share = *row.answers.get(column?)?;
            Some((&row.what, row.truth?, share?))
        })
    }

    pub(super) fn order(&self, tool: Tool) -> Order {
        let rows: Vec<_> = self.judged(tool).collect();
        let mut order = Order::default();
        for (larger, true_larger, share_of_larger) in &rows {
            for (smaller, true_smaller, share_of_smaller) in &rows {
                let least = true_larger.share - true_larger.error;
                if least - true_smaller.share - true_smaller.error < MIN_DIFFERENCE {
                    continue;
                }
                order.n_pairs += 1;
                if share_of_larger.value <= share_of_smaller.value {
                    order
                        .wrong
                        .push((larger.name().to_owned(), smaller.name().to_owned()));
                }
            }
        }
        order
    }
}

/// What of pyagent's is not right, a line each.
pub(super) fn failures(view: &View) -> Vec<String> {
    let title = &view.title;
    let mut failures: Vec<String> = view
        .judged(Tool::Pyagent)
        .filter(|(_, truth, share)| !share.is_right(*truth))
        .map(|(what, truth, share)| {
            let (value, truth) = (100.0 * share.value, 100.0 * truth.share);
            format!("{title}: {} has {value:.1} % for {truth:.1} %", what.name())
        })
        .collect();
    for (larger, smaller) in view.order(Tool::Pyagent).wrong {
        failures.push(format!("{title}: {larger} is not above {smaller}"));
    }
    failures
}

/// The pooled answer of a tool.
fn pooled(outcome: &Outcome, tool: Tool) -> Option<Answer> {
    let runs = outcome.runs.get(&tool)?;
    Answer::sum(runs.iter().filter_map(|run| run.answer.as_ref()))
}

/// The share of something by the program's own accounts.
pub(super) fn share_of_account<'a>(
    accounts: impl Iterator<Item = &'a Account>,
    what: &What,
) -> Option<f64> {
    let mut sums = (0.0, 0.0);
    for account in accounts {
        sums.0 += account.amount(what)?;
        sums.1 += account.seconds();
    }
    (sums.1 > 0.0).then(|| sums.0 / sums.1)
}

/// The accounts of a tool's runs.
pub(super) fn accounts(outcome: &Outcome, tool: Tool) -> impl Iterator<Item = &Account> {
    let runs = outcome.runs.get(&tool).into_iter().flatten();
    runs.map(|run| &run.account)
}

/// Everything that the program's account knows, but for its root.
pub(super) fn known(outcome: &Outcome) -> [Vec<What>; 3] {
    let Some(account) = accounts(outcome, Tool::Plain).next() else {
        return Default::default();
    };
    let own = account.own.keys().cloned().map(What::Own);
    let cumulative = account.cumulative.keys();
    let cumulative = cumulative.filter(|it| **it != account.root).cloned();
    let lines = account.lines.iter().flat_map(|(function, lines)| {
        let of_function = |text: &String| What::Line(function.clone(), text.clone());
        lines.keys().map(of_function)
    });
    [
        own.collect(),
        cumulative.map(What::Cumulative).collect(),
        lines.collect(),
    ]
}

/// All questions about a program.
pub(super) fn views(outcome: &Outcome) -> Vec<View> {
    let title = |what: &str| format!("{}: {what}", outcome.program.title);
    let [mut own, cumulative, lines] = known(outcome);
    let untimed = outcome.program.untimed.iter();
    own.extend(untimed.map(|it| What::Own((*it).to_owned())));
    let whole = format!("`{}`", outcome.program.root);
    let of_account = |what: &What| {
        let share = share_of_account(accounts(outcome, Tool::Plain), what)?;
        let error = run_spread(outcome, what);
        Some(Truth { share, error })
    };
    let mut views = Vec::new();
    for (name, whats) in [
        ("functions, own time", own),
        ("functions with what they call", cumulative),
        ("lines with what they call", lines),
    ] {
        if !whats.is_empty() {
            let answer = |answer: &Answer, what: &What| answer.share(what);
            let title = title(name);
            views.push(view(outcome, title, &whole, whats, of_account, answer));
        }
    }
    if let Some(costs) = outcome.line_costs.first() {
        let function = outcome.program.shown;
        let line = |text: &String| What::Line(function.to_owned(), text.clone());
        let whats: Vec<What> = costs.lines.keys().map(line).collect();
        // What is not known better than it has to be right does not judge.
        let error = line_error(outcome);
        let truth = |what: &What| {
            let share = line_share(outcome, what.name())?;
            (error <= MAX_POINTS).then_some(Truth { share, error })
        };
        let answer = |answer: &Answer, what: &What| answer.share_of(what, &whats);
        let whole = format!("these {} lines", whats.len());
        let title = title("lines of the inner loop");
        views.push(view(outcome, title, &whole, whats.clone(), truth, answer));
    }
    views
}

/// How far single runs without a tool are from all of them together, at most.
pub(super) fn run_spread(outcome: &Outcome, what: &What) -> f64 {
    let all = share_of_account(accounts(outcome, Tool::Plain), what);
    let single = accounts(outcome, Tool::Plain).chain(&outcome.small);
    let distances = single.filter_map(|account| {
        let one = share_of_account(std::iter::once(account), what)?;
        Some((one - all?).abs())
    });
    distances.fold(0.0, f64::max)
}

/// How well the shares of lines are known: how far a round is from all of them, and how far the lines together are from the
/// loop that they are, whichever is more.
fn line_error(outcome: &Outcome) -> f64 {
    let sums = outcome.line_costs.iter().map(|it| it.sum).collect();
    line_spread(outcome).max((1.0 - median(sums)).abs())
}

/// The share of a line in the inner loop, over all rounds.
fn line_share(outcome: &Outcome, text: &str) -> Option<f64> {
    let shares = outcome.line_costs.iter();
    let sum: f64 = shares
        .map(|it| it.lines.get(text).copied())
        .sum::<Option<f64>>()?;
    Some(sum / outcome.line_costs.len() as f64)
}

/// How far a round is from all of them together, at most.
pub(super) fn line_spread(outcome: &Outcome) -> f64 {
    let distances = outcome.line_costs.iter().flat_map(|it| &it.lines);
    let distances =
        distances.filter_map(|(text, share)| Some((share - line_share(outcome, text)?).abs()));
    distances.fold(0.0, f64::max)
}

fn view(
    outcome: &Outcome,
    title: String,
    whole: &str,
    whats: Vec<What>,
    truth: impl Fn(&What) -> Option<Truth>,
    answer: impl Fn(&Answer, &What) -> Option<Share>,
) -> View {
    let is_own = whats.iter().any(|it| matches!(it, What::Own(_)));
    let pooled = TOOLS
        .iter()
        .filter(|tool| !is_own || tool.knows_own())
        .filter_map(|tool| Some((*tool, pooled(outcome, *tool)?)));
    // A tool without lines has no column in a view of lines.
    let answers: Vec<(Tool, Answer)> = pooled
        .filter(|(_, it)| whats.iter().any(|what| answer(it, what).is_some()))
        .collect();
    let mut rows: Vec<Row> = whats
        .into_iter()
        .map(|what| Row {
            truth: truth(&what),
            answers: answers.iter().map(|(_, it)| answer(it, &what)).collect(),
            what,
        })
        .collect();
    // The largest first, by what is known best.
    let key = |row: &Row| {
        let first = row.answers.first().copied().flatten();
        let truth = row.truth.map(|it| it.share);
        truth.or(first.map(|it| it.value)).unwrap_or_default()
    };
    rows.sort_by(|a, b| key(b).total_cmp(&key(a)));
    View {
        title,
        whole: whole.to_owned(),
        tools: answers.into_iter().map(|(tool, _)| tool).collect(),
        rows,
    }
}

/// Median of numbers; 0 without any.
pub(super) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let upper = numbers.get(numbers.len() / 2).copied();
    let lower = numbers.get(numbers.len().saturating_sub(1) / 2).copied();
    upper.zip(lower).map_or(0.0, |(a, b)| f64::midpoint(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(value: f64, n: Option<f64>) -> Share {
        Share { value, n }
    }

    #[test]
    fn the_interval_is_wilsons() {
        // 15 of 148 at 95 % is 0.0624 to 0.1605 (Newcombe 1998, table I); with the Z of 99.9 % it is wider.
        let (low, high) = share(15.0 / 148.0, Some(148.0)).interval();
        assert!(low > 0.03 && low < 0.0624 && high > 0.1605 && high < 0.22);
        assert_eq!(share(0.5, None).interval(), (0.5, 0.5));
        let (low, high) = share(0.0, Some(100.0)).interval();
        assert!(low.abs() < 1e-9 && (high - Z * Z / (100.0 + Z * Z)).abs() < 1e-9);
    }

    #[test]
    fn three_points_are_right_and_more_only_with_few_samples() {
        let truth = |share, error| Truth { share, error };
        assert!(share(0.53, None).is_right(truth(0.501, 0.0)));
        assert!(!share(0.56, None).is_right(truth(0.50, 0.0)));
        assert!(share(0.56, Some(200.0)).is_right(truth(0.50, 0.0)));
        assert!(!share(0.56, Some(20_000.0)).is_right(truth(0.50, 0.0)));
        assert!(!share(0.56, None).is_right(truth(0.50, 0.02)));
        assert!(share(0.56, None).is_right(truth(0.50, 0.031)));
    }

    #[test]
    fn an_order_that_is_wrong_and_a_share_that_is_are_failures() {
        let row = |name: &str, truth, value| Row {
            what: What::Own(name.into()),
            truth: Some(Truth {
                share: truth,
                error: 0.0,
            }),
            answers: vec![Some(share(value, Some(1e6)))],
        };
        let mut view = View {
            title: "t".into(),
            whole: "w".into(),
            tools: vec![Tool::Pyagent],
            rows: vec![
                row("a", 0.50, 0.49),
                row("b", 0.44, 0.45),
                row("c", 0.42, 0.44),
            ],
        };
        assert_eq!(view.order(Tool::Pyagent).n_pairs, 2);
        assert!(failures(&view).is_empty());
        view.rows[0].answers = vec![Some(share(0.43, Some(1e6)))];
        let failures = failures(&view);
        assert_eq!(failures.len(), 3, "{failures:?}");
        // What is not known so well is no order.
        for row in &mut view.rows {
            row.truth = row.truth.map(|it| Truth { error: 0.02, ..it });
        }
        assert_eq!(view.order(Tool::Pyagent).n_pairs, 0);
    }

    #[test]
    fn medians_are_those_of_the_middle() {
        assert_eq!(
            median(vec![3.0, 1.0, 2.0]).total_cmp(&2.0),
            std::cmp::Ordering::Equal
        );
        assert_eq!(
            median(vec![4.0, 1.0]).total_cmp(&2.5),
            std::cmp::Ordering::Equal
        );
        assert_eq!(
            median(Vec::new()).total_cmp(&0.0),
            std::cmp::Ordering::Equal
        );
    }
}
