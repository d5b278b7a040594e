//! Reading `config.json`: the real ones, the wrong ones, and the hostile ones.

use pipo_plan::diagnostic::Document;
use pipo_plan::model::{AttentionBias, Family, Model, Part, Precision, catalog};
use pipo_plan::units::LIMIT;
use proptest::prelude::*;

const OPT: &str = r#"{
  "_name_or_path": "facebook/opt-350m",
  "activation_dropout": 0.0,
  "activation_function": "relu",
  "architectures": ["OPTForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 2,
  "do_layer_norm_before": false,
  "dropout": 0.1,
  "eos_token_id": 2,
  "ffn_dim": 4096,
  "hidden_size": 1024,
  "init_std": 0.02,
  "layerdrop": 0.0,
  "max_position_embeddings": 2048,
  "model_type": "opt",
  "num_attention_heads": 16,
  "num_hidden_layers": 24,
  "pad_token_id": 1,
  "torch_dtype": "float16",
  "use_cache": true,
  "vocab_size": 50272,
  "word_embed_proj_dim": 512
}
"#;

const LLAMA: &str = r#"{
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 128000,
  "eos_token_id": 128001,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 14336,
  "max_position_embeddings": 131072,
  "mlp_bias": false,
  "model_type": "llama",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3"
  },
  "rope_theta": 500000.0,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.43.0.dev0",
  "use_cache": true,
  "vocab_size": 128256
}
"#;

const MISTRAL: &str = r#"{
  "architectures": ["MistralForCausalLM"],
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 14336,
  "max_position_embeddings": 32768,
  "model_type": "mistral",
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05,
  "rope_theta": 10000.0,
  "sliding_window": 4096,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.34.0.dev0",
  "use_cache": true,
  "vocab_size": 32000
}
"#;

const MIXTRAL: &str = r#"{
  "architectures": ["MixtralForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 14336,
  "max_position_embeddings": 32768,
  "model_type": "mixtral",
  "num_attention_heads": 32,
  "num_experts_per_tok": 2,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "num_local_experts": 8,
  "output_router_logits": false,
  "rms_norm_eps": 1e-05,
  "rope_theta": 1000000.0,
  "router_aux_loss_coef": 0.02,
  "sliding_window": null,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.36.0.dev0",
  "use_cache": true,
  "vocab_size": 32000
}
"#;

const QWEN2: &str = r#"{
  "architectures": ["Qwen2ForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151643,
  "hidden_act": "silu",
  "hidden_size": 3584,
  "initializer_range": 0.02,
  "intermediate_size": 18944,
  "max_position_embeddings": 131072,
  "max_window_layers": 28,
  "model_type": "qwen2",
  "num_attention_heads": 28,
  "num_hidden_layers": 28,
  "num_key_value_heads": 4,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "sliding_window": 131072,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.40.1",
  "use_cache": true,
  "use_mrope": false,
  "use_sliding_window": false,
  "vocab_size": 152064
}
"#;

const QWEN3: &str = r#"{
  "architectures": ["Qwen3ForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151645,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 5120,
  "initializer_range": 0.02,
  "intermediate_size": 25600,
  "max_position_embeddings": 40960,
  "max_window_layers": 64,
  "model_type": "qwen3",
  "num_attention_heads": 64,
  "num_hidden_layers": 64,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06,
  "rope_scaling": null,
  "rope_theta": 1000000,
  "sliding_window": null,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.51.0",
  "use_cache": true,
  "use_sliding_window": false,
  "vocab_size": 151936
}
"#;

const ALL: [(&str, &str); 6] = [
    ("opt-350m", OPT),
    ("llama-3.1-8b", LLAMA),
    ("mistral-7b", MISTRAL),
    ("mixtral-8x7b", MIXTRAL),
    ("qwen2.5-7b", QWEN2),
    ("qwen3-32b", QWEN3),
];

/// The text with one `"key": value` replaced, or removed where the replacement is empty.
fn with(text: &str, key: &str, value: &str) -> String {
    let quoted = format!("\"{key}\":");
    let edited = text.lines().filter_map(|line| {
        if !line.trim_start().starts_with(&quoted) {
            return Some(line.to_owned());
        }
        let comma = if line.ends_with(',') { "," } else { "" };
        (!value.is_empty()).then(|| format!("  {quoted} {value}{comma}"))
    });
    edited.collect::<Vec<_>>().join("\n")
}

fn read(text: &str) -> Result<Model, String> {
    Model::from_config(&Document::new("config.json", text)).map_err(|error| error.to_string())
}

