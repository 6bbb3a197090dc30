//! Scenarios with a mocked apiserver: claims by name, as etcd would keep them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use fairlead_api::RouteName;
use fairlead_api::route::{Protocol, Source, SourceKind};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;

use fairlead_core::claims::Holder;

use super::*;

/// Claims by name; every request is noted.
#[derive(Default)]
struct Apiserver {
    claims: BTreeMap<String, Value>,
    requests: Vec<String>,
    /// Of what was written: where to, and as what.
    heads: Vec<(String, String)>,
}

type Shared = Arc<Mutex<Apiserver>>;

impl Apiserver {
    fn answer(&mut self, method: &Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
        let name = path.rsplit('/').next().unwrap().to_owned();
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        self.requests.push(format!("{method} {name}"));
        let status = |code: u16, reason: &str| {
            (
                StatusCode::from_u16(code).unwrap(),
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason}),
            )
        };
        match *method {
            Method::POST => {
                let name = sent["metadata"]["name"].as_str().unwrap().to_owned();
                if self.claims.contains_key(&name) {
                    return status(409, "AlreadyExists");
                }
                let mut made = sent;
                made["metadata"]["uid"] = json!(format!("object-{name}"));
                self.claims.insert(name, made.clone());
                (StatusCode::CREATED, made)
            }
            Method::GET => match self.claims.get(&name) {
                Some(claim) => (StatusCode::OK, claim.clone()),
                None => status(404, "NotFound"),
            },
            Method::DELETE => {
                let Some(claim) = self.claims.get(&name) else { return status(404, "NotFound") };
                if sent["preconditions"]["uid"] != claim["metadata"]["uid"] {
                    return status(409, "Conflict");
                }
                let gone = self.claims.remove(&name).unwrap();
                (StatusCode::OK, gone)
            }
            Method::PATCH => {
                let Some(there) = self.claims.get_mut(&name) else {
                    return status(404, "NotFound");
                };
                assert_eq!(
                    (&sent[0]["op"], &sent[0]["path"]),
                    (&json!("replace"), &json!("/spec"))
                );
                let unmanaged =
                    json!({"op": "add", "path": "/metadata/managedFields", "value": [{}]});
                assert_eq!(sent[1], unmanaged);
                there["spec"] = sent[0]["value"].clone();
                (StatusCode::OK, there.clone())
            }
            _ => status(405, "MethodNotAllowed"),
        }
    }
}

fn hub() -> (Hub, Shared) {
    let shared = Shared::default();
    let state = shared.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let state = state.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let media_type = head.headers.get(http::header::CONTENT_TYPE);
            let media_type = media_type.map_or("", |value| value.to_str().unwrap()).to_owned();
            if media_type.contains("patch") {
                assert_eq!(head.headers[ACCEPT], METADATA);
            }
            state.lock().unwrap().heads.push((head.uri.to_string(), media_type));
            let (status, answer) =
                state.lock().unwrap().answer(&head.method, head.uri.path(), &body);
            let answer = Response::builder()
                .status(status)
                .body(Body::from(answer.to_string().into_bytes()));
            Ok::<_, kube::Error>(answer.unwrap())
        }
    });
    (Hub::new(Client::new(service, "default"), "fairlead-system", "a=b"), shared)
}

fn id(route: &str) -> RouteId {
    let name = RouteName::new(SourceKind::Service, "shop", route).unwrap();
    RouteId { tenant: "blue".parse().unwrap(), name }
}

fn spec(content_hash: &str) -> RouteSpec {
    let source = Source {
        kind: SourceKind::Service,
        namespace: "shop".into(),
        name: "web".into(),
        uid: "u".into(),
        created: 0,
    };
    RouteSpec::new(source, content_hash)
}

fn holder(route: &str, uid: &str) -> Holder {
    Holder::Route { route: id(route), uid: uid.into() }
}

fn claim(route: &str, port: u16) -> Claim {
    Claim {
        key: ClaimKey { address: "10.0.0.1".parse().unwrap(), protocol: Protocol::Tcp, port },
        pool: "public".into(),
        holder: holder(route, &format!("uid-of-{route}")),
        listener: Box::default(),
        alone: false,
        target: None,
        object: Uid::default(),
    }
}

