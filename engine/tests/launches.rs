//! What a plan says of products on a GPU is what the kernels do.

use pipo_kernels::Format;
use pipo_kernels::cuda::Kernels;
use pipo_plan::model::Precision;
use pipo_plan::schedule::Linear;

#[test]
fn few_rows_are_as_many_for_the_plan_as_for_the_kernels() {
    let formats = [
        (Precision::Bf16, Format::Bf16),
        (Precision::Int8, Format::Int8),
        (Precision::Int4, Format::Int4),
    ];
    for (precision, format) in formats {
        let few = usize::try_from(Linear::few(precision)).unwrap_or(usize::MAX);
        // Weights that are decoded in registers need no room beside.
        let spare = |rows| Kernels::linear_spare(rows, format, 4096, 4096);
        assert_eq!(spare(few), 0, "{few} rows of {precision}");
        assert!(spare(few + 1) > 0, "{} rows of {precision}", few + 1);
    }
}
