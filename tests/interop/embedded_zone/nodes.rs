//! Nodes: our own client.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
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

/// A long poll by hand, and who waits for its answer.
async fn wait_for_news(served: &Served, serial: u32) -> TcpStream {
    let mut query = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    query.extend(b"\x04mesh\x07example\0\0\x06\0\x01");
    // OPT with the option 65301.
    query.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 8, 0xff, 0x15, 0, 4]);
    query.extend(serial.to_be_bytes());
    let length = u16::try_from(query.len()).expect("short").to_be_bytes();
    let mut stream = TcpStream::connect(served.address()).await.expect("connected");
    stream.write_all(&[&length[..], &query].concat()).await.expect("asked");
    stream
}

#[tokio::test]
async fn hundreds_hear_of_one_change_and_of_many() {
    let served = Served::start_with("", "limits = { updates_per_network = 5000 }");
    let client = served.client();
    let serial = served.serial();
    let mut waiting = Vec::new();
    for _ in 0..400 {
        waiting.push(wait_for_news(&served, serial).await);
    }
    let start = Instant::now();
    client.publish(&advert(&node(1), 1)).await.expect("published");
    let mut answer = [0; 512];
    for stream in &mut waiting {
        let read = tokio::time::timeout(SOON, stream.read(&mut answer)).await;
        assert!(read.expect("it is told").expect("and not hung up") > 40);
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    // While hundreds wait, updates go on at their pace.
    drop(waiting);
    let serial = served.serial();
    let mut waiting = Vec::new();
    for _ in 0..200 {
        waiting.push(wait_for_news(&served, serial).await);
    }
    for number in 0..50 {
        client.publish(&advert(&node(2), number)).await.expect("published");
    }
    assert_eq!(served.serial(), serial + 50);
    for stream in &mut waiting {
        let read = tokio::time::timeout(SOON, stream.read(&mut answer)).await;
        assert!(read.expect("it is told").expect("and not hung up") > 40);
    }
}
