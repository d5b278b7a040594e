//! Sizes of the catalogue's models against published counts, to the last parameter.

use pipo_plan::model::{Family, Model, Part, Precision, TensorKind, catalog};
use pipo_plan::units::Bytes;

fn model(name: &str) -> Model {
    catalog::find(name).unwrap_or_else(|| panic!("{name} is not in the catalogue"))
}

/// The parameter counts that the Hub shows for the checkpoints (tied tensors once).
#[test]
fn totals_are_the_published_ones() {
    for (name, parameters) in [
        ("opt-125m", 125_239_296),
        ("opt-350m", 331_196_416),
        ("opt-1.3b", 1_315_758_080),
        ("opt-2.7b", 2_651_596_800),
        ("opt-6.7b", 6_658_473_984),
        ("opt-13b", 12_853_473_280),
        ("opt-30b", 29_974_540_288),
        ("opt-66b", 65_718_497_280),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("mistral-7b", 7_241_732_096),
        ("mixtral-8x7b", 46_702_792_704),
        ("mixtral-8x22b", 140_620_634_112),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
    ] {
        assert_eq!(model(name).total_parameters(), parameters, "{name}");
    }
}

/// OPT-175b was never on the Hub; its layers are 12 h^2 + 13 h like those of its siblings.
#[test]
fn opt_175b_follows_the_formula_of_its_family() {
    let h = 12_288_u64;
    let expected = 96 * (12 * h * h + 13 * h) + (50_272 + 2_050) * h + 2 * h;
    assert_eq!(model("opt-175b").total_parameters(), expected);
    assert_eq!(expected / 1_000_000_000, 174);
}

/// "12.9B active" and "39B active" in Mistral's announcements.
#[test]
fn a_token_touches_two_experts_of_eight() {
    assert_eq!(model("mixtral-8x7b").active_parameters(), 12_879_925_248);
    assert_eq!(model("mixtral-8x22b").active_parameters() / 1_000_000_000, 39);
    let dense = model("llama-3.1-8b");
    assert_eq!(dense.active_parameters(), dense.total_parameters());
    assert_eq!(dense.expert_bytes(Precision::Fp16), None);
    let expert = model("mixtral-8x7b").expert_bytes(Precision::Fp16);
    assert_eq!(expert, Some(Bytes(3 * 4096 * 14336 * 2)));
}

#[test]
fn the_cache_of_a_token_is_counted_by_key_value_heads() {
    let kv = |name, precision| model(name).kv_bytes_per_token(precision).0;
    assert_eq!(kv("llama-3.1-8b", Precision::Fp16), 131_072);
    assert_eq!(kv("llama-2-7b", Precision::Fp16), 524_288);
    assert_eq!(kv("opt-175b", Precision::Fp16), 96 * 2 * 12_288 * 2);
    // A head of 128 is two groups of 36 bytes, or 128 bytes and a scale.
    assert_eq!(kv("llama-3.1-8b", Precision::Int4), 32 * 2 * 8 * 72);
    assert_eq!(kv("llama-3.1-8b", Precision::Int8), 32 * 2 * 8 * 130);
    // A head of 80 needs a second group, padded.
    assert_eq!(kv("opt-2.7b", Precision::Int4), 32 * 2 * 32 * 72);
}

#[test]
fn matrix_bytes_are_exact() {
    assert_eq!(Precision::Fp16.matrix_bytes(3, 5), Bytes(30));
    assert_eq!(Precision::Int8.matrix_bytes(3, 5), Bytes(21));
    assert_eq!(Precision::Int4.matrix_bytes(3, 64), Bytes(108));
    assert_eq!(Precision::Int4.matrix_bytes(3, 65), Bytes(216));
    assert_eq!(Precision::Int4.matrix_bytes(4096, 4096).0 * 8, 4096 * 4096 * 9 / 2);
    assert_eq!(Precision::Int4.matrix_bytes(0, 64), Bytes::ZERO);
    // Nothing overflows, whatever is asked.
    assert_eq!(Precision::Int4.matrix_bytes(u64::MAX, u64::MAX), Bytes(u64::MAX));
}

