//! The checker of OTLP profiles finds each kind of violation: without that its silence says nothing.

use profiler_agent::generated::opentelemetry::proto::collector::profiles::v1development::ExportProfilesServiceRequest as Request;
use profiler_agent::generated::opentelemetry::proto::profiles::v1development as proto;
use profiler_agent::profile::model::ProfileType;
use profiler_agent::profile::window::ClosedWindow;
use profiler_agent::push::{Host, OtlpWindow, Window};
use prost::Message as _;
use pyagent_tests::otlp;
use pyagent_tests::push::{SMALL, profile};

fn request() -> Request {
    let content = ClosedWindow {
        start_ns: 0,
        end_ns: 1,
        profiles: vec![(ProfileType::Cpu, profile(ProfileType::Cpu, 1, SMALL))],
    };
    let window = Window {
        seq: 1,
        content: content.into(),
    };
    let host = Host::of_this_machine();
    let parcel = OtlpWindow::new(&window, &host);
    parcel.request(0..parcel.n_samples())
}

fn tables(request: &mut Request) -> &mut proto::ProfilesDictionary {
    request.dictionary.as_mut().unwrap()
}

fn first_profile(request: &mut Request) -> &mut proto::Profile {
    &mut request.resource_profiles[0].scope_profiles[0].profiles[0]
}

fn first_sample(request: &mut Request) -> &mut proto::Sample {
    &mut first_profile(request).samples[0]
}

type Damage = fn(&mut Request);

#[test]
fn each_kind_of_violation_is_found() {
    assert_eq!(otlp::violations(&request().encode_to_vec()), [""; 0]);
    let damages: &[(&str, Damage)] = &[
        ("there is no dictionary", |it| it.dictionary = None),
        ("String 0 is not the zero value", |it| {
            tables(it).string_table[0] = "x".to_owned()
        }),
        ("Mapping 0 is not the zero value", |it| {
            tables(it).mapping_table[0].memory_start = 1
        }),
        ("Location 0 is not the zero value", |it| {
            tables(it).location_table[0].address = 1
        }),
        ("Function 0 is not the zero value", |it| {
            tables(it).function_table[0].start_line = 1
        }),
        ("Link 0 is not the zero value", |it| {
            tables(it).link_table.clear()
        }),
        ("Attribute 0 is not the zero value", |it| {
            tables(it).attribute_table[0].unit_strindex = 1
        }),
        ("Stack 0 is not the zero value", |it| {
            tables(it).stack_table[0].location_indices.push(1)
        }),
        ("is there twice", |it| {
            let twice = tables(it).function_table[1];
            tables(it).function_table.push(twice);
        }),
        ("is there twice: \"\"", |it| {
            tables(it).string_table.push(String::new())
        }),
        ("nothing refers to String", |it| {
            tables(it).string_table.push("unused".to_owned())
        }),
        ("nothing refers to Stack", |it| {
            let stack = proto::Stack {
                location_indices: vec![1, 1, 1],
            };
            tables(it).stack_table.push(stack);
        }),
        ("nothing refers to Location", |it| {
            let location = proto::Location {
                address: 12345,
                ..Default::default()
            };
            tables(it).location_table.push(location);
        }),
        ("a sample refers to Stack 99999", |it| {
            first_sample(it).stack_index = 99_999
        }),
        ("a sample refers to Stack -1", |it| {
            first_sample(it).stack_index = -1
        }),
        ("a sample refers to Link 7", |it| {
            first_sample(it).link_index = 7
        }),
        ("a sample refers to Attribute 99999", |it| {
            first_sample(it).attribute_indices.push(99_999);
        }),
        ("a line refers to Function 99999", |it| {
            tables(it).location_table[1].lines[0].function_index = 99_999;
        }),
        ("a location refers to Mapping 99999", |it| {
            tables(it).location_table[1].mapping_index = 99_999;
        }),
        ("a function refers to String 99999", |it| {
            tables(it).function_table[1].filename_strindex = 99_999;
        }),
        ("a mapping refers to Attribute", |it| {
            tables(it).mapping_table[1].attribute_indices = vec![99_999];
        }),
        ("an attribute refers to String", |it| {
            tables(it).attribute_table[1].key_strindex = 99_999;
        }),
        ("has no key", |it| {
            tables(it).attribute_table[1].key_strindex = 0
        }),
        ("a stack refers to Location", |it| {
            tables(it).stack_table[1].location_indices[0] = 99_999;
        }),
        ("which is none", |it| {
            tables(it).stack_table[1].location_indices[0] = 0
        }),
        ("a sample has two attributes of one key", |it| {
            let twice = first_sample(it).attribute_indices[0];
            first_sample(it).attribute_indices.push(twice);
        }),
        ("a resource has `process.pid` twice", |it| {
            let attributes = &mut it.resource_profiles[0]
                .resource
                .as_mut()
                .unwrap()
                .attributes;
            let pid = attributes
                .iter()
                .find(|it| it.key == "process.pid")
                .cloned();
            attributes.extend(pid);
        }),
        ("no service.name", |it| {
            let attributes = &mut it.resource_profiles[0]
                .resource
                .as_mut()
                .unwrap()
                .attributes;
            attributes.retain(|it| it.key != "service.name");
        }),
        ("a sample type says nothing", |it| {
            first_profile(it).sample_type = None
        }),
        ("a period type says nothing", |it| {
            first_profile(it).period_type = None
        }),
        ("a profile has no samples", |it| {
            first_profile(it).samples.clear()
        }),
        ("a profile has no time", |it| {
            first_profile(it).time_unix_nano = 0
        }),
        ("is not 16 bytes", |it| {
            first_profile(it).profile_id = vec![1; 3]
        }),
        ("all zeros", |it| first_profile(it).profile_id = vec![0; 16]),
        ("two profiles have one id", |it| {
            let again = first_profile(it).clone();
            it.resource_profiles[0].scope_profiles[0]
                .profiles
                .push(again);
        }),
        ("2 values and 0 times", |it| first_sample(it).values.push(1)),
        ("0 values and 0 times", |it| first_sample(it).values.clear()),
        ("two samples are of one stack", |it| {
            let again = first_sample(it).clone();
            first_profile(it).samples.push(again);
        }),
        ("a scope has no profiles", |it| {
            it.resource_profiles[0].scope_profiles[0].profiles.clear();
        }),
    ];
    for (expected, damage) in damages {
        let mut request = request();
        damage(&mut request);
        let found = otlp::violations(&request.encode_to_vec());
        assert!(
            found.iter().any(|it| it.contains(expected)),
            "{expected}: {found:?}"
        );
    }
    let mut cut = request().encode_to_vec();
    cut.truncate(cut.len() - 1);
    assert!(otlp::violations(&cut)[0].contains("it is no request"));
}
