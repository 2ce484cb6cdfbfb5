//! `dig` and `nsupdate`.

use std::process::Command;

use tempfile::TempDir;
use zonemesh::lab::{namespace::run, programs};

use super::{KEY, SECRET, Served, ZONE, advert, dig_at, free_port, labels, long_advert, node};

/// The section of dig's words, line by line.
fn section(text: &str, name: &str) -> Vec<String> {
    let head = format!(";; {name} SECTION:");
    let lines = text.lines().skip_while(|line| *line != head).skip(1);
    lines.take_while(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// How many records of a type dig shows.
fn count(text: &str, kind: &str) -> usize {
    text.lines().filter(|line| line.split_whitespace().nth(3) == Some(kind)).count()
}

#[tokio::test]
async fn dig_sees_what_a_node_has_published() {
    let served = Served::start();
    let node = node(1);
    served.client().publish(&long_advert(&node, 1)).await.expect("published");
    served.client().announce(&node.public_key()).await.expect("the list has it already");
    let (label, host) = labels(&node);
    let instance = format!("{label}._wireguard._udp.{ZONE}");
    for transport in ["+notcp", "+tcp"] {
        let short = |name: &str, kind: &str| served.dig(&[transport, "+short", name, kind]);
        assert_eq!(short(&format!("_wireguard._udp.{ZONE}"), "PTR"), format!("{instance}.\n"));
        assert_eq!(short(&instance, "SRV"), format!("0 0 51820 {host}.{ZONE}.\n"));
        assert_eq!(short(&format!("{host}.{ZONE}"), "A"), "198.51.100.7\n");
        assert!(short(&instance, "TXT").starts_with("\"txtvers=1\" \"pub="));
        assert_eq!(short(ZONE, "NS"), format!("rendezvous.{ZONE}.\n"));
        assert_eq!(short(&format!("rendezvous.{ZONE}"), "A"), "127.0.0.1\n");
        // Names are compared without regard to case, and answered as they were asked.
        let shout = served.dig(&[transport, &instance.to_uppercase(), "SRV"]);
        assert!(section(&shout, "ANSWER")[0].starts_with(&instance.to_uppercase()), "{shout}");
    }
    // As wgsd's client asks: without EDNS, and with the address behind the answer.
    let srv = served.dig(&["+noedns", "+notcp", &instance, "SRV"]);
    assert_eq!(section(&srv, "ANSWER").len(), 1);
    assert!(section(&srv, "ADDITIONAL")[0].ends_with("198.51.100.7"), "{srv}");
    let size = srv.lines().find_map(|line| line.strip_prefix(";; MSG SIZE  rcvd: "));
    assert!(size.and_then(|size| size.parse::<usize>().ok()).is_some_and(|size| size <= 512));
    // A TXT record does not fit 512 bytes: dig is told, and asks by TCP.
    let short = served.dig(&["+noedns", "+ignore", &instance, "TXT"]);
    assert!(short.contains("flags: qr aa tc;") && section(&short, "ANSWER").is_empty(), "{short}");
    let whole = served.dig(&["+noedns", &instance, "TXT"]);
    assert_eq!(section(&whole, "ANSWER").len(), 1);
    assert!(whole.contains("(TCP)"), "{whole}");
    let large = served.dig(&["+bufsize=1232", "+ignore", &instance, "TXT"]);
    assert_eq!(section(&large, "ANSWER").len(), 1);
    // One set is answer enough to ANY (RFC 8482).
    assert_eq!(section(&served.dig(&["+notcp", &instance, "ANY"]), "ANSWER").len(), 1);

    served.client().withdraw(&node.public_key()).await.expect("withdrawn");
    assert_eq!(served.dig(&["+short", &instance, "SRV"]), "");
    assert_eq!(served.dig(&["+short", &format!("_wireguard._udp.{ZONE}"), "PTR"]), "");
}

#[test]
fn what_is_not_there_is_told_apart() {
    let served = Served::start();
    let status = |arguments: &[&str]| {
        let text = served.dig(arguments);
        let code = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
        (code.unwrap_or("none").to_owned(), section(&text, "AUTHORITY"))
    };
    // No such name: the SOA says for how long to believe that (RFC 2308).
    let (code, authority) = status(&[&format!("nobody.{ZONE}"), "A"]);
    assert_eq!(code, "NXDOMAIN");
    let fields: Vec<&str> = authority[0].split_whitespace().collect();
    assert_eq!((fields[0], fields[1], fields[3]), ("mesh.example.", "10", "SOA"));
    // The name is there, and no such record; or it only has names below it.
    for (name, kind) in [(ZONE, "AAAA"), ("_udp.mesh.example", "A")] {
        let (code, _) = status(&[name, kind]);
        assert_eq!(code, if name == ZONE { "NOERROR" } else { "NXDOMAIN" });
    }
    for arguments in [&["other.example", "SOA"][..], &[ZONE, "CH", "TXT"], &["example", "NS"]] {
        assert_eq!(status(arguments).0, "REFUSED", "{arguments:?}");
    }
    assert_eq!(status(&["+notcp", "+ednsopt=65001:00", ZONE, "SOA"]).0, "NOERROR");
    assert_eq!(status(&["+edns=1", "+noednsneg", ZONE, "SOA"]).0, "BADVERS");
    assert_eq!(status(&["+opcode=2", ZONE, "SOA"]).0, "NOTIMP");
}

#[tokio::test]
async fn dig_has_the_zone_transferred_whole_and_by_what_has_changed() {
    let served = Served::start();
    let client = served.client();
    for number in 0..150 {
        client.publish(&advert(&node(number), 1)).await.expect("published");
    }
    let since = served.serial();
    client.publish(&advert(&node(3), 2)).await.expect("published");
    let key = format!("hmac-sha256:{KEY}:{}", data_encoding::BASE64.encode(SECRET));
    for signed in [&[][..], &["-y", &key]] {
        let whole = served.dig(&[signed, &["+onesoa", ZONE, "AXFR"]].concat());
        assert_eq!(count(&whole, "TXT"), 150, "{whole}");
        // More than one message, and than 64 KiB.
        let size = whole.lines().find(|line| line.starts_with(";; XFR size")).expect("a size");
        let bytes = size.split("bytes ").nth(1).map(|rest| rest.trim_end_matches(')'));
        assert!(bytes.and_then(|bytes| bytes.parse::<u32>().ok()).is_some_and(|n| n > 1 << 16));
        assert!(!whole.contains("failed") && !whole.contains("WARNING"), "{whole}");
        let changes = served.dig(&[signed, &[ZONE, &format!("IXFR={since}")]].concat());
        assert_eq!(count(&changes, "TXT"), 2, "the old one and the new: {changes}");
        assert_eq!(count(&changes, "SOA"), 4);
        let none = served.dig(&[signed, &[ZONE, &format!("IXFR={}", since + 1)]].concat());
        assert_eq!(count(&none, "SOA"), 1, "{none}");
    }
}

#[test]
fn nsupdate_writes_what_its_key_allows() {
    let (_, own) = labels(&node(1));
    let (_, other) = labels(&node(2));
    let own_key = format!("{own}.{ZONE}");
    // In one line, for it is a value in the file.
    let keys = "limits = { updates_per_network = 1000 }";
    let served = Served::start_with("", keys);
    let all = Some((KEY, SECRET));
    let add = |host: &str| vec![format!("update add {host}.{ZONE} 30 A 192.0.2.1")];
    served.nsupdate(all, &add(&own)).expect("this key may");
    assert_eq!(served.dig(&["+short", &format!("{own}.{ZONE}"), "A"]), "192.0.2.1\n");

    // Without a key, nothing proves it; with a wrong one, it is told.
    let refused = |key, lines: &[String]| served.nsupdate(key, lines).expect_err("refused");
    assert!(refused(None, &add(&other)).contains("REFUSED"));
    assert!(refused(Some((KEY, b"another secret")), &add(&other)).contains("BADSIG"));
    assert!(refused(Some((&own_key, SECRET)), &add(&other)).contains("BADKEY"));
    assert_eq!(served.dig(&["+short", &format!("{other}.{ZONE}"), "A"]), "");

    // What the configuration says stays as it is.
    for line in [
        format!("update add rendezvous.{ZONE} 30 A 192.0.2.66"),
        format!("update delete {ZONE} NS"),
        format!("update add evil.{ZONE} 30 A 192.0.2.66"),
    ] {
        let _ = served.nsupdate(all, &[line]);
    }
    assert_eq!(served.dig(&["+short", ZONE, "NS"]), format!("rendezvous.{ZONE}.\n"));
    assert_eq!(served.dig(&["+short", &format!("rendezvous.{ZONE}"), "A"]), "127.0.0.1\n");
    assert_eq!(served.dig(&["+short", &format!("evil.{ZONE}"), "A"]), "");

    // Prerequisites (RFC 2136 §2.4).
    let when = |condition: &str, host: &str| {
        let lines = [format!("prereq {condition} {host}.{ZONE}")];
        served.nsupdate(all, &[&lines[..], &add(host)].concat())
    };
    assert!(when("nxdomain", &own).expect_err("it is in use").contains("YXDOMAIN"));
    assert!(when("yxdomain", &other).expect_err("it is not").contains("NXDOMAIN"));
    when("nxdomain", &other).expect("it is not in use");
    assert_eq!(served.dig(&["+short", &format!("{other}.{ZONE}"), "A"]), "192.0.2.1\n");
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_kill() {
    let mut served = Served::start();
    for number in 0..20 {
        served.client().publish(&advert(&node(number), 1)).await.expect("published");
        if number % 5 == 4 {
            let before = served.serial();
            served.restart();
            assert_eq!(served.serial(), before);
        }
    }
    let whole = served.dig(&[ZONE, "AXFR"]);
    assert_eq!(count(&whole, "TXT"), 20, "{}", served.log());
}

#[test]
fn dig_asks_under_tls() {
    programs::require(&["openssl"]).expect("programs");
    let folder = TempDir::new().expect("a folder");
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    openssl.args(["-nodes", "-days", "1", "-subj", "/CN=rendezvous.mesh.example", "-keyout"]);
    run(openssl.arg(&key).arg("-out").arg(&cert), "").expect("a certificate");
    let port = free_port();
    let tls = format!(
        "tls_listen = [\"127.0.0.1:{}\"]\ntls_cert_file = {cert:?}\ntls_key_file = {key:?}",
        free_port()
    );
    let served = Served::start_with(&tls, &format!("tls_listen = [\"127.0.0.1:{port}\"]"));
    for arguments in [&[ZONE, "SOA"][..], &[ZONE, "AXFR"]] {
        let answer = dig_at(port, &[&["+tls"], arguments].concat());
        assert!(answer.contains("rendezvous.mesh.example. hostmaster"), "{answer}");
    }
    assert!(served.log().contains("serving the zone by TLS"));
}
