//! The room against scripts whose answers a real Redis gave, against a simple model, and with a miss rigged at every
//! look-up. `world` is the node around the room, `model` the store under it.

mod disk;
mod model;
mod random;
mod scripts;
mod stamps;
mod world;