#[tokio::test]
async fn claims_are_made_and_carry_their_objects() {
    let (hub, shared) = hub();
    let made = hub.claim(vec![claim("web", 80), claim("web", 443)]).await.unwrap();
    assert!(made.iter().all(|claim| claim.object.to_string().starts_with("object-10.0.0.1-tcp-")));
    assert_eq!(shared.lock().unwrap().claims.len(), 2);
}

#[tokio::test]
async fn all_or_none_and_the_holder_comes_back() {
    let (hub, shared) = hub();
    hub.claim(vec![claim("first", 443)]).await.unwrap();
    let refused = hub.claim(vec![claim("second", 80), claim("second", 443)]).await.unwrap_err();
    let Obstacle::Held(Some(held)) = refused else { panic!("{refused:?}") };
    assert_eq!(held.holder, claim("first", 443).holder);
    let left: Vec<_> = shared.lock().unwrap().claims.keys().cloned().collect();
    assert_eq!(left, ["10.0.0.1-tcp-443"], "port 80 was given back");
}

#[tokio::test]
async fn what_was_made_before_a_crash_is_taken_up() {
    let (hub, shared) = hub();
    hub.claim(vec![claim("web", 80)]).await.unwrap();
    hub.claim(vec![claim("web", 80), claim("web", 443)]).await.unwrap();
    assert_eq!(shared.lock().unwrap().claims.len(), 2);
    // A Route of the same name that was made anew is another one.
    let anew = Claim { holder: holder("web", "another"), ..claim("web", 80) };
    assert!(matches!(hub.claim(vec![anew]).await, Err(Obstacle::Held(Some(_)))));
}

#[tokio::test]
async fn a_release_is_of_exactly_the_object_that_is_meant() {
    let (hub, shared) = hub();
    let made = hub.claim(vec![claim("web", 80)]).await.unwrap();
    hub.release(&made[0].key, &"an older object".into()).await.unwrap();
    assert_eq!(shared.lock().unwrap().claims.len(), 1, "another one's claim stays");
    hub.release(&made[0].key, &made[0].object).await.unwrap();
    hub.release(&made[0].key, &made[0].object).await.unwrap();
    assert!(shared.lock().unwrap().claims.is_empty());
}

#[tokio::test]
async fn a_route_is_stored_whatever_was_known_of_it() {
    let (hub, shared) = hub();
    let id = id("web");
    let requests = || std::mem::take(&mut shared.lock().unwrap().requests);
    let store = async |content: &str, known: bool| {
        hub.store_route(&id, &spec(content), known).await.unwrap();
        shared.lock().unwrap().claims["svc.shop.web"]["spec"]["contentHash"].clone()
    };
    // Known though it is gone, new, not known though it is there, and known.
    assert_eq!(store("01", true).await, "01");
    assert_eq!(requests(), ["PATCH svc.shop.web", "POST routes"]);
    shared.lock().unwrap().claims.clear();
    assert_eq!(store("02", false).await, "02");
    assert_eq!(requests(), ["POST routes"]);
    assert_eq!(store("03", false).await, "03");
    assert_eq!(requests(), ["POST routes", "PATCH svc.shop.web"]);
    assert_eq!(store("04", true).await, "04");
    assert_eq!(requests(), ["PATCH svc.shop.web"]);
}

#[tokio::test]
async fn a_route_is_written_as_its_apiserver_wants_it() {
    let (hub, shared) = hub();
    let id = id("web");
    hub.store_route(&id, &spec("01"), false).await.unwrap();
    hub.store_route(&id, &spec("01"), true).await.unwrap();
    // There is no status in this apiserver: 404, as of a Route that is gone.
    hub.report(&id, &RouteStatus::default()).await.unwrap();
    let heads = std::mem::take(&mut shared.lock().unwrap().heads);
    let all = "/apis/fairlead.dev/v1alpha1/namespaces/tenant-blue/routes";
    let agent = "fieldManager=fairlead-agent-api&fieldValidation=Ignore";
    let manager = "fieldManager=fairlead-manager&fieldValidation=Ignore";
    let expected = [
        (format!("{all}?{agent}"), "application/json".to_owned()),
        (format!("{all}/svc.shop.web?{agent}"), "application/json-patch+json".to_owned()),
        (format!("{all}/svc.shop.web/status?{manager}"), "application/merge-patch+json".to_owned()),
    ];
    assert_eq!(heads, expected);
}