#[test]
fn a_config_of_each_family_gives_the_model_of_the_catalogue() {
    for (name, text) in ALL {
        let path = format!("models/{name}/config.json");
        let read = Model::from_config(&Document::new(path.clone(), text)).unwrap();
        let listed = catalog::find(name).unwrap();
        assert_eq!(read, Model { source: path, ..listed });
    }
}

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let llama = read(&with(LLAMA, "num_key_value_heads", "")).unwrap();
    assert_eq!(llama.kv_heads, 32);
    assert_eq!(read(&with(MISTRAL, "num_key_value_heads", "")).unwrap().kv_heads, 8);
    assert_eq!(read(&with(MISTRAL, "num_key_value_heads", "null")).unwrap().kv_heads, 32);
    assert_eq!(read(&with(MISTRAL, "sliding_window", "")).unwrap().sliding_window, Some(4096));
    assert_eq!(read(&with(MISTRAL, "sliding_window", "null")).unwrap().sliding_window, None);
    assert_eq!(read(&with(QWEN3, "head_dim", "")).unwrap().head_dim, 128);
    assert_eq!(read(&with(LLAMA, "attention_bias", "\"\"")).ok(), None);
    assert!(!read(&with(LLAMA, "tie_word_embeddings", "")).unwrap().tied_embeddings);

    let opt = read(OPT).unwrap();
    assert!(opt.tied_embeddings && opt.mlp_bias && opt.post_norm);
    assert_eq!((opt.positions, opt.embedding_width), (2050, Some(512)));
    let plain = read(&with(&with(OPT, "do_layer_norm_before", ""), "word_embed_proj_dim", "1024"));
    let plain = plain.unwrap();
    assert!(!plain.post_norm && plain.embedding_width.is_none());
}

#[test]
fn options_that_change_tensors_are_seen() {
    let biased = read(&with(&with(LLAMA, "attention_bias", "true"), "mlp_bias", "true")).unwrap();
    assert_eq!((biased.attention_bias, biased.mlp_bias), (AttentionBias::All, true));
    assert_eq!(read(QWEN2).unwrap().attention_bias, AttentionBias::Qkv);
    assert!(read(&with(LLAMA, "tie_word_embeddings", "true")).unwrap().tied_embeddings);

    let sliding = with(QWEN2, "use_sliding_window", "true");
    assert_eq!(read(&sliding).unwrap().sliding_window, None, "no layer is past the 28th");
    let all = read(&with(&sliding, "max_window_layers", "0")).unwrap();
    assert_eq!(all.sliding_window, Some(131_072));
}

#[test]
fn a_model_is_named_by_its_folder() {
    let name =
        |path: &str, text: &str| Model::from_config(&Document::new(path, text)).unwrap().name;
    let hash = "0e9e39f249a16976918f6564b8830bc894c89659";
    let cached = format!("hub/models--meta-llama--Llama-3.1-8B/snapshots/{hash}/config.json");
    assert_eq!(name(&cached, LLAMA), "Llama-3.1-8B");
    assert_eq!(name("C:\\models\\mine\\config.json", LLAMA), "mine");
    assert_eq!(name("./config.json", OPT), "opt-350m");
    assert_eq!(name("config.json", LLAMA), "llama");
    assert_eq!(name("../\u{7}/config.json", LLAMA), "llama");
}

