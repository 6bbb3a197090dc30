use super::*;

fn status(conditions: &[(&str, bool, &str, &str)]) -> Word {
    let condition = |(kind, holds, reason, message): &(&str, bool, &str, &str)| v1::Condition {
        r#type: (*kind).into(),
        holds: *holds,
        reason: (*reason).into(),
        message: (*message).into(),
    };
    Word::Status(v1::Status {
        addresses: vec!["10.0.0.1".into()],
        conditions: conditions.iter().map(condition).collect(),
        ..v1::Status::default()
    })
}

fn ingress(shown: Option<&str>) -> Ingress {
    let ip = shown.map(|ip| serde_json::json!([{ "ip": ip }]));
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"tls": [{"secretName": "x"}]},
        "status": {"loadBalancer": {"ingress": ip.unwrap_or_default()}},
    }))
    .unwrap()
}

#[test]
fn an_address_is_shown_once_it_is_served_and_stays() {
    let open = status(&[("Programmed", false, "Pending", "")]);
    assert!(addresses(&ingress(None), Some(&open)).is_empty());
    assert_eq!(addresses(&ingress(Some("10.0.0.1")), Some(&open)).len(), 1);
    let served = status(&[("Programmed", true, "Programmed", "")]);
    let entry = &addresses(&ingress(None), Some(&served))[0];
    let ports: Vec<_> = entry.ports.iter().flatten().map(|port| port.port).collect();
    assert_eq!((entry.ip.as_deref(), ports), (Some("10.0.0.1"), vec![80, 443]));
    // Refused, or not heard of: what the hub had it serves on.
    let refused = Word::Refused(v1::Refused::default());
    assert_eq!(addresses(&ingress(Some("10.0.0.1")), Some(&refused)).len(), 1);
    assert_eq!(addresses(&ingress(Some("10.0.0.1")), None).len(), 1);
}

#[test]
fn what_is_wrong_is_told_once_and_what_passes_is_not() {
    let told = |conditions: &[(&str, bool, &str, &str)]| -> Vec<String> {
        let notes = notes(Some(&status(conditions)));
        notes.iter().map(|note| format!("{} {}", note.reason, note.message)).collect()
    };
    assert_eq!(told(&[("Programmed", true, "Programmed", "")]), ["Programmed Served at 10.0.0.1"]);
    assert_eq!(told(&[("Conflicted", true, "HostnameConflict", "x")]), ["HostnameConflict x"]);
    assert_eq!(told(&[("Programmed", false, "Rejected", "words")]), ["Rejected words"]);
    assert_eq!(
        told(&[("PartiallyInvalid", true, "UnsupportedValue", "x")]),
        ["UnsupportedValue x"]
    );
    let quiet = [
        ("Programmed", false, "Pending", ""),
        // The agent said it itself, on the Ingress.
        ("ResolvedRefs", false, "RefNotFound", ""),
        ("Accepted", true, "Accepted", ""),
    ];
    assert!(told(&quiet).is_empty());
}
