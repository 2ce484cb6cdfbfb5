//! The lab: sites, NATs, a zone and a STUN server in network namespaces of this
//! machine. `zonemesh lab` and the tests stand on it.
//!
//! A lab lives in a [`world`] of its own: private network, mount and process
//! namespaces, entered by starting the own executable again. What the lab makes in
//! there (named namespaces, links, mounts, daemons) is invisible to the machine and
//! goes when the world's first process ends, however it ends. There is no uplink:
//! nothing of the lab reaches a real network.
//!
//! In its world a lab has a [`net::Lab`]: the core, a router with an address range
//! that stands for the Internet, to which public hosts and [`net::Site`]s are
//! attached; each site is a router with a NAT of a given [`nat::Kind`] and hosts on
//! a LAN behind it. The core counts the packets that it forwards, pair by pair, so that
//! a direct path can be told from a relayed one without asking a daemon: [`traffic`].
//! It also is where things go wrong when a scenario wants them to: [`weather`].

pub mod demo;
pub mod member;
pub mod namespace;
pub mod nat;
pub mod nat64;
pub mod net;
pub mod port_mapper;
pub mod process;
pub mod programs;
pub mod relay_server;
pub mod rendezvous;
pub mod setup;
pub mod stun_server;
pub mod traffic;
pub mod weather;
pub mod world;
pub mod zone_server;
