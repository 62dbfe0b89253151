//! What a program computes: nobody helps it with that, and nobody should be in its way.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{_mm256_add_ps, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_storeu_ps};
use std::hint::black_box;
use std::time::Duration;

use crate::timed::{Done, for_about};

/// Rounds between two looks at the clock.
const BATCH: u64 = 1 << 20;
/// Chains of additions that do not wait for each other.
const CHAINS: usize = 10;
/// Floating-point operations of one fused multiplication and addition: two for each of eight lanes.
const OPERATIONS: u64 = 16;

/// Integer rounds: three shifts, three exclusive ors and a multiplication, each of which waits for the
/// one before.
pub fn integer(budget: Duration) -> Result<Done, String> {
    let mut state = black_box(0x9e37_79b9_7f4a_7c15_u64);
    for_about(budget, || {
        for _ in 0..BATCH {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        }
        state = black_box(state);
        Ok(BATCH)
    })
}

/// Floating-point operations with AVX2 and FMA, if the processor has them and the kernel saves their
/// registers.
pub fn avx(budget: Duration) -> Result<Done, String> {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        return Err("no AVX2 and FMA here".to_owned());
    }
    for_about(budget, || {
        // SAFETY: the processor has both, as was asked above.
        black_box(unsafe { fused(BATCH) });
        Ok(BATCH * CHAINS as u64 * OPERATIONS)
    })
}

#[target_feature(enable = "avx2,fma")]
fn fused(rounds: u64) -> f32 {
    let factor = _mm256_set1_ps(black_box(0.999_9));
    let term = _mm256_set1_ps(black_box(0.000_1));
    let mut chains = [_mm256_set1_ps(1.0); CHAINS];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm256_fmadd_ps(*chain, factor, term);
        }
    }
    let sum = chains.into_iter().reduce(|a, b| _mm256_add_ps(a, b));
    let mut lanes = [0.0; 8];
    // SAFETY: the eight floats are this function's own.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum.unwrap_or(term)) };
    lanes.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_when_the_processor_can_then_stays_where_it_should() {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both.
            let sum = unsafe { fused(100) };
            assert!((sum - 80.0).abs() < 0.1, "{sum}");
            assert!(avx(Duration::ZERO).is_ok());
        } else {
            assert!(avx(Duration::ZERO).is_err());
        }
        assert_eq!(integer(Duration::ZERO).expect("done").count, BATCH);
    }
}
