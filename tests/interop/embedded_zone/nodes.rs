//! Nodes: our own client.

use std::time::{Duration, Instant};

use zonemesh_discovery::zone::{Browser, ZoneClient};

use super::{Served, advert, node, zone};

/// Far longer than news takes, and far shorter than an interval between looks would be.
const SOON: Duration = Duration::from_secs(2);

/// An interval that no test waits for.
const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_node_hears_of_a_change_at_once() {
    let served = Served::start();
    let mut browser = Browser::new(ZoneClient::new(zone(), served.address(), None));
    browser.poll().await.expect("polled");
    for number in 0..5 {
        let (heard, done) = tokio::join!(
            async {
                // An hour's rest, and a twentieth of it behind the news.
                let rested = tokio::time::timeout(SOON, browser.rest(Duration::ZERO)).await;
                rested.map(|()| Instant::now())
            },
            async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                served.client().publish(&advert(&node(number), 1)).await.expect("published");
                Instant::now()
            }
        );
        let heard = heard.expect("it hears");
        assert!(heard + Duration::from_millis(50) > done, "it did not wait");
        let view = browser.poll().await.expect("polled").expect("news");
        assert_eq!(view.instances.len(), usize::from(number) + 1);
    }
}

#[tokio::test]
async fn who_waits_is_not_answered_for_nothing() {
    let served = Served::start();
    let client = served.client();
    client.publish(&advert(&node(1), 1)).await.expect("published");
    let mut browser = Browser::new(client);
    browser.poll().await.expect("polled").expect("news");
    let rested = tokio::time::timeout(SOON, browser.rest(NEVER)).await;
    assert!(rested.is_err(), "nothing has changed");
}