#[test]
fn what_is_wrong_is_shown_where_it_stands() {
    let error = |text: String| read(&text).unwrap_err();
    insta::assert_snapshot!(error(with(LLAMA, "model_type", "\"qwen2_moe\"")), @r#"
    error: `model_type` is "qwen2_moe", which pipo does not know
      --> config.json:13:17
       |
    13 |   "model_type": "qwen2_moe",
       |                 ^^^^^^^^^^^
       |
       = help: the model types it knows are opt, llama, mistral, qwen2, qwen3, mixtral
    "#);
    insta::assert_snapshot!(error(with(LLAMA, "model_type", "")), @"
    error: `model_type` is missing
    --> config.json
     = help: is this a model's config.json? pipo knows the model types opt, llama, mistral, qwen2, qwen3, mixtral
    ");
    insta::assert_snapshot!(error(with(LLAMA, "hidden_size", "")), @r#"
    error: `hidden_size` is missing, and a model of type `llama` needs it
      --> config.json:12:17
       |
    12 |   "model_type": "llama",
       |                 ^^^^^^^
       |
       = help: download config.json again from the model's Hugging Face page
    "#);
    insta::assert_snapshot!(error(with(LLAMA, "hidden_size", "\"4096\"")), @r#"
    error: `hidden_size` is "4096", a whole number without sign or quotes is needed
     --> config.json:8:18
      |
    8 |   "hidden_size": "4096",
      |                  ^^^^^^
      |
      = help: download config.json again from the model's Hugging Face page
    "#);
    insta::assert_snapshot!(error(with(LLAMA, "num_hidden_layers", "-32")), @r#"
    error: `num_hidden_layers` is -32, a whole number without sign or quotes is needed
      --> config.json:15:24
       |
    15 |   "num_hidden_layers": -32,
       |                        ^^^
       |
       = help: download config.json again from the model's Hugging Face page
    "#);
    insta::assert_snapshot!(error(with(LLAMA, "num_hidden_layers", "5000000000")), @r#"
    error: `num_hidden_layers` is 5000000000, more than the 10000 believed here
      --> config.json:15:24
       |
    15 |   "num_hidden_layers": 5000000000,
       |                        ^^^^^^^^^^
       |
       = help: compare it with the model's published config.json
    "#);
    insta::assert_snapshot!(error(with(LLAMA, "vocab_size", "0")), @r#"
    error: `vocab_size` is 0, at least 1 is needed
      --> config.json:31:17
       |
    31 |   "vocab_size": 0
       |                 ^
       |
       = help: compare it with the model's published config.json
    "#);
    insta::assert_snapshot!(error(with(LLAMA, "num_key_value_heads", "5")), @r#"
    error: `num_attention_heads` is 32, not a multiple of `num_key_value_heads` = 5
      --> config.json:16:26
       |
    16 |   "num_key_value_heads": 5,
       |                          ^
       |
       = help: each key-value head serves equally many query heads
    "#);
    insta::assert_snapshot!(error(with(LLAMA, "num_attention_heads", "30")), @r#"
    error: `hidden_size` is 4096, not a multiple of `num_attention_heads` = 30
     --> config.json:8:18
      |
    8 |   "hidden_size": 4096,
      |                  ^^^^
      |
      = help: download config.json again from the model's Hugging Face page
    "#);
    insta::assert_snapshot!(error(with(LLAMA, "tie_word_embeddings", "1")), @r#"
    error: `tie_word_embeddings` is 1, true or false is needed
      --> config.json:27:26
       |
    27 |   "tie_word_embeddings": 1,
       |                          ^
       |
       = help: download config.json again from the model's Hugging Face page
    "#);
    insta::assert_snapshot!(error(with(MIXTRAL, "num_experts_per_tok", "9")), @r#"
    error: `num_experts_per_tok` is 9, more than `num_local_experts` = 8
      --> config.json:13:26
       |
    13 |   "num_experts_per_tok": 9,
       |                          ^
       |
       = help: a token runs through some of the experts or all
    "#);
    insta::assert_snapshot!(error(with(&with(QWEN3, "use_sliding_window", "true"), "max_window_layers", "32")), @r#"
    error: 32 of 64 layers see everything and the others slide: pipo needs one rule for all
      --> config.json:26:25
       |
    26 |   "use_sliding_window": true,
       |                         ^^^^
       |
       = help: set `use_sliding_window` to false to plan with the whole cache in every layer
    "#);
    insta::assert_snapshot!(error(format!("{{\"layer_norm_elementwise_affine\": false, {}", &OPT[1..])), @r#"
    error: `layer_norm_elementwise_affine` is false, pipo supports true only
     --> config.json:1:35
      |
    1 | {"layer_norm_elementwise_affine": false, 
      |                                   ^^^^^
      |
      = help: use a checkpoint of OPT in its published form
    "#);
    insta::assert_snapshot!(error(LLAMA[..120].to_owned()), @r#"
    error: EOF while parsing an object
     --> config.json:5:22
      |
    5 |   "bos_token_id": 1280
      |                      ^
    "#);
    insta::assert_snapshot!(error("[]".to_owned()), @"
    error: invalid type: sequence, expected a map
     --> config.json:1:1
      |
    1 | []
      | ^
    ");
}

#[test]
fn nesting_without_end_is_refused() {
    assert!(read(&format!("{{\"model_type\": {}", "[".repeat(1 << 20))).is_err());
}

/// Whatever was accepted can be counted without leaving 64 bits.
fn assert_countable(model: &Model) {
    assert_eq!(model.check(), Ok(()));
    assert!(model.active_parameters() <= model.total_parameters());
    for precision in Precision::ALL {
        let parts = Part::ALL.iter().map(|&part| model.bytes(part, precision));
        assert!(parts.max().is_some_and(|largest| largest.0 < LIMIT));
        assert!(model.total_bytes(precision).0 < LIMIT);
        let cache = model.kv_bytes_per_token(precision).0.checked_mul(model.max_context);
        assert!(cache.is_some_and(|bytes| bytes < u64::MAX));
    }
}

proptest! {
    #[test]
    fn mangled_text_never_panics(
        which in 0..ALL.len(),
        cut in 0_usize..800,
        at in 0_usize..800,
        noise in "[\\PC\u{0}-\u{1f}]{0,6}",
    ) {
        let mut text = ALL[which].1.to_owned();
        let at = at.min(text.len());
        text.insert_str(at, &noise);
        let cut = text.floor_char_boundary(cut);
        for text in [&text, &text[..cut]] {
            if let Ok(model) = read(text) {
                assert_countable(&model);
            }
        }
    }

    #[test]
    fn whatever_numbers_are_accepted_can_be_counted(
        which in 0..ALL.len(),
        edits in prop::collection::vec((0_usize..30, value()), 1..6),
    ) {
        let mut text = ALL[which].1.to_owned();
        for (line, value) in edits {
            let key = ALL[which].1.lines().nth(line).and_then(|line| line.split('"').nth(1));
            if let Some(key) = key.filter(|&key| key != "model_type") {
                text = with(&text, key, &value);
            }
        }
        if let Ok(model) = read(&text) {
            assert_countable(&model);
            let written = toml::to_string(&model).unwrap();
            prop_assert_eq!(toml::from_str::<Model>(&written).unwrap(), model);
        }
    }

    /// Powers of two reach every bound and divide each other, so that nearly all of these pass.
    #[test]
    fn a_model_that_passes_its_check_can_be_counted(
        family in prop::sample::select(Family::ALL.to_vec()),
        (layers, heads, shared, head_dim) in (0_u32..14, 0_u32..13, 0_u32..5, 0_u32..12),
        (hidden, ffn, vocab, max_context) in (0_u32..21, 0_u32..23, 0_u32..25, 0_u32..25),
    ) {
        let mut models = catalog::names().into_iter().filter_map(catalog::find);
        let mut model = models.find(|model| model.family == family).unwrap();
        model.layers = 1 << layers;
        (model.heads, model.kv_heads) = (1 << heads, 1 << heads.saturating_sub(shared));
        model.head_dim = 1 << head_dim;
        model.hidden = 1 << hidden;
        (model.ffn, model.vocab, model.max_context) = (1 << ffn, 1 << vocab, 1 << max_context);
        if family == Family::Opt {
            model.kv_heads = model.heads;
            model.hidden = u64::from(model.heads) * model.head_dim;
            model.positions = model.max_context + 2;
        }
        if model.check().is_ok() {
            assert_countable(&model);
        }
    }
}

/// A model is asked for nothing before its check, but if it were, it would not panic.
#[test]
fn an_unchecked_model_saturates() {
    for name in catalog::names() {
        let mut model = catalog::find(name).unwrap();
        (model.layers, model.heads, model.kv_heads) = (u32::MAX, u32::MAX, u32::MAX);
        (model.hidden, model.head_dim, model.ffn) = (u64::MAX, u64::MAX, u64::MAX);
        (model.vocab, model.max_context) = (u64::MAX, u64::MAX);
        assert!(model.check().is_err());
        assert!(model.active_parameters() <= model.total_parameters());
        assert_eq!(model.kv_bytes_per_token(Precision::Int4).0, u64::MAX);
        assert_eq!(model.total_bytes(Precision::Int4).0, u64::MAX);
        assert!(model.expert_bytes(Precision::Fp16).is_none_or(|bytes| bytes.0 == u64::MAX));
    }
}

/// What may stand behind a key: mostly numbers, of every magnitude.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (0_u32..64, any::<u64>()).prop_map(|(shift, n)| (n >> shift).to_string()),
        3 => (0_u32..24).prop_map(|shift| (1_u64 << shift).to_string()),
        1 => any::<i64>().prop_map(|n| n.to_string()),
        1 => any::<f64>().prop_map(|n| n.to_string()),
        1 => prop::sample::select(vec!["null", "true", "false", "\"\"", "[]", "{}", "1e400", ""])
            .prop_map(str::to_owned),
    ]
}
