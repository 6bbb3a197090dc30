use fairlead_api::route::SourceKind;
use fairlead_api::{RouteId, RouteStatus};

use super::*;
use crate::records::told;

fn web() -> Item {
    Item::Route(RouteName::new(SourceKind::Service, "shop", "web").unwrap())
}

fn record(hash: &str, report: bool) -> Arc<Record> {
    let status = RouteStatus { addresses: vec!["10.0.0.1".into()], ..RouteStatus::default() };
    let report = report.then(|| told(&status));
    Arc::new(Record { hash: hash.into(), report })
}

fn inventory(items: &[(&Item, u8)], last: bool) -> From {
    let items = items.iter().map(|(item, hash)| v1::inventory::Item {
        key: Some(convert::key(item)),
        hash: vec![*hash],
    });
    From::Inventory(v1::Inventory { items: items.collect(), last })
}

fn records(there: &[(Item, Arc<Record>)]) -> ChangeLog<Item, Arc<Record>> {
    let mut records = ChangeLog::default();
    there.iter().cloned().for_each(|(item, record)| records.put(item, record));
    records
}

fn feed(session: &mut Session, message: From, there: &[(Item, Arc<Record>)]) -> Vec<Action> {
    session.on_message(message, &records(there)).unwrap()
}

#[test]
fn only_what_the_hub_lacks_is_asked_for() {
    let mut session = Session::new(10);
    let other = Item::Route(RouteName::new(SourceKind::Service, "shop", "other").unwrap());
    let there = [(web(), record("01", false)), (other.clone(), record("02", false))];
    let actions =
        feed(&mut session, inventory(&[(&web(), 1), (&other, 9), (&Item::Nodes, 3)], true), &there);
    let keys = vec![v1::Key::nodes(), convert::key(&other)];
    assert_eq!(actions, [Action::Send(To::Want(v1::Want { keys }))]);
}

#[test]
fn only_a_complete_inventory_deletes() {
    let mut session = Session::new(10);
    let there = [(web(), record("01", false))];
    assert_eq!(feed(&mut session, inventory(&[], false), &there), []);
    assert_eq!(session.on_record(&web(), Some(&record("01", false))), None);
    let gone = Action::Store(web(), Upload::Gone { told: false });
    assert_eq!(feed(&mut session, inventory(&[], true), &there), [gone]);
}

#[test]
fn what_turns_up_later_and_nobody_wants_is_deleted_too() {
    let mut session = Session::new(10);
    feed(&mut session, inventory(&[], true), &[]);
    let gone = Action::Store(web(), Upload::Gone { told: false });
    assert_eq!(session.on_record(&web(), Some(&record("01", false))), Some(gone));
}

#[test]
fn a_report_is_sent_once_and_only_on_the_content_that_is_wanted() {
    let mut session = Session::new(10);
    feed(&mut session, inventory(&[(&web(), 1)], true), &[(web(), record("01", false))]);
    assert_eq!(session.on_record(&web(), Some(&record("02", true))), None, "another content");
    let sent = session.on_record(&web(), Some(&record("01", true)));
    assert!(matches!(sent, Some(Action::Send(To::Status(status))) if status.hash == [1]));
    assert_eq!(session.on_record(&web(), Some(&record("01", true))), None, "no news");
}

#[test]
fn a_delete_is_carried_out_and_answered() {
    let mut session = Session::new(10);
    feed(&mut session, inventory(&[(&web(), 1)], true), &[(web(), record("01", false))]);
    let key = Some(convert::key(&web()));
    let delete = From::Delete(v1::Delete { key: key.clone() });
    let upload = Upload::Gone { told: true };
    assert_eq!(feed(&mut session, delete, &[]), [Action::Store(web(), upload.clone())]);
    let stored = To::Stored(v1::Stored { key, hash: Vec::new() });
    assert_eq!(session.on_stored(&web(), upload, None), Some(stored));
}

#[test]
fn a_delete_that_the_agent_waits_for_is_not_replaced_by_our_own() {
    let mut session = Session::new(10);
    feed(&mut session, inventory(&[(&web(), 1)], true), &[(web(), record("01", false))]);
    let delete = From::Delete(v1::Delete { key: Some(convert::key(&web())) });
    feed(&mut session, delete, &[]);
    // An upload from before was stored meanwhile.
    assert_eq!(session.on_record(&web(), Some(&record("01", false))), None);
    session.on_stored(&web(), Upload::Gone { told: true }, None);
    let gone = Action::Store(web(), Upload::Gone { told: false });
    assert_eq!(session.on_record(&web(), Some(&record("01", false))), Some(gone));
}

