//! Generated from `proto/` by `cargo xtask codegen`. Never edited: a check compares it with what the protos
//! give.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::pedantic,
    clippy::all,
    reason = "the generators' style is not ours"
)]

/// pprof's profile.
#[path = "perftools.profiles.rs"]
pub mod pprof;

/// The service of a running agent.
#[path = "pyagent.v1.rs"]
pub mod pyagent_v1;

/// The descriptors of `pyagent.v1` and of what it imports, a serialized `google.protobuf.FileDescriptorSet`,
/// for server reflection.
#[rustfmt::skip]
pub const FILE_DESCRIPTOR_SET: &[u8] = b"\
    \n\xfb\x01\n\x1egoogle/protobuf/duratio\
    n.proto\x12\x0fgoogle.protobuf\":\n\x08\
    Duration\x12\x18\n\x07seconds\x18\x01 \x01(\x03R\x07s\
    econds\x12\x14\n\x05nanos\x18\x02 \x01(\x05R\x05nanos\
    B\x83\x01\n\x13com.google.protobufB\rDu\
    rationProtoP\x01Z1google.golang\
    .org/protobuf/types/known/du\
    rationpb\xf8\x01\x01\xa2\x02\x03GPB\xaa\x02\x1eGoogle.P\
    rotobuf.WellKnownTypesb\x06prot\
    o3\n\xff\x01\n\x1fgoogle/protobuf/times\
    tamp.proto\x12\x0fgoogle.protobuf\"\
    ;\n\tTimestamp\x12\x18\n\x07seconds\x18\x01 \x01(\
    \x03R\x07seconds\x12\x14\n\x05nanos\x18\x02 \x01(\x05R\x05n\
    anosB\x85\x01\n\x13com.google.protobuf\
    B\x0eTimestampProtoP\x01Z2google.g\
    olang.org/protobuf/types/kno\
    wn/timestamppb\xf8\x01\x01\xa2\x02\x03GPB\xaa\x02\x1eGo\
    ogle.Protobuf.WellKnownTypes\
    b\x06proto3\n\xc5\x12\n pyagent/v1/prof\
    ile_service.proto\x12\npyagent.v\
    1\x1a\x1egoogle/protobuf/duration.\
    proto\x1a\x1fgoogle/protobuf/times\
    tamp.proto\"\xc2\x01\n\x0fProcessSelect\
    or\x12\x12\n\x04pids\x18\x01 \x03(\rR\x04pids\x12\x12\n\x04co\
    mm\x18\x02 \x03(\tR\x04comm\x12\x18\n\x07cmdline\x18\x03 \
    \x03(\tR\x07cmdline\x12!\n\x0cexclude_pids\
    \x18\x04 \x03(\rR\x0bexcludePids\x12!\n\x0cexclu\
    de_comm\x18\x05 \x03(\tR\x0bexcludeComm\x12\'\
    \n\x0fexclude_cmdline\x18\x06 \x03(\tR\x0eexc\
    ludeCmdline\"O\n\x14ListProcesses\
    Request\x127\n\x08selector\x18\x01 \x01(\x0b2\x1b.\
    pyagent.v1.ProcessSelectorR\x08\
    selector\"J\n\x15ListProcessesRes\
    ponse\x121\n\tprocesses\x18\x01 \x03(\x0b2\x13.p\
    yagent.v1.ProcessR\tprocesses\
    \"\xc7\x02\n\x07Process\x12\x10\n\x03pid\x18\x01 \x01(\rR\x03p\
    id\x129\n\nstart_time\x18\x02 \x01(\x0b2\x1a.goo\
    gle.protobuf.TimestampR\tstar\
    tTime\x12\x12\n\x04comm\x18\x03 \x01(\tR\x04comm\x12\x18\n\
    \x07program\x18\x04 \x01(\tR\x07program\x12\x16\n\x06s\
    cript\x18\x05 \x01(\tR\x06script\x12 \n\x0binter\
    preter\x18\x06 \x01(\tR\x0binterpreter\x12%\n\
    \x0epython_version\x18\x07 \x01(\tR\rpytho\
    nVersion\x12.\n\x05state\x18\x08 \x01(\x0e2\x18.py\
    agent.v1.ProcessStateR\x05state\
    \x12\x16\n\x06reason\x18\t \x01(\tR\x06reason\x12\x18\n\x07\
    cmdline\x18\n \x03(\tR\x07cmdline\"\x9c\x01\n\x12P\
    ullProfileRequest\x127\n\x08selecto\
    r\x18\x01 \x01(\x0b2\x1b.pyagent.v1.Process\
    SelectorR\x08selector\x125\n\x08durati\
    on\x18\x02 \x01(\x0b2\x19.google.protobuf.D\
    urationR\x08duration\x12\x16\n\x06format\x18\
    \x03 \x01(\tR\x06format\"p\n\x13PullProfile\
    Response\x129\n\x08metadata\x18\x01 \x01(\x0b2\x1b\
    .pyagent.v1.ProfileMetadataH\
    \x00R\x08metadata\x12\x16\n\x05chunk\x18\x02 \x01(\x0cH\x00\
    R\x05chunkB\x06\n\x04part\"\x96\x02\n\x0fProfileM\
    etadata\x12\x16\n\x06format\x18\x01 \x01(\tR\x06for\
    mat\x12!\n\x0ccontent_type\x18\x02 \x01(\tR\x0bc\
    ontentType\x12\x1b\n\tn_samples\x18\x03 \x01(\
    \x03R\x08nSamples\x129\n\nstart_time\x18\x04 \
    \x01(\x0b2\x1a.google.protobuf.Timest\
    ampR\tstartTime\x125\n\x08duration\x18\x05\
    \x20\x01(\x0b2\x19.google.protobuf.Durat\
    ionR\x08duration\x12\x1d\n\nsize_bytes\x18\
    \x06 \x01(\x04R\tsizeBytes\x12\x1a\n\x08comments\
    \x18\x07 \x03(\tR\x08comments\"\x12\n\x10GetStatu\
    sRequest\"\xa7\x03\n\x11GetStatusRespon\
    se\x12\x18\n\x07version\x18\x01 \x01(\tR\x07version\
    \x121\n\x06uptime\x18\x02 \x01(\x0b2\x19.google.pr\
    otobuf.DurationR\x06uptime\x12%\n\x0ek\
    ernel_release\x18\x03 \x01(\tR\rkernelR\
    elease\x12\"\n\rrate_asked_hz\x18\x04 \x01(\
    \x01R\x0brateAskedHz\x12\x17\n\x07rate_hz\x18\x05 \
    \x01(\x01R\x06rateHz\x12\"\n\rn_cpus_online\
    \x18\x06 \x01(\rR\x0bnCpusOnline\x12&\n\x0fn_cpu\
    s_attached\x18\x07 \x01(\rR\rnCpusAttac\
    hed\x12,\n\x12samples_per_second\x18\x08 \
    \x01(\x01R\x10samplesPerSecond\x12/\n\x08cou\
    nters\x18\t \x03(\x0b2\x13.pyagent.v1.Cou\
    nterR\x08counters\x126\n\tprocesses\x18\
    \n \x03(\x0b2\x18.pyagent.v1.ProcessCo\
    untR\tprocesses\"G\n\x07Counter\x12\x12\n\
    \x04name\x18\x01 \x01(\tR\x04name\x12\x12\n\x04help\x18\x02 \
    \x01(\tR\x04help\x12\x14\n\x05value\x18\x03 \x01(\x04R\x05va\
    lue\"_\n\x0cProcessCount\x12.\n\x05state\
    \x18\x01 \x01(\x0e2\x18.pyagent.v1.ProcessS\
    tateR\x05state\x12\x1f\n\x0bn_processes\x18\x02\
    \x20\x01(\rR\nnProcesses*\x88\x01\n\x0cProcess\
    State\x12\x1d\n\x19PROCESS_STATE_UNSPE\
    CIFIED\x10\x00\x12\x1d\n\x19PROCESS_STATE_DI\
    SCOVERING\x10\x01\x12\x1a\n\x16PROCESS_STATE\
    _PROFILED\x10\x02\x12\x1e\n\x1aPROCESS_STATE\
    _NOT_PROFILED\x10\x032\x82\x02\n\x0eProfileS\
    ervice\x12T\n\rListProcesses\x12 .py\
    agent.v1.ListProcessesReques\
    t\x1a!.pyagent.v1.ListProcesses\
    Response\x12P\n\x0bPullProfile\x12\x1e.py\
    agent.v1.PullProfileRequest\x1a\
    \x1f.pyagent.v1.PullProfileResp\
    onse0\x01\x12H\n\tGetStatus\x12\x1c.pyagen\
    t.v1.GetStatusRequest\x1a\x1d.pyag\
    ent.v1.GetStatusResponseb\x06pr\
    oto3\
";
