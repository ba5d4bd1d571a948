//! The store against a model, under misses everywhere, rollbacks, crashes, decay and damage.

mod damage;
mod races;
mod repair;
mod shape;
mod walk;
mod world;

use proptest::prelude::*;

use self::world::{Shape, World};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn a_store_agrees_with_its_model(
        seed: u64,
        cache_pages in prop::sample::select(vec![0usize, 1, 3, 40]),
        keys in prop::sample::select(vec![20u64, 200, 2000]),
        long_keys: bool,
        crashes: bool,
        rollbacks: bool,
    ) {
        let mut world = World::new(seed, Shape { cache_pages, keys, long_keys, crashes, rollbacks, ..Shape::default() });
        for _ in 0..3000 {
            world.step();
        }
        world.settle();
        world.check_all();
        world.check_against_replay();
    }
}
