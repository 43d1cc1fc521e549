//! pyagent.
fn main() -> anyhow::Result<()> {
    let t = std::time::Instant::now();
    let p = profiler_agent::bpf::load::Programs::load(profiler_agent::bpf::load::Settings{follow_all:true,follow_children:true,ring_bytes:4<<20,log_level:0})?;
    eprintln!("loaded in {:?}", t.elapsed());
    let _ = p.counters.totals();
    eprintln!("{}", std::fs::read_to_string("/proc/self/status")?.lines().filter(|l| l.starts_with("VmRSS")||l.starts_with("VmHWM")).collect::<Vec<_>>().join(" "));
    Ok(())
}
