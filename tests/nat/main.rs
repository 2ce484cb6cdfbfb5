//! Scenarios with real daemons in network namespaces, each in a world of its own.
//! They need root, and the programs that `make test` installs.

mod nats;
