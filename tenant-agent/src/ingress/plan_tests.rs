//! Plans as text that a person can compare: `goldens/plans.yaml`, which the hub's goldens go on from.
//! Renew with `UPDATE_GOLDENS=1 cargo test -p fairlead-agent goldens`, and read the difference.

use std::fmt::Write;

use serde_json::{Value, json};

use super::super::nginx::FOLLOWED;
use super::super::settings::KNOWN;
use super::*;

/// Services with shadows, Secrets in every state.
struct World;

fn service(spec: &Value) -> Service {
    serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "x"}, "spec": spec}))
        .unwrap()
}

impl Around for World {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        let port = |name: &str, port: u16, more: Value| {
            let mut all = json!({"name": name, "port": port, "protocol": "TCP"});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let spec = match key.1.as_str() {
            "web" | "api" | "v2" | "auth" | "slow" => {
                json!({"selector": {"app": "x"}, "ports": [port("http", 80, json!({}))]})
            }
            "grpc" => {
                json!({"selector": {"app": "x"}, "ports": [port("grpc", 90, json!({"appProtocol": "kubernetes.io/h2c"}))]})
            }
            "secure" => {
                json!({"selector": {"app": "x"}, "ports": [port("https", 443, json!({"appProtocol": "https"}))]})
            }
            "nodeport" => {
                json!({"type": "NodePort", "selector": {"app": "x"}, "ports": [port("http", 80, json!({"nodePort": 31_000}))]})
            }
            "headless" => json!({"clusterIP": "None", "ports": [port("http", 80, json!({}))]}),
            "empty" => json!({"selector": {"app": "x"}, "ports": [port("http", 80, json!({}))]}),
            "external" => json!({"type": "ExternalName", "externalName": "example.com"}),
            "dns" => json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}),
            _ => return None,
        };
        Some(service(&spec))
    }

    fn shadow(&self, key: &ServiceKey) -> Option<Service> {
        let original = self.service(key)?;
        let mut shadow = crate::shadow::shadow(&original);
        for (index, port) in shadow.spec.as_mut()?.ports.iter_mut().flatten().enumerate() {
            port.node_port = Some(30_080 + i32::try_from(index).unwrap());
        }
        (key.1 != "slow").then_some(shadow)
    }

    fn slots(&self, key: &ServiceKey) -> Vec<(Service, Ready)> {
        let Some(original) = self.service(key) else { return Vec::new() };
        let slot = |number: usize| {
            let mut shadow = crate::shadow::slot(&original, number);
            let ports = shadow.spec.iter_mut().flat_map(|spec| spec.ports.iter_mut().flatten());
            for port in ports {
                port.node_port = Some(31_080 + i32::try_from(number).unwrap());
            }
            let nodes =
                ["n1", "n2"].iter().take(2 - number).map(|node| (*node).to_owned()).collect();
            (shadow, Ready { any: true, nodes, content: 0 })
        };
        (0..2).map(slot).collect()
    }

    fn shadow_failure(&self, _: &ServiceKey) -> Option<String> {
        Some("the provided port is already allocated".into())
    }

    fn ready(&self, key: &ServiceKey) -> Ready {
        let nodes = ["n1", "n2"].map(str::to_owned).into();
        if key.1 == "empty" { Ready::default() } else { Ready { any: true, nodes, content: 0 } }
    }

    fn secret(&self, key: &ServiceKey, _: Part) -> Found {
        match key.1.as_str() {
            "tls" | "other" | "users" | "ca" => Found::Good(Some(2_000_000_000)),
            "old" => Found::Good(Some(1_000)),
            "broken" => {
                Found::Bad("tls.key: is not the key of the first certificate in tls.crt".into())
            }
            _ => Found::Bad("does not exist".into()),
        }
    }
}

