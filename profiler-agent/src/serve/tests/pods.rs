//! Pods over both protocols: what is said of them, and how they are chosen.

use super::*;

/// What a selector finds: the one process that is in a pod, or not.
async fn finds(running: &Running, selector: proto::ProcessSelector) -> Result<bool, Code> {
    let request = proto::ListProcessesRequest {
        selector: Some(selector),
    };
    let listed = running.client().await.list_processes(request).await;
    let listed = listed.map_err(|status| status.code())?.into_inner();
    Ok(listed.processes.iter().any(|process| process.pid == PID))
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn a_pod_is_told_with_what_it_belongs_to() {
    let running = start().await;
    let request = proto::ListProcessesRequest { selector: None };
    let listed = running.client().await.list_processes(request).await;
    let listed = listed.unwrap().into_inner().processes;
    let pod = listed[0].pod.as_ref().unwrap();
    assert_eq!(
        (&*pod.namespace, &*pod.name, &*pod.node_name),
        (NAMESPACE, "web-7f-x2", "node-1")
    );
    let workloads: Vec<(&str, &str)> = pod
        .workloads
        .iter()
        .map(|it| (&*it.kind, &*it.name))
        .collect();
    assert_eq!(workloads, [("ReplicaSet", "web-7f"), ("Deployment", "web")]);
    let container = listed[0].container.as_ref().unwrap();
    assert_eq!(container.k8s_container_name, "app");
    assert_eq!(listed[1].pod, None);
    let (status, _, body) = running.get("/sd").await;
    assert_eq!(status, 200);
    let found: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let labels = &found[0]["labels"];
    for (name, expected) in [
        ("k8s_namespace_name", NAMESPACE),
        ("k8s_pod_name", "web-7f-x2"),
        ("k8s_container_name", "app"),
        ("k8s_node_name", "node-1"),
        ("k8s_deployment_name", "web"),
        ("k8s_replicaset_name", "web-7f"),
        ("team", "shop"),
    ] {
        assert_eq!(
            labels[format!("__meta_pyagent_{name}")],
            expected,
            "{found}"
        );
    }
    running.stop().await;
}

#[tokio::test]
async fn pods_are_chosen_by_namespace_and_labels() {
    let running = start().await;
    for (namespaces, labels, excluded, expected) in [
        (&[NAMESPACE][..], &[][..], &[][..], true),
        (&["other", NAMESPACE], &[], &[], true),
        (&["*"], &[], &[], true),
        (&["other"], &[], &[], false),
        (&[], &["app=web,tier!=db"], &[], true),
        (&[], &["app in (db)", "app"], &[], true),
        (&[NAMESPACE], &["!app"], &[], false),
        (&[], &["app"], &[NAMESPACE], false),
    ] {
        let selector = proto::ProcessSelector {
            k8s_namespace: texts(namespaces),
            k8s_labels: texts(labels),
            exclude_k8s_namespace: texts(excluded),
            ..Default::default()
        };
        let shown = format!("{selector:?}");
        assert_eq!(finds(&running, selector).await, Ok(expected), "{shown}");
    }
    for wrong in [
        proto::ProcessSelector {
            k8s_labels: texts(&["app in web"]),
            ..Default::default()
        },
        proto::ProcessSelector {
            k8s_namespace: texts(&["Not a name"]),
            ..Default::default()
        },
    ] {
        assert_eq!(finds(&running, wrong).await, Err(Code::InvalidArgument));
    }
    for (query, expected) in [
        ("namespace=shop", 200),
        ("namespace=other", 404),
        ("pod_label=app%3Dweb", 200),
        ("pod_label=app%3Ddb", 404),
        ("pod_label=%3D", 400),
    ] {
        let path = format!("/debug/pprof/profile?seconds=1&{query}");
        let (status, ..) = running.get(&path).await;
        assert_eq!(status, expected, "{query}");
    }
    running.stop().await;
}

#[tokio::test]
async fn what_was_recorded_is_not_chosen_by_labels_of_pods() {
    let running = start().await;
    let (status, _, body) = running
        .get("/debug/pprof/profile?last=1m&pod_label=app%3Dweb")
        .await;
    let said = String::from_utf8_lossy(&body).into_owned();
    assert_eq!(status, 400, "{said}");
    assert!(said.contains("k8s_pod_label_app"), "{said}");
    let request = proto::WatchProfilesRequest {
        selector: Some(proto::ProcessSelector {
            k8s_labels: texts(&["app"]),
            ..Default::default()
        }),
        ..Default::default()
    };
    let watched = running.client().await.watch_profiles(request).await;
    assert_eq!(watched.unwrap_err().code(), Code::InvalidArgument);
    running.stop().await;
}
