//! The hub's decisions with an apiserver that persists at once, for a real Envoy without clusters.

use fairlead_api::{RouteId, RouteStatus};
use fairlead_core::{Effects, Engine};
use fairlead_xds::Change;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// What a step leaves to others.
#[derive(Debug, Default)]
pub struct Step {
    /// For Envoy.
    pub changes: Vec<Change>,
    /// For the Routes.
    pub statuses: Vec<(RouteId, RouteStatus)>,
}

/// One step, whose claims are there at once. `None`: nothing is left to do.
pub fn step(engine: &mut Engine) -> Option<Step> {
    let effects = Effects { wake: None, ..engine.step(&Time(Timestamp::UNIX_EPOCH)) };
    if effects == Effects::default() {
        return None;
    }
    let Effects { changes, claim, claim_hosts, statuses, .. } = effects;
    for (route, mut claims) in claim {
        for claim in &mut claims {
            claim.object = claim.key.object_name().into();
        }
        engine.claimed(&route, Some(claims));
    }
    for mut claim in claim_hosts {
        claim.object = claim.key.object_name().into();
        engine.host_claimed(&claim.key.clone(), Some(claim));
    }
    Some(Step { changes, statuses })
}
