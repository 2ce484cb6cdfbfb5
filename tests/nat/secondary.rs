//! A mesh whose zone has two servers: the embedded one, and BIND as its secondary.

use std::{fs, thread, time::Duration};

use tempfile::TempDir;
use zonemesh::lab::{
    member::Member,
    namespace::run,
    nat::Kind,
    net::{Host, Lab},
    process::Daemon,
    programs,
    rendezvous::Rendezvous,
    world::isolated,
};

use crate::stage::{JOIN_LIMIT, LAN_A, LAN_B};

const ZONE: &str = "mesh.example";

#[test]
fn a_mesh_goes_on_without_its_primary_and_a_node_that_starts_anew_reads_the_secondary() {
    isolated(
        "secondary::a_mesh_goes_on_without_its_primary_and_a_node_that_starts_anew_reads_the_secondary",
        || {
            programs::require(&["named", "dig"]).expect("programs");
            let folder = TempDir::new().expect("a folder");
            let mut lab = Lab::new().expect("a core");
            let primary = lab.public_host("primary", 1).expect("a public host");
            let other = lab.public_host("secondary", 1).expect("a public host");
            let server = format!("{}:53", other.ipv4());
            let executable = env!("CARGO_BIN_EXE_zonemesh").as_ref();
            let options = ["--server", &server];
            let mut rendezvous =
                Rendezvous::start(&primary, ZONE, &options, executable, folder.path())
                    .expect("it starts");
            let file = rendezvous.dir().join("zonemesh.toml");
            let text = fs::read_to_string(&file).expect("its configuration");
            fs::write(&file, format!("{text}secondaries = [{server:?}]\n")).expect("written");
            rendezvous.restart().expect("it starts again");
            let bind = secondary(&other, &primary, &folder);

            let mut site = lab.site("site-a", Kind::PortRestricted, LAN_A).expect("a site");
            let mut a = member(&site.host("a").expect("a host"), "a", &rendezvous);
            let mut site = lab.site("site-b", Kind::PortRestricted, LAN_B).expect("a site");
            let mut b = member(&site.host("b").expect("a host"), "b", &rendezvous);
            let visitor = lab.public_host("c", 1).expect("a public host");
            let mut c = member(&visitor, "c", &rendezvous);
            for to in [&b, &c] {
                let to = to.overlay();
                a.wait_for_reply(to, JOIN_LIMIT).expect("they reach each other");
            }
            // The secondary has heard of them all, and not by its own timer.
            let names =
                || dig(&visitor, &other, &["+tcp", ZONE, "AXFR"]).matches("\"name=").count();
            wait_until(Duration::from_secs(20), || names() == 3, || bind.log());

            rendezvous.stop();
            assert!(a.ping(b.overlay(), 5).expect("ping").received > 0);
            // One that knows nobody any more: it has its membership and nothing else.
            b.kill();
            for entry in fs::read_dir(folder.path().join("b/state")).expect("its state") {
                let path = entry.expect("an entry").path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if name.contains("peers") || name.contains("state") {
                    fs::remove_file(path).expect("removed");
                }
            }
            b.restart().expect("it starts");
            b.wait_for_reply(c.overlay(), JOIN_LIMIT).expect("it has read the secondary");
            a.wait_for_reply(b.overlay(), JOIN_LIMIT).expect("and is met");

            // The primary is back, and takes what has changed meanwhile.
            rendezvous.restart().expect("it starts again");
            c.stop().expect("it withdraws");
            wait_until(Duration::from_secs(90), || names() == 2, || bind.log());
        },
    );
}

fn member(host: &Host, name: &str, rendezvous: &Rendezvous) -> Member {
    let mut member = Member::join(name, host, rendezvous).expect("it starts");
    member.wait_for_overlay(JOIN_LIMIT).expect("it takes a slice");
    member
}

fn secondary(host: &Host, primary: &Host, folder: &TempDir) -> Daemon {
    let dir = folder.path().join("bind");
    fs::create_dir(&dir).expect("a folder");
    let (own, from, dir) = (host.ipv4(), primary.ipv4(), dir.display());
    let config = format!(
        r#"options {{
    directory "{dir}";
    pid-file "{dir}/named.pid";
    session-keyfile "{dir}/session.key";
    lock-file "{dir}/named.lock";
    listen-on {{ {own}; }};
    listen-on-v6 {{ none; }};
    recursion no;
    dnssec-validation no;
}};
controls {{}};
zone "{ZONE}" {{
    type secondary;
    file "{dir}/zone.db";
    primaries {{ {from}; }};
    allow-transfer {{ any; }};
}};
"#
    );
    let file = folder.path().join("bind/server.conf");
    fs::write(&file, config).expect("written");
    let mut command = host.namespace.command("named");
    command.arg("-g").arg("-c").arg(file);
    let log = folder.path().join("bind/server.log");
    let mut daemon = Daemon::spawn("the secondary", &mut command, &log).expect("it starts");
    let has_zone = || dig(host, host, &["+short", ZONE, "SOA"]).contains("hostmaster");
    daemon.wait_ready(Duration::from_secs(20), has_zone).expect("it has the zone");
    daemon
}

fn dig(from: &Host, at: &Host, arguments: &[&str]) -> String {
    let mut dig = from.namespace.command("dig");
    dig.arg(format!("@{}", at.ipv4())).args(["+norecurse", "+time=1", "+tries=1"]);
    run(dig.args(arguments), "").unwrap_or_default()
}

fn wait_until(limit: Duration, mut done: impl FnMut() -> bool, why: impl Fn() -> String) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{}", why());
        thread::sleep(Duration::from_millis(50));
    }
}
