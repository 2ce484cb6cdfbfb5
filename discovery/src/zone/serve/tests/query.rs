use hickory_proto::rr::rdata::NS;

use super::*;

fn with_node(identity: &Identity) -> ZoneStore {
    let mut store = store();
    let code = update(&mut store, Writer::Administrator, records_of(identity, 5, 3600, 4000));
    assert_eq!(code, ResponseCode::NoError);
    store
}

#[test]
fn the_apex_and_the_services_come_from_the_configuration() {
    let store = store();
    let soa = ask(&store, &name(""), RecordType::SOA);
    assert!(soa.metadata.authoritative);
    assert!(!soa.metadata.recursion_available);
    let RData::SOA(data) = &soa.answers[0].data else { panic!("an SOA") };
    assert_eq!((data.serial, &data.mname), (store.serial(), &name("rendezvous")));
    let ns = ask(&store, &name(""), RecordType::NS);
    let servers: Vec<&RData> = ns.answers.iter().map(|record| &record.data).collect();
    assert_eq!(servers, [&RData::NS(NS(name("rendezvous"))), &RData::NS(NS(name("ns2")))]);
    let glue: Vec<String> = ns.additionals.iter().map(|r| r.data.to_string()).collect();
    assert_eq!(glue.len(), 2);
    assert!(glue.contains(&"198.51.100.1".to_owned()) && glue.contains(&"198.51.100.2".to_owned()));
    let srv = ask(&store, &name("_turns._tcp"), RecordType::SRV);
    assert_eq!(srv.answers[0].data, RData::SRV(SRV::new(0, 0, 443, name("rendezvous"))));
    assert_eq!(srv.additionals[0].name, name("rendezvous"));
}

#[test]
fn a_service_comes_with_the_address_of_its_target_or_not_at_all() {
    let config = ZoneConfig { addresses: Vec::new(), ..config() };
    let (store, _) = ZoneStore::open(config, &[], now()).expect("an empty journal");
    let answer = ask(&store, &name("_stun._udp"), RecordType::SRV);
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn a_name_that_is_not_there_and_one_without_such_records_are_told_apart() {
    let store = with_node(&node(1));
    let code = |text: &str, kind| {
        let answer = ask(&store, &name(text), kind);
        assert!(answer.answers.is_empty());
        assert!(answer.metadata.authoritative);
        // The time for which that may be believed (RFC 2308 §3).
        let [soa] = answer.authorities.as_slice() else { panic!("one SOA") };
        assert_eq!((soa.record_type(), soa.ttl), (RecordType::SOA, 10));
        answer.metadata.response_code
    };
    assert_eq!(code("nobody", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(code("below.rendezvous", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(code("rendezvous", RecordType::TXT), ResponseCode::NoError);
    // Names that only have others below them.
    assert_eq!(code("_udp", RecordType::PTR), ResponseCode::NoError);
    assert_eq!(code("_tcp", RecordType::ANY), ResponseCode::NoError);
    assert_eq!(code("_ud", RecordType::PTR), ResponseCode::NXDomain);
    assert_eq!(code("*", RecordType::A), ResponseCode::NXDomain);
}

#[test]
fn names_are_found_in_any_case_and_come_back_as_they_were_asked() {
    let store = with_node(&node(1));
    let asked = Name::from_ascii("_STUN._Udp.MESH.Example.").expect("a name");
    let answer = ask(&store, &asked, RecordType::SRV);
    assert!(answer.queries[0].name().eq_case(&asked));
    assert!(answer.answers[0].name.eq_case(&asked));
}

#[test]
fn an_instance_comes_with_all_that_wgsds_client_takes() {
    let identity = node(1);
    let store = with_node(&identity);
    let instance = zone().instance(&identity.public_key());
    let answer = ask(&store, &instance, RecordType::SRV);
    assert_eq!(answer.answers.len(), 1);
    assert_eq!(answer.additionals[0].name, zone().host(&identity.public_key()));
    assert_eq!(answer.additionals[0].record_type(), RecordType::A);
    assert!(answer.to_vec().expect("a message").len() <= 512);
}

#[test]
fn a_short_list_of_instances_comes_with_everything_and_a_long_one_alone() {
    let mut store = store();
    for seed in 1..=4 {
        update(&mut store, Writer::Administrator, records_of(&node(seed), 1, 3600, 4000));
    }
    let answer = ask(&store, &zone().service(), RecordType::PTR);
    assert_eq!(answer.answers.len(), 4);
    // TXT, SRV and A of each.
    assert_eq!(answer.additionals.len(), 12);
    update(&mut store, Writer::Administrator, records_of(&node(5), 1, 3600, 4000));
    let answer = ask(&store, &zone().service(), RecordType::PTR);
    assert_eq!((answer.answers.len(), answer.additionals.len()), (5, 0));
}

#[test]
fn any_gets_one_set() {
    let identity = node(1);
    let store = with_node(&identity);
    let instance = zone().instance(&identity.public_key());
    assert_eq!(ask(&store, &instance, RecordType::ANY).answers.len(), 1);
    let apex = ask(&store, &name(""), RecordType::ANY);
    assert_eq!(apex.answers[0].record_type(), RecordType::SOA);
}

#[test]
fn what_is_not_ours_to_answer_is_refused() {
    let store = store();
    let outside = Name::from_ascii("example.").expect("a name");
    let code = |name: &Name, kind| ask(&store, name, kind).metadata.response_code;
    assert_eq!(code(&outside, RecordType::SOA), ResponseCode::Refused);
    assert_eq!(code(&Name::root(), RecordType::NS), ResponseCode::Refused);
    assert_eq!(code(&name(""), RecordType::AXFR), ResponseCode::Refused);
    assert_eq!(code(&name(""), RecordType::Unknown(253)), ResponseCode::NotImp);
    let mut message = Message::new(9, MessageType::Query, OpCode::Status);
    let answer = store.handle_query(&message);
    assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
    message.metadata.op_code = OpCode::Query;
    let answer = store.handle_query(&message);
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    let mut question = Query::query(name(""), RecordType::SOA);
    question.set_query_class(DNSClass::CH);
    message.add_query(question);
    let answer = store.handle_query(&message);
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    assert!(!answer.metadata.authoritative);
    // By UDP: ask again by TCP.
    let ixfr = ask(&store, &name(""), RecordType::IXFR);
    assert_eq!(ixfr.answers[0].record_type(), RecordType::SOA);
}