fn ingress(annotations: &str, spec: &str) -> Ingress {
    let text = format!(
        "metadata:\n  namespace: shop\n  name: web\n  uid: u1\n  annotations:\n{annotations}spec:\n{spec}"
    );
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn rendered(name: &str, annotations: &[(String, String)], spec: &str) -> String {
    let lines: String = match annotations {
        [] => "    unrelated.example/x: \"y\"\n".into(),
        all => all
            .iter()
            .fold(String::new(), |text, (key, value)| text + &format!("    {key}: {value:?}\n")),
    };
    let plan = plan(&ingress(&lines, spec), &World, 1_700_000_000);
    let route = plan.route.expect("everything was read");
    let part = serde_json::to_value(&route).unwrap();
    let notes: Vec<_> =
        plan.notes.iter().map(|note| format!("{}: {}", note.reason, note.message)).collect();
    let services: BTreeMap<_, _> = plan
        .services
        .iter()
        .map(|(name, need)| (name, format!("shadow {} slots {}", need.shadow, need.slots)))
        .collect();
    let asked: BTreeMap<_, _> = annotations.iter().cloned().collect();
    let all = json!({
        "case": name, "annotations": asked, "services": services, "notes": notes, "route": part,
    });
    serde_saphyr::to_string(&all).unwrap()
}

const ONE: &str = "
  rules:
  - host: shop.example.com
    http:
      paths:
      - {path: /cart, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}
";

/// What the rules of an Ingress become.
const RULES: &[(&str, &str)] = &[
    ("prefix", ONE),
    ("exact and implementation-specific", "
  rules:
  - host: shop.example.com
    http:
      paths:
      - {path: /a, pathType: Exact, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /a/, pathType: Prefix, backend: {service: {name: api, port: {number: 80}}}}
      - {path: /b, pathType: ImplementationSpecific, backend: {service: {name: api, port: {number: 80}}}}
"),
    ("hosts, wildcards, and any", "
  rules:
  - {host: a.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}
  - {host: '*.example.com', http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}
  - {http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}
  - {host: nothing.example.com}
"),
    ("default backend", "
  defaultBackend: {service: {name: api, port: {number: 80}}}
  rules:
  - {host: a.example.com, http: {paths: [{path: /x, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}
"),
    ("default backend alone", "  defaultBackend: {service: {name: api, port: {number: 80}}}\n"),
    ("tls", "
  tls:
  - {hosts: [a.example.com], secretName: tls}
  - {hosts: ['*.example.com', other.example.org], secretName: other}
  rules:
  - {host: a.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}
  - {host: b.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}
  - {host: plain.example.net, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}
"),
    ("tls for all hosts", "
  tls: [{secretName: tls}]
  rules:
  - {host: a.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}
"),
    ("tls that is missing, broken, expired, or names nothing", "
  tls:
  - {hosts: [a.example.com], secretName: missing}
  - {hosts: [b.example.com], secretName: broken}
  - {hosts: [c.example.com], secretName: old}
  - {hosts: [d.example.com]}
  rules:
  - {host: a.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}
"),
    ("backends of every kind", "
  rules:
  - host: a.example.com
    http:
      paths:
      - {path: /nodeport, pathType: Prefix, backend: {service: {name: nodeport, port: {number: 80}}}}
      - {path: /headless, pathType: Prefix, backend: {service: {name: headless, port: {number: 80}}}}
      - {path: /grpc, pathType: Prefix, backend: {service: {name: grpc, port: {name: grpc}}}}
      - {path: /secure, pathType: Prefix, backend: {service: {name: secure, port: {number: 443}}}}
      - {path: /empty, pathType: Prefix, backend: {service: {name: empty, port: {number: 80}}}}
"),
    ("backends that cannot be", "
  rules:
  - host: a.example.com
    http:
      paths:
      - {path: /good, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /missing, pathType: Prefix, backend: {service: {name: nobody, port: {number: 80}}}}
      - {path: /port, pathType: Prefix, backend: {service: {name: web, port: {number: 81}}}}
      - {path: /name, pathType: Prefix, backend: {service: {name: web, port: {name: nope}}}}
      - {path: /external, pathType: Prefix, backend: {service: {name: external, port: {number: 80}}}}
      - {path: /udp, pathType: Prefix, backend: {service: {name: dns, port: {number: 53}}}}
      - {path: /slow, pathType: Prefix, backend: {service: {name: slow, port: {number: 80}}}}
      - {path: /resource, pathType: Prefix, backend: {resource: {kind: Bucket, name: x}}}
"),
];

/// Annotations, a line for each case; several in one are separated by ` & `.
const OURS: &[&str] = &[
    "pool: public & address: 172.18.0.201",
    "ssl-redirect: false",
    "ssl-passthrough: true",
    "backend-protocol: GRPC",
    "backend-protocol: GRPCS",
    "backend-protocol: HTTPS & backend-tls-ca: ca & backend-tls-server-name: inside.example",
    "backend-protocol: HTTPS & backend-tls-ca: ca",
    "connect-timeout: 500ms & request-timeout: 30s & idle-timeout: 2h",
    "retries: 3 & retry-on: connect-failure,5xx & retry-timeout: 2s",
    "retries: 2",
    "rate-limit: 100/s",
    "rate-limit: 30/m & rate-limit-burst: 5 & rate-limit-per-client: true",
    "allow-cidrs: 10.0.0.0/8, 192.168.1.7, fd00::/8",
    "allow-cidrs: 10.0.0.0/8 & deny-cidrs: 10.1.0.0/16",
    "cors-allow-origins: https://*.example.com,https://example.com:8443 & cors-allow-methods: GET,PUT & cors-allow-headers: X-A & cors-expose-headers: X-B & cors-allow-credentials: true & cors-max-age: 10m",
    "cors-allow-origins: *",
    "redirect: https://new.example.com:8443/there & redirect-code: 308",
    "redirect: /moved",
    "app-root: /start",
    "rewrite-prefix: /",
    "rewrite-prefix: /basket",
    "rewrite-path: /one",
    "rewrite-host: inside.example",
    "path-regex: true & rewrite-regex: /x/\\1",
    "request-headers-set: X-One: 100%\nX-Two: b & request-headers-add: X-Three: c & request-headers-remove: X-Four,X-Five",
    "response-headers-set: X-One: a & response-headers-add: X-Three: c & response-headers-remove: Server",
    "affinity: cookie",
    "affinity: cookie & affinity-cookie-name: stick & affinity-cookie-max-age: 1h & affinity-cookie-path: /cart",
    "affinity: source-address",
    "load-balancing: least-request",
    "load-balancing: random",
    "basic-auth-secret: users",
    "auth-service: auth:http & auth-path: /check & auth-response-headers: X-User",
    "max-body-size: 10m",
    "canary-backend: v2:80 & canary-weight: 10 & canary-header: X-Canary & canary-header-value: yes",
    "canary-backend: v2:80 & canary-weight: 100",
    // What cannot be followed.
    "rate-limit: lots",
    "allow-cidrs: everywhere",
    "request-timeout: soon",
    "basic-auth-secret: nobody",
    "auth-service: nobody:80",
    "canary-backend: nobody:80 & canary-weight: 10",
    "rewrite-regex: /\\1",
    "no-such-thing: x",
];

const THEIRS: &[&str] = &[
    "ssl-redirect: false",
    "force-ssl-redirect: true",
    "ssl-passthrough: true",
    "backend-protocol: HTTPS & proxy-ssl-secret: shop/ca & proxy-ssl-verify: on & proxy-ssl-name: inside.example & proxy-ssl-server-name: on",
    "backend-protocol: HTTPS & proxy-ssl-secret: shop/ca & proxy-ssl-verify: off",
    "backend-protocol: FCGI",
    "proxy-body-size: 8m",
    "proxy-body-size: 0",
    "proxy-connect-timeout: 7 & proxy-read-timeout: 120 & proxy-send-timeout: 60",
    "proxy-buffering: off & proxy-request-buffering: off & proxy-http-version: 1.1",
    "proxy-buffering: on",
    "use-regex: true",
    "rewrite-target: /",
    "rewrite-target: /x$1$2",
    "app-root: /start",
    "permanent-redirect: https://new.example.com & permanent-redirect-code: 308",
    "temporal-redirect: https://new.example.com/x & temporal-redirect-code: 307",
    "whitelist-source-range: 10.0.0.0/8",
    "allowlist-source-range: 10.0.0.0/8 & denylist-source-range: 10.1.0.0/16",
    "limit-rps: 10 & limit-burst-multiplier: 3",
    "limit-rpm: 30",
    "enable-cors: true",
    "enable-cors: true & cors-allow-origin: https://example.com & cors-allow-methods: GET & cors-allow-headers: X-A & cors-expose-headers: X-B & cors-allow-credentials: true & cors-max-age: 600",
    "cors-allow-origin: https://example.com",
    "affinity: cookie & session-cookie-name: route & session-cookie-path: / & session-cookie-max-age: 60",
    "upstream-hash-by: $remote_addr",
    "upstream-hash-by: $request_uri",
    "load-balance: round_robin",
    "load-balance: ewma",
    "auth-type: basic & auth-secret: users & auth-secret-type: auth-file & auth-realm: shop",
    "auth-url: https://auth.example.com",
    "upstream-vhost: inside.example",
    "x-forwarded-prefix: /cart",
    "configuration-snippet: more_set_headers x",
    "canary: true & canary-weight: 10",
];

fn pairs(prefix: &str, case: &str) -> Vec<(String, String)> {
    let one = |pair: &str| {
        let (name, value) = pair.split_once(": ").unwrap();
        (format!("{prefix}{name}"), value.to_owned())
    };
    case.split(" & ").map(one).collect()
}

#[test]
fn every_annotation_has_a_golden() {
    let covered = |cases: &[&str], name: &str| {
        cases.iter().any(|case| pairs("", case).iter().any(|(key, _)| key == name))
    };
    for known in KNOWN {
        assert!(covered(OURS, known.name), "fairlead.dev/{}", known.name);
    }
    for (name, ..) in FOLLOWED {
        assert!(covered(THEIRS, name), "nginx.ingress.kubernetes.io/{name}");
    }
}

#[test]
fn goldens() {
    let mut text =
        String::from("# Written by `UPDATE_GOLDENS=1 cargo test -p fairlead-agent goldens`.\n");
    let mut case = |name: &str, annotations: &[(String, String)], spec: &str| {
        write!(text, "---\n{}", rendered(name, annotations, spec)).unwrap();
    };
    for (name, spec) in RULES {
        case(name, &[], spec);
    }
    let expression =
        ONE.replace("/cart", "/cart(/|$)(.*)").replace("Prefix", "ImplementationSpecific");
    let secure =
        ONE.replace("  rules:", "  tls: [{hosts: [shop.example.com], secretName: tls}]\n  rules:");
    let root = ONE.replace("/cart", "/");
    for (prefix, cases) in [("fairlead.dev/", OURS), ("nginx.ingress.kubernetes.io/", THEIRS)] {
        for one in cases {
            let spec = match one {
                _ if one.contains("regex") || one.contains("$1") => &expression,
                _ if one.contains("ssl-redirect") => &secure,
                _ if one.contains("app-root") => &root,
                _ => ONE,
            };
            case(&format!("{prefix} {}", one.replace('\n', " ")), &pairs(prefix, one), spec);
        }
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/goldens/plans.yaml");
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(file, &text).unwrap();
    }
    let stored = std::fs::read_to_string(file).unwrap_or_default();
    for (number, (old, new)) in stored.lines().zip(text.lines()).enumerate() {
        assert_eq!(old, new, "plans.yaml, line {}", number + 1);
    }
    assert_eq!(stored.lines().count(), text.lines().count(), "plans.yaml");
}

#[test]
fn nothing_is_pushed_before_all_that_is_named_was_read() {
    struct Unread;
    impl Around for Unread {
        fn service(&self, key: &ServiceKey) -> Option<Service> {
            World.service(key)
        }
        fn shadow(&self, _: &ServiceKey) -> Option<Service> {
            None
        }
        fn slots(&self, _: &ServiceKey) -> Vec<(Service, Ready)> {
            Vec::new()
        }

        fn shadow_failure(&self, _: &ServiceKey) -> Option<String> {
            None
        }
        fn ready(&self, key: &ServiceKey) -> Ready {
            World.ready(key)
        }
        fn secret(&self, _: &ServiceKey, _: Part) -> Found {
            Found::Unread
        }
    }
    let plan = plan(&ingress("    a: b\n", ONE), &Unread, 0);
    assert!(plan.route.is_none(), "the shadow is being made");
    assert_eq!(plan.services["web"], Need { shadow: true, slots: false });
}

#[test]
fn what_anybody_may_write_into_an_annotation_is_read_without_a_panic() {
    use proptest::prelude::*;
    let names: Vec<String> = KNOWN
        .iter()
        .map(|known| format!("fairlead.dev/{}", known.name))
        .chain(FOLLOWED.iter().map(|(name, ..)| format!("nginx.ingress.kubernetes.io/{name}")))
        .collect();
    let any = prop::collection::btree_map(prop::sample::select(names), ".{0,40}", 0..6);
    proptest!(|(annotations in any)| {
        let (settings, complaints) = Settings::parse(&annotations);
        prop_assert!(complaints.iter().all(|one| one.message.len() < 1_000));
        let _ = settings;
    });
}

#[test]
fn a_huge_annotation_is_named_and_not_repeated() {
    let annotations = BTreeMap::from([("fairlead.dev/rate-limit".to_owned(), "9".repeat(200_000))]);
    let (settings, complaints) = Settings::parse(&annotations);
    assert!(settings.closed);
    assert!(complaints[0].message.len() < 300, "{}", complaints[0].message);
}