#[test]
fn what_somebody_deletes_on_the_hub_is_asked_for_again() {
    let mut session = Session::new(10);
    feed(&mut session, inventory(&[(&web(), 1)], true), &[(web(), record("01", false))]);
    let want = To::Want(v1::Want { keys: vec![convert::key(&web())] });
    assert_eq!(session.on_record(&web(), None), Some(Action::Send(want)));
}

#[test]
fn messages_out_of_order_end_the_stream() {
    let put = || From::Put(v1::Put { key: Some(convert::key(&web())), ..v1::Put::default() });
    let mut session = Session::new(10);
    assert!(session.on_message(put(), &ChangeLog::default()).is_err());
    feed(&mut session, inventory(&[], true), &[]);
    let again = session.on_message(inventory(&[], true), &ChangeLog::default());
    assert!(again.is_err());
    assert!(session.on_message(From::Hello(v1::Hello::default()), &ChangeLog::default()).is_err());
}

#[test]
fn a_tenant_beyond_its_quota_is_told_so() {
    let mut session = Session::new(0);
    feed(&mut session, inventory(&[(&Item::Nodes, 1)], true), &[]);
    let put = v1::Put { key: Some(convert::key(&web())), hash: vec![1], object: None };
    let actions = feed(&mut session, From::Put(put), &[]);
    assert!(
        matches!(&actions[..], [Action::Send(To::Refused(refused))] if refused.reason == "TooManyRoutes")
    );
}

#[test]
fn an_inventory_beyond_the_quota_keeps_what_the_hub_has() {
    let mut session = Session::new(1);
    let more = Item::Route(RouteName::new(SourceKind::Service, "shop", "a-new-one").unwrap());
    let there = [(web(), record("01", false))];
    let actions = feed(&mut session, inventory(&[(&web(), 1), (&more, 2)], true), &there);
    assert!(
        matches!(&actions[..], [Action::Send(To::Refused(refused))] if refused.key == Some(convert::key(&more)))
    );
    assert_eq!(session.on_record(&web(), Some(&record("01", false))), None, "it is kept");
}

