//! Addition of a block's output to the residual stream.

use crate::error::{self, ShapeError};

/// `x += y`, element by element.
pub fn add(x: &mut [f32], y: &[f32]) -> Result<(), ShapeError> {
    error::length("y", y.len(), x.len())?;
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::add;

    #[test]
    fn adds() {
        let mut x = [1.0, 2.0];
        assert!(add(&mut x, &[0.5, -2.0]).is_ok());
        assert_eq!(x.map(f32::to_bits), [1.5_f32, 0.0].map(f32::to_bits));
        assert!(add(&mut x, &[0.0]).is_err());
    }
}
