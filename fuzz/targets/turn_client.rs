//! A node's allocation at a relay that means harm: it may answer what it likes, and knows
//! the node's credential.

#![no_main]

use std::{collections::BTreeSet, time::Instant};

use libfuzzer_sys::fuzz_target;
use zonemesh_fuzz::{Bytes, sow};
use zonemesh_punch::turn::{
    Client, ClientConfig, Credentials, Event, Transport,
    message::{Class, Failure, Message, Method, peek},
};

/// What the relay signs with its answer.
const SIGNED: u8 = 0x10;

fuzz_target!(
    init: {
        let encode = |message: &Message| {
            let bytes = message.encode(None).expect("a good message");
            [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()
        };
        let challenge = Message {
            failure: Some(Failure { code: 401, reason: "Unauthorized".to_owned() }),
            realm: Some("zonemesh".to_owned()),
            nonce: Some("nonce".to_owned()),
            ..Message::new(Method::Allocate, Class::Error, [0; 12])
        };
        let done = Message {
            relayed: vec!["203.0.113.1:50000".parse().expect("literal")],
            mapped: Some("198.51.100.7:4000".parse().expect("literal")),
            lifetime: Some(600),
            ..Message::new(Method::Allocate, Class::Success, [0; 12])
        };
        let data = Message {
            peers: vec!["192.0.2.1:51820".parse().expect("literal")],
            data: Some(b"data".to_vec()),
            ..Message::new(Method::Data, Class::Indication, [3; 12])
        };
        let life = |answer: &Message| [
            &[2, 1][..], &[0x01], &encode(&challenge), &[SIGNED], &encode(answer),
            &[3, 1, 4, 1, 2, 3, 4], &[SIGNED], &encode(answer), &[1], &encode(&data),
            &[4, 0x88], &[SIGNED], &encode(answer), &[5],
        ].concat();
        let stale = Message {
            failure: Some(Failure { code: 438, reason: "Stale".to_owned() }),
            ..challenge.clone()
        };
        let lost = Message {
            failure: Some(Failure { code: 437, reason: "Lost".to_owned() }),
            ..challenge.clone()
        };
        sow("turn_client", &[life(&done), life(&stale), life(&lost)]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let credentials = Credentials::new("alice", "secret");
        let transport = if data.len() % 2 == 0 { Transport::Datagram } else { Transport::Stream };
        let server = "198.51.100.2:3478".parse().expect("literal");
        let config = ClientConfig { credentials: credentials.clone(), server, transport, seed: [5; 32] };
        let mut now = Instant::now();
        let mut client = Client::new(config, now);
        let mut asked: Vec<Vec<u8>> = Vec::new();
        let mut realm = "zonemesh".to_owned();
        let mut ended = false;
        let mut received = 0;
        let mut sent = 0;
        for _ in 0..64 {
            let drained = drain(&mut client, &mut asked, &mut ended);
            sent += drained;
            assert!(!ended || drained == 0 || sent < 512);
            if bytes.is_empty() {
                break;
            }
            let what = bytes.byte();
            match what & 0x0f {
                // An answer to the newest question, or to one before it.
                0 => {
                    let back = usize::from(what >> 5);
                    let Some(id) = asked.iter().rev().nth(back).and_then(|asked| peek(asked))
                    else { continue };
                    let Ok(mut answer) = Message::parse(bytes.string()) else { continue };
                    (answer.method, answer.id) = (id.0, id.2);
                    if let Some(told) = &answer.realm {
                        realm.clone_from(told);
                    }
                    let key = credentials.key(&realm).ok().filter(|_| what & SIGNED != 0);
                    let Ok(answer) = answer.encode(key.as_ref()) else { continue };
                    client.handle_message(&answer, now);
                    received += 1;
                }
                1 => {
                    client.handle_message(bytes.string(), now);
                    received += 1;
                }
                2 => client.bind(bytes.addr(), now),
                3 => client.send(bytes.addr(), bytes.short_string(), now),
                4 => {
                    now += bytes.span();
                    client.handle_timeout(now);
                    // Time that has come is done with: it may not ask to be called for ever.
                    for _ in 0..8 {
                        sent += drain(&mut client, &mut asked, &mut ended);
                        if client.poll_timeout().is_none_or(|due| due > now) {
                            break;
                        }
                        client.handle_timeout(now);
                    }
                    sent += drain(&mut client, &mut asked, &mut ended);
                    assert!(client.poll_timeout().is_none_or(|due| due > now));
                }
                5 => client.check_now(now),
                6 => client.unbind(bytes.addr(), now),
                _ => {
                    let peers: BTreeSet<_> = (0..bytes.byte() % 8).map(|_| bytes.addr()).collect();
                    client.set_peers(&peers, now);
                }
            }
        }
        // 20 ChannelBinds at a time, a queue that is bounded, and a request for an answer.
        assert!(sent <= 64 * 9 * (20 + 2) + 256 + received, "{sent} for {received}");
    }
);

fn drain(client: &mut Client, asked: &mut Vec<Vec<u8>>, ended: &mut bool) -> usize {
    let mut count = 0;
    while let Some(bytes) = client.poll_transmit() {
        assert!(!*ended, "an ended client says no more");
        count += 1;
        if peek(&bytes).is_some_and(|(_, class, _)| class == Class::Request) {
            asked.push(bytes);
        }
    }
    while let Some(event) = client.poll_event() {
        if let Event::Ended(_) = event {
            assert!(!*ended, "it ends once");
            *ended = true;
        }
    }
    if *ended {
        assert_eq!(client.poll_timeout(), None);
        assert_eq!(client.relayed(), None);
    }
    count
}