/// In 16 bits a model is two bytes a parameter, whichever way it is added up.
#[test]
fn bytes_and_parameters_agree_in_half_precision() {
    for name in catalog::names() {
        let model = model(name);
        assert_eq!(model.total_bytes(Precision::Fp16).0, 2 * model.total_parameters(), "{name}");
        for part in Part::ALL {
            assert_eq!(model.bytes(part, Precision::Bf16).0, 2 * model.parameters(part));
        }
        let bits =
            model.total_bytes(Precision::Int4).as_f64() * 8.0 / model.total_parameters() as f64;
        assert!((4.5..4.66).contains(&bits), "{name} has {bits} bits a weight in int4");
    }
}

#[test]
fn a_tied_head_is_present_but_counted_once() {
    let tied = model("opt-125m");
    let untied = Model { tied_embeddings: false, ..tied.clone() };
    let matrix = Precision::Int4.matrix_bytes(50_272, 768);
    assert_eq!(tied.bytes(Part::Head, Precision::Int4), untied.bytes(Part::Head, Precision::Int4));
    assert_eq!(untied.total_bytes(Precision::Int4), tied.total_bytes(Precision::Int4) + matrix);
}

/// The engine lays tensors out in this order: a change here is a change of the store's format.
#[test]
fn tensors_stand_in_the_order_of_their_use() {
    let listed = |name| {
        let model = model(name);
        let line = |part| {
            let tensors = model.tensors(part);
            let shown = tensors.iter().map(|t| {
                let copies = if t.copies > 1 { format!("{} x ", t.copies) } else { String::new() };
                let mark = if t.kind == TensorKind::Vector { "'" } else { "" };
                format!("{}{mark} {copies}{}x{}", t.name, t.outputs, t.inputs)
            });
            format!("{part}: {}", shown.collect::<Vec<_>>().join(", "))
        };
        Part::ALL.map(line).join("\n")
    };
    insta::assert_snapshot!(listed("opt-125m"), @"");
    insta::assert_snapshot!(listed("opt-350m"), @"");
    insta::assert_snapshot!(listed("llama-3.1-8b"), @"");
    insta::assert_snapshot!(listed("mixtral-8x7b"), @"");
    insta::assert_snapshot!(listed("qwen2.5-7b"), @"");
    insta::assert_snapshot!(listed("qwen3-32b"), @"");
}

#[test]
fn a_model_survives_its_way_through_a_plan_file() {
    for name in catalog::names() {
        let model = model(name);
        let text = toml::to_string(&model).unwrap();
        assert_eq!(toml::from_str::<Model>(&text).unwrap(), model);
    }
    insta::assert_snapshot!(toml::to_string(&model("mixtral-8x7b")).unwrap(), @"");
    let error = toml::from_str::<Model>("name = \"x\"\nlayerz = 3\n").unwrap_err();
    assert!(error.message().contains("layerz"));
}

#[test]
fn a_model_that_does_not_fit_together_is_refused() {
    let flaw = |change: fn(&mut Model)| {
        let mut model = model("llama-3.1-8b");
        change(&mut model);
        model.check().unwrap_err().to_string()
    };
    insta::assert_snapshot!(flaw(|m| m.kv_heads = 5), @"");
    insta::assert_snapshot!(flaw(|m| m.layers = 0), @"");
    insta::assert_snapshot!(flaw(|m| m.vocab = u64::MAX), @"");
    insta::assert_snapshot!(flaw(|m| (m.heads, m.kv_heads, m.head_dim) = (16384, 8, 16384)), @"");
    insta::assert_snapshot!(flaw(|m| (m.hidden, m.ffn, m.layers) = (1 << 20, 1 << 22, 10_000)), @"");
    insta::assert_snapshot!(flaw(|m| m.positions = 2050), @"");
    insta::assert_snapshot!(flaw(|m| m.family = Family::Mixtral), @"");
    insta::assert_snapshot!(flaw(|m| m.family = Family::Opt), @"");
    insta::assert_snapshot!(flaw(|m| m.post_norm = true), @"");
    insta::assert_snapshot!(flaw(|m| m.name = "a\nb".into()), @"");
}
