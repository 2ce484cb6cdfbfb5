//! Scenarios with real daemons in network namespaces, each in a world of its own.
//! They need root, and the programs that `make test` installs.

mod faults;
mod faults_path;
mod faults_relay;
mod faults_roam;
mod flow;
mod hard;
mod interop;
mod lab_command;
mod matrix;
mod membership;
mod nat64;
mod nats;
mod netcheck;
mod pair;
mod paths;
mod plain_peer;
mod port_mappings;
mod records;
mod relays;
mod sealed;
mod secondary;
mod services;
mod slices;
mod stage;
mod stream;
mod timing;
mod uplinks;
mod weather;
