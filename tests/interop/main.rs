//! Against other people's programs, each test in a world of its own. They need root,
//! and the programs that `make test` installs.

/// Each scenario with BIND and with Knot.
macro_rules! with_both_servers {
    ($($scenario:ident),* $(,)?) => {
        mod bind {
            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario(super::ZoneServerKind::Bind).await;
            })*
        }
        mod knot {
            $(#[tokio::test]
            async fn $scenario() {
                super::$scenario(super::ZoneServerKind::Knot).await;
            })*
        }
    };
}

mod embedded_zone;
mod interfaces;
mod journal;
mod mdns;
mod revoke;
mod sealed;
mod serve;
mod slices;
mod stun;
mod turn;
mod zone;
mod zone_policy;
