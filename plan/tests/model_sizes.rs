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

/// The two for which no published count to the last parameter was at hand: OPT-66b is on the Hub without
/// one, OPT-175b never was there. Their layers are 12 h^2 + 13 h like those of their siblings.
#[test]
fn the_largest_opt_models_follow_the_formula_of_their_family() {
    for (name, layers, h, billions) in [("opt-66b", 64, 9_216, 65), ("opt-175b", 96, 12_288, 174)] {
        let expected: u64 = layers * (12 * h * h + 13 * h) + (50_272 + 2_050) * h + 2 * h;
        assert_eq!(model(name).total_parameters(), expected, "{name}");
        assert_eq!(expected / 1_000_000_000, billions);
    }
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
    insta::assert_snapshot!(listed("opt-125m"), @"
    embedding: tokens 50272x768, positions' 2050x768
    attention: norm' 768x1, norm_bias' 768x1, q 768x768, q_bias' 768x1, k 768x768, k_bias' 768x1, v 768x768, v_bias' 768x1, o 768x768, o_bias' 768x1
    mlp: norm' 768x1, norm_bias' 768x1, fc1 3072x768, fc1_bias' 3072x1, fc2 768x3072, fc2_bias' 768x1
    head: norm' 768x1, norm_bias' 768x1, head 50272x768
    ");
    insta::assert_snapshot!(listed("opt-350m"), @"
    embedding: tokens 50272x512, project_in 1024x512, positions' 2050x1024
    attention: q 1024x1024, q_bias' 1024x1, k 1024x1024, k_bias' 1024x1, v 1024x1024, v_bias' 1024x1, o 1024x1024, o_bias' 1024x1, norm' 1024x1, norm_bias' 1024x1
    mlp: fc1 4096x1024, fc1_bias' 4096x1, fc2 1024x4096, fc2_bias' 1024x1, norm' 1024x1, norm_bias' 1024x1
    head: project_out 512x1024, head 50272x512
    ");
    insta::assert_snapshot!(listed("llama-3.1-8b"), @"
    embedding: tokens 128256x4096
    attention: norm' 4096x1, q 4096x4096, k 1024x4096, v 1024x4096, o 4096x4096
    mlp: norm' 4096x1, gate 14336x4096, up 14336x4096, down 4096x14336
    head: norm' 4096x1, head 128256x4096
    ");
    insta::assert_snapshot!(listed("mixtral-8x7b"), @"
    embedding: tokens 32000x4096
    attention: norm' 4096x1, q 4096x4096, k 1024x4096, v 1024x4096, o 4096x4096
    mlp: norm' 4096x1, router' 8x4096, gate 8 x 14336x4096, up 8 x 14336x4096, down 8 x 4096x14336
    head: norm' 4096x1, head 32000x4096
    ");
    insta::assert_snapshot!(listed("qwen2.5-7b"), @"
    embedding: tokens 152064x3584
    attention: norm' 3584x1, q 3584x3584, q_bias' 3584x1, k 512x3584, k_bias' 512x1, v 512x3584, v_bias' 512x1, o 3584x3584
    mlp: norm' 3584x1, gate 18944x3584, up 18944x3584, down 3584x18944
    head: norm' 3584x1, head 152064x3584
    ");
    insta::assert_snapshot!(listed("qwen3-32b"), @"
    embedding: tokens 151936x5120
    attention: norm' 5120x1, q 8192x5120, k 1024x5120, v 1024x5120, q_norm' 128x1, k_norm' 128x1, o 5120x8192
    mlp: norm' 5120x1, gate 25600x5120, up 25600x5120, down 5120x25600
    head: norm' 5120x1, head 151936x5120
    ");
}

#[test]
fn a_model_survives_its_way_through_a_plan_file() {
    for name in catalog::names() {
        let model = model(name);
        let text = toml::to_string(&model).unwrap();
        assert_eq!(toml::from_str::<Model>(&text).unwrap(), model);
    }
    insta::assert_snapshot!(toml::to_string(&model("mixtral-8x7b")).unwrap(), @r#"
    name = "mixtral-8x7b"
    source = "https://huggingface.co/mistralai/Mixtral-8x7B-v0.1/blob/main/config.json"
    family = "mixtral"
    layers = 32
    hidden = 4096
    heads = 32
    kv_heads = 8
    head_dim = 128
    ffn = 14336
    vocab = 32000
    max_context = 32768
    tied_embeddings = false

    [experts]
    count = 8
    active = 2
    "#);
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
    insta::assert_snapshot!(flaw(|m| m.kv_heads = 5), @"`heads` is 32, not a multiple of `kv_heads` = 5; each key-value head serves equally many query heads");
    insta::assert_snapshot!(flaw(|m| m.layers = 0), @"`layers` is 0, at least 1 is needed; compare it with the model's published config.json");
    insta::assert_snapshot!(flaw(|m| m.vocab = u64::MAX), @"`vocab` is 18446744073709551615, more than the 16777216 believed here; compare it with the model's published config.json");
    insta::assert_snapshot!(flaw(|m| (m.heads, m.kv_heads, m.head_dim) = (16384, 8, 16384)), @"`heads` * `head_dim` is 16384 * 16384 = 268435456, more than the 1048576 believed here; compare both with the model's published config.json");
    insta::assert_snapshot!(flaw(|m| (m.hidden, m.ffn, m.layers) = (1 << 20, 1 << 22, 10_000)), @"these sizes make 132049059460415488 parameters, more than the 1125899906842624 believed here; compare every size with the published config.json");
    insta::assert_snapshot!(flaw(|m| m.positions = 2050), @"`positions` is 2050, the family llama with `max_context` = 131072 has 0; OPT has two rows more than tokens; others have none");
    insta::assert_snapshot!(flaw(|m| m.family = Family::Mixtral), @"the family mixtral needs experts; give their `count` and `active`");
    insta::assert_snapshot!(flaw(|m| m.family = Family::Opt), @"`positions` is 0, the family opt with `max_context` = 131072 has 131074; OPT has two rows more than tokens; others have none");
    insta::assert_snapshot!(flaw(|m| m.post_norm = true), @"the family llama has its norms first; remove it, or use the family `opt`");
    insta::assert_snapshot!(flaw(|m| m.name = "a\nb".into()), @"`name` has 3 bytes or holds control characters; give 1 to 200 bytes of plain text");
}
