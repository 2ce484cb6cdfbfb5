//! Bytes that no client sends.

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{LOOPBACK, Served, ZONE, advert, labels, node};

#[tokio::test]
async fn rubbish_ends_nothing() {
    let served = Served::start();
    let mut random = StdRng::seed_from_u64(4);
    let datagrams = UdpSocket::bind((LOOPBACK, 0)).expect("a socket");
    for _ in 0..2000 {
        let mut bytes = vec![0; random.random_range(0..600)];
        random.fill(&mut bytes[..]);
        if bytes.len() > 12 && random.random() {
            // One that looks like a request.
            bytes[2] &= 0x28;
            bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, random.random_range(0..2), 0, 1]);
        }
        datagrams.send_to(&bytes, served.address()).expect("sent");
    }
    for _ in 0..200 {
        let mut stream = TcpStream::connect(served.address()).expect("connected");
        let mut bytes = vec![0; random.random_range(0..600)];
        random.fill(&mut bytes[..]);
        if random.random() {
            let len = u16::try_from(bytes.len()).expect("short").saturating_sub(2);
            if bytes.len() > 2 {
                bytes[..2].copy_from_slice(&len.to_be_bytes());
            }
        }
        // It may hang up in the middle.
        let _ = stream.write_all(&bytes);
    }
    // By TCP, for by UDP this network has had its share.
    assert!(served.dig(&["+short", "+tcp", ZONE, "SOA"]).contains("hostmaster"));
    served.client().publish(&advert(&node(1), 1)).await.expect("published");
}

#[tokio::test]
async fn a_flood_gets_back_no_more_than_it_brings() {
    let served = Served::start();
    let node = node(1);
    served.client().publish(&advert(&node, 1)).await.expect("published");
    let (label, _) = labels(&node);
    let socket = UdpSocket::bind((LOOPBACK, 0)).expect("a socket");
    socket.connect(served.address()).expect("connected");
    socket.set_nonblocking(true).expect("not blocking");
    // The TXT record of one node, with room for all of it.
    let mut query = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for part in [&label, "_wireguard", "_udp", "mesh", "example"] {
        query.push(u8::try_from(part.len()).expect("a label"));
        query.extend(part.as_bytes());
    }
    query.extend([0, 0, 16, 0, 1, 0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
    let mut buffer = [0; 4096];
    let mut flood = |count: usize| {
        let (mut sent, mut got, mut most) = (0, 0, 0);
        for _ in 0..count {
            sent += socket.send(&query).unwrap_or_default();
            std::thread::sleep(Duration::from_micros(200));
            while let Ok(len) = socket.recv(&mut buffer) {
                got += len;
                most = most.max(len);
            }
        }
        (sent, got, most)
    };
    let (_, _, most) = flood(500);
    assert!(most > 300, "at first there are answers");
    let (sent, got, _) = flood(3000);
    // What comes in while its rest comes back, and half of the rest, cut.
    assert!(got < 2 * sent, "{got} bytes for {sent}");
    // Somebody real is told to come by TCP, and gets all.
    let txt =
        served.dig(&["+short", "+tries=4", &format!("{label}._wireguard._udp.{ZONE}"), "TXT"]);
    assert!(txt.contains("txtvers=1"), "{txt}");
}

#[test]
fn who_sends_nothing_or_reads_nothing_holds_up_nobody() {
    let served =
        Served::start_with("", "limits = { connections = 60, connections_per_source = 50 }");
    let idle: Vec<TcpStream> =
        (0..50).map(|_| TcpStream::connect(served.address()).expect("connected")).collect();
    let mut one_more = TcpStream::connect(served.address()).expect("the kernel takes it");
    one_more.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    assert_eq!(one_more.read(&mut [0; 1]).expect("it is hung up"), 0);
    // By UDP all goes on.
    assert!(served.dig(&["+short", "+notcp", ZONE, "SOA"]).contains("hostmaster"));
    drop(idle);
    let tcp = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        served.dig(&["+short", "+tcp", ZONE, "SOA"]).contains("hostmaster")
    });
    assert!(tcp, "there is room again");
}
