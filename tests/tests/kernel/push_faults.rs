//! A running agent loses no window, whatever happens to it and to the one that it pushes to. In short; at length it is
//! `cargo xtask bench faults`. The Collector's ends and hangs, and all codes, are in push_otlp.rs too, without an agent.

use std::time::Duration;

use pyagent_tests::faults::account::{Account, Arrival};
use pyagent_tests::faults::network::{self, Cut};
use pyagent_tests::faults::{certificate, clock, codes, collector, disk};

/// Nothing is missing, or wrong in another way; `None`: it could not be tried, and that was said.
fn nothing_is_lost(fault: &str, account: Option<Account>) -> Option<Account> {
    let account = account?;
    println!("{fault}: {account:?}");
    assert_eq!(account.lost, 0, "{fault}");
    assert!(account.n_faults > 0 && account.made >= 4, "{fault}");
    Some(account)
}

#[test]
fn the_account_finds_what_is_lost_cut_and_doubled() {
    let arrival = |id: &str, time_ns, n_samples| Arrival {
        id: id.to_owned(),
        time_ns,
        n_samples,
    };
    let whole = [
        arrival("a", 1, 99),
        arrival("b", 2, 98),
        // In two parts.
        arrival("c", 3, 50),
        arrival("d", 3, 49),
    ];
    let made = [99, 98, 99];
    let account = |made: &[i64], arrivals: &[Arrival]| {
        let account = Account::new(1, made, arrivals);
        (account.delivered, account.twice, account.lost)
    };
    assert_eq!(account(&made, &whole), (3, 0, 0));
    assert_eq!(account(&made, &whole[..3]), (2, 1, 1), "a part is missing");
    assert_eq!(account(&made, &whole[1..]), (2, 0, 1), "one is missing");
    assert_eq!(
        account(&[99, 97, 99], &whole),
        (2, 1, 1),
        "samples are missing"
    );
    let again = [&whole[..], &whole[..1]].concat();
    assert_eq!(account(&made, &again), (3, 1, 0), "one came twice");
    let swapped = [&whole[1..2], &whole[..1], &whole[2..]].concat();
    assert_eq!(account(&made, &swapped), (2, 1, 1), "out of order");
    let refused = Account::new(1, &made, &whole[1..]).refused(1);
    assert_eq!((refused.refused, refused.lost), (1, 0));
}

#[test]
fn a_collector_that_is_killed_gets_every_window() {
    nothing_is_lost("killed", collector::is_killed(2));
}

#[test]
fn an_agent_that_is_killed_delivers_every_window_that_it_recorded() {
    nothing_is_lost("agent killed", collector::agent_is_killed(4));
}

#[test]
fn a_network_that_is_cut_costs_no_window() {
    for cut in [Cut::Link, Cut::Answers] {
        nothing_is_lost("network", network::is_cut(cut, 6));
    }
}

#[test]
fn a_code_that_is_temporary_costs_no_window_and_one_that_is_not_is_counted() {
    let Some(temporary) =
        nothing_is_lost("temporary codes", codes::are_answered(&codes::RETRYABLE))
    else {
        return;
    };
    assert_eq!(temporary.n_faults, codes::RETRYABLE.len());
    assert_eq!((temporary.refused, temporary.twice), (0, 0));
    let permanent = codes::are_answered(&codes::PERMANENT);
    let permanent = nothing_is_lost("permanent codes", permanent).unwrap();
    assert_eq!(permanent.n_faults, codes::PERMANENT.len());
    assert_eq!(permanent.refused, codes::PERMANENT.len());
    assert_eq!(permanent.delivered + permanent.refused, permanent.made);
}

#[test]
fn a_certificate_that_expired_costs_no_window_once_it_is_renewed() {
    nothing_is_lost("certificate", certificate::expires(Duration::from_secs(4)));
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_no_window() {
    let Some(account) = nothing_is_lost("disk", disk::is_full(Duration::from_secs(3))) else {
        return;
    };
    assert_eq!(account.counted, 0, "they wait for longer than that");
}

#[test]
fn a_clock_that_is_set_costs_no_window() {
    nothing_is_lost("clock", clock::jumps());
}