/// What the agent has of [`web`], with this hash.
fn put(hash: u8) -> From {
    let source = r#"{"kind": "Service", "namespace": "a", "name": "b", "uid": "u"}"#;
    let spec = format!(r#"{{"source": {source}, "contentHash": "", "listeners": []}}"#).into();
    let object = Some(Object::Route(v1::Route { spec }));
    From::Put(v1::Put { key: Some(convert::key(&web())), hash: vec![hash], object })
}

#[test]
fn what_the_hub_has_is_not_written_again() {
    let unplanned = || {
        let mut session = Session::new(10);
        feed(&mut session, inventory(&[(&web(), 0)], true), &[(web(), record("01", true))]);
        session
    };
    let there = [(web(), record("01", true))];
    let actions = feed(&mut unplanned(), put(1), &there);
    assert!(
        matches!(&actions[..], [Action::Send(To::Stored(stored)), Action::Send(To::Status(status))]
            if stored.hash == [1] && status.hash == [1] && status.addresses == ["10.0.0.1"]),
        "{actions:?}"
    );
    let is_written = |actions: Vec<Action>| matches!(actions[..], [Action::Store(..)]);
    assert!(is_written(feed(&mut unplanned(), put(2), &there)), "another content");
    let changed = [(web(), record("02", true))];
    assert!(is_written(feed(&mut unplanned(), put(1), &changed)), "somebody changed it meanwhile");
    assert!(is_written(feed(&mut unplanned(), put(1), &[])), "somebody deleted it meanwhile");
    let mut session = unplanned();
    feed(&mut session, put(2), &there);
    assert!(is_written(feed(&mut session, put(1), &there)), "a write of another is under way");
}

#[test]
fn what_was_not_written_and_changes_after_that_is_asked_for() {
    let mut session = Session::new(10);
    let there = [(web(), record("01", true))];
    feed(&mut session, inventory(&[(&web(), 0)], true), &there);
    feed(&mut session, put(1), &there);
    let want = Action::Send(To::Want(v1::Want { keys: vec![convert::key(&web())] }));
    let late = record("02", false);
    assert_eq!(session.on_record(&web(), Some(&late)), Some(want), "an earlier stream's write");
    assert_eq!(session.on_record(&web(), Some(&late)), None, "once");
}

#[test]
fn what_is_deleted_and_put_again_unchanged_is_reported_again() {
    let mut session = Session::new(10);
    feed(&mut session, inventory(&[(&web(), 1)], true), &[(web(), record("01", true))]);
    feed(&mut session, From::Delete(v1::Delete { key: Some(convert::key(&web())) }), &[]);
    feed(&mut session, put(1), &[]);
    let told = session.on_record(&web(), Some(&record("01", true)));
    assert!(matches!(told, Some(Action::Send(To::Status(_)))));
}

#[test]
fn a_put_of_the_wrong_kind_is_refused_and_the_stream_goes_on() {
    let mut session = Session::new(10);
    feed(&mut session, inventory(&[], true), &[]);
    let object = Some(Object::Nodes(v1::NodeSet::default()));
    let put = v1::Put { key: Some(convert::key(&web())), hash: vec![1], object };
    let actions = feed(&mut session, From::Put(put), &[]);
    assert!(
        matches!(&actions[..], [Action::Send(To::Refused(refused))] if refused.reason == "Invalid")
    );
}

proptest::proptest! {
    /// Whatever bytes a stranger sends: an answer or an error, never a panic; and no more is kept than
    /// the quota allows.
    #[test]
    fn any_bytes_are_survived(messages in proptest::collection::vec(proptest::collection::vec(0_u8.., 0..64), 0..8)) {
        use prost::Message;
        let mut session = Session::new(2);
        let _ = session.on_message(inventory(&[], true), &ChangeLog::default());
        for bytes in messages {
            let Ok(message) = v1::AgentMessage::decode(bytes.as_slice()) else { continue };
            let Some(message) = message.message else { continue };
            let _ = session.on_message(message, &ChangeLog::default());
            proptest::prop_assert!(session.wanted.all.len() <= 3);
        }
    }

    /// Whatever bytes stand for a Route: it is read or refused, and what is read is understood or refused.
    #[test]
    fn any_route_is_read_or_refused(bytes in proptest::collection::vec(0_u8.., 0..256)) {
        let name = RouteName::new(SourceKind::Service, "shop", "web").unwrap();
        let _ = convert::route(&name, "00", &v1::Route { spec: bytes });
    }

    /// The same, of what looks like one.
    #[test]
    fn any_values_of_a_route_are_read_or_refused(
        port in 0_u32..70_000, protocol in "TCP|UDP|HTTP|SCTP", node_port in 0_u32..70_000,
        names in proptest::collection::vec("[a-z.]{0,4}", 3), ip in "[0-9.:a-f/]{0,12}",
    ) {
        let spec = serde_json::json!({
            "source": {"kind": "Service", "namespace": "a", "name": "b", "uid": "u"},
            "contentHash": "",
            "address": {"ips": [ip], "group": names[0]},
            "listeners": [{"name": names[0], "protocol": protocol, "port": port}],
            "rules": [{"listener": names[1], "backend": names[2]}],
            "backends": [{"name": names[2], "nodePort": node_port}],
            "clients": {"sourceRanges": [ip]},
        });
        let name = RouteName::new(SourceKind::Service, "shop", "web").unwrap();
        match convert::route(&name, "00", &v1::Route { spec: serde_json::to_vec(&spec).unwrap() }) {
            Ok(spec) => {
                let id = RouteId { tenant: "blue".parse().unwrap(), name };
                drop(fairlead_core::model::Wish::parse(&id, spec));
            }
            Err(error) => {
                proptest::prop_assert!(error.contains("listeners") || error.contains("backends"), "{error}");
            }
        }
    }
}

#[test]
fn what_fuzzing_found_is_taken_calmly() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/stream");
    let files: Vec<_> = std::fs::read_dir(corpus).unwrap().collect();
    assert!(!files.is_empty());
    for file in files {
        fuzz_stream(&std::fs::read(file.unwrap().path()).unwrap());
    }
}
