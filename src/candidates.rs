//! The tunings that tuning tries: those of the device's class, and neighbours of them.

use crate::device::Capabilities;
use crate::kernels::Product;
use crate::plan::{Algorithm, Plan};
use crate::planner::Planner;
use crate::problem::Problem;
use crate::tuning::{Flash, Tuning};

/// An algorithm and its tiles.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    /// Tells it from all others; what a record knows it by.
    pub(crate) name: String,
    pub(crate) algorithm: Algorithm,
    pub(crate) tuning: Tuning,
}

/// All of them, valid on the device or not; first what is taken without tuning, then the likeliest.
pub(crate) fn candidates(capabilities: &Capabilities) -> Vec<Candidate> {
    let base = Planner::new(capabilities).tuning;
    let fused = |flash: Flash| Candidate {
        name: format!("fused, {flash:?}"),
        algorithm: Algorithm::Flash,
        tuning: Tuning { flash, ..base },
    };
    let staged = |product: Product| Candidate {
        name: format!("staged, {product:?}"),
        algorithm: Algorithm::Staged,
        tuning: Tuning { product, ..base },
    };
    let planned =
        Candidate { name: "planned".to_owned(), algorithm: Algorithm::Auto, tuning: base };
    let mut all = vec![planned, fused(base.flash), staged(base.product)];
    for candidate in flashes(base.flash).into_iter().map(fused) {
        if !all.contains(&candidate) {
            all.push(candidate);
        }
    }
    for candidate in products(base.product).into_iter().map(staged) {
        if !all.contains(&candidate) {
            all.push(candidate);
        }
    }
    all
}

/// Those with which the problem can be planned, and their plans; of several with the same steps the first.
pub(crate) fn plans(problem: &Problem, capabilities: &Capabilities) -> Vec<(Candidate, Plan)> {
    let mut valid: Vec<(Candidate, Plan)> = Vec::new();
    for candidate in candidates(capabilities) {
        let Candidate { algorithm, tuning, .. } = candidate;
        let Ok(plan) = Plan::with_tuning(problem, capabilities, algorithm, tuning) else {
            continue;
        };
        if valid.iter().all(|(_, other)| *other != plan) {
            valid.push((candidate, plan));
        }
    }
    valid
}

/// The same form with other sizes.
fn flashes(base: Flash) -> Vec<Flash> {
    let mut flashes = Vec::new();
    if let Flash::Tile { .. } = base {
        // More rows use every key more often; fewer rows or columns leave more workgroups in flight.
        for (block_q, v_columns) in [(64, 128), (32, 64), (64, 64), (16, 128), (32, 128), (16, 64)]
        {
            flashes.push(Flash::Tile { block_q, v_columns });
        }
    }
    if let Flash::Lane { widest, .. } = base {
        // More rows share what it costs to bring the keys; fewer leave more workgroups in flight.
        for block_q in [128, 512] {
            flashes.push(Flash::Lane { block_q, widest });
        }
    }
    flashes
}

/// The same form with other sizes.
fn products(base: Product) -> Vec<Product> {
    let mut products = Vec::new();
    if let Product::Tile { .. } = base {
        for (block_m, block_n, tile_m) in [(128, 64, 8), (32, 64, 4), (64, 32, 4), (64, 64, 8)] {
            products.push(Product::Tile { block_m, block_n, tile_m });
        }
    }
    if let Product::Lane { .. } = base {
        for (block_m, block_n) in [(16, 64), (8, 32), (8, 64), (32, 32)] {
            products.push(Product::Lane { block_m, block_n });
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceClass;
    use crate::shape::Shape;

    const CLASSES: [DeviceClass; 3] =
        [DeviceClass::Hardware, DeviceClass::Apple, DeviceClass::Software];

    #[test]
    fn the_first_candidate_is_what_is_taken_without_tuning() {
        for class in CLASSES {
            let capabilities = Capabilities::portable().with_class(class);
            let problem = Problem::new(Shape::self_attention(1, 2, 100, 64));
            let untuned = Plan::new(&problem, &capabilities, Algorithm::Auto).expect("a plan");
            let plans = plans(&problem, &capabilities);
            assert_eq!(plans[0].1, untuned, "{class:?}");
            assert!(plans.len() > 4, "{class:?}: {}", plans.len());
        }
    }

    #[test]
    fn no_two_candidates_have_one_name() {
        for class in CLASSES {
            let all = candidates(&Capabilities::portable().with_class(class));
            for (i, candidate) in all.iter().enumerate() {
                assert!(all[..i].iter().all(|other| other.name != candidate.name), "{candidate:?}");
            }
        }
    }

    #[test]
    fn candidates_stay_within_the_limits() {
        let problem = Problem::new(Shape::self_attention(1, 2, 100, 64));
        let all = plans(&problem, &Capabilities::portable());
        let mut capabilities = Capabilities::portable();
        capabilities.limits.max_compute_workgroup_storage_size = 12 << 10;
        capabilities.limits.max_compute_invocations_per_workgroup = 128;
        let fewer = plans(&problem, &capabilities);
        assert!(!fewer.is_empty() && fewer.len() < all.len(), "{} of {}", fewer.len(), all.len());
        for (candidate, plan) in fewer {
            for step in &plan.steps {
                let kernel = &step.kernel;
                let fits = kernel.workgroup_bytes <= 12 << 10 && kernel.workgroup_size <= 128;
                assert!(fits, "{candidate:?}: {}", kernel.label());
            }
        }
    }
}
